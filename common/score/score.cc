#include "common/score/score.h"

#include <algorithm>

#include "common/str_cat.h"

namespace distill {

const double* Score::Find(std::string_view name) const {
  for (const NamedNumber& metric : metrics) {
    if (metric.name == name) return &metric.value;
  }
  return nullptr;
}

std::string MetricLabel(std::string_view name) {
  if (name == kTop1) return "top-1";
  if (name == kTop5) return "top-5";
  if (name == kMeanIou) return "mIoU";
  std::string label(name);
  std::replace(label.begin(), label.end(), '_', ' ');
  return label;
}

std::string DescribeScore(const Score& score) {
  std::string text;
  for (const NamedNumber& metric : score.metrics) {
    StrAppend(&text, text.empty() ? "" : ", ", MetricLabel(metric.name), " ", metric.value);
  }
  return text.empty() ? "not measured" : text;
}

}  // namespace distill
