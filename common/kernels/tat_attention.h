// The attention loss of the target-aware transformer (TaT), forward and backward in one go, without ever holding an
// (H*W) x (H*W) matrix: the heart of the loss, on raw memory, without torch.
//
// Source: Lin et al., "Knowledge Distillation via the Target-aware Transformer", CVPR 2022, arXiv:2205.10793. The
// student's map is embedded twice, a = gamma(student) and v = phi(student), the teacher's once, b = theta(teacher); f
// is the teacher's raw map, the target. A token is a pixel (or a pooled pixel), a row of a, b, v, f. For every query i
//     w_i = softmax_j(scale * <query_i, key_j>),   o_i = sum_j w_ij v_j,   loss = weight * mean((o - f)^2)
// with the mean over all elements. There is no 1/sqrt(d) by default, no positional code, one head.
//
// Orientation, where the paper's text and its released code disagree:
//   teacher_query  query = b (teacher), key = a (student): every teacher pixel gathers student pixels. The paper's
//                  definition.
//   student_query  query = a (student), key = b (teacher), v still the student's, taken at the teacher's index j. The
//                  released code; needs equal numbers of tokens on both sides.
// Modes:
//   plain          tokens are the pixels, all against all.
//   patch_group    each map is cut into grid_rows x grid_columns patches, numbered row by row; `groups` runs of p
//                  consecutive patches form groups. Inside a group the token (y, x) carries the features of that place
//                  in all p patches, one after the other: one attention per group over h*w tokens of p*C features.
//   anchor         maps are averaged over windows first; then plain.
// A hierarchical loss is the sum of a patch_group and an anchor loss: TatHierarchical.
// Pixels that the division of H and W leaves over at the bottom and the right are dropped (gradient 0), as in the
// released code.
//
// Shapes   gamma [N, D, Hs, Ws], phi [N, C, Hs, Ws] (student), theta [N, D, Ht, Wt], target [N, C, Ht, Wt] (teacher).
//          theta and target may be the same memory (theta = identity). Each map is float32, bfloat16 or float16 in
//          either layout; everything inside is float32, sums of the loss are double. Gradients are float32.
// Memory   extra: float32 copies of the four maps' tokens, and two of the keys' side for gradients; of a few groups per
//          thread (patch_group) or of an image per thread (plain); anchor: also the averaged maps, of an image per
//          thread. Attention weights, and the logits' gradient, exist for 128 queries of an image at a time (6 % of the
//          matrix at 4096 tokens, 1.6 % at 16384), or for whole groups of at most 256 tokens, a few at a time.
// Result   does not depend on the number of threads. It differs in the last bits between instruction sets.
// Reference: tat_attention_reference.h (plain loops, read this first).
#ifndef DISTILL_COMMON_KERNELS_TAT_ATTENTION_H_
#define DISTILL_COMMON_KERNELS_TAT_ATTENTION_H_

#include <cstdint>

#include "common/kernels/element_type.h"
#include "common/kernels/map_layout.h"
#include "common/kernels/parallel_for.h"
#include "common/kernels/simd_level.h"
#include "common/status.h"

namespace distill {

enum class TatOrientation : uint8_t { kTeacherQuery, kStudentQuery };
enum class TatMode : uint8_t { kPlain, kPatchGroup, kAnchor };

enum class TatReduction : uint8_t {
  kMeanAll,      // mean over all elements of the batch: what the released code and the published weights mean
  kSumPerImage,  // sum over an image's elements, mean over images
  kL2Norm,       // ||o - f||_2 of each image (the paper's print), mean over images; costs a second forward
};

// A pooling window, in pixels; its stride too.
struct TatWindow {
  int64_t height = 4, width = 4;
  int64_t count() const { return height * width; }
};

struct TatOptions {
  TatOrientation orientation = TatOrientation::kTeacherQuery;
  TatMode mode = TatMode::kPlain;
  int64_t grid_rows = 16, grid_columns = 16;  // patches; patch_group only
  int64_t groups = 64;                        // divides grid_rows * grid_columns
  TatWindow teacher_window, student_window;   // anchor only
  double attention_scale = 1;                 // multiplies the logits; finite
  TatReduction reduction = TatReduction::kMeanAll;
  double weight = 1;  // multiplies loss and gradients; finite
};

struct FeatureMap {
  const void* data = nullptr;
  ElementType type = ElementType::kFloat32;
  MapLayout layout = MapLayout::kChannelsFirst;
  int64_t channels = 0, height = 0, width = 0;
};

struct TatMaps {
  int64_t n = 0;             // images; 0: the loss is 0
  FeatureMap gamma, phi;     // student: keys (or queries) and values
  FeatureMap theta, target;  // teacher: queries (or keys) and what the output is compared with
};

// d loss / d map, float32, in the map's shape and layout. Null: not wanted (theta = identity). None may overlap a map.
struct TatGradients {
  float* gamma = nullptr;
  float* phi = nullptr;
  float* theta = nullptr;
};

struct TatResult {
  double loss = 0;
  // For the log. Entropy of w_i in nats and its largest weight, averaged over queries: without a 1/sqrt(d) the
  // attention is easily almost hard (entropy near 0), and gradients to gamma and theta are small then.
  double mean_entropy = 0;
  double mean_largest_weight = 0;
  int64_t dropped_teacher_pixels = 0, dropped_student_pixels = 0;  // per image
  // "gamma", "phi", "theta", "target" or "attention logits" if the first NaN or infinity was found there; then the loss
  // is NaN and the gradients are unspecified: the caller skips the step. Else null.
  const char* nonfinite = nullptr;
};

// kInvalidArgument, with nothing written: shapes that do not fit each other or the options; the message names both
// numbers. Thread-safe, stateless; blocks until done. `level` is for tests: REQUIRES: one of AvailableSimdLevels().
StatusOr<TatResult> TatAttention(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients,
                                 const ParallelFor& parallel_for, SimdLevel level = BestSimdLevel());

// Patch groups and anchors of the same maps in one go, one gradient for both: the anchors first, each map averaged in
// one reading; then the patch groups, which read it again, and write each gradient once, the anchors' share added. The
// anchors' gradient exists for the averaged maps alone.
struct TatHierarchicalResult {
  TatResult patch_group, anchor;
};
// As TatAttention, once with `patch_group` and, its gradients added, once with `anchor`. kInvalidArgument also if the
// modes are not those.
StatusOr<TatHierarchicalResult> TatHierarchical(const TatMaps& maps, const TatOptions& patch_group,
                                                const TatOptions& anchor, const TatGradients& gradients,
                                                const ParallelFor& parallel_for, SimdLevel level = BestSimdLevel());

// How tokens lie in the maps of one side (teacher's or student's): what TatAttention and its reference compute from the
// options.
struct TatTokens {
  int64_t patch_columns = 1;      // patch g lies at row g / patch_columns, column g % patch_columns of the grid
  int64_t height = 0, width = 0;  // tokens of a patch
  TatWindow window{1, 1};         // a token is the mean of so many pixels
  int64_t map_height = 0, map_width = 0;
  int64_t count() const { return height * width; }
};
struct TatTokenPlan {
  TatTokens teacher, student;
  int64_t groups = 1;
  int64_t patches = 1;  // p, per group
};
StatusOr<TatTokenPlan> PlanTat(const TatMaps& maps, const TatOptions& options);

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_TAT_ATTENTION_H_
