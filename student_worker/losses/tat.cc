// Target-aware transformer (TaT): every teacher pixel is compared with a mixture of all the student's pixels, so that
// student and teacher need not agree on where something is.
//
// Source: Lin et al., "Knowledge Distillation via the Target-aware Transformer", CVPR 2022, arXiv:2205.10793. The text
// of the paper was not available; formulas and settings come from its released code and notes. With embeddings a =
// gamma(student), v = phi(student), b = theta(teacher), target f = the raw teacher map, rows = pixels:
// clang-format off
//     W = softmax_j(scale * <b_i, a_j>)      teacher_query, the paper's definition
//     W = softmax_j(scale * <a_i, b_j>)      student_query, the released code; v taken at the teacher's index j
//     loss = mean over elements of (W v - f)^2
// clang-format on
// Modes: plain, all pixels against all; hierarchical, patch_weight * patch groups + anchor_weight * anchors from the
// same a, b, v (common/plan/tat_geometry.h says how maps are cut):
//     patch group   the p patches of a group share one attention whose logits are the sum of theirs
//     anchor        a, b, v and f are averaged over kernel x kernel windows, then plain
// There is no 1/sqrt(d), one head, and the target has no embedding, which could make it trivial.
//
// `impl` tiled runs through the fused kernels of common/kernels/tat_attention.h (CPU) and common/cuda/tat_cuda.h (GPU),
// which never hold an attention matrix; dense and float64 through torch's operators. Both log, beside the term, the
// attention's mean entropy (nats) and mean largest weight: without a scale the attention is easily almost hard, and
// gamma and theta learn little then. With `compute_dtype` bf16 a, b, v and f are rounded to bfloat16; logits, softmax,
// sums and gradients are float32 all the same, and the rounding has the gradient of the identity. A 1x1 map has W = 1:
// loss = mean((phi(s) - f)^2), no gradient to gamma and theta.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/torch.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"
#include "common/kernels/tat_attention.h"
#include "common/plan/loss_schema.h"
#include "common/plan/tat_geometry.h"
#include "common/str_cat.h"
#include "student_worker/losses/conv_block.h"
#include "student_worker/losses/kernel_view.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Embeddings : torch::nn::Module {
  std::shared_ptr<ConvBlock> gamma, theta, phi;  // null: identity
};

// The map's values in bfloat16's precision, with the gradient of the identity.
torch::Tensor RoundToBfloat16(const torch::Tensor& map) {
  return map + (map.detach().to(torch::kBFloat16).to(map.scalar_type()) - map.detach());
}

torch::Tensor Embed(const std::shared_ptr<ConvBlock>& block, const torch::Tensor& map) {
  return block == nullptr ? map : block->forward(map);
}

// The four maps [N, C, H, W] that an attention compares.
struct Maps {
  torch::Tensor gamma, phi, theta, target;
};

// Loss and what is logged of one attention.
struct Part {
  torch::Tensor loss;
  torch::Tensor entropy, largest_weight;  // scalars: nats, and in (0, 1]
};

// ---- Dense

// [N, C, H, W] -> [N * groups, h * w, patches * C]: tokens are places in a patch, with the features of the group's
// patches one after the other. REQUIRES: the map is a whole number of patches.
torch::Tensor CutPatches(const torch::Tensor& map, MapSize patch, const TatGeometry& geometry) {
  const int64_t rows = geometry.grid_rows, cols = geometry.grid_cols, groups = geometry.groups;
  const int64_t n = map.size(0), c = map.size(1), h = patch.height, w = patch.width;
  return map.reshape({n, c, rows, h, cols, w})
      .permute({0, 2, 4, 3, 5, 1})  // N, rows, cols, h, w, C
      .reshape({n * groups, rows * cols / groups, h * w, c})
      .transpose(1, 2)
      .flatten(2);
}

// Positions 0 to size - 1 in `cells` cells of `cell` places each, cell after cell; -1 at places that a smaller cell
// lacks.
std::vector<int64_t> CellPositions(int64_t size, int64_t cells, int64_t cell) {
  std::vector<int64_t> positions(cells * cell, -1);
  for (int64_t i = 0; i < cells; ++i) {
    const int64_t begin = i * size / cells, end = (i + 1) * size / cells;
    for (int64_t x = begin; x < end; ++x) positions[i * cell + x - begin] = x;
  }
  return positions;
}

// The map in whole patches: without what fills none or, masked, with zeros at the places that smaller patches lack; and
// with the patches of a window, where windows make the groups, next to each other in row-major order.
torch::Tensor FitToGrid(const torch::Tensor& map, MapSize patch, const TatGeometry& geometry) {
  const int64_t rows = geometry.grid_rows, cols = geometry.grid_cols, h = patch.height, w = patch.width;
  const int64_t n = map.size(0), c = map.size(1);
  torch::Tensor fitted = map;
  if (geometry.masked) {
    for (const auto& [axis, cells, cell] : {std::tuple{2, rows, h}, std::tuple{3, cols, w}}) {
      const torch::Tensor positions = torch::tensor(CellPositions(map.size(axis), cells, cell)).to(map.device());
      std::vector<int64_t> along(4, 1);
      along[axis] = cells * cell;
      fitted = fitted.index_select(axis, positions.clamp_min(0)) * positions.ge(0).to(map.scalar_type()).view(along);
    }
  } else {
    fitted = map.slice(2, 0, rows * h).slice(3, 0, cols * w);
  }
  if (geometry.window_rows == 0) return fitted;
  const int64_t window_rows = geometry.window_rows, window_cols = geometry.window_cols;
  return fitted.reshape({n, c, rows / window_rows, window_rows, h, cols / window_cols, window_cols, w})
      .permute({0, 1, 2, 5, 3, 6, 4, 7})  // N, C, windows (2), patches of a window (2), h, w
      .reshape({n, c, rows, cols, h, w})
      .permute({0, 1, 2, 4, 3, 5})
      .reshape({n, c, rows * h, cols * w});
}

// [N, C, H, W] -> [N, H * W, C].
torch::Tensor Pixels(const torch::Tensor& map) { return map.flatten(2).transpose(1, 2); }

// With `rest`, what fills no whole anchor makes smaller ones.
torch::Tensor PoolAnchors(const torch::Tensor& map, MapSize kernel, bool rest) {
  return torch::avg_pool2d(map, {kernel.height, kernel.width}, {kernel.height, kernel.width}, /*padding=*/0,
                           /*ceil_mode=*/rest, /*count_include_pad=*/false);
}

// ---- Tiled

struct KernelCall {
  TatOptions options;
  double weight = 1;                 // LossInputs::weight: what backward's incoming scalar is going to be
  std::optional<TatOptions> anchor;  // then `options` is of the patch groups, and both are done in one go; CPU only
  bool in_bfloat16 = false;
};

// What a call of the kernel gives, scalars: the loss, with gradient; and for the log its shares of the patch groups and
// of the anchors, where both were done, and entropy and largest weight of `options`.
enum KernelOutput : size_t { kLoss, kPatchGroupLoss, kAnchorLoss, kEntropy, kLargestWeight, kKernelOutputs };

FeatureMap Describe(const torch::Tensor& map) {
  FeatureMap out;
  out.data = map.const_data_ptr();
  out.type = *KernelType(map);  // Attend has looked
  out.layout = LayoutOf(map);
  out.channels = map.size(1);
  out.height = map.size(2);
  out.width = map.size(3);
  return out;
}

// Loss and gradients in one go; backward multiplies by the loss's incoming scalar.
class TiledTat : public torch::autograd::Function<TiledTat> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& gamma, const torch::Tensor& phi,
                               const torch::Tensor& theta, const torch::Tensor& target, const KernelCall& call) {
    std::array<torch::Tensor, 4> read = {gamma, phi, theta, target};
    if (call.in_bfloat16) {
      for (torch::Tensor& map : read) map = map.to(torch::kBFloat16);
    }
    TatMaps maps;
    maps.n = gamma.size(0);
    maps.gamma = Describe(read[0]);
    maps.phi = Describe(read[1]);
    maps.theta = Describe(read[2]);
    maps.target = Describe(read[3]);
    const auto gradient_of = [](const torch::Tensor& map) {
      return torch::empty_like(map, map.options().dtype(torch::kFloat32));
    };
    const bool learns_theta = theta.requires_grad();
    const torch::Tensor d_gamma = gradient_of(gamma), d_phi = gradient_of(phi);
    const torch::Tensor d_theta = learns_theta ? gradient_of(theta) : torch::Tensor();
    TatGradients gradients;
    gradients.gamma = d_gamma.data_ptr<float>();
    gradients.phi = d_phi.data_ptr<float>();
    gradients.theta = learns_theta ? d_theta.data_ptr<float>() : nullptr;
    context->save_for_backward({d_gamma, d_phi, d_theta});
    context->saved_data["weight"] = gamma.is_cuda() ? 1.0 : call.weight;
    variable_list out =
        gamma.is_cuda() ? OnGpu(maps, call, gradients, d_gamma.options()) : OnCpu(maps, call, gradients);
    context->mark_non_differentiable({out.begin() + kPatchGroupLoss, out.end()});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const double weight = context->saved_data["weight"].toDouble();
    variable_list out(5);
    for (size_t i = 0; i < saved.size(); ++i) {
      if (saved[i].defined()) out[i] = TimesIncoming(saved[i], weight, grads[kLoss]);
    }
    return out;
  }

 private:
  static variable_list OnGpu(const TatMaps& maps, const KernelCall& call, const TatGradients& gradients,
                             const torch::TensorOptions& single) {
    const StatusOr<TatTokenPlan> plan = PlanTat(maps, call.options);
    TORCH_CHECK(plan.ok(), plan.status().ToString());
    variable_list out(kKernelOutputs);
    for (torch::Tensor& number : out) number = torch::zeros({}, single);
    TatCudaOutput output;
    output.gradients = gradients;
    output.loss = out[kLoss].data_ptr<float>();
    output.mean_entropy = out[kEntropy].data_ptr<float>();
    output.mean_largest_weight = out[kLargestWeight].data_ptr<float>();
    const std::string error = LoadedCudaPlugin()->tat_attention(maps, call.options, *plan, output);
    TORCH_CHECK(error.empty(), "tat on the GPU: ", error);
    return out;
  }

  static variable_list OnCpu(const TatMaps& maps, KernelCall call, const TatGradients& gradients) {
    call.options.weight *= call.weight;
    if (call.anchor) call.anchor->weight *= call.weight;
    TatHierarchicalResult result;  // without anchors the first one is all
    if (call.anchor) {
      const auto both = TatHierarchical(maps, call.options, *call.anchor, gradients, ParallelForOfTorch);
      TORCH_CHECK(both.ok(), both.status().ToString());
      result = *both;
    } else {
      const auto one = TatAttention(maps, call.options, gradients, ParallelForOfTorch);
      TORCH_CHECK(one.ok(), one.status().ToString());
      result.patch_group = *one;
    }
    const double patch_group = result.patch_group.loss / call.weight, anchor = result.anchor.loss / call.weight;
    variable_list out;
    for (double number : {patch_group + anchor, patch_group, anchor, result.patch_group.mean_entropy,
                          result.patch_group.mean_largest_weight}) {
      out.push_back(torch::scalar_tensor(number, torch::kFloat32));
    }
    return out;
  }
};

// ---- The loss

class TatLoss : public Loss {
 public:
  TatLoss(const LossPlan& plan, std::shared_ptr<Embeddings> embeddings)
      : knobs_(plan.knobs),
        matcher_(plan.knobs),
        embeddings_(std::move(embeddings)),
        student_channels_(plan.student_channels),
        teacher_channels_(plan.teacher_channels),
        teacher_query_(TextKnob(knobs_, "orientation") == "teacher_query"),
        hierarchical_(TextKnob(knobs_, "mode") == "hierarchical"),
        tiled_(TextKnob(knobs_, "impl") == "tiled"),
        in_bfloat16_(TextKnob(knobs_, "compute_dtype") == "bf16"),
        summed_patches_(TextKnob(knobs_, "group_mode") == "none"),
        attn_scale_(NumberKnob(knobs_, "attn_scale")),
        patch_weight_(NumberKnob(knobs_, "patch_weight")),
        anchor_weight_(NumberKnob(knobs_, "anchor_weight")),
        reduction_(TextKnob(knobs_, "reduction") == "sum_per_image" ? TatReduction::kSumPerImage
                   : TextKnob(knobs_, "reduction") == "l2norm"      ? TatReduction::kL2Norm
                                                                    : TatReduction::kMeanAll) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_ASSIGN_OR_RETURN(const MapPair pair, matcher_.Resize(inputs, /*teacher_as_it_is=*/true));
    const auto size = [](const torch::Tensor& map) {
      return MapSize{static_cast<uint32_t>(map.size(2)), static_cast<uint32_t>(map.size(3))};
    };
    DISTILL_ASSIGN_OR_RETURN(const TatGeometry geometry,
                             MakeTatGeometry(knobs_, size(pair.student), size(pair.teacher)));
    DISTILL_RETURN_IF_ERROR(CheckChannels(pair));
    details_.clear();
    if (pair.student.size(0) == 0) {
      details_.assign(detail_names().size(), torch::zeros({}));
      return Embed(embeddings_->gamma, pair.student).sum() + Embed(embeddings_->phi, pair.student).sum() +
             Embed(embeddings_->theta, ToComputeType(pair.teacher, pair.student)).sum();
    }
    Maps maps{Embed(embeddings_->gamma, pair.student), Embed(embeddings_->phi, pair.student), {}, pair.teacher};
    // The kernel reads a target of 16 bits itself; layers and torch's operators do not.
    if (!KernelCan(maps, geometry) || !KernelType(pair.teacher))
      maps.target = ToComputeType(pair.teacher, pair.student);
    maps.theta = embeddings_->theta == nullptr ? maps.target
                                               : Embed(embeddings_->theta, ToComputeType(pair.teacher, pair.student));
    if (!hierarchical_) {
      DISTILL_ASSIGN_OR_RETURN(const Part plain, Attend(maps, geometry, TatMode::kPlain, inputs.weight));
      details_ = {plain.entropy, plain.largest_weight};
      return plain.loss;
    }
    if (patch_weight_ != 0 && anchor_weight_ != 0 && KernelCan(maps, geometry) && maps.gamma.is_cpu() &&
        geometry.window_rows == 0) {
      return AttendBoth(maps, geometry, inputs.weight);
    }
    torch::Tensor total;
    Part shown;
    // A weight of 0 skips the branch.
    for (const auto& [mode, weight] :
         {std::pair{TatMode::kPatchGroup, patch_weight_}, std::pair{TatMode::kAnchor, anchor_weight_}}) {
      if (weight == 0) {
        details_.push_back(torch::zeros({}));
        continue;
      }
      const double patches = mode == TatMode::kPatchGroup && summed_patches_ ? static_cast<double>(geometry.groups) : 1;
      DISTILL_ASSIGN_OR_RETURN(Part part, Attend(maps, geometry, mode, inputs.weight * weight * patches));
      if (patches != 1) part.loss = part.loss * patches;
      details_.push_back(part.loss.detach());
      if (!total.defined()) shown = part;
      const torch::Tensor weighted = part.loss * weight;
      total = total.defined() ? total + weighted : weighted;
    }
    details_.push_back(shown.entropy);
    details_.push_back(shown.largest_weight);
    return total;
  }

  torch::nn::Module* module() const override { return embeddings_.get(); }
  std::vector<std::string> detail_names() const override {
    if (!hierarchical_) return {"entropy", "max-weight"};
    return {"patch", "anchor", "entropy", "max-weight"};
  }
  std::vector<torch::Tensor> details() const override { return details_; }

 private:
  Status CheckChannels(const MapPair& pair) const {
    if (pair.student.size(1) == student_channels_ && pair.teacher.size(1) == teacher_channels_) return OkStatus();
    return absl::InvalidArgumentError(StrCat("tat was made for ", student_channels_, " student and ", teacher_channels_,
                                             " teacher channels, but got student ", ShapeText(pair.student),
                                             " and teacher ", ShapeText(pair.teacher)));
  }

  bool KernelCan(const Maps& maps, const TatGeometry& geometry) const {
    // Without the plugin, torch's operators do the work on a GPU.
    const bool device_can = maps.gamma.is_cpu() || (maps.gamma.is_cuda() && LoadedCudaPlugin() != nullptr);
    return tiled_ && device_can && maps.gamma.scalar_type() == torch::kFloat32 && !geometry.masked;
  }

  // `weight`: what the part is going to be multiplied with before backward.
  StatusOr<Part> Attend(const Maps& maps, const TatGeometry& geometry, TatMode mode, double weight) const {
    const bool kernel_can = KernelCan(maps, geometry);
    if (mode != TatMode::kPatchGroup || (kernel_can && geometry.window_rows == 0)) {  // the kernel drops remainders
      return kernel_can ? AttendTiled(maps, geometry, mode, weight) : AttendDense(maps, geometry, mode);
    }
    const MapSize student = geometry.student.patch, teacher = geometry.teacher.patch;
    const Maps fitted{FitToGrid(maps.gamma, student, geometry), FitToGrid(maps.phi, student, geometry),
                      FitToGrid(maps.theta, teacher, geometry), FitToGrid(maps.target, teacher, geometry)};
    return kernel_can ? AttendTiled(fitted, geometry, mode, weight) : AttendDense(fitted, geometry, mode, &maps);
  }

  double ScaleFor(int64_t width) const {
    return attn_scale_ == 0 ? 1 / std::sqrt(static_cast<double>(width)) : attn_scale_;
  }

  TatOptions OptionsFor(const Maps& maps, const TatGeometry& geometry, TatMode mode) const {
    TatOptions options;
    options.orientation = teacher_query_ ? TatOrientation::kTeacherQuery : TatOrientation::kStudentQuery;
    options.mode = mode;
    options.grid_rows = geometry.grid_rows;
    options.grid_columns = geometry.grid_cols;
    options.groups = geometry.groups;
    options.teacher_window = {geometry.teacher.anchor.height, geometry.teacher.anchor.width};
    options.student_window = {geometry.student.anchor.height, geometry.student.anchor.width};
    options.reduction = reduction_;
    int64_t width = maps.gamma.size(1);
    if (mode == TatMode::kPatchGroup) width *= geometry.grid_rows * geometry.grid_cols / geometry.groups;
    options.attention_scale = ScaleFor(width);
    return options;
  }

  // By KernelOutput.
  variable_list CallKernel(const Maps& maps, KernelCall call) const {
    call.in_bfloat16 = in_bfloat16_;
    const auto dense = [](const torch::Tensor& map) {
      return LayoutOf(map) == MapLayout::kChannelsLast ? map : map.contiguous();
    };
    const auto dense_teacher = [](const torch::Tensor& map) {
      return LayoutOf(map) == MapLayout::kChannelsLast ? map : InLayout(map, torch::MemoryFormat::Contiguous);
    };
    return TiledTat::apply(dense(maps.gamma), dense(maps.phi), dense_teacher(maps.theta), dense_teacher(maps.target),
                           call);
  }

  Part AttendTiled(const Maps& maps, const TatGeometry& geometry, TatMode mode, double weight) const {
    const variable_list out = CallKernel(maps, {.options = OptionsFor(maps, geometry, mode), .weight = weight});
    return {out[kLoss], out[kEntropy], out[kLargestWeight]};
  }

  // Patch groups and anchors in one call, which reads and writes less than two. Neither weight is 0.
  torch::Tensor AttendBoth(const Maps& maps, const TatGeometry& geometry, double weight) const {
    KernelCall call;
    call.weight = weight;
    call.options = OptionsFor(maps, geometry, TatMode::kPatchGroup);
    call.options.weight = patch_weight_ * (summed_patches_ ? static_cast<double>(geometry.groups) : 1);
    call.anchor = OptionsFor(maps, geometry, TatMode::kAnchor);
    call.anchor->weight = anchor_weight_;
    const variable_list out = CallKernel(maps, std::move(call));
    details_ = {out[kPatchGroupLoss] / patch_weight_, out[kAnchorLoss] / anchor_weight_, out[kEntropy],
                out[kLargestWeight]};
    return out[kLoss];
  }

  // `inside`: the maps before they were fitted to the grid; patch groups only.
  StatusOr<Part> AttendDense(const Maps& given, const TatGeometry& geometry, TatMode mode,
                             const Maps* inside = nullptr) const {
    const Maps maps = in_bfloat16_ ? Maps{RoundToBfloat16(given.gamma), RoundToBfloat16(given.phi),
                                          RoundToBfloat16(given.theta), RoundToBfloat16(given.target)}
                                   : given;
    const auto tokens = [&](const torch::Tensor& map, const TatSide& side) {
      if (mode == TatMode::kPatchGroup) return CutPatches(map, side.patch, geometry);
      return Pixels(mode == TatMode::kAnchor ? PoolAnchors(map, side.anchor, geometry.masked) : map);
    };
    const torch::Tensor a = tokens(maps.gamma, geometry.student), v = tokens(maps.phi, geometry.student);
    const torch::Tensor b = tokens(maps.theta, geometry.teacher), f = tokens(maps.target, geometry.teacher);
    torch::Tensor logits = teacher_query_ ? b.matmul(a.transpose(1, 2)) : a.matmul(b.transpose(1, 2));
    logits = logits * ScaleFor(a.size(2));
    const bool masked = mode == TatMode::kPatchGroup && geometry.masked;
    torch::Tensor counts;  // 1 for elements of f that are the map's, else 0
    if (masked) {
      // A place that one of a group's patches lacks is no key of that group: there is no value for it. As a query it
      // counts in the patches that have it.
      const auto ones = [&](const torch::Tensor& map, MapSize patch) {
        return FitToGrid(torch::ones_like(map.slice(0, 0, 1)), patch, geometry);
      };
      counts = tokens(ones(inside->target, geometry.teacher.patch), geometry.teacher)
                   .repeat({f.size(0) / geometry.groups, 1, 1});
      const torch::Tensor student = tokens(ones(inside->phi, geometry.student.patch), geometry.student);
      const torch::Tensor lacking = student.amin(2).eq(0).unsqueeze(1);  // (groups, 1, Lk)
      logits = logits.masked_fill(lacking.repeat({f.size(0) / geometry.groups, 1, 1}),
                                  -std::numeric_limits<double>::infinity());
    }
    const torch::Tensor weights = torch::softmax(logits, 2);  // (G, Lq, Lk)
    torch::Tensor residual = weights.matmul(v) - f;           // (G, Lq, C)
    if (masked) residual = residual * counts;
    Part part;
    part.loss = ReduceResidual(residual, maps.gamma.size(0), masked ? counts.sum() : torch::Tensor());
    torch::NoGradGuard no_grad;
    part.entropy = -torch::xlogy(weights, weights).sum(2).mean();
    part.largest_weight = weights.amax(2).mean();
    return part;
  }

  // `count`: of elements that are not masked to 0; undefined: all.
  torch::Tensor ReduceResidual(const torch::Tensor& residual, int64_t images, const torch::Tensor& count) const {
    switch (reduction_) {
      case TatReduction::kMeanAll:
        return count.defined() ? residual.square().sum() / count : residual.square().mean();
      case TatReduction::kSumPerImage:
        return residual.square().sum() / static_cast<double>(images);
      case TatReduction::kL2Norm:
        // The norm's gradient at 0 is 0; that of a square root would be infinite.
        return torch::linalg_vector_norm(residual.reshape({images, -1}), 2, at::IntArrayRef{1}).mean();
    }
    return residual.square().mean();
  }

  const Knobs knobs_;
  const SpatialMatcher matcher_;
  const std::shared_ptr<Embeddings> embeddings_;  // shared as torch modules are
  const int64_t student_channels_, teacher_channels_;
  const bool teacher_query_, hierarchical_, tiled_, in_bfloat16_, summed_patches_;
  const double attn_scale_, patch_weight_, anchor_weight_;
  const TatReduction reduction_;
  mutable std::vector<torch::Tensor> details_;  // of the last Compute
};

}  // namespace

LossOrStatus MakeTat(const LossPlan& plan, uint64_t seed) {
  const int64_t student = plan.student_channels, teacher = plan.teacher_channels;
  if (student == 0 || teacher == 0) {
    return absl::InvalidArgumentError(
        StrCat("tat from ", student, " to ", teacher, " channels; both must be at least 1"));
  }
  if (TextKnob(plan.knobs, "mode") == "auto") {
    return absl::InvalidArgumentError("mode is auto; the coordinator turns it into plain or hierarchical");
  }
  if (TextKnob(plan.knobs, "mode") == "hierarchical" && NumberKnob(plan.knobs, "patch_weight") == 0 &&
      NumberKnob(plan.knobs, "anchor_weight") == 0) {
    return absl::InvalidArgumentError("patch_weight and anchor_weight are both 0, so there is nothing to compare");
  }
  const std::string& norm = TextKnob(plan.knobs, "embed_bn");
  auto embeddings = std::make_shared<Embeddings>();
  const auto make = [&](const std::string& name, int64_t in, std::shared_ptr<ConvBlock>* out) -> Status {
    const std::string& kind = TextKnob(plan.knobs, name);
    if (kind == "auto") {
      return absl::InvalidArgumentError(StrCat(name, " is auto; the coordinator turns it into a kind of layer"));
    }
    if (kind == "identity") {
      if (in == teacher) return OkStatus();
      return absl::InvalidArgumentError(StrCat(name, ": identity needs equal channels, not ", in, " and ", teacher));
    }
    ConvBlock::Options options{.in = in, .out = teacher, .kernel = kind == "conv3x3_bn" ? 3 : 1};
    options.norm = norm == "per_sample" ? ConvBlock::Norm::kPerSample
                   : norm == "frozen"   ? ConvBlock::Norm::kFrozen
                                        : ConvBlock::Norm::kBatch;
    *out = embeddings->register_module(name, std::make_shared<ConvBlock>(options, SeedFor(name, seed)));
    return OkStatus();
  };
  DISTILL_RETURN_IF_ERROR(make("gamma", student, &embeddings->gamma));
  DISTILL_RETURN_IF_ERROR(make("theta", teacher, &embeddings->theta));
  DISTILL_RETURN_IF_ERROR(make("phi", student, &embeddings->phi));
  return std::make_unique<TatLoss>(plan, std::move(embeddings));
}

}  // namespace distill::loss_internal
