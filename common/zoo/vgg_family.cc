// vgg*_bn and cifar_vgg*_bn [Simonyan and Zisserman 2015, arXiv:1409.1556].
#include <array>

#include "common/str_cat.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

// Convolutions before each pooling. The channels are `width` times 1, 2, 4, 8, 8.
struct VggPlan {
  uint32_t depth;
  std::array<uint32_t, 5> convolutions;
};
constexpr std::array<VggPlan, 5> kVggs = {
    {{8, {1, 1, 1, 1, 1}}, {11, {1, 1, 2, 2, 2}}, {13, {2, 2, 2, 2, 2}}, {16, {2, 2, 3, 3, 3}}, {19, {2, 2, 4, 4, 4}}}};
constexpr std::array<uint32_t, 5> kTimes = {1, 2, 4, 8, 8};

// Convolution, batch norm and ReLU, numbered from `first` on.
void AppendTriple(uint32_t first, uint32_t in, uint32_t out, std::vector<ModuleDef>* chain) {
  chain->push_back(WithBias(Conv(StrCat(first), in, out, 3, 1)));
  chain->push_back(Norm(StrCat(first + 1), out));
  chain->push_back(Plain(StrCat(first + 2), ModuleKind::kRelu, out));
}

ZooTree Vgg(const ModelSpec& spec, const VggPlan& plan) {
  ZooTree tree;
  std::vector<ModuleDef> features;
  uint32_t in = spec.in_channels;
  for (size_t k = 0; k < plan.convolutions.size(); ++k) {
    for (uint32_t i = 0; i < plan.convolutions[k]; ++i) {
      AppendTriple(static_cast<uint32_t>(features.size()), in, spec.width * kTimes[k], &features);
      in = features.back().out;
    }
    tree.stages.push_back(StrCat("features.", features.size() - 1));
    features.push_back(MaxPool(StrCat(features.size()), in, 2, 2, 0));
  }
  const uint32_t hidden = 64 * spec.width;
  const auto linear = [](std::string name, uint32_t from, uint32_t to) {
    return Linear(std::move(name), from, to, InitKind::kSmallNormal);
  };
  tree.root = Chain("", {Chain("features", std::move(features)), AvgPool("avgpool", in, 7),
                         Plain("flatten", ModuleKind::kFlatten, in),
                         // 2 and 5 are torchvision's dropouts
                         Chain("classifier", {linear("0", in * 49, hidden), Plain("1", ModuleKind::kRelu, hidden),
                                              linear("3", hidden, hidden), Plain("4", ModuleKind::kRelu, hidden),
                                              linear("6", hidden, spec.num_classes)})});
  return tree;
}

// The blocks end before their last ReLU, as RepDistiller's do, whose `preact` maps they are; the ReLU is relu0 to
// relu4. The fourth pooling is left out but for images of 64 pixels.
ZooTree CifarVgg(const ModelSpec& spec, const VggPlan& plan) {
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  uint32_t in = spec.in_channels;
  for (size_t k = 0; k < plan.convolutions.size(); ++k) {
    std::vector<ModuleDef> block;
    for (uint32_t i = 0; i < plan.convolutions[k]; ++i) {
      AppendTriple(static_cast<uint32_t>(block.size()), in, spec.width * kTimes[k], &block);
      in = block.back().out;
    }
    block.pop_back();
    top.push_back(Chain(StrCat("block", k), std::move(block)));
    top.push_back(Plain(StrCat("relu", k), ModuleKind::kRelu, in));
    tree.stages.push_back(top.back().name);
    const bool pools = k < 3 || (k == 3 && spec.image_height == 64);
    if (pools) top.push_back(MaxPool(StrCat("pool", k), in, 2, 2, 0));
  }
  top.push_back(AvgPool("pool4", in, 1));
  top.push_back(Plain("flatten", ModuleKind::kFlatten, in));
  top.push_back(Linear("classifier", in, spec.num_classes, InitKind::kSmallNormal));
  return tree;
}

}  // namespace

void AddVggs(std::vector<ZooEntry>* zoo) {
  for (const VggPlan& plan : kVggs) {
    zoo->push_back({StrCat("cifar_vgg", plan.depth, "_bn"), 64, 10, 32,
                    [&plan](const ModelSpec& spec) { return CifarVgg(spec, plan); }});
  }
  for (const VggPlan& plan : kVggs) {
    if (plan.depth == 8) continue;  // CIFAR's only
    zoo->push_back(
        {StrCat("vgg", plan.depth, "_bn"), 64, 1000, 224, [&plan](const ModelSpec& spec) { return Vgg(spec, plan); }});
  }
}

}  // namespace distill
