// How well a network does on a test set: metrics by name, and results by class. Plain values; codec: score_codec.h.
#ifndef DISTILL_COMMON_SCORE_SCORE_H_
#define DISTILL_COMMON_SCORE_SCORE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace distill {

struct NamedNumber {
  std::string name;
  double value = 0;
  bool operator==(const NamedNumber&) const = default;
};

// Counts of the whole test set, of images or of labelled pixels. Empty vectors: not counted.
struct ClassResults {
  std::vector<uint64_t> labelled;  // [K] of each class: those whose label it is,
  std::vector<uint64_t> answered;  // [K] those that were given it as the answer,
  std::vector<uint64_t> right;     // [K] and those of which both is true
  // [K, K], row by row: by label and answer. Answers outside the classes are in no column. Only up to kMaxConfusion
  // classes.
  std::vector<uint64_t> confusion;
  size_t classes() const { return labelled.size(); }
  bool operator==(const ClassResults&) const = default;
};

inline constexpr uint32_t kMaxConfusion = 256;   // classes; beyond, the matrix is left out
inline constexpr uint32_t kMaxByClass = 10'000;  // classes; beyond, all of ClassResults is

// Metrics of tasks. Each is a share in [0, 1].
inline constexpr char kTop1[] = "top1";         // the answer is the label
inline constexpr char kTop5[] = "top5";         // fewer than five classes have a larger logit than the label
inline constexpr char kMeanIou[] = "mean_iou";  // intersection over union of answers and labels, by class over
                                                // the whole set, mean over the classes that occur in either
inline constexpr char kPixelAccuracy[] = "pixel_accuracy";  // of all labelled pixels together

struct Score {
  // The first one is the task's headline: top1 (then top5, with more than five classes) where images have labels,
  // mean_iou (then pixel_accuracy) where pixels have. Empty: not measured.
  std::vector<NamedNumber> metrics;
  ClassResults by_class;
  bool measured() const { return !metrics.empty(); }
  // Null when it is not among them.
  const double* Find(std::string_view name) const;
  bool operator==(const Score&) const = default;
};

// For people: "top-1", "mIoU", "pixel accuracy"; an unknown name with spaces for '_'.
std::string MetricLabel(std::string_view name);
// "top-1 0.8847, top-5 0.9912"; "not measured".
std::string DescribeScore(const Score& score);

}  // namespace distill

#endif  // DISTILL_COMMON_SCORE_SCORE_H_
