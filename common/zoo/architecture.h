// What a network consists of, as plain data: of the zoo a tree of modules with torchvision's names, of a TorchScript
// archive what was measured when it was loaded. No torch here.
//
// The coordinator, which links no torch, validates taps, module globs and shapes against it. A zoo network is built
// from its tree (common/zoo/zoo_net.h); an archive describes itself (common/zoo/torchscript_net.h). Parameter names of
// the built module are the dotted paths of the tree: for `resnet*` those of torchvision.models, for `fcn_resnet*` those
// of torchvision.models.segmentation without the prefix `backbone.`, for `cifar_resnet*` those of the CIFAR ResNets of
// the distillation papers (RepDistiller, mdistiller: conv1, bn1, layer1..layer3 of BasicBlocks with `downsample`, fc).
//
// Architectures:
//   cifar_resnet8|14|20|32|44|56|110   3x3 stem of `width` (default 16) channels, three stages of width, 2*width and
//                                      4*width channels at strides 1, 2, 4; BasicBlocks; global average pool; fc.
//                                      [He et al. 2016, section 4.2]
//   resnet18|34|50|101|152             7x7/2 stem, 3x3/2 max pool, four stages from `width` (default 64); layout of
//                                      torchvision's v1.5
//   fcn_resnet18|34|50|101             one answer per pixel, for semantic segmentation: the ResNet with dilated
//                                      convolutions instead of the strides of layer3 and layer4, so that maps keep 1/8
//                                      of the image's size; then `classifier` (Sequential: 0 conv 3x3 from C to C/4
//                                      channels, 1 batch norm, 2 ReLU, 4 conv 1x1 to the classes, with bias) and
//                                      `upsample` (bilinear, corners not aligned) to the image's size
//                                      [Long et al. 2015, arXiv:1411.4038, as torchvision's fcn_resnet50 and 101]
//
// How fcn_resnet* differ from torchvision's: there is no Dropout(0.1), which has the index 3 there, and no auxiliary
// classifier. 18 and 34, which torchvision does not offer, dilate the first convolution of a BasicBlock and leave the
// second one dense, as mmsegmentation does. The first block of a dilated stage has the dilation of the stage before (1
// in layer3, 2 in layer4), its other blocks twice that, as in torchvision.
//
// Taps: every dotted path can be tapped; the value is the module's output. The path of a residual block ("layer1.0") is
// its output after the last ReLU; the pseudo-module `add` ("layer1.0.add"), which torchvision does not have, is the sum
// before that ReLU. A block's own `relu`, which torchvision calls two or three times per forward, is no tap: "which
// call" would have no answer. At top level `relu`, `maxpool`, `avgpool`, the pseudo-modules `flatten` and `upsample`,
// and `fc` are taps like any other. `classifier` is an FCN's logits at 1/8 of the image's size.
//
// Archives (arch "torchscript"): the taps are the entries of the dictionary that forward returns; which parameters each
// depends on, and whether the network can be cut there, was found in its graph. Modules are known by their parameters'
// names: "layer1.0.conv1.weight" makes the modules layer1, layer1.0 and layer1.0.conv1. A parameter beside other
// modules ("cls_token" of a transformer) counts as a module of its own.
//
// Immutable after creation; any thread may read.
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
  kBasicBlock,  // children conv1 bn1 conv2 bn2 [downsample] add; ReLU after bn1 and after add
  kBottleneck,  // children conv1 bn1 conv2 bn2 conv3 bn3 [downsample] add; ReLU after bn1, bn2 and add
  kConv2d,      // square kernel, zero padding
  kBatchNorm2d,
  kRelu,
  kMaxPool2d,
  kGlobalAvgPool,  // [N,C,H,W] -> [N,C,1,1]
  kFlatten,        // [N,C,1,1] -> [N,C]
  kLinear,         // with bias
  kUpsample,       // [N,C,h,w] -> [N,C,out_height,out_width]; bilinear, corners not aligned
  kAdd,            // inside blocks: body + shortcut, before the ReLU
  kOpaque,         // output of a TorchScript archive: what made it is not known
};
std::string_view Name(ModuleKind kind);  // "Conv2d", "BasicBlock", ... as in torch.nn / torchvision

struct ModuleDef {
  std::string name;  // last part of the dotted path; "" for the root
  ModuleKind kind = ModuleKind::kSequential;
  uint32_t in = 0, out = 0;  // channels or features
  uint32_t kernel = 1, stride = 1, padding = 0, dilation = 1;
  bool bias = false;                       // of a kConv2d
  uint32_t out_height = 0, out_width = 0;  // of a kUpsample, in pixels
  std::vector<ModuleDef> children;
};

// [C, H, W], or [K] after flatten.
using TapShape = std::vector<uint32_t>;
// Whether a network whose output has this shape gives one answer per pixel, [K, H, W], rather than one per image, [K].
inline bool IsDense(const TapShape& output) { return output.size() == 3; }

struct TapInfo {
  std::string path;  // dotted
  ModuleKind kind;
  TapShape shape;
  bool stage_end = false;
  // Of archives. Positions in the state dictionary of the parameters that the value depends on.
  std::vector<uint32_t> needs = {};
  // Of archives: the output depends on the image through this tap alone.
  bool is_cut = false;
};

// A parameter or buffer of the state dictionary.
struct StateEntry {
  std::string name;  // "layer1.0.bn1.running_mean"
  std::vector<int64_t> shape;
  bool is_buffer = false;   // batch-norm statistics; not trained
  bool is_integer = false;  // num_batches_tracked (int64)
};

class Architecture {
 public:
  // Builds the tree for spec.arch. kInvalidArgument: unknown name (with the nearest), zero classes or channels, sizes
  // outside these limits: image 8 to 8192 pixels a side, width at most 4096, channels at most 4096, classes at most
  // 1,000,000, of a dense network at most 255 (255 marks pixels without a label); mean or std that are neither empty
  // nor one finite number (std > 0) per channel.
  static StatusOr<Architecture> Create(const ModelSpec& spec);
  // A TorchScript archive's network. `taps`: in execution order, the output (path "") among them; `state`: in the
  // module's order; spec.arch is "torchscript", and num_classes is taken from the output. Stages are the taps with
  // stage_end. kInvalidArgument: no output of [K] or [K, H, W], a path twice, a position beyond the state, a stage that
  // ends in no map; sizes outside the limits of Create.
  static StatusOr<Architecture> OfArchive(ModelSpec spec, std::vector<TapInfo> taps, std::vector<StateEntry> state);
  // All zoo names, ascending by family and depth.
  static std::vector<std::string> Names();
  // `spec` with the family's usual sizes where it has 0: cifar_resnet 10 classes, 3 x 32 x 32; resnet 1000 classes, 3 x
  // 224 x 224; fcn_resnet 21 classes (those of Pascal VOC), 3 x 520 x 520.
  static ModelSpec WithDefaults(ModelSpec spec);

  const ModelSpec& spec() const { return spec_; }  // with defaults (width) filled in
  // REQUIRES: a network of the zoo.
  const ModuleDef& root() const { return root_; }
  bool is_archive() const { return root_.children.empty(); }
  // Names of the stages in order, for stage-wise schedules: {"layer1", "layer2", "layer3"}. The stem belongs to the
  // first.
  const std::vector<std::string>& stages() const { return stages_; }
  // Modules of stage k (0-based), stem included in stage 0: {"conv1", "bn1", "layer1"}; and those after the last stage:
  // {"fc"} or {"classifier"}.
  std::vector<std::string> StageModules(size_t k) const;
  std::vector<std::string> HeadModules() const;
  // The modules with parameters on which `until` depends and `after` does not, as few paths as cover them, in tree
  // order. after "": from the image on; until "": up to the output. REQUIRES: both are taps or "".
  std::vector<std::string> ModulesBetween(std::string_view after, std::string_view until) const;
  // Whether the value at `tap` ("": the output) depends on parameters of the module.
  bool Reaches(std::string_view module, std::string_view tap) const;
  // Modules at or below `path` that hold parameters and have no such modules below them.
  std::vector<std::string> Leaves(std::string_view path) const;
  // Where the network can be cut in two: ascending numbers from 1 in the order of execution, 0 where it cannot. Zoo:
  // the blocks of stages and the top-level modules around them; a stage has the number of its last block.
  size_t CutIndex(std::string_view tap) const;

  // All taps in execution order, with shapes for spec().image_height/width.
  const std::vector<TapInfo>& taps() const { return taps_; }
  // True when the output is [K, H, W], one answer per pixel of the image; false when it is [K].
  bool dense() const { return IsDense(output_.shape); }
  // Null when there is no such path. "" finds the output, which is not in taps().
  const TapInfo* FindTap(std::string_view path) const;
  // Top-level-first module paths that own parameters, for globs: "conv1", "layer1", "layer1.0", "layer1.0.conv1", ...
  std::vector<std::string> ModulePaths() const;
  // Index in execution order of the top-level child that contains the path: how deep a prefix must run. REQUIRES: path
  // exists, of a network of the zoo.
  size_t TopLevelIndex(std::string_view path) const;
  // True where a net can be run from a tap's value on (StudentNet::ForwardAfter): for a top-level child, and a cut of
  // an archive.
  bool CanStartAfter(std::string_view path) const;

  std::vector<StateEntry> StateDict() const;  // in torch's order
  uint64_t ParameterCount() const;            // trained elements, buffers excluded

 private:
  ModelSpec spec_;
  ModuleDef root_;
  std::vector<std::string> stages_;
  std::vector<TapInfo> taps_;
  TapInfo output_;
  std::vector<StateEntry> state_;  // of archives
};

// Expands globs over module paths: '*' matches within one dotted part, '**' across parts ("**.conv1" also matches
// "conv1"); "layer1" covers everything below it. Returns the covered paths that own parameters, minimal (no path below
// another one), in tree order. kInvalidArgument names a glob that matches nothing, with the nearest path.
StatusOr<std::vector<std::string>> ExpandModuleGlobs(const Architecture& arch, const std::vector<std::string>& globs);
// True when `path` is `module` or below it.
bool IsUnder(std::string_view path, std::string_view module);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHITECTURE_H_
