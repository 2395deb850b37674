#include "common/zoo/module_def.h"

namespace distill {

std::string_view Name(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kSequential:
      return "Sequential";
    case ModuleKind::kBasicBlock:
      return "BasicBlock";
    case ModuleKind::kBottleneck:
      return "Bottleneck";
    case ModuleKind::kInvertedResidual:
      return "InvertedResidual";
    case ModuleKind::kAspp:
      return "ASPP";
    case ModuleKind::kPyramidPooling:
      return "PPM";
    case ModuleKind::kDeepLabHead:
      return "DeepLabHead";
    case ModuleKind::kConv2d:
      return "Conv2d";
    case ModuleKind::kBatchNorm2d:
      return "BatchNorm2d";
    case ModuleKind::kRelu:
      return "ReLU";
    case ModuleKind::kRelu6:
      return "ReLU6";
    case ModuleKind::kMaxPool2d:
      return "MaxPool2d";
    case ModuleKind::kAvgPool2d:
      return "AdaptiveAvgPool2d";
    case ModuleKind::kFlatten:
      return "Flatten";
    case ModuleKind::kLinear:
      return "Linear";
    case ModuleKind::kUpsample:
      return "Upsample";
    case ModuleKind::kAdd:
      return "Add";
    case ModuleKind::kConcat:
      return "Concat";
    case ModuleKind::kFirstHalf:
    case ModuleKind::kSecondHalf:
      return "Half";
    case ModuleKind::kShuffle:
      return "ChannelShuffle";
    case ModuleKind::kOpaque:
      return "TorchScript";
  }
  return "";
}

bool IsContainer(ModuleKind kind) { return kind < ModuleKind::kConv2d; }

std::vector<Step> StepsOf(const ModuleDef& container) {
  if (!container.steps.empty()) return container.steps;
  std::vector<Step> chain;
  for (uint32_t i = 0; i < container.children.size(); ++i) chain.push_back({i, {i}});
  return chain;
}

std::vector<size_t> LastUses(const std::vector<Step>& steps, size_t inputs) {
  std::vector<size_t> last(inputs + steps.size(), 0);
  for (size_t k = 0; k < steps.size(); ++k) {
    for (const uint32_t value : steps[k].inputs) last[value] = k;
  }
  last.back() = steps.size();
  return last;
}

}  // namespace distill
