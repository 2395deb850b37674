// A network as plain data: a tree of modules and how values flow through it. No torch here.
//
// A module with children is a container. Its children stand in the order in which the reference implementation makes
// them, which is the order of its state dictionary; `steps` says which of them runs when, and on what. Everything that
// has to know a network's wiring (shapes, cuts, the forward pass, the TorchScript export) reads it from there, so that
// a new kind of block is a list of steps and nothing else.
//
// Children with the name "" are plain functions inside a block, such as a ReLU that the reference calls more than once:
// they are no taps. Immutable once built; any thread may read.
#ifndef DISTILL_COMMON_ZOO_MODULE_DEF_H_
#define DISTILL_COMMON_ZOO_MODULE_DEF_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace distill {

enum class ModuleKind {
  // Containers, which differ in name only.
  kSequential,
  kBasicBlock,
  kBottleneck,
  kInvertedResidual,
  kAspp,            // atrous spatial pyramid pooling
  kPyramidPooling,  // of PSPNet
  kDeepLabHead,
  // Leaves, of which kConv2d is the first: one value in, unless it says otherwise.
  kConv2d,  // square kernel, zero padding
  kBatchNorm2d,
  kRelu,
  kRelu6,  // min(max(x, 0), 6)
  kMaxPool2d,
  kAvgPool2d,   // adaptive: [N,C,H,W] -> [N,C,out_height,out_width], each the mean of its share of the map
  kFlatten,     // [N,C,H,W] -> [N,C*H*W]
  kLinear,      // with bias
  kUpsample,    // [N,C,h,w] -> [N,C,out_height,out_width], or, of two values, the second one's size; bilinear
  kAdd,         // two values: a residual block's body and its shortcut
  kConcat,      // several values, along the channels
  kFirstHalf,   // the first C/2 channels
  kSecondHalf,  // the others
  kShuffle,     // channels (g, C/2), g the half, become (C/2, g)
  kOpaque,      // output of a TorchScript archive: what made it is not known
};
std::string_view Name(ModuleKind kind);  // "Conv2d", "BasicBlock", ... as in torch.nn / torchvision
bool IsContainer(ModuleKind kind);

// How a network starts. Fan in: input channels of a group, times the kernel's area, or a linear layer's features.
enum class InitKind {
  kFanOut,           // normal, std sqrt(2 / (out * kernel^2)), bias 0: Kaiming for ReLU
  kTorchDefault,     // weight and bias uniform in +-1/sqrt(fan in)
  kDefaultZeroBias,  // the weight like that, bias 0
  kSmallNormal,      // normal, std 0.01, bias 0
};

struct Step {
  uint32_t child = 0;  // position in `children`
  // What it reads: 0 is the container's own input (with two of them, 0 and 1), then come the outputs of the steps.
  std::vector<uint32_t> inputs;
};

struct ModuleDef {
  std::string name;  // last part of the dotted path; "" for the root and for plain functions inside blocks
  ModuleKind kind = ModuleKind::kSequential;
  uint32_t in = 0, out = 0;  // channels or features
  uint32_t kernel = 1, stride = 1, padding = 0, dilation = 1, groups = 1;
  bool bias = false;                       // of a kConv2d
  uint32_t out_height = 0, out_width = 0;  // of a kUpsample and a kAvgPool2d, in pixels
  bool align_corners = false;              // of a kUpsample
  InitKind init = InitKind::kFanOut;       // of kConv2d and kLinear
  std::vector<ModuleDef> children;
  // Of containers; the last one's output is the container's. Empty: the children one after another.
  std::vector<Step> steps;
  uint32_t inputs = 1;  // values that a container takes; more than 1 only with steps
};

// A network of the zoo.
struct ZooTree {
  ModuleDef root;
  std::vector<std::string> stages;  // paths of the taps that end a stage, in order of execution
};

// The steps of a container, those of a chain written out.
std::vector<Step> StepsOf(const ModuleDef& container);
// Of each value of a container, its inputs before the outputs of `steps`, the last step that reads it (0 if none does);
// steps.size() for the container's own output.
std::vector<size_t> LastUses(const std::vector<Step>& steps, size_t inputs);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_MODULE_DEF_H_
