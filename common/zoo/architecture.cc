#include "common/zoo/architecture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/zoo/module_path.h"

namespace distill {
namespace {

constexpr uint32_t kMinImage = 8;
constexpr uint32_t kMaxImage = 8192;
constexpr uint32_t kMaxChannels = 4096;
constexpr uint32_t kMaxClasses = 1000000;
constexpr uint32_t kMaxDenseClasses = 255;  // a label is one byte, and 255 marks pixels without one

constexpr std::array<uint32_t, 7> kCifarDepths = {8, 14, 20, 32, 44, 56, 110};

struct ResNetPlan {
  uint32_t depth;
  bool bottleneck;
  std::array<uint32_t, 4> blocks;
};
constexpr std::array<ResNetPlan, 5> kResNets = {{{18, false, {2, 2, 2, 2}},
                                                 {34, false, {3, 4, 6, 3}},
                                                 {50, true, {3, 4, 6, 3}},
                                                 {101, true, {3, 4, 23, 3}},
                                                 {152, true, {3, 8, 36, 3}}}};
constexpr uint32_t kDeepestFcn = 101;

ModuleDef Conv(std::string name, uint32_t in, uint32_t out, uint32_t kernel, uint32_t stride, uint32_t dilation = 1) {
  return {.name = std::move(name),
          .kind = ModuleKind::kConv2d,
          .in = in,
          .out = out,
          .kernel = kernel,
          .stride = stride,
          .padding = dilation * (kernel / 2),
          .dilation = dilation};
}
ModuleDef Plain(std::string name, ModuleKind kind, uint32_t channels) {
  return {.name = std::move(name), .kind = kind, .in = channels, .out = channels};
}
ModuleDef Norm(std::string name, uint32_t channels) {
  return Plain(std::move(name), ModuleKind::kBatchNorm2d, channels);
}

// Children in the order of torchvision's constructor, which is also execution order and the order of its state
// dictionary.
ModuleDef Block(std::string name, bool bottleneck, uint32_t in, uint32_t planes, uint32_t stride, uint32_t dilation) {
  const uint32_t out = bottleneck ? planes * 4 : planes;
  ModuleDef block{.name = std::move(name),
                  .kind = bottleneck ? ModuleKind::kBottleneck : ModuleKind::kBasicBlock,
                  .in = in,
                  .out = out,
                  .stride = stride};
  auto& c = block.children;
  if (bottleneck) {
    c.push_back(Conv("conv1", in, planes, 1, 1));
    c.push_back(Norm("bn1", planes));
    c.push_back(Conv("conv2", planes, planes, 3, stride, dilation));  // v1.5: the stride sits on the 3x3 convolution
    c.push_back(Norm("bn2", planes));
    c.push_back(Conv("conv3", planes, out, 1, 1));
    c.push_back(Norm("bn3", out));
  } else {
    c.push_back(Conv("conv1", in, planes, 3, stride, dilation));
    c.push_back(Norm("bn1", planes));
    c.push_back(Conv("conv2", planes, planes, 3, 1));
    c.push_back(Norm("bn2", planes));
  }
  if (stride != 1 || in != out) {
    ModuleDef shortcut{.name = "downsample", .kind = ModuleKind::kSequential, .in = in, .out = out};
    shortcut.children.push_back(Conv("0", in, out, 1, stride));
    shortcut.children.push_back(Norm("1", out));
    c.push_back(std::move(shortcut));
  }
  c.push_back(Plain("add", ModuleKind::kAdd, out));
  return block;
}

struct LayerPlan {
  uint32_t planes, blocks, stride;
  uint32_t first_dilation = 1, dilation = 1;  // of the first block and of the others
};

ModuleDef Layer(std::string name, bool bottleneck, uint32_t in, const LayerPlan& plan) {
  ModuleDef layer{.name = std::move(name), .kind = ModuleKind::kSequential, .in = in};
  for (uint32_t b = 0; b < plan.blocks; ++b) {
    layer.children.push_back(Block(StrCat(b), bottleneck, in, plan.planes, b == 0 ? plan.stride : 1,
                                   b == 0 ? plan.first_dilation : plan.dilation));
    in = layer.children.back().out;
  }
  layer.out = in;
  return layer;
}

void AppendHead(ModuleDef* root, uint32_t features, uint32_t classes) {
  root->children.push_back(Plain("avgpool", ModuleKind::kGlobalAvgPool, features));
  root->children.push_back(Plain("flatten", ModuleKind::kFlatten, features));
  root->children.push_back({.name = "fc", .kind = ModuleKind::kLinear, .in = features, .out = classes});
  root->out = classes;
}

ModuleDef CifarResNet(const ModelSpec& spec, uint32_t depth) {
  ModuleDef root{.kind = ModuleKind::kSequential, .in = spec.in_channels};
  root.children.push_back(Conv("conv1", spec.in_channels, spec.width, 3, 1));
  root.children.push_back(Norm("bn1", spec.width));
  root.children.push_back(Plain("relu", ModuleKind::kRelu, spec.width));
  uint32_t in = spec.width;
  for (uint32_t k = 0; k < 3; ++k) {
    const LayerPlan plan{.planes = spec.width << k, .blocks = (depth - 2) / 6, .stride = k == 0 ? 1u : 2u};
    root.children.push_back(Layer(StrCat("layer", k + 1), false, in, plan));
    in = root.children.back().out;
  }
  AppendHead(&root, in, spec.num_classes);
  return root;
}

// Stem and stages. `dilated`: layer3 and layer4 keep the size of layer2 (1/8 of the image's).
ModuleDef ResNetBackbone(const ModelSpec& spec, const ResNetPlan& plan, bool dilated) {
  ModuleDef root{.kind = ModuleKind::kSequential, .in = spec.in_channels};
  root.children.push_back(Conv("conv1", spec.in_channels, spec.width, 7, 2));
  root.children.push_back(Norm("bn1", spec.width));
  root.children.push_back(Plain("relu", ModuleKind::kRelu, spec.width));
  ModuleDef pool = Plain("maxpool", ModuleKind::kMaxPool2d, spec.width);
  pool.kernel = 3;
  pool.stride = 2;
  pool.padding = 1;
  root.children.push_back(std::move(pool));
  uint32_t in = spec.width;
  uint32_t dilation = 1;
  for (uint32_t k = 0; k < 4; ++k) {
    LayerPlan layer{.planes = spec.width << k, .blocks = plan.blocks[k], .stride = k == 0 ? 1u : 2u};
    layer.first_dilation = dilation;
    if (dilated && k >= 2) {
      dilation *= layer.stride;
      layer.stride = 1;
    }
    layer.dilation = dilation;
    root.children.push_back(Layer(StrCat("layer", k + 1), plan.bottleneck, in, layer));
    in = root.children.back().out;
  }
  root.out = in;
  return root;
}

ModuleDef ResNet(const ModelSpec& spec, const ResNetPlan& plan) {
  ModuleDef root = ResNetBackbone(spec, plan, false);
  AppendHead(&root, root.out, spec.num_classes);
  return root;
}

ModuleDef Fcn(const ModelSpec& spec, const ResNetPlan& plan) {
  ModuleDef root = ResNetBackbone(spec, plan, true);
  const uint32_t features = root.out, inner = features / 4;
  ModuleDef head{
      .name = "classifier", .kind = ModuleKind::kSequential, .in = features, .out = spec.num_classes, .children = {}};
  head.children.push_back(Conv("0", features, inner, 3, 1));
  head.children.push_back(Norm("1", inner));
  head.children.push_back(Plain("2", ModuleKind::kRelu, inner));
  head.children.push_back(Conv("4", inner, spec.num_classes, 1, 1));  // 3 is torchvision's dropout
  head.children.back().bias = true;
  root.children.push_back(std::move(head));
  ModuleDef upsample = Plain("upsample", ModuleKind::kUpsample, spec.num_classes);
  upsample.out_height = spec.image_height;
  upsample.out_width = spec.image_width;
  root.children.push_back(std::move(upsample));
  root.out = spec.num_classes;
  return root;
}

// Which network a name means: a CIFAR depth, or one of kResNets, alone or in an FCN.
std::optional<uint32_t> CifarDepth(std::string_view arch) {
  for (uint32_t depth : kCifarDepths) {
    if (arch == StrCat("cifar_resnet", depth)) return depth;
  }
  return std::nullopt;
}
const ResNetPlan* FindResNet(std::string_view arch) {
  for (const ResNetPlan& plan : kResNets) {
    if (arch == StrCat("resnet", plan.depth)) return &plan;
  }
  return nullptr;
}
const ResNetPlan* FindFcn(std::string_view arch) {
  for (const ResNetPlan& plan : kResNets) {
    if (plan.depth <= kDeepestFcn && arch == StrCat("fcn_resnet", plan.depth)) return &plan;
  }
  return nullptr;
}

Status CheckRange(const ModelSpec& spec, std::string_view field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return OkStatus();
  return absl::InvalidArgumentError(
      StrCat("model ", spec.arch, ": ", field, " is ", value, ", must be from ", low, " to ", high));
}

Status CheckStatistics(const ModelSpec& spec, std::string_view field, const std::vector<float>& values, bool positive) {
  if (values.empty()) return OkStatus();
  if (values.size() != spec.in_channels) {
    return absl::InvalidArgumentError(StrCat("model ", spec.arch, ": ", field, " has ", values.size(), " values for ",
                                             spec.in_channels, " input channels; give one per channel, or none"));
  }
  for (float v : values) {
    if (!std::isfinite(v) || (positive && v <= 0)) {
      return absl::InvalidArgumentError(
          StrCat("model ", spec.arch, ": ", field, " contains ", v, ", must be ", positive ? "above 0" : "finite"));
    }
  }
  return OkStatus();
}

uint32_t OutputSize(uint32_t size, const ModuleDef& def) {
  const uint32_t reach = def.dilation * (def.kernel - 1) + 1;
  return (size + 2 * def.padding - reach) / def.stride + 1;
}

// Walks in execution order and appends a tap for each module below and including `def`. Returns the output's shape.
TapShape AppendTaps(const ModuleDef& def, const std::string& path, const TapShape& input, std::vector<TapInfo>* taps) {
  TapShape shape = input;
  switch (def.kind) {
    case ModuleKind::kSequential:
      for (const ModuleDef& child : def.children)
        shape = AppendTaps(child, JoinModulePath(path, child.name), shape, taps);
      break;
    case ModuleKind::kBasicBlock:
    case ModuleKind::kBottleneck:
      for (const ModuleDef& child : def.children) {
        // The shortcut starts from the block's input; its output has the body's shape.
        shape = AppendTaps(child, JoinModulePath(path, child.name), child.name == "downsample" ? input : shape, taps);
      }
      break;
    case ModuleKind::kConv2d:
    case ModuleKind::kMaxPool2d:
      shape = {def.out, OutputSize(input[1], def), OutputSize(input[2], def)};
      break;
    case ModuleKind::kGlobalAvgPool:
      shape = {def.out, 1, 1};
      break;
    case ModuleKind::kUpsample:
      shape = {def.out, def.out_height, def.out_width};
      break;
    case ModuleKind::kFlatten:
    case ModuleKind::kLinear:
      shape = {def.out};
      break;
    case ModuleKind::kBatchNorm2d:
    case ModuleKind::kRelu:
    case ModuleKind::kAdd:
    case ModuleKind::kOpaque:
      break;
  }
  if (!path.empty()) taps->push_back({.path = path, .kind = def.kind, .shape = shape});
  return shape;
}

// The module's own entries (parameters, then buffers, as torch lists them), then the children's.
void AppendState(const ModuleDef& def, const std::string& path, std::vector<StateEntry>* entries) {
  const auto add = [&](std::string_view name, std::vector<int64_t> shape, bool buffer = false, bool integer = false) {
    entries->push_back({JoinModulePath(path, name), std::move(shape), buffer, integer});
  };
  if (def.kind == ModuleKind::kConv2d) {
    add("weight", {def.out, def.in, def.kernel, def.kernel});
    if (def.bias) add("bias", {def.out});
  } else if (def.kind == ModuleKind::kBatchNorm2d) {
    add("weight", {def.out});
    add("bias", {def.out});
    add("running_mean", {def.out}, true);
    add("running_var", {def.out}, true);
    add("num_batches_tracked", {}, true, true);
  } else if (def.kind == ModuleKind::kLinear) {
    add("weight", {def.out, def.in});
    add("bias", {def.out});
  }
  for (const ModuleDef& child : def.children) AppendState(child, JoinModulePath(path, child.name), entries);
}

std::string_view ParentOf(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

// '*' matches any letters but dots, '**' any letters, "**." also nothing. Table over (glob, path) positions: no input
// is slow.
bool GlobMatches(std::string_view glob, std::string_view path) {
  const size_t rows = glob.size() + 1, columns = path.size() + 1;
  std::vector<char> match(rows * columns, 0);
  const auto at = [&](size_t g, size_t p) -> char& { return match[g * columns + p]; };
  at(glob.size(), path.size()) = 1;
  for (size_t g = glob.size(); g-- > 0;) {
    for (size_t p = columns; p-- > 0;) {
      bool ok = false;
      if (glob.substr(g, 2) == "**") {
        ok = at(g + 2, p) || (p < path.size() && at(g, p + 1));
        const bool part_start = p == 0 || path[p - 1] == '.';
        if (glob.substr(g, 3) == "**." && part_start) ok = ok || at(g + 3, p);
      } else if (glob[g] == '*') {
        ok = at(g + 1, p) || (p < path.size() && path[p] != '.' && at(g, p + 1));
      } else {
        ok = p < path.size() && glob[g] == path[p] && at(g + 1, p + 1);
      }
      at(g, p) = ok;
    }
  }
  return at(0, 0);
}

}  // namespace

std::string_view Name(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kSequential:
      return "Sequential";
    case ModuleKind::kBasicBlock:
      return "BasicBlock";
    case ModuleKind::kBottleneck:
      return "Bottleneck";
    case ModuleKind::kConv2d:
      return "Conv2d";
    case ModuleKind::kBatchNorm2d:
      return "BatchNorm2d";
    case ModuleKind::kRelu:
      return "ReLU";
    case ModuleKind::kMaxPool2d:
      return "MaxPool2d";
    case ModuleKind::kGlobalAvgPool:
      return "AdaptiveAvgPool2d";
    case ModuleKind::kFlatten:
      return "Flatten";
    case ModuleKind::kLinear:
      return "Linear";
    case ModuleKind::kUpsample:
      return "Upsample";
    case ModuleKind::kAdd:
      return "Add";
    case ModuleKind::kOpaque:
      return "TorchScript";
  }
  return "";
}

std::vector<std::string> Architecture::Names() {
  std::vector<std::string> names;
  for (uint32_t depth : kCifarDepths) names.push_back(StrCat("cifar_resnet", depth));
  for (const ResNetPlan& plan : kResNets) names.push_back(StrCat("resnet", plan.depth));
  for (const ResNetPlan& plan : kResNets) {
    if (plan.depth <= kDeepestFcn) names.push_back(StrCat("fcn_resnet", plan.depth));
  }
  return names;
}

ModelSpec Architecture::WithDefaults(ModelSpec spec) {
  const bool cifar = spec.arch.starts_with("cifar_"), fcn = spec.arch.starts_with("fcn_");
  const uint32_t side = cifar ? 32 : fcn ? 520 : 224;
  if (spec.width == 0) spec.width = cifar ? 16 : 64;
  if (spec.num_classes == 0) spec.num_classes = cifar ? 10 : fcn ? 21 : 1000;
  if (spec.in_channels == 0) spec.in_channels = 3;
  if (spec.image_height == 0) spec.image_height = side;
  if (spec.image_width == 0) spec.image_width = side;
  return spec;
}

StatusOr<Architecture> Architecture::Create(const ModelSpec& spec) {
  const std::optional<uint32_t> cifar_depth = CifarDepth(spec.arch);
  const ResNetPlan* resnet = FindResNet(spec.arch);
  const ResNetPlan* fcn = FindFcn(spec.arch);
  if (!cifar_depth && resnet == nullptr && fcn == nullptr) {
    const std::vector<std::string> names = Names();
    return absl::InvalidArgumentError(StrCat("unknown architecture '", spec.arch, "'", DidYouMean(spec.arch, names),
                                             " (known: ", absl::StrJoin(names, ", "), ")"));
  }
  Architecture arch;
  arch.spec_ = spec;
  if (spec.width == 0) arch.spec_.width = cifar_depth ? 16 : 64;
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "width", arch.spec_.width, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(
      CheckRange(spec, "num_classes", spec.num_classes, 1, fcn == nullptr ? kMaxClasses : kMaxDenseClasses));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "in_channels", spec.in_channels, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image height in pixels", spec.image_height, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image width in pixels", spec.image_width, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "mean", spec.mean, false));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "std", spec.std, true));
  arch.root_ = cifar_depth      ? CifarResNet(arch.spec_, *cifar_depth)
               : fcn != nullptr ? Fcn(arch.spec_, *fcn)
                                : ResNet(arch.spec_, *resnet);
  for (const ModuleDef& child : arch.root_.children) {
    if (child.name.starts_with("layer")) arch.stages_.push_back(child.name);
  }
  const TapShape output =
      AppendTaps(arch.root_, "", {spec.in_channels, spec.image_height, spec.image_width}, &arch.taps_);
  for (TapInfo& tap : arch.taps_) {
    tap.stage_end = std::find(arch.stages_.begin(), arch.stages_.end(), tap.path) != arch.stages_.end();
  }
  arch.output_ = {.path = "", .kind = arch.root_.children.back().kind, .shape = output};
  return arch;
}

StatusOr<Architecture> Architecture::OfArchive(ModelSpec spec, std::vector<TapInfo> taps,
                                               std::vector<StateEntry> state) {
  Architecture arch;
  std::set<std::string_view> paths;
  for (const TapInfo& tap : taps) {
    const auto wrong = [&](std::string_view what) {
      return absl::InvalidArgumentError(StrCat("archive: tap '", tap.path, "' ", what));
    };
    if (!paths.insert(tap.path).second) return wrong("is described twice");
    if (tap.stage_end && tap.shape.size() != 3) return wrong("ends a stage, but is no map [C, H, W]");
    for (uint32_t position : tap.needs) {
      if (position >= state.size()) return wrong("depends on a parameter that does not exist");
    }
  }
  for (TapInfo& tap : taps) {
    if (tap.path.empty()) {
      arch.output_ = std::move(tap);
      continue;
    }
    if (tap.stage_end) arch.stages_.push_back(tap.path);
    arch.taps_.push_back(std::move(tap));
  }
  const TapShape& output = arch.output_.shape;
  if (output.size() != 1 && output.size() != 3) {
    return absl::InvalidArgumentError(StrCat("archive: its output is ",
                                             output.empty() ? "not there" : ShapeText(output),
                                             "; a student answers with [K], or [K, H, W] for every pixel"));
  }
  spec.num_classes = output[0];
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "num_classes", spec.num_classes, 1,
                                     output.size() == 3 ? uint64_t{kMaxDenseClasses} : uint64_t{kMaxClasses}));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "in_channels", spec.in_channels, 1, kMaxChannels));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image height in pixels", spec.image_height, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckRange(spec, "image width in pixels", spec.image_width, kMinImage, kMaxImage));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "mean", spec.mean, false));
  DISTILL_RETURN_IF_ERROR(CheckStatistics(spec, "std", spec.std, true));
  arch.spec_ = std::move(spec);
  arch.state_ = std::move(state);
  return arch;
}

std::vector<std::string> Architecture::StageModules(size_t k) const {
  if (k >= stages_.size()) return {};
  return ModulesBetween(k == 0 ? std::string_view() : stages_[k - 1], stages_[k]);
}

std::vector<std::string> Architecture::HeadModules() const {
  return ModulesBetween(stages_.empty() ? std::string_view() : stages_.back(), "");
}

std::vector<std::string> Architecture::ModulesBetween(std::string_view after, std::string_view until) const {
  const std::vector<std::string> all = ModulePaths();  // a module, then what is below it
  std::vector<char> left_out(all.size(), 0);           // leaves
  for (size_t i = 0; i < all.size(); ++i) {
    if (i + 1 < all.size() && IsUnder(all[i + 1], all[i])) continue;
    left_out[i] = !Reaches(all[i], until) || (!after.empty() && Reaches(all[i], after));
  }
  std::vector<std::string> modules;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!modules.empty() && IsUnder(all[i], modules.back())) continue;
    bool whole = true;
    for (size_t j = i; j < all.size() && IsUnder(all[j], all[i]); ++j) whole = whole && !left_out[j];
    if (whole) modules.push_back(all[i]);
  }
  return modules;
}

bool Architecture::Reaches(std::string_view module, std::string_view tap) const {
  if (is_archive()) {
    const TapInfo* const info = FindTap(tap);
    return info != nullptr && std::any_of(info->needs.begin(), info->needs.end(),
                                          [&](uint32_t position) { return IsUnder(state_[position].name, module); });
  }
  if (tap.empty()) return true;
  const auto position = [&](std::string_view path) {
    return std::find_if(taps_.begin(), taps_.end(), [&](const TapInfo& info) { return info.path == path; });
  };
  if (position(module) > position(tap)) return false;
  // Beside the order of execution, a residual block's shortcut and body do not see each other.
  const size_t shortcut = tap.find(".downsample");
  if (shortcut == std::string_view::npos) return true;
  const std::string block(tap.substr(0, shortcut));
  return !IsUnder(module, block) || IsUnder(module, block + ".downsample");
}

std::vector<std::string> Architecture::Leaves(std::string_view path) const {
  const std::vector<std::string> all = ModulePaths();
  std::vector<std::string> leaves;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool has_child = i + 1 < all.size() && IsUnder(all[i + 1], all[i]);
    if (IsUnder(all[i], path) && !has_child) leaves.push_back(all[i]);
  }
  return leaves;
}

size_t Architecture::CutIndex(std::string_view tap) const {
  if (is_archive()) {
    for (size_t i = 0; i < taps_.size(); ++i) {
      if (taps_[i].path == tap) return taps_[i].is_cut ? i + 1 : 0;
    }
    return 0;
  }
  size_t index = 0;
  for (const ModuleDef& top : root_.children) {
    for (const ModuleDef& block : top.children) {
      if (top.kind == ModuleKind::kSequential) ++index;
      if (top.kind == ModuleKind::kSequential && tap == JoinModulePath(top.name, block.name)) return index;
    }
    if (top.kind != ModuleKind::kSequential) ++index;
    if (tap == top.name) return index;
  }
  return 0;
}

const TapInfo* Architecture::FindTap(std::string_view path) const {
  if (path.empty()) return &output_;
  for (const TapInfo& tap : taps_) {
    if (tap.path == path) return &tap;
  }
  return nullptr;
}

std::vector<std::string> Architecture::ModulePaths() const {
  const std::vector<StateEntry> state = StateDict();
  std::set<std::string> parents;  // modules above those that own parameters
  for (const StateEntry& entry : state) {
    if (entry.is_buffer) continue;
    std::string_view path = ParentOf(ParentOf(entry.name));
    for (; !path.empty(); path = ParentOf(path)) parents.emplace(path);
  }
  parents.emplace();  // the root is no module of its own
  std::vector<std::string> paths;
  std::set<std::string> seen;
  const auto add = [&](std::string_view path) {
    if (seen.emplace(path).second) paths.emplace_back(path);
  };
  // Depth first: a module's own parameters come before its children's.
  for (const StateEntry& entry : state) {
    if (entry.is_buffer) continue;
    for (size_t dot = entry.name.find('.'); dot != std::string::npos; dot = entry.name.find('.', dot + 1)) {
      add(std::string_view(entry.name).substr(0, dot));
    }
    if (parents.contains(std::string(ParentOf(entry.name)))) add(entry.name);
  }
  return paths;
}

bool Architecture::CanStartAfter(std::string_view path) const {
  if (is_archive()) return CutIndex(path) > 0;
  return std::any_of(root_.children.begin(), root_.children.end(),
                     [&](const ModuleDef& child) { return child.name == path; });
}

size_t Architecture::TopLevelIndex(std::string_view path) const {
  for (size_t i = 0; i < root_.children.size(); ++i) {
    if (IsUnder(path, root_.children[i].name)) return i;
  }
  return root_.children.size() - 1;  // "": the output
}

std::vector<StateEntry> Architecture::StateDict() const {
  if (is_archive()) return state_;
  std::vector<StateEntry> entries;
  AppendState(root_, "", &entries);
  return entries;
}

uint64_t Architecture::ParameterCount() const {
  uint64_t count = 0;
  for (const StateEntry& entry : StateDict()) {
    if (entry.is_buffer) continue;
    uint64_t elements = 1;
    for (int64_t d : entry.shape) elements *= static_cast<uint64_t>(d);
    count += elements;
  }
  return count;
}

StatusOr<std::vector<std::string>> ExpandModuleGlobs(const Architecture& arch, const std::vector<std::string>& globs) {
  const std::vector<std::string> paths = arch.ModulePaths();
  std::vector<char> chosen(paths.size(), 0);
  for (const std::string& glob : globs) {
    bool any = false;
    for (size_t i = 0; i < paths.size(); ++i) {
      if (!GlobMatches(glob, paths[i])) continue;
      chosen[i] = 1;
      any = true;
    }
    if (any) continue;
    if (!glob.empty() && arch.FindTap(glob) != nullptr) {
      return absl::InvalidArgumentError(
          StrCat("module '", glob, "' of ", arch.spec().arch, " has no parameters, so it cannot train"));
    }
    return absl::InvalidArgumentError(
        StrCat("'", glob, "' matches no module of ", arch.spec().arch, DidYouMean(glob, paths)));
  }
  std::vector<std::string> expanded;
  for (size_t i = 0; i < paths.size(); ++i) {
    // Pre-order: an ancestor that was chosen is the last one added.
    if (chosen[i] && (expanded.empty() || !IsUnder(paths[i], expanded.back()))) expanded.push_back(paths[i]);
  }
  return expanded;
}

bool IsUnder(std::string_view path, std::string_view module) {
  return path.starts_with(module) && (path.size() == module.size() || module.empty() || path[module.size()] == '.');
}

}  // namespace distill
