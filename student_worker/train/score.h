// How well a network does on the test set, counted answer by answer so that ranks can add their parts up. No torch
// here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/score/score.h"
#include "student_worker/data/sample_reader.h"

namespace distill {

// The labels of samples as ScoreTally takes them: one for each image or, where they have label maps, one for each
// pixel, row by row.
std::vector<int64_t> LabelsOf(const Samples& samples);

// Thread-compatible.
class ScoreTally {
 public:
  // Classes are [0, classes). `pixels`: labels are for pixels. REQUIRES: then classes <= kMaxByClass.
  ScoreTally(uint32_t classes, bool pixels);

  // One answer for each label. An answer whose label is negative (kNoLabel) is not counted; one beyond the classes is
  // wrong. `larger`: how many classes have a larger logit than the label's, for top5; not read for pixels and for
  // labels that are not counted. REQUIRES: equal sizes (`larger` of pixels: any), labels < classes.
  void Add(std::span<const int64_t> answers, std::span<const int64_t> labels, std::span<const int64_t> larger);
  // The counts so far: those of several tallies add up element by element.
  const std::vector<double>& counts() const { return counts_; }
  // REQUIRES: as many as counts().
  void SetCounts(std::vector<double> counts) { counts_ = std::move(counts); }
  // Not measured when nothing was counted.
  Score Result() const;

 private:
  ClassResults ByClass() const;

  const size_t classes_;
  const bool pixels_;
  // All answers, right ones, those among the first five; then, up to kMaxConfusion classes, by label and answer, a
  // column more for answers beyond the classes; else, up to kMaxByClass, labels, answers and right answers of each.
  std::vector<double> counts_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_SCORE_H_
