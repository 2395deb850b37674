#include "common/score/score_codec.h"

#include "distill/v1/job.pb.h"

namespace distill {

void ToProto(const Score& score, v1::Score* proto) {
  proto->Clear();
  for (const NamedNumber& metric : score.metrics) {
    v1::NamedValue* const value = proto->add_metrics();
    value->set_name(metric.name);
    value->set_value(metric.value);
  }
}

void ToProto(const ClassResults& results, v1::ClassResults* proto) {
  proto->Clear();
  proto->mutable_labelled()->Assign(results.labelled.begin(), results.labelled.end());
  proto->mutable_answered()->Assign(results.answered.begin(), results.answered.end());
  proto->mutable_right()->Assign(results.right.begin(), results.right.end());
  proto->mutable_confusion()->Assign(results.confusion.begin(), results.confusion.end());
}

Score FromProto(const v1::Score& proto) {
  Score score;
  for (const v1::NamedValue& metric : proto.metrics()) score.metrics.push_back({metric.name(), metric.value()});
  return score;
}

ClassResults FromProto(const v1::ClassResults& proto) {
  const int n = proto.labelled_size();
  if (proto.answered_size() != n || proto.right_size() != n) return {};
  ClassResults results;
  results.labelled.assign(proto.labelled().begin(), proto.labelled().end());
  results.answered.assign(proto.answered().begin(), proto.answered().end());
  results.right.assign(proto.right().begin(), proto.right().end());
  if (proto.confusion_size() == int64_t{n} * n) {
    results.confusion.assign(proto.confusion().begin(), proto.confusion().end());
  }
  return results;
}

}  // namespace distill
