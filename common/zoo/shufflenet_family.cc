// shufflenet_v2_x* and cifar_shufflenet_v2 [Ma et al. 2018, arXiv:1807.11164].
#include <algorithm>
#include <array>

#include "common/str_cat.h"
#include "common/zoo/zoo_builder.h"

namespace distill {
namespace {

constexpr uint32_t kStem = 24;  // channels of the stem, whatever the size of the network

struct ShufflePlan {
  const char* name;
  std::array<uint32_t, 3> channels;  // of the stages
  uint32_t last;
};
constexpr std::array<ShufflePlan, 4> kPlans = {{{"shufflenet_v2_x0_5", {48, 96, 192}, 1024},
                                                {"shufflenet_v2_x1_0", {116, 232, 464}, 1024},
                                                {"shufflenet_v2_x1_5", {176, 352, 704}, 1024},
                                                {"shufflenet_v2_x2_0", {244, 488, 976}, 2048}}};
constexpr std::array<uint32_t, 3> kBlocks = {4, 8, 4};

// An even number: units work on halves.
uint32_t Scaled(const ModelSpec& spec, uint32_t channels) {
  return std::max<uint32_t>(2, static_cast<uint32_t>(uint64_t{channels} * spec.width / kStem / 2 * 2));
}

ModuleDef Unit(std::string name, uint32_t in, uint32_t out, uint32_t stride) {
  return {.name = std::move(name), .kind = ModuleKind::kInvertedResidual, .in = in, .out = out, .stride = stride};
}
void JoinAndShuffle(ModuleDef* unit, uint32_t left, uint32_t right) {
  Wiring wiring(unit);
  const uint32_t joined = wiring.Run(Plain("", ModuleKind::kConcat, unit->out), {left, right});
  wiring.Run(Plain("", ModuleKind::kShuffle, unit->out), {joined});
}

// torchvision's: both halves are Sequentials.
ModuleDef NestedUnit(std::string name, uint32_t in, uint32_t out, uint32_t stride) {
  ModuleDef unit = Unit(std::move(name), in, out, stride);
  const uint32_t half = out / 2, from = stride > 1 ? in : half;
  if (stride > 1) {
    unit.children.push_back(
        Chain("branch1", {DepthwiseConv("0", in, 3, stride), Norm("1", in), Conv("2", in, half, 1, 1), Norm("3", half),
                          Plain("4", ModuleKind::kRelu, half)}));
  }
  unit.children.push_back(
      Chain("branch2", {Conv("0", from, half, 1, 1), Norm("1", half), Plain("2", ModuleKind::kRelu, half),
                        DepthwiseConv("3", half, 3, stride), Norm("4", half), Conv("5", half, half, 1, 1),
                        Norm("6", half), Plain("7", ModuleKind::kRelu, half)}));
  Wiring wiring(&unit);
  const uint32_t left =
      stride > 1 ? wiring.Run("branch1", {0}) : wiring.Run(Plain("", ModuleKind::kFirstHalf, half), {0});
  const uint32_t right = stride > 1 ? 0 : wiring.Run(Plain("", ModuleKind::kSecondHalf, half), {0});
  JoinAndShuffle(&unit, left, wiring.Run("branch2", {right}));
  return unit;
}

// RepDistiller's: conv1 to conv5 (the first two of the left half) or conv1 to conv3.
ModuleDef FlatUnit(std::string name, uint32_t in, uint32_t out, uint32_t stride) {
  ModuleDef unit = Unit(std::move(name), in, out, stride);
  const uint32_t half = out / 2, from = stride > 1 ? in : half;
  uint32_t number = 1;
  const auto append = [&](ModuleDef conv) {
    conv.name = StrCat("conv", number);
    const uint32_t channels = conv.out;
    unit.children.push_back(std::move(conv));
    unit.children.push_back(Norm(StrCat("bn", number), channels));
    ++number;
  };
  if (stride > 1) {
    append(DepthwiseConv("", in, 3, stride));
    append(Conv("", in, half, 1, 1));
  }
  const uint32_t first = number;  // of the right half
  append(Conv("", from, half, 1, 1));
  append(DepthwiseConv("", half, 3, stride));
  append(Conv("", half, half, 1, 1));

  Wiring wiring(&unit);
  const auto run = [&](uint32_t i, uint32_t value) {
    return wiring.Run(StrCat("bn", i), {wiring.Run(StrCat("conv", i), {value})});
  };
  const uint32_t left =
      stride > 1 ? wiring.Relu(run(2, run(1, 0))) : wiring.Run(Plain("", ModuleKind::kFirstHalf, half), {0});
  uint32_t right = stride > 1 ? 0 : wiring.Run(Plain("", ModuleKind::kSecondHalf, half), {0});
  right = wiring.Relu(run(first, right));
  JoinAndShuffle(&unit, left, wiring.Relu(run(first + 2, run(first + 1, right))));
  return unit;
}

template <typename MakeUnit>
ModuleDef Stage(std::string name, uint32_t in, uint32_t out, uint32_t blocks, const MakeUnit& unit) {
  std::vector<ModuleDef> units;
  for (uint32_t b = 0; b < blocks; ++b) {
    units.push_back(unit(StrCat(b), b == 0 ? in : out, out, b == 0 ? 2 : 1));
  }
  return Chain(std::move(name), std::move(units));
}

ZooTree ShuffleNetV2(const ModelSpec& spec, const ShufflePlan& plan) {
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  uint32_t in = spec.width;
  top.push_back(
      Chain("conv1", {Conv("0", spec.in_channels, in, 3, 2), Norm("1", in), Plain("2", ModuleKind::kRelu, in)}));
  top.push_back(MaxPool("maxpool", in, 3, 2, 1));
  for (uint32_t k = 0; k < 3; ++k) {
    const uint32_t out = Scaled(spec, plan.channels[k]);
    top.push_back(Stage(StrCat("stage", k + 2), in, out, kBlocks[k], NestedUnit));
    tree.stages.push_back(top.back().name);
    in = out;
  }
  const uint32_t last = Scaled(spec, plan.last);
  top.push_back(Chain("conv5", {Conv("0", in, last, 1, 1), Norm("1", last), Plain("2", ModuleKind::kRelu, last)}));
  AppendPooling(&tree.root, last);
  top.push_back(Linear("fc", last, spec.num_classes));
  tree.root = WithInit(std::move(tree.root), InitKind::kTorchDefault);
  return tree;
}

// RepDistiller's ShuffleV2: the stem is a 1x1 convolution without a stride, and nothing pools behind it.
ZooTree CifarShuffleNetV2(const ModelSpec& spec) {
  ZooTree tree;
  tree.root.in = spec.in_channels;
  auto& top = tree.root.children;
  uint32_t in = spec.width;
  top = {Conv("conv1", spec.in_channels, in, 1, 1), Norm("bn1", in), Plain("relu", ModuleKind::kRelu, in)};
  const ShufflePlan& plan = kPlans[1];
  for (uint32_t k = 0; k < 3; ++k) {
    const uint32_t out = Scaled(spec, plan.channels[k]);
    top.push_back(Stage(StrCat("layer", k + 1), in, out, kBlocks[k], FlatUnit));
    tree.stages.push_back(top.back().name);
    in = out;
  }
  const uint32_t last = Scaled(spec, plan.last);
  top.push_back(Conv("conv2", in, last, 1, 1));
  top.push_back(Norm("bn2", last));
  top.push_back(Plain("relu2", ModuleKind::kRelu, last));
  AppendPooling(&tree.root, last);
  top.push_back(Linear("linear", last, spec.num_classes));
  tree.root = WithInit(std::move(tree.root), InitKind::kTorchDefault);
  return tree;
}

}  // namespace

void AddShuffleNets(std::vector<ZooEntry>* zoo) {
  zoo->push_back({"cifar_shufflenet_v2", kStem, 10, 32, CifarShuffleNetV2});
  for (const ShufflePlan& plan : kPlans) {
    zoo->push_back({plan.name, kStem, 1000, 224, [&plan](const ModelSpec& spec) { return ShuffleNetV2(spec, plan); }});
  }
}

}  // namespace distill
