// How well a network does on the test set, counted answer by answer so that ranks can add their parts up. No torch
// here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "student_worker/data/sample_reader.h"

namespace distill {

// Shares in [0, 1]; negative: not measured.
struct Score {
  // Answers that are the label's, of all images or, in segmentation, of all labelled pixels together.
  double accuracy = -1;
  // Intersection over union of a class's pixels in answers and labels, over the whole set, mean over the classes that
  // occur in either. Only where pixels have labels.
  double mean_iou = -1;
  bool operator==(const Score&) const = default;
};

// The labels of samples as ScoreTally takes them: one for each image or, where they have label maps, one for each
// pixel, row by row.
std::vector<int64_t> LabelsOf(const Samples& samples);

// Thread-compatible.
class ScoreTally {
 public:
  // Classes are [0, classes). `pixels`: answers are for pixels, so that there is a mean IoU.
  ScoreTally(uint32_t classes, bool pixels);

  // One answer for each label. An answer whose label is negative (kNoLabel) is not counted; one beyond the classes is
  // wrong. REQUIRES: equal sizes, labels < classes.
  void Add(std::span<const int64_t> answers, std::span<const int64_t> labels);
  // The counts so far: those of several tallies add up element by element.
  const std::vector<double>& counts() const { return counts_; }
  // REQUIRES: as many as counts().
  void SetCounts(std::vector<double> counts) { counts_ = std::move(counts); }
  // Accuracy -1 when nothing was counted.
  Score Result() const;

 private:
  const size_t classes_;
  const bool pixels_;
  // Right answers, all answers; then, for pixels and each class: right answers, answers, labels.
  std::vector<double> counts_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_
