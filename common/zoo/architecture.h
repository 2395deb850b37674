// What a network consists of, as plain data: of the zoo a tree of modules with torchvision's names, of a TorchScript
// archive what was measured when it was loaded. No torch here.
//
// The coordinator, which links no torch, validates taps, module globs and shapes against it. A zoo network is built
// from its tree (common/zoo/module_def.h, common/zoo/zoo_net.h); an archive describes itself
// (common/zoo/torchscript_net.h).
//
// Architectures. Names, order and shapes of parameters and buffers, and the initial weights' distributions, are those
// of the reference; `width` is the number of channels of the first convolution, with which all others scale:
//   cifar_resnet8|14|20|32|44|56|110   3x3 stem of `width` (16) channels, three stages of width, 2*width and 4*width
//                                      channels at strides 1, 2, 4; BasicBlocks; global average pool; fc.
//                                      [He et al. 2016, section 4.2; RepDistiller, mdistiller]
//   cifar_resnet8x4|32x4               the same with stages of 2, 4 and 8 times `width` (32) [RepDistiller]
//   cifar_wrn_16_1|16_2|40_1|40_2      wide ResNets: depth, widening; `width` 16; batch norm and ReLU before each
//                                      convolution [Zagoruyko and Komodakis 2016; RepDistiller without dropout]
//   cifar_vgg8_bn|11_bn|13_bn|16_bn|19_bn   `width` 64; RepDistiller's, with one linear layer. block0 to block4 end
//                                      before their last ReLU, which is relu0 to relu4
//   cifar_mobilenet_v2                 `width` 16 (half of the paper's 32): RepDistiller's mobile_half
//   cifar_shufflenet_v2                `width` 24: RepDistiller's ShuffleV2
//   vgg11_bn|13_bn|16_bn|19_bn         `width` 64, 64*width hidden features [torchvision, without its dropouts]
//   mobilenet_v1                       `width` 32 [mdistiller]; narrower layers have 8 channels at least
//   mobilenet_v2                       `width` 32: torchvision's with width_mult = width/32, whose layers have
//                                      multiples of 8 channels; without its dropout
//   shufflenet_v2_x0_5|x1_0|x1_5|x2_0  `width` 24 [torchvision]
//   resnet18|34|50|101|152             7x7/2 stem, 3x3/2 max pool, four stages from `width` (64); layout of
//                                      torchvision's v1.5
// One answer per pixel, for semantic segmentation. Maps keep 1/8 of the image's size (1/16 where the name ends in
// _os16): the stages behind are dilated instead of strided. `upsample` (bilinear) brings logits to the image's size:
//   fcn_resnet18|34|50|101             `classifier`: 3x3 to C/4 channels, batch norm, ReLU, 1x1 to the classes
//                                      [Long et al. 2015, arXiv:1411.4038, as torchvision's fcn_resnet50 and 101]
//   deeplabv3_resnet18|34|50|101[_os16], deeplabv3_mobilenet_v2[_os16]   `classifier`: ASPP and a 3x3, of 4 * `width`
//                                      channels, of mobilenet_v2 8 * `width` (256) [Chen et al. 2017,
//                                      arXiv:1706.05587, as torchvision's deeplabv3_resnet50 and 101]
//   deeplabv3plus_*                    the same backbones; the head also reads the first stage, at 1/4 [Chen et al.
//                                      2018, arXiv:1802.02611; names of DeepLabV3Plus-Pytorch]. mobilenet_v2 is split
//                                      there into low_level_features (0 to 3) and high_level_features (4 to 17)
//   pspnet_resnet18|34|50|101[_os16]   `layer0` (three 3x3 convolutions, pool), layer1 to layer4, `ppm`, `cls` [Zhao et
//                                      al. 2017, arXiv:1612.01105; names, corners and dilations of its code, semseg]
//
// How these differ from their references: names have no prefix `backbone.`, there is no dropout, whose index stays
// free, and no auxiliary classifier. ResNets 18 and 34 dilate the first convolution of a BasicBlock and leave the
// second one dense, as mmsegmentation does. The first block of a dilated stage has the dilation of the stage before
// (of layer3 1, of layer4 2), its other blocks twice that, as in torchvision; of pspnet all have the same. The heads
// of deeplabv3plus_* start as torch's layers do.
//
// Taps: every dotted path can be tapped; the value is the module's output. The path of a residual block ("layer1.0") is
// its output after the last ReLU; the pseudo-module `add` ("layer1.0.add"), which the references do not have, is the
// sum before that ReLU (of mobilenet_v2 and wrn, after which there is none: the output). A block's own `relu`, which
// torchvision calls two or three times per forward, is no tap: "which call" would have no answer. At top level `relu`,
// `maxpool`, `avgpool`, the pseudo-modules `flatten` and `upsample`, and `fc` are taps like any other. `classifier`, of
// PSPNet `cls`, is the logits before they are enlarged.
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
#include "common/zoo/module_def.h"

namespace distill {

// [C, H, W], or [K] after flatten.
using TapShape = std::vector<uint32_t>;
// Whether a network whose output has this shape gives one answer per pixel, [K, H, W], rather than one per image, [K].
inline bool IsDense(const TapShape& output) { return output.size() == 3; }

struct TapInfo {
  std::string path;  // dotted
  ModuleKind kind;
  TapShape shape;
  bool stage_end = false;
  // Positions in the state dictionary of the parameters that the value depends on, ascending.
  std::vector<uint32_t> needs = {};
  // The output depends on the image through this tap alone. (Zoo: false inside blocks.)
  bool is_cut = false;
  // Of zoo networks: multiplications of the convolutions and linear layers that run for one image up to here.
  uint64_t multiply_adds = 0;
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
  // 1,000,000, of a dense network at most 255 (255 marks pixels without a label); an image of which a pooling would
  // leave nothing; mean or std that are neither empty nor one finite number (std > 0) per channel.
  static StatusOr<Architecture> Create(const ModelSpec& spec);
  // A TorchScript archive's network. `taps`: in execution order, the output (path "") among them; `state`: in the
  // module's order; spec.arch is "torchscript", and num_classes is taken from the output. Stages are the taps with
  // stage_end. kInvalidArgument: no output of [K] or [K, H, W], a path twice, a position beyond the state, a stage that
  // ends in no map; sizes outside the limits of Create.
  static StatusOr<Architecture> OfArchive(ModelSpec spec, std::vector<TapInfo> taps, std::vector<StateEntry> state);
  // All zoo names, by family, ascending by size.
  static std::vector<std::string> Names();
  // `spec` with the network's usual sizes where it has 0: cifar_* 10 classes, 3 x 32 x 32; segmentation 21 classes
  // (those of Pascal VOC), 3 x 520 x 520; the others 1000 classes, 3 x 224 x 224. Unknown names: as it is.
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
  // Where the network can be cut in two (StudentNet::ForwardAfter): ascending numbers from 1 in the order of execution,
  // 0 where it cannot. Zoo: everything but what is inside blocks; a Sequential has the number of its last child.
  size_t CutIndex(std::string_view tap) const;

  // All taps in execution order, with shapes for spec().image_height/width.
  const std::vector<TapInfo>& taps() const { return taps_; }
  // True when the output is [K, H, W], one answer per pixel of the image; false when it is [K].
  bool dense() const { return IsDense(output_.shape); }
  // Null when there is no such path. "" finds the output, which is not in taps().
  const TapInfo* FindTap(std::string_view path) const;
  // Top-level-first module paths that own parameters, for globs: "conv1", "layer1", "layer1.0", "layer1.0.conv1", ...
  std::vector<std::string> ModulePaths() const;
  bool CanStartAfter(std::string_view path) const { return CutIndex(path) > 0; }

  std::vector<StateEntry> StateDict() const { return state_; }  // in torch's order
  uint64_t ParameterCount() const;                              // trained elements, buffers excluded
  uint64_t ParametersUpTo(const TapInfo& tap) const;            // those that the value at the tap depends on

 private:
  ModelSpec spec_;
  ModuleDef root_;
  std::vector<std::string> stages_;
  std::vector<TapInfo> taps_;
  TapInfo output_;
  std::vector<StateEntry> state_;
};

// Expands globs over module paths: '*' matches within one dotted part, '**' across parts ("**.conv1" also matches
// "conv1"); "layer1" covers everything below it. Returns the covered paths that own parameters, minimal (no path below
// another one), in tree order. kInvalidArgument names a glob that matches nothing, with the nearest path.
StatusOr<std::vector<std::string>> ExpandModuleGlobs(const Architecture& arch, const std::vector<std::string>& globs);
// True when `path` is `module` or below it.
bool IsUnder(std::string_view path, std::string_view module);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHITECTURE_H_
