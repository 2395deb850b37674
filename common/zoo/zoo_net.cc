#include "common/zoo/zoo_net.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/module_path.h"
#include "common/zoo/narrow_conv.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

// A module that only holds others: Sequential and blocks, whose wiring is in ZooNet::Run.
struct Container : torch::nn::Module {};

std::shared_ptr<torch::nn::Module> MakeModule(const ModuleDef& def) {
  namespace nn = torch::nn;
  switch (def.kind) {
    case ModuleKind::kSequential:
    case ModuleKind::kBasicBlock:
    case ModuleKind::kBottleneck:
      return std::make_shared<Container>();
    case ModuleKind::kConv2d:
      return nn::Conv2d(nn::Conv2dOptions(def.in, def.out, def.kernel)
                            .stride(def.stride)
                            .padding(def.padding)
                            .dilation(def.dilation)
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

  // Makes the modules below `def` and registers each with its parent; `self` is def's own module, null for plain
  // functions.
  static Node Build(const ModuleDef& def, const std::string& path, torch::nn::Module* self) {
    Node node{.def = &def, .path = path, .module = nullptr, .children = {}};
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
  std::vector<torch::Tensor> values;  // by position in `taps`; undefined until known
  size_t missing;

  explicit Run(const std::vector<std::string>& wanted) : taps(wanted), values(wanted.size()), missing(wanted.size()) {}

  bool Done() const { return missing == 0; }
  void Capture(const std::string& path, const torch::Tensor& value) {
    for (size_t i = 0; i < taps.size(); ++i) {
      if (taps[i] != path) continue;
      values[i] = value;
      --missing;
    }
  }
  // Ours to overwrite: nobody asked for it. (Batch norm and addition, whose outputs are overwritten below, need only
  // their inputs for backward.)
  bool MayOverwrite(const torch::Tensor& value) const {
    return std::none_of(values.begin(), values.end(), [&](const torch::Tensor& kept) { return kept.is_same(value); });
  }
  torch::Tensor Relu(torch::Tensor x) const { return MayOverwrite(x) ? x.relu_() : x.relu(); }
  torch::Tensor Add(torch::Tensor body, const torch::Tensor& shortcut) const {
    return MayOverwrite(body) ? body.add_(shortcut) : body.add(shortcut);
  }

  // The node's output; meaningless once Done().
  torch::Tensor Execute(const Node& node, torch::Tensor x) {
    torch::Tensor y = Compute(node, std::move(x));
    if (!Done()) Capture(node.path, y);
    return y;
  }

  torch::Tensor Compute(const Node& node, torch::Tensor x) {
    const ModuleDef& def = *node.def;
    switch (def.kind) {
      case ModuleKind::kSequential:
        for (const Node& child : node.children) {
          x = Execute(child, std::move(x));
          if (Done()) break;
        }
        return x;
      case ModuleKind::kBasicBlock:
      case ModuleKind::kBottleneck:
        return Block(node, x);
      case ModuleKind::kConv2d: {
        auto& conv = static_cast<torch::nn::Conv2dImpl&>(*node.module);
        if (x.is_cpu() && !def.bias && IsNarrowStridedPointwise(def.in, def.kernel, def.stride)) {
          return StridedPointwiseConv(x, conv.weight, def.stride);
        }
        return conv.forward(x);
      }
      case ModuleKind::kBatchNorm2d:
        return static_cast<torch::nn::BatchNorm2dImpl&>(*node.module).forward(x);
      case ModuleKind::kRelu:
        return Relu(std::move(x));
      case ModuleKind::kMaxPool2d:
        return torch::max_pool2d(x, {def.kernel, def.kernel}, {def.stride, def.stride}, {def.padding, def.padding});
      case ModuleKind::kGlobalAvgPool:
        return torch::adaptive_avg_pool2d(x, {1, 1});
      case ModuleKind::kFlatten:
        return torch::flatten(x, 1);
      case ModuleKind::kLinear:
        return static_cast<torch::nn::LinearImpl&>(*node.module).forward(x);
      case ModuleKind::kUpsample:
        return torch::upsample_bilinear2d(x, {def.out_height, def.out_width}, /*align_corners=*/false);
      case ModuleKind::kAdd:
      case ModuleKind::kOpaque:
        break;  // add is done in Block(); the zoo has nothing opaque
    }
    return x;
  }

  // conv bn relu ... conv bn, plus the shortcut, then ReLU.
  torch::Tensor Block(const Node& node, const torch::Tensor& x) {
    torch::Tensor body = x, shortcut = x;
    for (const Node& child : node.children) {
      const std::string& name = child.def->name;
      if (name == "add") {
        body = Add(std::move(body), shortcut);
        Capture(child.path, body);
        if (Done()) return body;
        return Relu(std::move(body));
      }
      if (name == "downsample") {
        shortcut = Execute(child, x);
      } else {
        const bool relu_before = child.def->kind == ModuleKind::kConv2d && name != "conv1";
        if (relu_before) body = Relu(std::move(body));
        body = Execute(child, std::move(body));
      }
      if (Done()) break;
    }
    return body;
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
  try {
    Run run(taps);
    run.Execute(*root_, x);
    return std::move(run.values);
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("forward of ", spec.arch));
  }
}

StatusOr<std::vector<torch::Tensor>> ZooNet::ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                          const std::vector<std::string>& taps) {
  const std::string& name = arch_.spec().arch;
  DISTILL_RETURN_IF_ERROR(CheckTaps(taps));
  if (!arch_.CanStartAfter(start)) {
    return absl::InvalidArgumentError(StrCat(name, " cannot start after '", start, "': it is no top-level module"));
  }
  const TapShape& shape = arch_.FindTap(start)->shape;
  if (!HasShape(value, shape)) {
    return absl::InvalidArgumentError(StrCat(name, " after '", start, "': the map is ", DescribeInput(value),
                                             ", must be floating point (N, ", absl::StrJoin(shape, ", "), ")"));
  }
  for (const std::string& tap : taps) {
    if (tap.empty() || arch_.TopLevelIndex(tap) > arch_.TopLevelIndex(start)) continue;
    return absl::InvalidArgumentError(
        StrCat(name, " after '", start, "': the tap '", tap, "' lies before it and does not run"));
  }
  try {
    Run run(taps);
    torch::Tensor x = value.clone();  // a ReLU may overwrite it
    for (size_t i = arch_.TopLevelIndex(start) + 1; i < root_->children.size() && !run.Done(); ++i) {
      x = run.Execute(root_->children[i], std::move(x));
    }
    if (!run.Done()) run.Capture("", x);
    return std::move(run.values);
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat("forward of ", name, " after ", start));
  }
}

void ZooNet::InitWeights(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  // Drawn into fresh row-major CPU tensors, so that neither device nor memory format changes the numbers.
  const auto normal = [&](torch::Tensor& parameter, double std) {
    parameter.copy_(torch::empty(parameter.sizes()).normal_(0, std, generator));
  };
  const auto uniform = [&](torch::Tensor& parameter, double bound) {
    parameter.copy_(torch::empty(parameter.sizes()).uniform_(-bound, bound, generator));
  };
  for (const auto& module : modules(/*include_self=*/false)) {
    if (auto* conv = module->as<torch::nn::Conv2d>(); conv != nullptr && conv->bias.defined()) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(conv->weight[0].numel()));
      uniform(conv->weight, bound);
      uniform(conv->bias, bound);
    } else if (conv != nullptr) {
      const double fan_out = static_cast<double>(conv->weight.size(0) * conv->weight.size(2) * conv->weight.size(3));
      normal(conv->weight, std::sqrt(2.0 / fan_out));
    } else if (auto* norm = module->as<torch::nn::BatchNorm2d>()) {
      norm->weight.fill_(1);
      norm->bias.fill_(0);
      norm->running_mean.fill_(0);
      norm->running_var.fill_(1);
      norm->num_batches_tracked.fill_(0);
    } else if (auto* linear = module->as<torch::nn::Linear>()) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(linear->weight.size(1)));
      uniform(linear->weight, bound);
      uniform(linear->bias, bound);
    }
  }
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
