// Zoo architectures as plain data: a tree of modules with torchvision's names. No torch here.
//
// The torch module is built from this tree (common/zoo/zoo_net.h), and the coordinator, which links no torch, validates taps, module
// globs and shapes against it. Parameter names of the built module are the dotted paths of the tree: for `resnet*` those of
// torchvision.models, for `cifar_resnet*` those of the CIFAR ResNets of the distillation papers (RepDistiller, mdistiller: conv1,
// bn1, layer1..layer3 of BasicBlocks with `downsample`, fc).
//
// Architectures:
//   cifar_resnet8|14|20|32|44|56|110   3x3 stem of `width` (default 16) channels, three stages of width, 2*width, 4*width channels at
//                                      strides 1, 2, 4; BasicBlocks; global average pool; fc. [He et al. 2016, section 4.2]
//   resnet18|34|50|101|152             7x7/2 stem, 3x3/2 max pool, four stages from `width` (default 64); torchvision's v1.5 layout
//
// Taps: every dotted path can be tapped; the value is the module's output. Residual blocks have two pseudo-modules on top of
// torchvision's: `add` (the sum before the last ReLU: the pre-ReLU tap) and `relu` outputs of the block being the block path itself.
#ifndef DISTILL_COMMON_ZOO_ARCHITECTURE_H_
#define DISTILL_COMMON_ZOO_ARCHITECTURE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

enum class ModuleKind {
  kSequential,  // children one after another
  kBasicBlock,  // conv1 bn1 relu conv2 bn2 (+downsample) add relu
  kBottleneck,  // conv1 bn1 relu conv2 bn2 relu conv3 bn3 (+downsample) add relu
  kConv2d,      // square kernel, zero padding, no bias
  kBatchNorm2d,
  kRelu,
  kMaxPool2d,
  kGlobalAvgPool,  // [N,C,H,W] -> [N,C,1,1]
  kFlatten,        // [N,C,1,1] -> [N,C]
  kLinear,         // with bias
  kAdd,            // inside blocks: body + shortcut, before the ReLU
};
std::string_view Name(ModuleKind kind);  // "Conv2d", "BasicBlock", ... as in torch.nn / torchvision

struct ModuleDef {
  std::string name;  // last part of the dotted path; "" for the root
  ModuleKind kind = ModuleKind::kSequential;
  uint32_t in = 0, out = 0;  // channels or features
  uint32_t kernel = 1, stride = 1, padding = 0;
  std::vector<ModuleDef> children;
};

// [C, H, W], or [K] after flatten.
using TapShape = std::vector<uint32_t>;

struct TapInfo {
  std::string path;  // dotted
  ModuleKind kind;
  TapShape shape;
  bool stage_end = false;
};

// A parameter or buffer of the state dictionary.
struct StateEntry {
  std::string name;  // "layer1.0.bn1.running_mean"
  std::vector<int64_t> shape;
  bool is_buffer = false;  // batch-norm statistics; not trained
  bool is_integer = false;  // num_batches_tracked (int64)
};

class Architecture {
 public:
  // Builds the tree for spec.arch. kInvalidArgument: unknown name (with the nearest), zero classes or channels, image too small.
  static StatusOr<Architecture> Create(const ModelSpec& spec);
  // All zoo names, ascending by family and depth.
  static std::vector<std::string> Names();

  const ModelSpec& spec() const { return spec_; }  // with defaults (width) filled in
  const ModuleDef& root() const { return root_; }
  // Names of the stages in order, for stage-wise schedules: {"layer1", "layer2", "layer3"}. The stem belongs to the first.
  const std::vector<std::string>& stages() const { return stages_; }
  // Modules of stage k (0-based), stem included in stage 0: {"conv1", "bn1", "layer1"}; and those after the last stage: {"fc"}.
  std::vector<std::string> StageModules(size_t k) const;
  std::vector<std::string> HeadModules() const;

  // All taps in execution order, with shapes for spec().image_height/width.
  const std::vector<TapInfo>& taps() const { return taps_; }
  // Null when there is no such path. "" finds the output.
  const TapInfo* FindTap(std::string_view path) const;
  // Top-level-first module paths that own parameters, for globs: "conv1", "layer1", "layer1.0", "layer1.0.conv1", ...
  std::vector<std::string> ModulePaths() const;
  // Index in execution order of the top-level child that contains the path: how deep a prefix must run. REQUIRES: path exists.
  size_t TopLevelIndex(std::string_view path) const;

  std::vector<StateEntry> StateDict() const;  // in torch's order
  uint64_t ParameterCount() const;            // trained elements, buffers excluded

 private:
  ModelSpec spec_;
  ModuleDef root_;
  std::vector<std::string> stages_;
  std::vector<TapInfo> taps_;
};

// Expands globs over module paths: '*' matches within one dotted part, '**' across parts; "layer1" covers everything below it.
// Returns the covered paths that own parameters, minimal (no path below another one), in tree order.
// kInvalidArgument names a glob that matches nothing, with the nearest path.
StatusOr<std::vector<std::string>> ExpandModuleGlobs(const Architecture& arch, const std::vector<std::string>& globs);
// True when `path` is `module` or below it.
bool IsUnder(std::string_view path, std::string_view module);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHITECTURE_H_
