// mobilenet_v1 [Howard et al. 2017, arXiv:1704.04861] and mobilenet_v2 [Sandler et al. 2018, arXiv:1801.04381], for
// ImageNet and, the second, for CIFAR.
#include <algorithm>

#include "common/str_cat.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

constexpr uint32_t kStem = 32;  // channels of the stem, at the width of the papers

// Convolution, batch norm and activation.
std::vector<ModuleDef> Triple(ModuleDef conv, ModuleKind activation) {
  const uint32_t out = conv.out;
  std::vector<ModuleDef> triple;
  triple.push_back(std::move(conv));
  triple.push_back(Norm("1", out));
  triple.push_back(Plain("2", activation, out));
  return triple;
}

// The names of mdistiller's ImageNet network: `model` (Sequential) of triples and of pairs of them, `fc`.
ZooTree MobileNetV1(const ModelSpec& spec) {
  // Of the paper's code: at least 8 channels, rounded down.
  const auto scaled = [&](uint32_t channels) {
    return std::max<uint32_t>(8, static_cast<uint32_t>(uint64_t{channels} * spec.width / kStem));
  };
  std::vector<ModuleDef> model;
  uint32_t in = scaled(kStem);
  model.push_back(Chain("0", Triple(Conv("0", spec.in_channels, in, 3, 2), ModuleKind::kRelu)));
  struct Pair {
    uint32_t channels, stride;
  };
  for (const Pair& pair : {Pair{64, 1},
                           {128, 2},
                           {128, 1},
                           {256, 2},
                           {256, 1},
                           {512, 2},
                           {512, 1},
                           {512, 1},
                           {512, 1},
                           {512, 1},
                           {512, 1},
                           {1024, 2},
                           {1024, 1}}) {
    const uint32_t out = scaled(pair.channels);
    std::vector<ModuleDef> layers = Triple(DepthwiseConv("0", in, 3, pair.stride), ModuleKind::kRelu);
    layers.push_back(Conv("3", in, out, 1, 1));
    layers.push_back(Norm("4", out));
    layers.push_back(Plain("5", ModuleKind::kRelu, out));
    model.push_back(Chain(StrCat(model.size()), std::move(layers)));
    in = out;
  }
  model.push_back(AvgPool(StrCat(model.size()), in, 1));
  ZooTree tree;
  tree.root = Chain("", {Chain("model", std::move(model)), Plain("flatten", ModuleKind::kFlatten, in),
                         Linear("fc", in, spec.num_classes)});
  tree.root = WithInit(std::move(tree.root), InitKind::kTorchDefault);
  tree.stages = {"model.3", "model.5", "model.11", "model.13"};
  return tree;
}

// An inverted residual block's `conv`: as torchvision nests it, or RepDistiller's flat one.
struct Inverted {
  uint32_t in, out, expansion, stride, dilation;
  bool nested;
};
ModuleDef InvertedResidual(std::string name, const Inverted& plan) {
  const uint32_t inner = plan.in * plan.expansion;
  std::vector<ModuleDef> body;
  const auto append = [&](ModuleDef conv) {
    const uint32_t channels = conv.out;
    if (plan.nested) {
      conv.name = StrCat(0);
      body.push_back(Chain(StrCat(body.size()), Triple(std::move(conv), ModuleKind::kRelu6)));
      return;
    }
    conv.name = StrCat(body.size());
    body.push_back(std::move(conv));
    body.push_back(Norm(StrCat(body.size()), channels));
    body.push_back(Plain(StrCat(body.size()), ModuleKind::kRelu, channels));
  };
  if (plan.expansion != 1 || !plan.nested) append(Conv("", plan.in, inner, 1, 1));
  append(DepthwiseConv("", inner, 3, plan.stride, plan.dilation));
  body.push_back(Conv(StrCat(body.size()), inner, plan.out, 1, 1));
  body.push_back(Norm(StrCat(body.size()), plan.out));

  ModuleDef block{.name = std::move(name),
                  .kind = ModuleKind::kInvertedResidual,
                  .in = plan.in,
                  .out = plan.out,
                  .stride = plan.stride};
  block.children.push_back(Chain("conv", std::move(body)));
  Wiring wiring(&block);
  const uint32_t value = wiring.Run("conv", {0});
  if (plan.stride == 1 && plan.in == plan.out) wiring.Run(Plain("add", ModuleKind::kAdd, plan.out), {value, 0});
  return block;
}

struct Group {
  uint32_t expansion, channels, blocks, stride;
};
constexpr Group kGroups[] = {{1, 16, 1, 1}, {6, 24, 2, 2},  {6, 32, 3, 2}, {6, 64, 4, 2},
                             {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};
constexpr uint32_t kLast = 1280;  // channels before the classifier, also of narrower networks

// torchvision's _make_divisible: the nearest multiple of 8, at least 8, and not below nine tenths.
uint32_t Divisible(double channels) {
  uint32_t rounded = std::max<uint32_t>(8, static_cast<uint32_t>(channels + 4) / 8 * 8);
  if (rounded < 0.9 * channels) rounded += 8;
  return rounded;
}

// The stem and the inverted residual blocks: features.0 to features.17.
std::vector<ModuleDef> MobileNetV2Features(const ModelSpec& spec, uint32_t output_stride) {
  const double times = static_cast<double>(spec.width) / kStem;
  uint32_t in = Divisible(kStem * times);
  std::vector<ModuleDef> features;
  features.push_back(Chain("0", Triple(Conv("0", spec.in_channels, in, 3, 2), ModuleKind::kRelu6)));
  uint32_t dilation = 1, reached = 2;  // reached: the stride so far
  for (const Group& group : kGroups) {
    uint32_t stride = group.stride;
    const uint32_t before = dilation;  // which the first block keeps
    if (reached * stride > output_stride) {
      dilation *= stride;
      stride = 1;
    }
    reached *= stride;
    for (uint32_t b = 0; b < group.blocks; ++b) {
      const uint32_t out = Divisible(group.channels * times);
      features.push_back(InvertedResidual(
          StrCat(features.size()), {in, out, group.expansion, b == 0 ? stride : 1, b == 0 ? before : dilation, true}));
      in = out;
    }
  }
  return features;
}

ZooTree MobileNetV2(const ModelSpec& spec) {
  std::vector<ModuleDef> features = MobileNetV2Features(spec, 32);
  const uint32_t last = Divisible(kLast * std::max(1.0, static_cast<double>(spec.width) / kStem));
  const uint32_t in = features.back().out;
  features.push_back(Chain(StrCat(features.size()), Triple(Conv("0", in, last, 1, 1), ModuleKind::kRelu6)));
  ZooTree tree;
  tree.root.in = spec.in_channels;
  tree.root.children.push_back(Chain("features", std::move(features)));
  AppendPooling(&tree.root, last);
  // 0 is torchvision's dropout
  tree.root.children.push_back(Chain("classifier", {Linear("1", last, spec.num_classes, InitKind::kSmallNormal)}));
  tree.stages = {"features.3", "features.6", "features.13", "features.17"};
  return tree;
}

// RepDistiller's: ReLU instead of ReLU6, the second group without a stride, channels rounded down.
ZooTree CifarMobileNetV2(const ModelSpec& spec) {
  const auto scaled = [&](uint32_t channels) {
    return std::max<uint32_t>(1, static_cast<uint32_t>(uint64_t{channels} * spec.width / kStem));
  };
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  uint32_t in = spec.width;
  top.push_back(Chain("conv1", Triple(Conv("0", spec.in_channels, in, 3, 2), ModuleKind::kRelu)));
  std::vector<ModuleDef> groups;
  for (const Group& group : kGroups) {
    std::vector<ModuleDef> blocks;
    const uint32_t stride = group.channels == 24 ? 1 : group.stride;
    for (uint32_t b = 0; b < group.blocks; ++b) {
      const uint32_t out = scaled(group.channels);
      blocks.push_back(InvertedResidual(StrCat(b), {in, out, group.expansion, b == 0 ? stride : 1, 1, false}));
      in = out;
    }
    groups.push_back(Chain(StrCat(groups.size()), std::move(blocks)));
  }
  top.push_back(Chain("blocks", std::move(groups)));
  const uint32_t last = std::max(kLast, scaled(kLast));
  top.push_back(Chain("conv2", Triple(Conv("0", in, last, 1, 1), ModuleKind::kRelu)));
  AppendPooling(&tree.root, last);
  top.push_back(Chain("classifier", {Linear("0", last, spec.num_classes, InitKind::kSmallNormal)}));
  tree.stages = {"blocks.1", "blocks.2", "blocks.4", "blocks.6"};
  return tree;
}

}  // namespace

ZooTree MobileNetV2Backbone(const ModelSpec& spec, uint32_t output_stride, bool split) {
  std::vector<ModuleDef> features = MobileNetV2Features(spec, output_stride);
  ZooTree tree;
  tree.root.in = spec.in_channels;
  tree.root.out = features.back().out;
  if (split) {
    std::vector<ModuleDef> low(features.begin(), features.begin() + 4), high(features.begin() + 4, features.end());
    tree.root.children = {Chain("low_level_features", std::move(low)), Chain("high_level_features", std::move(high))};
    tree.stages = {"low_level_features.3", "high_level_features.6", "high_level_features.13", "high_level_features.17"};
  } else {
    tree.root.children.push_back(Chain("features", std::move(features)));
    tree.stages = {"features.3", "features.6", "features.13", "features.17"};
  }
  return tree;
}

void AddMobileNets(std::vector<ZooEntry>* zoo) {
  zoo->push_back({"cifar_mobilenet_v2", 16, 10, 32, CifarMobileNetV2});
  zoo->push_back({"mobilenet_v1", kStem, 1000, 224, MobileNetV1});
  zoo->push_back({"mobilenet_v2", kStem, 1000, 224, MobileNetV2});
}

}  // namespace distill
