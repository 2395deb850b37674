// fcn_resnet*, deeplabv3_*, deeplabv3plus_* and pspnet_resnet*: one answer for every pixel.
#include <algorithm>
#include <array>

#include "common/str_cat.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

// Convolution, batch norm and ReLU, numbered from 0.
ModuleDef Triple(std::string name, ModuleDef conv) {
  const uint32_t out = conv.out;
  conv.name = StrCat(0);
  return Chain(std::move(name), {std::move(conv), Norm("1", out), Plain("2", ModuleKind::kRelu, out)});
}

// As torch draws it: Kaiming's fan out would start logits of few classes at a standard deviation of several units.
ModuleDef Logits(std::string name, uint32_t in, uint32_t classes) {
  return WithInit(WithBias(Conv(std::move(name), in, classes, 1, 1)), InitKind::kTorchDefault);
}

void AppendUpsample(const ModelSpec& spec, bool align_corners, ModuleDef* root) {
  ModuleDef upsample = Plain("upsample", ModuleKind::kUpsample, spec.num_classes);
  upsample.out_height = spec.image_height;
  upsample.out_width = spec.image_width;
  upsample.align_corners = align_corners;
  root->children.push_back(std::move(upsample));
}

ZooTree Fcn(const ModelSpec& spec, uint32_t depth) {
  ZooTree tree = ResNetBackbone(spec, {.depth = depth, .output_stride = 8});
  const uint32_t features = tree.root.out, inner = features / 4;
  ModuleDef head = Triple("classifier", Conv("", features, inner, 3, 1));
  head.children.push_back(Logits("4", inner, spec.num_classes));  // 3 is torchvision's dropout
  tree.root.children.push_back(std::move(head));
  AppendUpsample(spec, /*align_corners=*/false, &tree.root);
  return tree;
}

// torchvision's ASPP: a 1x1 convolution, three dilated ones and the mean of the map, each to `out` channels; then
// together to `out` channels. The dilations are those for 1/8 of the image's size, halved at 1/16.
ModuleDef Aspp(std::string name, uint32_t in, uint32_t out, uint32_t output_stride) {
  ModuleDef convs{.name = "convs", .kind = ModuleKind::kSequential, .in = in, .out = 5 * out};
  convs.children.push_back(Triple("0", Conv("", in, out, 1, 1)));
  for (const uint32_t dilation : {12u, 24u, 36u}) {
    convs.children.push_back(
        Triple(StrCat(convs.children.size()), Conv("", in, out, 3, 1, dilation * 8 / output_stride)));
  }
  ModuleDef mean{.name = "4", .kind = ModuleKind::kSequential, .in = in, .out = out};
  mean.children = {AvgPool("0", in, 1), Conv("1", in, out, 1, 1), Norm("2", out), Plain("3", ModuleKind::kRelu, out)};
  Wiring of_mean(&mean);
  uint32_t value = 0;
  for (const char* child : {"0", "1", "2", "3"}) value = of_mean.Run(child, {value});
  of_mean.Run(Plain("", ModuleKind::kUpsample, out), {value, 0});
  convs.children.push_back(std::move(mean));
  Wiring of_convs(&convs);
  std::vector<uint32_t> branches;
  for (const char* child : {"0", "1", "2", "3", "4"}) branches.push_back(of_convs.Run(child, {0}));
  of_convs.Run(Plain("", ModuleKind::kConcat, 5 * out), branches);

  ModuleDef aspp{.name = std::move(name), .kind = ModuleKind::kAspp, .in = in, .out = out};
  aspp.children.push_back(std::move(convs));
  aspp.children.push_back(Triple("project", Conv("", 5 * out, out, 1, 1)));  // 3 is torchvision's dropout
  return aspp;
}

// torchvision's head on the last map.
ZooTree DeepLabV3(const ModelSpec& spec, ZooTree tree, uint32_t channels, uint32_t output_stride) {
  tree.root.children.push_back(WithInit(
      Chain("classifier",
            {Aspp("0", tree.root.out, channels, output_stride), Conv("1", channels, channels, 3, 1),
             Norm("2", channels), Plain("3", ModuleKind::kRelu, channels), Logits("4", channels, spec.num_classes)}),
      InitKind::kTorchDefault));
  AppendUpsample(spec, /*align_corners=*/false, &tree.root);
  return tree;
}

// The head also reads an early map, that of the first stage, which has 1/4 of the image's size. Names are those of
// VainF's DeepLabV3Plus-Pytorch.
ZooTree DeepLabV3Plus(const ModelSpec& spec, ZooTree tree, uint32_t channels, uint32_t output_stride) {
  ModuleDef& root = tree.root;
  const std::string early = tree.stages.front().substr(0, tree.stages.front().find('.'));  // at top level
  uint32_t early_channels = 0;
  for (const ModuleDef& child : root.children) {
    if (child.name == early) early_channels = child.out;
  }
  const uint32_t few = std::max(1u, channels * 3 / 16);  // 48 of 256
  ModuleDef head{
      .name = "classifier", .kind = ModuleKind::kDeepLabHead, .in = root.out, .out = spec.num_classes, .inputs = 2};
  head.children.push_back(Triple("project", Conv("", early_channels, few, 1, 1)));
  head.children.push_back(Aspp("aspp", root.out, channels, output_stride));
  head.children.push_back(Triple("classifier", Conv("", few + channels, channels, 3, 1)));
  head.children.back().children.push_back(Logits("3", channels, spec.num_classes));
  Wiring of_head(&head);  // 0: the last map, 1: the early one
  const uint32_t fine = of_head.Run("project", {1});
  const uint32_t coarse = of_head.Run(Plain("", ModuleKind::kUpsample, channels), {of_head.Run("aspp", {0}), fine});
  of_head.Run("classifier", {of_head.Run(Plain("", ModuleKind::kConcat, few + channels), {fine, coarse})});

  Wiring wiring(&root);
  uint32_t value = 0, early_value = 0;
  std::vector<std::string> names;
  for (const ModuleDef& child : root.children) names.push_back(child.name);
  for (const std::string& name : names) {
    value = wiring.Run(name, {value});
    if (name == early) early_value = value;
  }
  value = wiring.Run(WithInit(std::move(head), InitKind::kTorchDefault), {value, early_value});
  AppendUpsample(spec, /*align_corners=*/false, &root);
  wiring.Run("upsample", {value});
  return tree;
}

// Zhao et al. 2017, arXiv:1612.01105, with the names and the corners of their own code (semseg): the stem of three
// convolutions, and all blocks of a dilated stage alike.
ZooTree PspNet(const ModelSpec& spec, uint32_t depth, uint32_t output_stride) {
  ZooTree tree =
      ResNetBackbone(spec, {.depth = depth, .output_stride = output_stride, .deep_stem = true, .uniform = true});
  const uint32_t in = tree.root.out, quarter = in / 4;
  ModuleDef pooled{.name = "features", .kind = ModuleKind::kSequential, .in = in, .out = 2 * in};
  for (const uint32_t bins : {1, 2, 3, 6}) {
    ModuleDef level{.name = StrCat(pooled.children.size()), .kind = ModuleKind::kSequential, .in = in, .out = quarter};
    level.children = {AvgPool("0", in, bins), Conv("1", in, quarter, 1, 1), Norm("2", quarter),
                      Plain("3", ModuleKind::kRelu, quarter)};
    Wiring wiring(&level);
    uint32_t value = 0;
    for (const char* child : {"0", "1", "2", "3"}) value = wiring.Run(child, {value});
    ModuleDef upsample = Plain("", ModuleKind::kUpsample, quarter);
    upsample.align_corners = true;
    wiring.Run(std::move(upsample), {value, 0});
    pooled.children.push_back(std::move(level));
  }
  Wiring of_levels(&pooled);
  std::vector<uint32_t> all = {0};
  for (const char* level : {"0", "1", "2", "3"}) all.push_back(of_levels.Run(level, {0}));
  of_levels.Run(Plain("", ModuleKind::kConcat, 2 * in), all);
  ModuleDef ppm{.name = "ppm", .kind = ModuleKind::kPyramidPooling, .in = in, .out = 2 * in};
  ppm.children.push_back(std::move(pooled));
  ModuleDef cls = Triple("cls", Conv("", 2 * in, quarter, 3, 1));
  cls.children.push_back(Logits("4", quarter, spec.num_classes));  // 3 is a dropout
  tree.root.children.push_back(WithInit(std::move(ppm), InitKind::kTorchDefault));
  tree.root.children.push_back(WithInit(std::move(cls), InitKind::kTorchDefault));
  AppendUpsample(spec, /*align_corners=*/true, &tree.root);
  return tree;
}

constexpr std::array<uint32_t, 4> kDepths = {18, 34, 50, 101};
constexpr uint32_t kVocClasses = 21, kVocSide = 520;

// `build` at both output strides; names of the second end in _os16.
template <typename Build>
void AddAtBothStrides(std::string name, uint32_t width, std::vector<ZooEntry>* zoo, const Build& build) {
  for (const uint32_t stride : {8u, 16u}) {
    zoo->push_back({stride == 8 ? name : StrCat(name, "_os16"), width, kVocClasses, kVocSide,
                    [build, stride](const ModelSpec& spec) { return build(spec, stride); }});
  }
}

}  // namespace

void AddSegmentationNets(std::vector<ZooEntry>* zoo) {
  for (const uint32_t depth : kDepths) {
    zoo->push_back({StrCat("fcn_resnet", depth), 64, kVocClasses, kVocSide,
                    [depth](const ModelSpec& spec) { return Fcn(spec, depth); }});
  }
  // Of the heads, 256 channels at the usual widths.
  for (const uint32_t depth : kDepths) {
    AddAtBothStrides(StrCat("deeplabv3_resnet", depth), 64, zoo, [depth](const ModelSpec& spec, uint32_t stride) {
      return DeepLabV3(spec, ResNetBackbone(spec, {.depth = depth, .output_stride = stride}), 4 * spec.width, stride);
    });
  }
  AddAtBothStrides("deeplabv3_mobilenet_v2", 32, zoo, [](const ModelSpec& spec, uint32_t stride) {
    return DeepLabV3(spec, MobileNetV2Backbone(spec, stride, /*split=*/false), 8 * spec.width, stride);
  });
  for (const uint32_t depth : kDepths) {
    AddAtBothStrides(StrCat("deeplabv3plus_resnet", depth), 64, zoo, [depth](const ModelSpec& spec, uint32_t stride) {
      return DeepLabV3Plus(spec, ResNetBackbone(spec, {.depth = depth, .output_stride = stride}), 4 * spec.width,
                           stride);
    });
  }
  AddAtBothStrides("deeplabv3plus_mobilenet_v2", 32, zoo, [](const ModelSpec& spec, uint32_t stride) {
    return DeepLabV3Plus(spec, MobileNetV2Backbone(spec, stride, /*split=*/true), 8 * spec.width, stride);
  });
  for (const uint32_t depth : kDepths) {
    AddAtBothStrides(StrCat("pspnet_resnet", depth), 64, zoo,
                     [depth](const ModelSpec& spec, uint32_t stride) { return PspNet(spec, depth, stride); });
  }
}

}  // namespace distill
