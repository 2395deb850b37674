#include "student_worker/train/score.h"

namespace distill {

std::vector<int64_t> LabelsOf(const Samples& samples) {
  if (samples.label_maps.empty()) return samples.labels;
  std::vector<int64_t> labels;
  labels.reserve(samples.label_maps.size());
  for (const uint8_t id : samples.label_maps) labels.push_back(id == kIgnoredPixel ? kNoLabel : id);
  return labels;
}

ScoreTally::ScoreTally(uint32_t classes, bool pixels)
    : classes_(classes), pixels_(pixels), counts_(2 + (pixels ? 3 * classes_ : 0), 0.0) {}

void ScoreTally::Add(std::span<const int64_t> answers, std::span<const int64_t> labels) {
  double* const right = counts_.data() + 2;  // by class, for pixels
  double* const answered = right + classes_;
  double* const labelled = answered + classes_;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0) continue;
    const bool is_right = answers[i] == labels[i];
    counts_[0] += is_right ? 1 : 0;
    counts_[1] += 1;
    if (!pixels_) continue;
    right[labels[i]] += is_right ? 1 : 0;
    if (static_cast<uint64_t>(answers[i]) < classes_) answered[answers[i]] += 1;
    labelled[labels[i]] += 1;
  }
}

Score ScoreTally::Result() const {
  Score score;
  if (counts_[1] == 0) return score;
  score.accuracy = counts_[0] / counts_[1];
  if (!pixels_) return score;
  double sum = 0;
  size_t occurring = 0;
  for (size_t c = 0; c < classes_; ++c) {
    const double right = counts_[2 + c];
    const double either = counts_[2 + classes_ + c] + counts_[2 + 2 * classes_ + c] - right;
    if (either == 0) continue;
    sum += right / either;
    ++occurring;
  }
  score.mean_iou = sum / static_cast<double>(occurring);
  return score;
}

}  // namespace distill
