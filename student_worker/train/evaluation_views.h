// What a network is shown of a picture in an evaluation, and how its answers to that make one: the picture as it is, at
// several scales, in windows that slide over it, and mirrored.
//
// As in the papers' code (PSPNet's semseg, tool/test.py; mmsegmentation's slide_inference but for what is averaged,
// which there is logits): each view is answered with probabilities, the softmax over its classes. Those of a mirror
// image are mirrored back and averaged with the image's; where windows overlap, the mean counts; a scale's
// probabilities are brought to the picture's size, bilinearly, and the mean over the scales is the answer.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_EVALUATION_VIEWS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_EVALUATION_VIEWS_H_

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Immutable.
class EvaluationViews {
 public:
  // What `plan` says of pictures of this size. A scale's height and width are rounded to whole pixels. Windows start
  // every `stride` pixels, the last ones at the border; a scale that is smaller than a window lies in the middle of
  // one, within the mean colour of the student. kInvalidArgument: scales, windows or strides that make no sense, or
  // more than 100,000 views.
  static StatusOr<EvaluationViews> Create(const JobPlan& plan, uint32_t height, uint32_t width);

  struct View {
    size_t scale = 0;
    std::array<int64_t, 2> size{};    // of what is shown: height, width
    std::array<int64_t, 2> corner{};  // of the window: top, left
    bool mirrored = false;
    bool ends_scale = false;  // the last one of its scale
  };
  // Scale by scale; a mirror image after its original.
  const std::vector<View>& views() const { return views_; }
  // The picture as it is, and nothing else: its answers are taken as they come, logits.
  bool plain() const { return plain_; }
  // Of the largest view.
  uint64_t most_pixels() const;

 private:
  friend class ShownPictures;
  friend class ViewAnswers;
  struct Scale {
    std::array<int64_t, 2> size{};    // of the picture
    std::array<int64_t, 2> canvas{};  // with what is put around it
    std::array<int64_t, 2> corner{};  // of the picture in it
    torch::Tensor count;              // float32 [height, width] of the canvas: how many views show a pixel
  };
  std::array<int64_t, 2> size_{};  // of the picture
  std::vector<uint8_t> around_;    // by channel
  std::vector<Scale> scales_;
  std::vector<View> views_;
  bool plain_ = false;
};

// Some pictures, seen view by view. Owned by one thread.
class ShownPictures {
 public:
  // uint8 [n, C, H, W] on any device.
  ShownPictures(const EvaluationViews* views, torch::Tensor pictures)
      : views_(*views), pictures_(std::move(pictures)) {}
  // uint8 [n, C, h, w]. Cheap where views come in their order.
  torch::Tensor At(size_t view);

 private:
  const EvaluationViews& views_;
  const torch::Tensor pictures_;
  std::optional<size_t> scale_;
  torch::Tensor canvas_;  // of `scale_`
};

// The answers to the views of some pictures. Owned by one thread.
class ViewAnswers {
 public:
  explicit ViewAnswers(const EvaluationViews* views) : views_(*views) {}
  // Logits [n, K], or [n, K, h, w] of a network that answers for every pixel. REQUIRES: views in their order. An answer
  // for every image fits views of whole pictures alone.
  void Add(size_t view, const torch::Tensor& logits);
  // After the last view: [n, K] or [n, K, H, W], logits where views are plain(), else probabilities times the number of
  // scales.
  torch::Tensor Scores() const { return scores_; }

 private:
  const EvaluationViews& views_;
  torch::Tensor canvas_;  // sum of probabilities of the scale that is under way
  torch::Tensor scores_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_EVALUATION_VIEWS_H_
