// cifar_resnet*, resnet* and cifar_wrn_*: networks of residual blocks.
#include <algorithm>
#include <array>

#include "common/str_cat.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

// The residual blocks of torchvision, v1.5: of a bottleneck, the stride sits on the 3x3 convolution.
ModuleDef ResidualBlock(std::string name, bool bottleneck, uint32_t in, uint32_t planes, uint32_t stride,
                        uint32_t dilation) {
  const uint32_t out = bottleneck ? planes * 4 : planes;
  ModuleDef block{.name = std::move(name),
                  .kind = bottleneck ? ModuleKind::kBottleneck : ModuleKind::kBasicBlock,
                  .in = in,
                  .out = out,
                  .stride = stride};
  auto& c = block.children;
  if (bottleneck) {
    c = {Conv("conv1", in, planes, 1, 1),
         Norm("bn1", planes),
         Conv("conv2", planes, planes, 3, stride, dilation),
         Norm("bn2", planes),
         Conv("conv3", planes, out, 1, 1),
         Norm("bn3", out)};
  } else {
    c = {Conv("conv1", in, planes, 3, stride, dilation), Norm("bn1", planes), Conv("conv2", planes, planes, 3, 1),
         Norm("bn2", planes)};
  }
  const bool reshapes = stride != 1 || in != out;
  if (reshapes) c.push_back(Chain("downsample", {Conv("0", in, out, 1, stride), Norm("1", out)}));

  Wiring wiring(&block);
  uint32_t body = 0;
  const int convolutions = bottleneck ? 3 : 2;
  for (int i = 1; i <= convolutions; ++i) {
    body = wiring.Run(StrCat("bn", i), {wiring.Run(StrCat("conv", i), {body})});
    if (i < convolutions) body = wiring.Relu(body);
  }
  const uint32_t shortcut = reshapes ? wiring.Run("downsample", {0}) : 0;
  wiring.Relu(wiring.Run(Plain("add", ModuleKind::kAdd, out), {body, shortcut}));
  return block;
}

struct LayerPlan {
  uint32_t planes, blocks, stride;
  uint32_t first_dilation = 1, dilation = 1;  // of the first block and of the others
};

ModuleDef Layer(std::string name, bool bottleneck, uint32_t in, const LayerPlan& plan) {
  std::vector<ModuleDef> blocks;
  for (uint32_t b = 0; b < plan.blocks; ++b) {
    blocks.push_back(ResidualBlock(StrCat(b), bottleneck, in, plan.planes, b == 0 ? plan.stride : 1,
                                   b == 0 ? plan.first_dilation : plan.dilation));
    in = blocks.back().out;
  }
  return Chain(std::move(name), std::move(blocks));
}

// The stem has `width` channels, the stages `times` as many and the double of that from stage to stage.
ZooTree CifarResNet(const ModelSpec& spec, uint32_t depth, uint32_t times) {
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  top = {Conv("conv1", spec.in_channels, spec.width, 3, 1), Norm("bn1", spec.width),
         Plain("relu", ModuleKind::kRelu, spec.width)};
  uint32_t in = spec.width;
  for (uint32_t k = 0; k < 3; ++k) {
    const LayerPlan plan{.planes = (spec.width * times) << k, .blocks = (depth - 2) / 6, .stride = k == 0 ? 1u : 2u};
    top.push_back(Layer(StrCat("layer", k + 1), false, in, plan));
    tree.stages.push_back(top.back().name);
    in = top.back().out;
  }
  AppendPooling(&tree.root, in);
  top.push_back(Linear("fc", in, spec.num_classes));
  return tree;
}

struct Depth {
  uint32_t depth;
  bool bottleneck;
  std::array<uint32_t, 4> blocks;
};
constexpr std::array<Depth, 5> kDepths = {{{18, false, {2, 2, 2, 2}},
                                           {34, false, {3, 4, 6, 3}},
                                           {50, true, {3, 4, 6, 3}},
                                           {101, true, {3, 4, 23, 3}},
                                           {152, true, {3, 8, 36, 3}}}};

ZooTree ResNet(const ModelSpec& spec, uint32_t depth) {
  ZooTree tree = ResNetBackbone(spec, {.depth = depth});
  AppendPooling(&tree.root, tree.root.out);
  tree.root.children.push_back(Linear("fc", tree.root.out, spec.num_classes));
  return tree;
}

// A block of a wide ResNet: batch norm and ReLU come before each convolution. Where the number of channels changes, the
// shortcut starts behind the first of them; elsewhere it is the block's input.
ModuleDef PreActivationBlock(std::string name, uint32_t in, uint32_t out, uint32_t stride) {
  ModuleDef block{.name = std::move(name), .kind = ModuleKind::kBasicBlock, .in = in, .out = out, .stride = stride};
  block.children = {Norm("bn1", in),  Plain("relu1", ModuleKind::kRelu, in),  Conv("conv1", in, out, 3, stride),
                    Norm("bn2", out), Plain("relu2", ModuleKind::kRelu, out), Conv("conv2", out, out, 3, 1)};
  const bool reshapes = in != out;
  if (reshapes) block.children.push_back(Conv("convShortcut", in, out, 1, stride));
  Wiring wiring(&block);
  const uint32_t first = wiring.Run("relu1", {wiring.Run("bn1", {0})});
  uint32_t body = wiring.Run("bn2", {wiring.Run("conv1", {first})});
  body = wiring.Run("conv2", {wiring.Run("relu2", {body})});
  const uint32_t shortcut = reshapes ? wiring.Run("convShortcut", {first}) : 0;
  wiring.Run(Plain("add", ModuleKind::kAdd, out), {body, shortcut});
  return block;
}

ZooTree WideResNet(const ModelSpec& spec, uint32_t depth, uint32_t widen) {
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  top = {Conv("conv1", spec.in_channels, spec.width, 3, 1)};
  uint32_t in = spec.width;
  for (uint32_t k = 0; k < 3; ++k) {
    const uint32_t out = (spec.width * widen) << k;
    std::vector<ModuleDef> blocks;
    for (uint32_t b = 0; b < (depth - 4) / 6; ++b) {
      blocks.push_back(PreActivationBlock(StrCat(b), in, out, k > 0 && b == 0 ? 2 : 1));
      in = out;
    }
    top.push_back(Chain(StrCat("block", k + 1), {Chain("layer", std::move(blocks))}));
    tree.stages.push_back(top.back().name);
  }
  top.push_back(Norm("bn1", in));
  top.push_back(Plain("relu", ModuleKind::kRelu, in));
  AppendPooling(&tree.root, in);
  top.push_back(Linear("fc", in, spec.num_classes, InitKind::kDefaultZeroBias));
  return tree;
}

}  // namespace

ZooTree ResNetBackbone(const ModelSpec& spec, const ResNetPlan& plan) {
  const Depth& depth =
      *std::find_if(kDepths.begin(), kDepths.end(), [&](const Depth& one) { return one.depth == plan.depth; });
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  const auto relu = [](std::string name, uint32_t channels) {
    return Plain(std::move(name), ModuleKind::kRelu, channels);
  };
  uint32_t in = spec.width;
  if (plan.deep_stem) {
    const uint32_t out = 2 * in;
    top = {Chain("layer0", {Conv("0", spec.in_channels, in, 3, 2), Norm("1", in), relu("2", in),
                            Conv("3", in, in, 3, 1), Norm("4", in), relu("5", in), Conv("6", in, out, 3, 1),
                            Norm("7", out), relu("8", out), MaxPool("9", out, 3, 2, 1)})};
    in = out;
  } else {
    top = {Conv("conv1", spec.in_channels, in, 7, 2), Norm("bn1", in), relu("relu", in),
           MaxPool("maxpool", in, 3, 2, 1)};
  }
  uint32_t dilation = 1, reached = 4;  // reached: the stride so far
  for (uint32_t k = 0; k < 4; ++k) {
    LayerPlan layer{.planes = spec.width << k, .blocks = depth.blocks[k], .stride = k == 0 ? 1u : 2u};
    layer.first_dilation = dilation;
    if (reached * layer.stride > plan.output_stride) {
      dilation *= layer.stride;
      layer.stride = 1;
    }
    reached *= layer.stride;
    layer.dilation = dilation;
    if (plan.uniform) layer.first_dilation = dilation;
    top.push_back(Layer(StrCat("layer", k + 1), depth.bottleneck, in, layer));
    tree.stages.push_back(top.back().name);
    in = top.back().out;
  }
  tree.root.out = in;
  return tree;
}

void AddCifarResNets(std::vector<ZooEntry>* zoo) {
  for (const uint32_t depth : {8, 14, 20, 32, 44, 56, 110}) {
    zoo->push_back({StrCat("cifar_resnet", depth), 16, 10, 32,
                    [depth](const ModelSpec& spec) { return CifarResNet(spec, depth, 1); }});
  }
  for (const uint32_t depth : {8, 32}) {
    zoo->push_back({StrCat("cifar_resnet", depth, "x4"), 32, 10, 32,
                    [depth](const ModelSpec& spec) { return CifarResNet(spec, depth, 2); }});
  }
}

void AddResNets(std::vector<ZooEntry>* zoo) {
  for (const Depth& one : kDepths) {
    const uint32_t depth = one.depth;
    zoo->push_back(
        {StrCat("resnet", depth), 64, 1000, 224, [depth](const ModelSpec& spec) { return ResNet(spec, depth); }});
  }
}

void AddWideResNets(std::vector<ZooEntry>* zoo) {
  for (const auto& [depth, widen] : {std::pair{16u, 1u}, {16u, 2u}, {40u, 1u}, {40u, 2u}}) {
    zoo->push_back({StrCat("cifar_wrn_", depth, "_", widen), 16, 10, 32,
                    [depth = depth, widen = widen](const ModelSpec& spec) { return WideResNet(spec, depth, widen); }});
  }
}

}  // namespace distill
