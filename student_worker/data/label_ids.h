// What the values in the files of label maps stand for: DataPlan.ignore_label, label_map, reduce_zero_label.
#ifndef DISTILL_STUDENT_WORKER_DATA_LABEL_IDS_H_
#define DISTILL_STUDENT_WORKER_DATA_LABEL_IDS_H_

#include <array>
#include <cstdint>
#include <string>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Immutable; any thread.
class LabelIds {
 public:
  static constexpr uint16_t kNone = 256;  // no label

  LabelIds() : LabelIds(255) {}  // values are classes, but for 255, which is none
  // kInvalidArgument: a value over 255, a class that the student (of `classes`; 0: any) does not have or that stands
  // for no label, both of label_map and reduce_zero_label.
  static StatusOr<LabelIds> Create(const DataPlan& plan, uint32_t classes);

  // The class of a value, which may be beyond the student's, or kNone.
  uint16_t ClassOf(uint8_t id) const { return classes_[id]; }
  uint32_t ignore_label() const { return ignore_label_; }
  // Whether values are other numbers than their classes.
  bool renumbers() const { return renumbers_; }
  // Which values have no label, for messages: "the value of data.ignore_label (255)".
  const std::string& no_label() const { return no_label_; }

 private:
  explicit LabelIds(uint32_t ignore_label);

  uint32_t ignore_label_;
  bool renumbers_ = false;
  std::string no_label_;
  std::array<uint16_t, 256> classes_;  // by value
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_LABEL_IDS_H_
