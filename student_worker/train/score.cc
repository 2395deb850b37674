#include "student_worker/train/score.h"

#include <algorithm>

namespace distill {

std::vector<int64_t> LabelsOf(const Samples& samples) {
  if (samples.label_maps.empty()) return samples.labels;
  std::vector<int64_t> labels;
  labels.reserve(samples.label_maps.size());
  for (const uint8_t id : samples.label_maps) labels.push_back(id == kIgnoredPixel ? kNoLabel : id);
  return labels;
}

namespace {

constexpr size_t kTotals = 3;  // the first counts: all, right, among the first five

size_t NumberOfCounts(size_t classes) {
  if (classes <= kMaxConfusion) return kTotals + classes * (classes + 1);
  return kTotals + (classes <= kMaxByClass ? 3 * classes : 0);
}

}  // namespace

ScoreTally::ScoreTally(uint32_t classes, bool pixels)
    : classes_(classes), pixels_(pixels), counts_(NumberOfCounts(classes), 0.0) {}

void ScoreTally::Add(std::span<const int64_t> answers, std::span<const int64_t> labels,
                     std::span<const int64_t> larger) {
  double* const by_class = counts_.data() + kTotals;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0) continue;
    const auto label = static_cast<size_t>(labels[i]);
    const size_t answer = std::min(static_cast<size_t>(answers[i]), classes_);  // negative ones wrap and are beyond
    counts_[0] += 1;
    counts_[1] += answer == label ? 1 : 0;
    if (!pixels_) counts_[2] += larger[i] < 5 ? 1 : 0;
    if (classes_ <= kMaxConfusion) {
      by_class[label * (classes_ + 1) + answer] += 1;
    } else if (classes_ <= kMaxByClass) {
      by_class[label] += 1;
      if (answer < classes_) by_class[classes_ + answer] += 1;
      if (answer == label) by_class[2 * classes_ + label] += 1;
    }
  }
}

ClassResults ScoreTally::ByClass() const {
  ClassResults results;
  if (classes_ > kMaxByClass) return results;
  const auto number = [this](size_t i) { return static_cast<uint64_t>(counts_[kTotals + i]); };
  results.labelled.resize(classes_);
  results.answered.resize(classes_);
  results.right.resize(classes_);
  if (classes_ > kMaxConfusion) {
    for (size_t k = 0; k < classes_; ++k) {
      results.labelled[k] = number(k);
      results.answered[k] = number(classes_ + k);
      results.right[k] = number(2 * classes_ + k);
    }
    return results;
  }
  for (size_t label = 0; label < classes_; ++label) {
    for (size_t answer = 0; answer <= classes_; ++answer) {
      const uint64_t count = number(label * (classes_ + 1) + answer);
      results.labelled[label] += count;
      if (answer == classes_) continue;
      results.confusion.push_back(count);
      results.answered[answer] += count;
      if (answer == label) results.right[label] = count;
    }
  }
  return results;
}

Score ScoreTally::Result() const {
  Score score;
  if (counts_[0] == 0) return score;
  score.by_class = ByClass();
  if (!pixels_) {
    score.metrics.push_back({kTop1, counts_[1] / counts_[0]});
    if (classes_ > 5) score.metrics.push_back({kTop5, counts_[2] / counts_[0]});
    return score;
  }
  double sum = 0;
  size_t occurring = 0;
  const ClassResults& by_class = score.by_class;
  for (size_t k = 0; k < by_class.classes(); ++k) {
    const uint64_t either = by_class.labelled[k] + by_class.answered[k] - by_class.right[k];
    if (either == 0) continue;
    sum += static_cast<double>(by_class.right[k]) / static_cast<double>(either);
    ++occurring;
  }
  score.metrics.push_back({kMeanIou, sum / static_cast<double>(occurring)});
  score.metrics.push_back({kPixelAccuracy, counts_[1] / counts_[0]});
  return score;
}

}  // namespace distill
