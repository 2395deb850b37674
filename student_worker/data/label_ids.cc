#include "student_worker/data/label_ids.h"

#include "common/str_cat.h"
#include "student_worker/data/picture.h"

namespace distill {

LabelIds::LabelIds(uint32_t ignore_label)
    : ignore_label_(ignore_label), no_label_(StrCat("the value of data.ignore_label (", ignore_label, ")")) {
  for (uint32_t id = 0; id < classes_.size(); ++id) {
    classes_[id] = id == ignore_label ? kNone : static_cast<uint16_t>(id);
  }
}

StatusOr<LabelIds> LabelIds::Create(const DataPlan& plan, uint32_t classes) {
  if (plan.ignore_label > kIgnoredPixel) {
    return absl::InvalidArgumentError(
        StrCat("data.ignore_label is ", plan.ignore_label, ", but label maps hold values of 0 to ", kIgnoredPixel));
  }
  LabelIds ids(plan.ignore_label);
  ids.renumbers_ = plan.reduce_zero_label || !plan.label_map.empty();
  if (plan.reduce_zero_label) {
    if (!plan.label_map.empty()) {
      return absl::InvalidArgumentError("data.label_map does all that data.reduce_zero_label does; leave one out");
    }
    for (uint32_t id = 0; id < ids.classes_.size(); ++id) {
      if (id != plan.ignore_label) ids.classes_[id] = id == 0 ? kNone : static_cast<uint16_t>(id - 1);
    }
    ids.no_label_ = StrCat("0 (data.reduce_zero_label) or the value of data.ignore_label (", plan.ignore_label, ")");
  } else if (!plan.label_map.empty()) {
    ids.classes_.fill(kNone);
    ids.no_label_ = "a value that data.label_map does not name";
    for (const auto& [id, label] : plan.label_map) {
      if (id >= ids.classes_.size() || label >= kIgnoredPixel || (classes > 0 && label >= classes)) {
        return absl::InvalidArgumentError(StrCat("data.label_map: id ", id, " has class ", label, "; ids are 0 to ",
                                                 kIgnoredPixel, ", classes 0 to ",
                                                 (classes > 0 ? classes : kIgnoredPixel) - 1));
      }
      ids.classes_[id] = static_cast<uint16_t>(label);
    }
  }
  return ids;
}

}  // namespace distill
