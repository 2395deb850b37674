#include "common/zoo/zoo_net.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/batch_norm.h"
#include "common/zoo/module_path.h"
#include "common/zoo/narrow_conv.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

// A module that only holds others; what runs when is in its definition's steps (ZooNet::Run).
struct Container : torch::nn::Module {};

std::shared_ptr<torch::nn::Module> MakeModule(const ModuleDef& def) {
  namespace nn = torch::nn;
  if (IsContainer(def.kind)) return std::make_shared<Container>();
  switch (def.kind) {
    case ModuleKind::kConv2d:
      return nn::Conv2d(nn::Conv2dOptions(def.in, def.out, def.kernel)
                            .stride(def.stride)
                            .padding(def.padding)
                            .dilation(def.dilation)
                            .groups(def.groups)
                            .bias(def.bias))
          .ptr();
    case ModuleKind::kBatchNorm2d:
      return nn::BatchNorm2d(nn::BatchNorm2dOptions(def.out)).ptr();
    case ModuleKind::kLinear:
      return nn::Linear(nn::LinearOptions(def.in, def.out)).ptr();
    default:
      return nullptr;
  }
}

}  // namespace

struct ZooNet::Node {
  const ModuleDef* def = nullptr;  // into ZooNet::arch_, whose tree does not change
  std::string path;
  std::shared_ptr<torch::nn::Module> module;  // null for plain functions; the root's is the net, not held here
  std::vector<Node> children;
  std::vector<Step> steps;       // of containers, chains written out
  std::vector<size_t> last_use;  // LastUses of them

  // Makes the modules below `def` and registers each with its parent; `self` is def's own module, null for plain
  // functions.
  static Node Build(const ModuleDef& def, const std::string& path, torch::nn::Module* self) {
    Node node{.def = &def, .path = path, .module = nullptr, .children = {}, .steps = StepsOf(def), .last_use = {}};
    node.last_use = LastUses(node.steps, def.inputs);
    for (const ModuleDef& child : def.children) {
      std::shared_ptr<torch::nn::Module> module = MakeModule(child);
      if (module != nullptr) self->register_module(child.name, module);
      node.children.push_back(Build(child, JoinModulePath(path, child.name), module.get()));
      node.children.back().module = std::move(module);
    }
    return node;
  }
  Node* Find(std::string_view wanted) {
    if (path == wanted) return this;
    for (Node& child : children) {
      if (!IsUnder(wanted, child.path)) continue;
      return child.Find(wanted);
    }
    return nullptr;
  }
};

// One forward pass: walks the tree, keeps what was asked for, and stops as soon as all of it is known.
struct ZooNet::Run {
  const std::vector<std::string>& taps;
  NormRanks* const ranks;             // null: batch norms see these images alone
  std::vector<torch::Tensor> values;  // by position in `taps`; undefined until known
  size_t missing;
  std::array<int64_t, 2> image{};  // height and width of what came in; 0: the pictures the network is made for

  Run(const std::vector<std::string>& wanted, NormRanks* norm_ranks)
      : taps(wanted), ranks(norm_ranks), values(wanted.size()), missing(wanted.size()) {}

  bool Done() const { return missing == 0; }
  void Capture(const std::string& path, const torch::Tensor& value) {
    for (size_t i = 0; i < taps.size(); ++i) {
      if (taps[i] != path) continue;
      values[i] = value;
      --missing;
    }
  }
  // A value on its way into a module. `last`: no later step reads it, and no one outside the container holds it.
  struct Input {
    torch::Tensor value;
    bool last;
  };
  // Ours to overwrite: nobody asked for it either. (Batch norm, convolutions, linear layers and addition, whose outputs
  // are overwritten below, need only their inputs for backward; a half, which is a view, goes into no such function.)
  bool MayOverwrite(const Input& input) const {
    return input.last && std::none_of(values.begin(), values.end(),
                                      [&](const torch::Tensor& kept) { return kept.is_same(input.value); });
  }

  // The node's output; meaningless once Done().
  torch::Tensor Execute(const Node& node, std::vector<Input> inputs) {
    torch::Tensor y;
    if (IsContainer(node.def->kind)) {
      std::vector<torch::Tensor> held;
      for (Input& input : inputs) held.push_back(std::move(input.value));
      y = RunSteps(node, 0, std::move(held));
    } else {
      y = Compute(node, std::move(inputs));
    }
    if (!Done() && !node.def->name.empty()) Capture(node.path, y);
    return y;
  }

  // The steps of a container from `first` on. `held`: its inputs and the outputs of the steps before, as far as one of
  // those that run reads them.
  torch::Tensor RunSteps(const Node& node, size_t first, std::vector<torch::Tensor> held) {
    const size_t given = held.size();
    held.reserve(node.last_use.size());
    for (size_t k = first; k < node.steps.size() && !Done(); ++k) {
      std::vector<Input> inputs;
      for (const uint32_t i : node.steps[k].inputs) {
        const bool last = node.last_use[i] == k;
        // What came from outside may still be read there.
        inputs.push_back({last ? std::move(held[i]) : held[i], last && i >= given});
      }
      held.push_back(Execute(node.children[node.steps[k].child], std::move(inputs)));
    }
    return std::move(held.back());
  }

  // What comes after `start`, which is `node` itself or lies below it, in a place where the network can be cut.
  torch::Tensor Resume(const Node& node, std::string_view start, torch::Tensor value) {
    if (node.path == start) return value;
    for (size_t k = 0; k < node.steps.size(); ++k) {
      const Node& child = node.children[node.steps[k].child];
      if (child.def->name.empty() || !IsUnder(start, child.path)) continue;
      std::vector<torch::Tensor> held(node.def->inputs + k);  // nothing behind reads these
      held.push_back(Resume(child, start, std::move(value)));
      torch::Tensor y = RunSteps(node, k + 1, std::move(held));
      if (!Done()) Capture(node.path, y);
      return y;
    }
    return value;
  }

  torch::Tensor Compute(const Node& node, std::vector<Input> inputs) {
    const ModuleDef& def = *node.def;
    const torch::Tensor& x = inputs[0].value;
    switch (def.kind) {
      case ModuleKind::kConv2d: {
        auto& conv = static_cast<torch::nn::Conv2dImpl&>(*node.module);
        if (x.is_cpu() && !def.bias && IsNarrowStridedPointwise(def.in, def.kernel, def.stride)) {
          return StridedPointwiseConv(x, conv.weight, def.stride);
        }
        return conv.forward(x);
      }
      case ModuleKind::kBatchNorm2d: {
        auto& norm = static_cast<torch::nn::BatchNorm2dImpl&>(*node.module);
        if (ranks == nullptr || !norm.is_training()) return norm.forward(x);
        norm.num_batches_tracked.add_(1);
        return BatchNormOverRanks(x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                                  *norm.options.momentum(), norm.options.eps(), ranks);
      }
      case ModuleKind::kRelu:
        return MayOverwrite(inputs[0]) ? x.relu_() : x.relu();
      case ModuleKind::kRelu6:
        return MayOverwrite(inputs[0]) ? torch::relu6_(inputs[0].value) : torch::relu6(x);
      case ModuleKind::kMaxPool2d:
        return torch::max_pool2d(x, {def.kernel, def.kernel}, {def.stride, def.stride}, {def.padding, def.padding});
      case ModuleKind::kAvgPool2d:
        return torch::adaptive_avg_pool2d(x, {def.out_height, def.out_width});
      case ModuleKind::kFlatten:
        return torch::flatten(x, 1);
      case ModuleKind::kLinear:
        return static_cast<torch::nn::LinearImpl&>(*node.module).forward(x);
      case ModuleKind::kUpsample: {
        const bool like = inputs.size() == 2;
        const int64_t height = like ? inputs[1].value.size(2) : image[0] > 0 ? image[0] : def.out_height;
        const int64_t width = like ? inputs[1].value.size(3) : image[1] > 0 ? image[1] : def.out_width;
        return torch::upsample_bilinear2d(x, {height, width}, def.align_corners);
      }
      case ModuleKind::kAdd:
        return MayOverwrite(inputs[0]) ? x.add_(inputs[1].value) : x.add(inputs[1].value);
      case ModuleKind::kConcat: {
        std::vector<torch::Tensor> parts;
        for (Input& input : inputs) parts.push_back(std::move(input.value));
        return torch::cat(parts, 1);
      }
      case ModuleKind::kFirstHalf:
        return x.slice(1, 0, x.size(1) / 2);
      case ModuleKind::kSecondHalf:
        return x.slice(1, x.size(1) / 2);
      case ModuleKind::kShuffle:
        return torch::channel_shuffle(x, 2);
      default:
        break;  // containers are not computed, and the zoo has nothing opaque
    }
    return x;
  }
};

ZooNet::ZooNet(Architecture arch) : arch_(std::move(arch)) {
  root_ = std::make_shared<Node>(Node::Build(arch_.root(), "", this));
}

StatusOr<std::shared_ptr<ZooNet>> ZooNet::Create(const ModelSpec& spec) {
  DISTILL_ASSIGN_OR_RETURN(Architecture arch, Architecture::Create(spec));
  try {
    return std::shared_ptr<ZooNet>(new ZooNet(std::move(arch)));
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("building ", spec.arch));
  }
}

namespace {

std::string DescribeInput(const torch::Tensor& x) {
  if (!x.defined()) return "nothing";
  std::string got = StrCat(c10::toString(x.scalar_type()), " (");
  for (int64_t i = 0; i < x.dim(); ++i) StrAppend(&got, i == 0 ? "" : ", ", x.size(i));
  return got + ")";
}

// Floating point (N, shape[0], shape[1], shape[2]).
bool HasShape(const torch::Tensor& x, const TapShape& shape) {
  return x.defined() && x.dim() == 4 && shape.size() == 3 && x.size(1) == shape[0] && x.size(2) == shape[1] &&
         x.size(3) == shape[2] && x.is_floating_point();
}

}  // namespace

Status ZooNet::CheckTaps(const std::vector<std::string>& taps) const {
  if (taps.empty())
    return absl::InvalidArgumentError(StrCat("forward of ", arch_.spec().arch, ": no tap was asked for"));
  for (const std::string& tap : taps) {
    if (arch_.FindTap(tap) != nullptr) continue;
    std::vector<std::string> paths;
    for (const TapInfo& info : arch_.taps()) paths.push_back(info.path);
    return absl::InvalidArgumentError(StrCat(arch_.spec().arch, " has no tap '", tap, "'", DidYouMean(tap, paths)));
  }
  return OkStatus();
}

StatusOr<std::vector<torch::Tensor>> ZooNet::Forward(const torch::Tensor& x, const std::vector<std::string>& taps) {
  const ModelSpec& spec = arch_.spec();
  DISTILL_RETURN_IF_ERROR(CheckTaps(taps));
  if (!HasShape(x, {spec.in_channels, spec.image_height, spec.image_width})) {
    return absl::InvalidArgumentError(StrCat("forward of ", spec.arch, ": input is ", DescribeInput(x),
                                             ", must be floating point (N, ", spec.in_channels, ", ", spec.image_height,
                                             ", ", spec.image_width, ")"));
  }
  return RunFrom(x, taps);
}

StatusOr<torch::Tensor> ZooNet::ForwardAtAnySize(const torch::Tensor& x) {
  const ModelSpec& spec = arch_.spec();
  if (!arch_.dense()) {
    return absl::InvalidArgumentError(StrCat(spec.arch, " answers for every image, and takes images of [",
                                             spec.image_height, ", ", spec.image_width,
                                             "] only; networks for segmentation take any size"));
  }
  constexpr int64_t kLeast = 8;
  if (!x.defined() || x.dim() != 4 || x.size(1) != spec.in_channels || x.size(2) < kLeast || x.size(3) < kLeast ||
      !x.is_floating_point()) {
    return absl::InvalidArgumentError(StrCat("forward of ", spec.arch, " at any size: input is ", DescribeInput(x),
                                             ", must be floating point (N, ", spec.in_channels, ", H, W) of at least ",
                                             kLeast, " pixels a side"));
  }
  DISTILL_ASSIGN_OR_RETURN(std::vector<torch::Tensor> values, RunFrom(x, {""}));
  return std::move(values[0]);
}

StatusOr<std::vector<torch::Tensor>> ZooNet::RunFrom(const torch::Tensor& x, const std::vector<std::string>& taps) {
  try {
    Run run(taps, norm_ranks_);
    run.image = {x.size(2), x.size(3)};
    const torch::Tensor output = run.RunSteps(*root_, 0, {x});
    if (!run.Done()) run.Capture("", output);
    return std::move(run.values);
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("forward of ", arch_.spec().arch));
  }
}

StatusOr<std::vector<torch::Tensor>> ZooNet::ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                          const std::vector<std::string>& taps) {
  const std::string& name = arch_.spec().arch;
  DISTILL_RETURN_IF_ERROR(CheckTaps(taps));
  if (!arch_.CanStartAfter(start)) {
    return absl::InvalidArgumentError(
        StrCat(name, " cannot start after '", start, "': it is no tap, or lies inside a block"));
  }
  const TapShape& shape = arch_.FindTap(start)->shape;
  if (!HasShape(value, shape)) {
    return absl::InvalidArgumentError(StrCat(name, " after '", start, "': the map is ", DescribeInput(value),
                                             ", must be floating point (N, ", absl::StrJoin(shape, ", "), ")"));
  }
  const TapInfo* const after = arch_.FindTap(start);
  for (const std::string& tap : taps) {
    if (tap.empty() || arch_.FindTap(tap) > after) continue;  // both point into taps(), in the order of execution
    return absl::InvalidArgumentError(
        StrCat(name, " after '", start, "': the tap '", tap, "' lies before it and does not run"));
  }
  try {
    Run run(taps, norm_ranks_);
    run.Resume(*root_, start, value);
    return std::move(run.values);
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("forward of ", name, " after ", start));
  }
}

void ZooNet::InitWeights(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  InitNode(*root_, &generator);
}

void ZooNet::InitNode(const Node& node, at::Generator* generator) {
  // Drawn into fresh row-major CPU tensors, so that neither device nor memory format changes the numbers.
  const auto normal = [&](torch::Tensor& parameter, double std) {
    parameter.copy_(torch::empty(parameter.sizes()).normal_(0, std, *generator));
  };
  const auto uniform = [&](torch::Tensor& parameter, double bound) {
    parameter.copy_(torch::empty(parameter.sizes()).uniform_(-bound, bound, *generator));
  };
  const auto draw = [&](torch::Tensor& weight, torch::Tensor& bias) {
    const InitKind init = node.def->init;
    const double bound = 1.0 / std::sqrt(static_cast<double>(weight[0].numel()));
    if (init == InitKind::kFanOut) {
      const double area = static_cast<double>(node.def->kernel) * node.def->kernel;
      normal(weight, std::sqrt(2.0 / (static_cast<double>(weight.size(0)) * area)));
    } else if (init == InitKind::kSmallNormal) {
      normal(weight, 0.01);
    } else {
      uniform(weight, bound);
    }
    if (!bias.defined()) return;
    if (init == InitKind::kTorchDefault) {
      uniform(bias, bound);
    } else {
      bias.fill_(0);
    }
  };
  if (auto* conv = dynamic_cast<torch::nn::Conv2dImpl*>(node.module.get())) {
    draw(conv->weight, conv->bias);
  } else if (auto* linear = dynamic_cast<torch::nn::LinearImpl*>(node.module.get())) {
    draw(linear->weight, linear->bias);
  } else if (auto* norm = dynamic_cast<torch::nn::BatchNorm2dImpl*>(node.module.get())) {
    norm->weight.fill_(1);
    norm->bias.fill_(0);
    norm->running_mean.fill_(0);
    norm->running_var.fill_(1);
    norm->num_batches_tracked.fill_(0);
  }
  for (const Node& child : node.children) InitNode(child, generator);
}

torch::nn::Module* ZooNet::FindModule(const std::string& path) {
  if (path.empty()) return this;
  Node* node = root_->Find(path);
  return node == nullptr ? nullptr : node->module.get();
}

std::vector<StudentNet::StateTensor> ZooNet::State() const {
  std::vector<StateTensor> state;
  for (const auto& item : named_parameters()) state.push_back({item.key(), item.value(), /*is_buffer=*/false});
  for (const auto& item : named_buffers()) state.push_back({item.key(), item.value(), /*is_buffer=*/true});
  return state;
}

void ZooNet::SetTraining(std::string_view path, bool training) {
  if (torch::nn::Module* module = FindModule(std::string(path)); module != nullptr) module->train(training);
}

std::vector<bool> ZooNet::Modes() const {
  std::vector<bool> modes;
  for (const auto& module : modules(/*include_self=*/false)) modes.push_back(module->is_training());
  return modes;
}

void ZooNet::SetModes(const std::vector<bool>& modes) {
  // Parents come first and take their children with them, which then get their own.
  const auto all = modules(/*include_self=*/false);
  for (size_t i = 0; i < all.size(); ++i) all[i]->train(modes[i]);
}

Status ZooNet::SetNormRanks(NormRanks* ranks) {
  norm_ranks_ = ranks;
  return OkStatus();
}

Status ZooNet::Export(const std::string& path) const { return SaveTorchScript(*this, path); }

std::vector<torch::Tensor> Parameters(const StudentNet& net) {
  std::vector<torch::Tensor> tensors;
  for (const StudentNet::StateTensor& one : net.State()) {
    if (!one.is_buffer) tensors.push_back(one.tensor);
  }
  return tensors;
}

std::vector<torch::Tensor> Buffers(const StudentNet& net) {
  std::vector<torch::Tensor> tensors;
  for (const StudentNet::StateTensor& one : net.State()) {
    if (one.is_buffer) tensors.push_back(one.tensor);
  }
  return tensors;
}

}  // namespace distill
