#include "common/zoo/architecture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/str_cat.h"
#include "common/zoo/archive_ref.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelSpec Spec(std::string arch, uint32_t classes = 10, uint32_t channels = 3, uint32_t image = 32) {
  return {.arch = std::move(arch),
          .num_classes = classes,
          .in_channels = channels,
          .image_height = image,
          .image_width = image};
}
Architecture Make(const ModelSpec& spec) {
  StatusOr<Architecture> arch = Architecture::Create(spec);
  EXPECT_TRUE(arch.ok()) << arch.status();
  return *std::move(arch);
}
std::string Refusal(const ModelSpec& spec) {
  const StatusOr<Architecture> arch = Architecture::Create(spec);
  EXPECT_EQ(arch.status().code(), StatusCode::kInvalidArgument);
  return std::string(arch.status().message());
}

// Published numbers: torchvision's model pages, and RepDistiller's CIFAR-100 table.
TEST(ArchitectureTest, AnArchivesModulesAreKnownByItsParameters) {
  std::vector<StateEntry> state;
  for (const char* name : {"cls_token", "pos", "patch.weight", "patch.bias", "blocks.0.attn.qkv.weight",
                           "blocks.0.attn.bias", "blocks.0.norm.weight", "blocks.1.attn.qkv.weight", "head.weight"}) {
    state.push_back({.name = name, .shape = {2, 3}});
  }
  state.push_back({.name = "mask", .shape = {5}, .is_buffer = true});
  const auto tap = [](std::string path, TapShape shape, bool end, std::vector<uint32_t> needs, bool cut) {
    return TapInfo{std::move(path), ModuleKind::kOpaque, std::move(shape), end, std::move(needs), cut};
  };
  ModelSpec spec{.arch = "torchscript", .in_channels = 3, .image_height = 32, .image_width = 32};
  const std::vector<TapInfo> taps = {tap("blocks.0", {8, 4, 4}, true, {0, 1, 2, 3, 4, 5, 6}, true),
                                     tap("blocks.1", {8, 4, 4}, true, {0, 1, 2, 3, 4, 5, 6, 7}, true),
                                     tap("", {10}, false, {0, 1, 2, 3, 4, 5, 6, 7, 8}, false)};
  const StatusOr<Architecture> arch = Architecture::OfArchive(spec, taps, state);
  ASSERT_TRUE(arch.ok()) << arch.status();
  EXPECT_EQ(arch->spec().num_classes, 10u);
  EXPECT_THAT(arch->ModulePaths(), ElementsAre("cls_token", "pos", "patch", "blocks", "blocks.0", "blocks.0.attn",
                                               "blocks.0.attn.qkv", "blocks.0.attn.bias", "blocks.0.norm", "blocks.1",
                                               "blocks.1.attn", "blocks.1.attn.qkv", "head"));
  EXPECT_THAT(arch->StageModules(0), ElementsAre("cls_token", "pos", "patch", "blocks.0"));
  EXPECT_THAT(arch->StageModules(1), ElementsAre("blocks.1"));
  EXPECT_THAT(arch->HeadModules(), ElementsAre("head"));
  EXPECT_THAT(*ExpandModuleGlobs(*arch, {"pos", "blocks.*.attn"}),
              ElementsAre("pos", "blocks.0.attn", "blocks.1.attn"));
  EXPECT_LT(arch->CutIndex("blocks.0"), arch->CutIndex("blocks.1"));
  EXPECT_EQ(arch->ParameterCount(), 54u);

  const auto refusal = [&](std::vector<TapInfo> bad) {
    return std::string(Architecture::OfArchive(spec, std::move(bad), state).status().message());
  };
  EXPECT_THAT(refusal({taps[0], taps[0], taps[2]}), HasSubstr("tap 'blocks.0' is described twice"));
  EXPECT_THAT(refusal({tap("x", {8}, true, {}, false), taps[2]}), HasSubstr("ends a stage, but is no map"));
  EXPECT_THAT(refusal({tap("x", {8}, false, {10}, false), taps[2]}),
              HasSubstr("depends on a parameter that does not exist"));
  EXPECT_THAT(refusal({taps[0]}), HasSubstr("its output is not there"));
  EXPECT_THAT(refusal({tap("", {300, 8, 8}, false, {}, false)}),
              HasSubstr("num_classes is 300, must be from 1 to 255"));
}

TEST(ArchiveRefTest, NamesAnArchiveAndItsDigest) {
  const ArchiveRef ref{"my-net", "0123456789abcdef"};
  EXPECT_EQ(ArchOf(ref), "my-net@sha256:0123456789abcdef");
  EXPECT_EQ(ParseArchiveRef(ArchOf(ref)), ref);
  EXPECT_EQ(ShortArch(ArchOf(ref)), "my-net@sha256:0123456789ab");
  for (const char* other : {"resnet18", "torchscript", ""}) {
    EXPECT_EQ(ParseArchiveRef(other), std::nullopt);
    EXPECT_EQ(ShortArch(other), other);
  }
}

TEST(ArchitectureTest, ANetworkIsCutAtBlocksAndTopLevelModules) {
  const Architecture arch = *Architecture::Create(
      {.arch = "resnet18", .num_classes = 10, .in_channels = 3, .image_height = 32, .image_width = 32});
  EXPECT_EQ(arch.CutIndex("layer1"), arch.CutIndex("layer1.1"));
  EXPECT_LT(arch.CutIndex("relu"), arch.CutIndex("layer1.0"));
  EXPECT_EQ(arch.CutIndex("layer1.0.conv1"), 0u);
  EXPECT_THAT(arch.ModulesBetween("relu", "layer1.0"), ElementsAre("layer1.0"));
  EXPECT_THAT(arch.ModulesBetween("layer1.0", "layer2"), ElementsAre("layer1.1", "layer2"));
  EXPECT_THAT(arch.ModulesBetween("", "relu"), ElementsAre("conv1", "bn1"));
  EXPECT_THAT(arch.ModulesBetween("layer4", ""), ElementsAre("fc"));
  EXPECT_FALSE(arch.Reaches("layer2.0.conv1", "layer2.0.downsample"));
  EXPECT_TRUE(arch.Reaches("layer2.0.conv1", "layer2.0.add"));
}

TEST(ArchitectureTest, ParameterCountsAreThePublishedOnes) {
  EXPECT_EQ(Make(Spec("resnet18", 1000, 3, 224)).ParameterCount(), 11689512u);
  EXPECT_EQ(Make(Spec("resnet34", 1000, 3, 224)).ParameterCount(), 21797672u);
  EXPECT_EQ(Make(Spec("resnet50", 1000, 3, 224)).ParameterCount(), 25557032u);
  EXPECT_EQ(Make(Spec("resnet101", 1000, 3, 224)).ParameterCount(), 44549160u);
  EXPECT_EQ(Make(Spec("resnet152", 1000, 3, 224)).ParameterCount(), 60192808u);
  EXPECT_EQ(Make(Spec("cifar_resnet20", 100)).ParameterCount(), 278324u);
  EXPECT_EQ(Make(Spec("cifar_resnet20", 10)).ParameterCount(), 272474u);
  // torchvision counts the auxiliary classifier too: 3x3 and 1x1 convolutions and a batch norm on layer3.
  const uint64_t auxiliary = 1024 * 256 * 9 + 2 * 256 + 256 * 21 + 21;
  EXPECT_EQ(Make(Spec("fcn_resnet50", 21)).ParameterCount() + auxiliary, 35322218u);
  EXPECT_EQ(Make(Spec("fcn_resnet101", 21)).ParameterCount() + auxiliary, 54314346u);
  EXPECT_EQ(Make(Spec("deeplabv3_resnet50", 21)).ParameterCount() + auxiliary, 42004074u);
  EXPECT_EQ(Make(Spec("deeplabv3_resnet101", 21)).ParameterCount() + auxiliary, 60996202u);
}

// torchvision's "num_params" and, for the CIFAR networks at 100 classes and mobilenet_v1, what RepDistiller's and
// mdistiller's modules have.
TEST(ArchitectureTest, ParameterCountsOfTheOtherFamiliesAreTheReferences) {
  const auto count = [](const char* name, uint32_t classes) { return Make(Spec(name, classes)).ParameterCount(); };
  EXPECT_EQ(count("vgg11_bn", 1000), 132868840u);
  EXPECT_EQ(count("vgg13_bn", 1000), 133053736u);
  EXPECT_EQ(count("vgg16_bn", 1000), 138365992u);
  EXPECT_EQ(count("vgg19_bn", 1000), 143678248u);
  EXPECT_EQ(count("mobilenet_v1", 1000), 4231976u);
  EXPECT_EQ(count("mobilenet_v2", 1000), 3504872u);
  EXPECT_EQ(count("shufflenet_v2_x0_5", 1000), 1366792u);
  EXPECT_EQ(count("shufflenet_v2_x1_0", 1000), 2278604u);
  EXPECT_EQ(count("shufflenet_v2_x1_5", 1000), 3503624u);
  EXPECT_EQ(count("shufflenet_v2_x2_0", 1000), 7393996u);
  EXPECT_EQ(count("cifar_resnet8x4", 100), 1233540u);
  EXPECT_EQ(count("cifar_resnet32x4", 100), 7433860u);
  EXPECT_EQ(count("cifar_wrn_16_1", 100), 180916u);
  EXPECT_EQ(count("cifar_wrn_16_2", 100), 703284u);
  EXPECT_EQ(count("cifar_wrn_40_1", 100), 569780u);
  EXPECT_EQ(count("cifar_wrn_40_2", 100), 2255156u);
  EXPECT_EQ(count("cifar_vgg8_bn", 100), 3965028u);
  EXPECT_EQ(count("cifar_vgg11_bn", 100), 9277284u);
  EXPECT_EQ(count("cifar_vgg13_bn", 100), 9462180u);
  EXPECT_EQ(count("cifar_vgg16_bn", 100), 14774436u);
  EXPECT_EQ(count("cifar_vgg19_bn", 100), 20086692u);
  EXPECT_EQ(count("cifar_mobilenet_v2", 100), 812836u);
  EXPECT_EQ(count("cifar_shufflenet_v2", 100), 1355528u);
}

// torchvision's "_ops", in billions and rounded to three places.
TEST(ArchitectureTest, MultiplyAddsAreThePublishedOnes) {
  const auto billions = [](const char* name) {
    return static_cast<double>(Make(Spec(name, 1000, 3, 224)).FindTap("")->multiply_adds) / 1e9;
  };
  EXPECT_NEAR(billions("resnet18"), 1.814, 0.001);
  EXPECT_NEAR(billions("resnet50"), 4.089, 0.001);
  EXPECT_NEAR(billions("mobilenet_v2"), 0.301, 0.001);
  EXPECT_NEAR(billions("vgg16_bn"), 15.470, 0.001);
  EXPECT_NEAR(billions("shufflenet_v2_x1_0"), 0.145, 0.001);
  // By hand: 27 * 16 * 32^2 for the stem; a prefix costs what runs up to it.
  const Architecture cifar = Make(Spec("cifar_resnet8"));
  EXPECT_EQ(cifar.FindTap("conv1")->multiply_adds, 27u * 16 * 32 * 32);
  EXPECT_EQ(cifar.FindTap("layer1")->multiply_adds, (27u * 16 + 2 * 9 * 16 * 16) * 32 * 32);
}

TEST(ArchitectureTest, StagesEndWhereTheMapsGetSmaller) {
  struct Ends {
    const char* name;
    uint32_t image;
    std::vector<std::string> stages;
    std::vector<uint32_t> sides;
    std::vector<std::string> head;
  };
  const std::vector<Ends> all = {
      {"cifar_wrn_16_2", 32, {"block1", "block2", "block3"}, {32, 16, 8}, {"bn1", "fc"}},
      {"cifar_vgg8_bn", 32, {"relu0", "relu1", "relu2", "relu3", "relu4"}, {32, 16, 8, 4, 4}, {"classifier"}},
      {"cifar_vgg8_bn", 64, {"relu0", "relu1", "relu2", "relu3", "relu4"}, {64, 32, 16, 8, 4}, {"classifier"}},
      {"cifar_mobilenet_v2",
       32,
       {"blocks.1", "blocks.2", "blocks.4", "blocks.6"},
       {16, 8, 4, 2},
       {"conv2", "classifier"}},
      {"cifar_shufflenet_v2", 32, {"layer1", "layer2", "layer3"}, {16, 8, 4}, {"conv2", "bn2", "linear"}},
      {"vgg16_bn",
       224,
       {"features.5", "features.12", "features.22", "features.32", "features.42"},
       {224, 112, 56, 28, 14},
       {"classifier"}},
      {"mobilenet_v1", 224, {"model.3", "model.5", "model.11", "model.13"}, {56, 28, 14, 7}, {"fc"}},
      {"mobilenet_v2",
       224,
       {"features.3", "features.6", "features.13", "features.17"},
       {56, 28, 14, 7},
       {"features.18", "classifier"}},
      {"shufflenet_v2_x1_0", 224, {"stage2", "stage3", "stage4"}, {28, 14, 7}, {"conv5", "fc"}},
  };
  for (const Ends& one : all) {
    const Architecture arch = Make(Spec(one.name, 10, 3, one.image));
    EXPECT_EQ(arch.stages(), one.stages) << one.name;
    EXPECT_EQ(arch.HeadModules(), one.head) << one.name;
    std::vector<std::string> trained;
    for (size_t k = 0; k < one.stages.size(); ++k) {
      const TapInfo* const tap = arch.FindTap(one.stages[k]);
      ASSERT_NE(tap, nullptr) << one.name << " " << one.stages[k];
      EXPECT_TRUE(tap->stage_end);
      EXPECT_EQ(tap->shape[1], one.sides[k]) << one.name << " " << one.stages[k];
      EXPECT_TRUE(arch.CanStartAfter(one.stages[k])) << one.name << " " << one.stages[k];
      for (std::string& module : arch.StageModules(k)) trained.push_back(std::move(module));
    }
    for (const std::string& module : arch.HeadModules()) trained.push_back(module);
    // Every parameter belongs to one stage or to the head.
    EXPECT_EQ(*ExpandModuleGlobs(arch, trained), trained) << one.name;
    uint64_t leaves = 0;
    for (const std::string& module : trained) leaves += arch.Leaves(module).size();
    EXPECT_EQ(leaves, arch.Leaves("").size()) << one.name;
  }
}

// The order is that of the reference's constructor, which in blocks is not that of execution.
TEST(ArchitectureTest, ParameterNamesOfTheOtherFamiliesAreTheReferences) {
  const auto names = [](const char* arch) {
    std::vector<std::string> all;
    for (const StateEntry& entry : Make(Spec(arch)).StateDict()) {
      if (!entry.is_buffer) all.push_back(entry.name);
    }
    return all;
  };
  EXPECT_THAT(names("mobilenet_v2"),
              ::testing::IsSupersetOf({"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight",
                                       "features.2.conv.0.1.bias", "features.2.conv.1.0.weight",
                                       "features.17.conv.3.bias", "features.18.0.weight", "classifier.1.bias"}));
  EXPECT_THAT(names("cifar_wrn_16_2"), ::testing::IsSupersetOf({"block1.layer.0.convShortcut.weight", "bn1.bias"}));
  EXPECT_THAT(names("cifar_vgg8_bn"),
              ElementsAre("block0.0.weight", "block0.0.bias", "block0.1.weight", "block0.1.bias", "block1.0.weight",
                          "block1.0.bias", "block1.1.weight", "block1.1.bias", "block2.0.weight", "block2.0.bias",
                          "block2.1.weight", "block2.1.bias", "block3.0.weight", "block3.0.bias", "block3.1.weight",
                          "block3.1.bias", "block4.0.weight", "block4.0.bias", "block4.1.weight", "block4.1.bias",
                          "classifier.weight", "classifier.bias"));
  std::map<std::string, StateEntry> state;
  for (const StateEntry& entry : Make(Spec("shufflenet_v2_x1_0")).StateDict()) state[entry.name] = entry;
  EXPECT_THAT(state["stage2.0.branch1.0.weight"].shape, ElementsAre(24, 1, 3, 3)) << "depthwise";
  EXPECT_THAT(state["stage2.0.branch2.0.weight"].shape, ElementsAre(58, 24, 1, 1));
  EXPECT_THAT(state["stage2.1.branch2.0.weight"].shape, ElementsAre(58, 58, 1, 1));
}

TEST(ArchitectureTest, WhatAValueDependsOnFollowsTheWiring) {
  const Architecture shuffle = Make(Spec("cifar_shufflenet_v2"));
  EXPECT_FALSE(shuffle.Reaches("layer1.0.conv1", "layer1.0.bn5")) << "the left half";
  EXPECT_TRUE(shuffle.Reaches("layer1.0.conv1", "layer1.0"));
  const Architecture wide = Make(Spec("cifar_wrn_16_2"));
  EXPECT_TRUE(wide.Reaches("block2.layer.0.bn1", "block2.layer.0.convShortcut")) << "the shortcut starts behind it";
  EXPECT_FALSE(wide.Reaches("block2.layer.0.conv1", "block2.layer.0.convShortcut"));
  EXPECT_TRUE(wide.CanStartAfter("block2.layer.0"));
  EXPECT_FALSE(wide.CanStartAfter("block2.layer.0.relu1"));
  EXPECT_EQ(wide.CutIndex("block2"), wide.CutIndex("block2.layer"));
  EXPECT_EQ(wide.CutIndex("block2"), wide.CutIndex("block2.layer.1"));
  const Architecture mobile = Make(Spec("mobilenet_v2", 10, 3, 64));
  EXPECT_TRUE(mobile.CanStartAfter("features.18.1"));
  EXPECT_FALSE(mobile.CanStartAfter("features.3.conv")) << "the block's input goes around it";
  EXPECT_THAT(mobile.ModulesBetween("features.2", "features.4"), ElementsAre("features.3", "features.4"));
}

TEST(ArchitectureTest, WidthsRoundAsTheReferencesDo) {
  ModelSpec spec = Spec("mobilenet_v2", 10, 3, 64);
  spec.width = 16;  // width_mult 0.5
  const Architecture half = Make(spec);
  EXPECT_EQ(half.FindTap("features.0")->shape[0], 16u);
  EXPECT_EQ(half.FindTap("features.1")->shape[0], 8u);
  EXPECT_EQ(half.FindTap("features.3")->shape[0], 16u) << "12, rounded to a multiple of 8";
  EXPECT_EQ(half.FindTap("features.18")->shape[0], 1280u) << "never fewer";
  spec.width = 64;
  EXPECT_EQ(Make(spec).FindTap("features.18")->shape[0], 2560u);
  spec = Spec("shufflenet_v2_x1_0", 10, 3, 64);
  spec.width = 5;
  EXPECT_EQ(Make(spec).FindTap("stage2")->shape[0], 24u) << "116 * 5 / 24, even";
  spec = Spec("mobilenet_v1", 10, 3, 64);
  spec.width = 3;
  EXPECT_EQ(Make(spec).FindTap("model.0")->shape[0], 8u);
  EXPECT_EQ(Make(spec).FindTap("model.13")->shape[0], 96u);
}

TEST(ArchitectureTest, AnImageOfWhichPoolingLeavesNothingIsRefused) {
  EXPECT_THAT(Refusal(Spec("vgg16_bn", 10, 3, 31)),
              HasSubstr("model vgg16_bn: nothing would be left of the map behind 'features.43' (MaxPool2d of 2x2 on 1 "
                        "pixels); take larger images"));
  EXPECT_TRUE(Architecture::Create(Spec("vgg16_bn", 10, 3, 32)).ok());
  EXPECT_TRUE(Architecture::Create(Spec("cifar_vgg16_bn", 10, 3, 8)).ok());
}

// torchvision's names, spelt out by its rule: per block conv1 bn1 conv2 bn2 [conv3 bn3], then the shortcut of the first
// block; then the head, of an FCN with the index 3 for its dropout.
std::vector<std::string> TorchvisionNames(const std::vector<int>& blocks, bool bottleneck, bool fcn = false) {
  std::vector<std::string> names;
  const auto conv = [&](const std::string& path) { names.push_back(path + ".weight"); };
  const auto norm = [&](const std::string& path) {
    for (const char* entry : {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}) {
      names.push_back(path + "." + entry);
    }
  };
  conv("conv1");
  norm("bn1");
  for (size_t k = 0; k < blocks.size(); ++k) {
    for (int b = 0; b < blocks[k]; ++b) {
      const std::string block = StrCat("layer", k + 1, ".", b);
      for (int i = 1; i <= (bottleneck ? 3 : 2); ++i) {
        conv(StrCat(block, ".conv", i));
        norm(StrCat(block, ".bn", i));
      }
      if (b == 0 && (k > 0 || bottleneck)) {
        conv(block + ".downsample.0");
        norm(block + ".downsample.1");
      }
    }
  }
  if (fcn) {
    conv("classifier.0");
    norm("classifier.1");
  }
  const std::string last = fcn ? "classifier.4" : "fc";
  names.push_back(last + ".weight");
  names.push_back(last + ".bias");
  return names;
}

TEST(ArchitectureTest, StateNamesAreTorchvisions) {
  const auto names = [](const Architecture& arch) {
    std::vector<std::string> all;
    for (const StateEntry& entry : arch.StateDict()) all.push_back(entry.name);
    return all;
  };
  EXPECT_EQ(names(Make(Spec("resnet18", 1000, 3, 224))), TorchvisionNames({2, 2, 2, 2}, false));
  EXPECT_EQ(names(Make(Spec("resnet50", 1000, 3, 224))), TorchvisionNames({3, 4, 6, 3}, true));
  EXPECT_EQ(names(Make(Spec("cifar_resnet8"))), TorchvisionNames({1, 1, 1}, false));
  EXPECT_EQ(names(Make(Spec("fcn_resnet18"))), TorchvisionNames({2, 2, 2, 2}, false, true));
  EXPECT_EQ(names(Make(Spec("fcn_resnet50"))), TorchvisionNames({3, 4, 6, 3}, true, true));
}

TEST(ArchitectureTest, StateEntriesHaveShapesAndKinds) {
  std::map<std::string, StateEntry> state;
  for (const StateEntry& entry : Make(Spec("resnet50", 7, 4, 64)).StateDict()) state[entry.name] = entry;
  EXPECT_THAT(state["conv1.weight"].shape, ElementsAre(64, 4, 7, 7));
  EXPECT_THAT(state["layer2.0.conv2.weight"].shape, ElementsAre(128, 128, 3, 3));
  EXPECT_THAT(state["layer2.0.downsample.0.weight"].shape, ElementsAre(512, 256, 1, 1));
  EXPECT_THAT(state["fc.weight"].shape, ElementsAre(7, 2048));
  EXPECT_TRUE(state["bn1.running_var"].is_buffer);
  EXPECT_FALSE(state["bn1.running_var"].is_integer);
  EXPECT_TRUE(state["bn1.num_batches_tracked"].is_integer);
  EXPECT_TRUE(state["bn1.num_batches_tracked"].shape.empty());
  EXPECT_FALSE(state["bn1.weight"].is_buffer);
}

TEST(ArchitectureTest, TapsHaveShapesInExecutionOrder) {
  const Architecture arch = Make(Spec("cifar_resnet8", 10, 1, 28));
  std::vector<std::string> paths;
  for (const TapInfo& tap : arch.taps()) paths.push_back(tap.path);
  EXPECT_THAT(paths, ElementsAre("conv1", "bn1", "relu",                                                              //
                                 "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.0.add",  //
                                 "layer1.0", "layer1",                                                                //
                                 "layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2", "layer2.0.bn2",                  //
                                 "layer2.0.downsample.0", "layer2.0.downsample.1", "layer2.0.downsample",
                                 "layer2.0.add", "layer2.0", "layer2",                                //
                                 "layer3.0.conv1", "layer3.0.bn1", "layer3.0.conv2", "layer3.0.bn2",  //
                                 "layer3.0.downsample.0", "layer3.0.downsample.1", "layer3.0.downsample",
                                 "layer3.0.add", "layer3.0", "layer3", "avgpool", "flatten", "fc"));
  EXPECT_THAT(arch.FindTap("relu")->shape, ElementsAre(16, 28, 28));
  EXPECT_THAT(arch.FindTap("layer2.0.downsample.0")->shape, ElementsAre(32, 14, 14));
  EXPECT_THAT(arch.FindTap("layer3")->shape, ElementsAre(64, 7, 7));
  EXPECT_TRUE(arch.FindTap("layer3")->stage_end);
  EXPECT_FALSE(arch.FindTap("layer3.0")->stage_end);
  EXPECT_THAT(arch.FindTap("avgpool")->shape, ElementsAre(64, 1, 1));
  EXPECT_THAT(arch.FindTap("flatten")->shape, ElementsAre(64));
  EXPECT_THAT(arch.FindTap("")->shape, ElementsAre(10));
  EXPECT_EQ(arch.FindTap("layer1.0.relu"), nullptr);
  EXPECT_EQ(arch.FindTap("layer4"), nullptr);
}

TEST(ArchitectureTest, OddSizesRoundAsConvolutionsDo) {
  ModelSpec spec = Spec("resnet50", 10, 3, 33);
  spec.image_width = 47;
  const Architecture arch = Make(spec);
  EXPECT_THAT(arch.FindTap("conv1")->shape, ElementsAre(64, 17, 24));
  EXPECT_THAT(arch.FindTap("maxpool")->shape, ElementsAre(64, 9, 12));
  EXPECT_THAT(arch.FindTap("layer2")->shape, ElementsAre(512, 5, 6));
  EXPECT_THAT(arch.FindTap("layer4")->shape, ElementsAre(2048, 2, 2));
}

TEST(ArchitectureTest, AnFcnAnswersPerPixelAndItsMapsKeepAnEighth) {
  ModelSpec spec = Spec("fcn_resnet18", 11, 3, 90);
  spec.image_width = 120;
  const Architecture arch = Make(spec);
  EXPECT_TRUE(arch.dense());
  EXPECT_FALSE(Make(Spec("resnet18")).dense());
  std::vector<std::string> top;
  for (const ModuleDef& child : arch.root().children) top.push_back(child.name);
  EXPECT_THAT(top, ElementsAre("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "classifier",
                               "upsample"));
  EXPECT_THAT(arch.FindTap("layer1")->shape, ElementsAre(64, 23, 30));
  EXPECT_THAT(arch.FindTap("layer2")->shape, ElementsAre(128, 12, 15));
  EXPECT_THAT(arch.FindTap("layer3")->shape, ElementsAre(256, 12, 15));
  EXPECT_THAT(arch.FindTap("layer4")->shape, ElementsAre(512, 12, 15));
  EXPECT_THAT(arch.FindTap("classifier.0")->shape, ElementsAre(128, 12, 15));
  EXPECT_THAT(arch.FindTap("classifier")->shape, ElementsAre(11, 12, 15));
  EXPECT_THAT(arch.FindTap("upsample")->shape, ElementsAre(11, 90, 120));
  EXPECT_THAT(arch.FindTap("")->shape, ElementsAre(11, 90, 120));
  EXPECT_EQ(arch.FindTap("classifier.3"), nullptr) << "torchvision's dropout";
  EXPECT_EQ(arch.taps().back().path, "upsample");
  EXPECT_THAT(arch.stages(), ElementsAre("layer1", "layer2", "layer3", "layer4"));
  EXPECT_THAT(arch.HeadModules(), ElementsAre("classifier"));
  EXPECT_TRUE(arch.CanStartAfter("layer4"));
  EXPECT_EQ(*ExpandModuleGlobs(arch, {"classifier.*"}),
            (std::vector<std::string>{"classifier.0", "classifier.1", "classifier.4"}));
}

TEST(ArchitectureTest, SegmentationNetsKeepAnEighthOrASixteenth) {
  struct Sides {
    const char* name;
    const char* early;
    const char* last;
    uint32_t early_side, last_side, logits_side;
  };
  for (const Sides& one :
       {Sides{"deeplabv3_resnet50", "layer1", "layer4", 33, 17, 17},
        {"deeplabv3_resnet50_os16", "layer1", "layer4", 33, 9, 9},
        {"deeplabv3_mobilenet_v2", "features.3", "features.17", 33, 17, 17},
        {"deeplabv3_mobilenet_v2_os16", "features.3", "features.17", 33, 9, 9},
        {"deeplabv3plus_resnet18", "layer1", "layer4", 33, 17, 33},
        {"deeplabv3plus_mobilenet_v2_os16", "low_level_features.3", "high_level_features.17", 33, 9, 33},
        {"pspnet_resnet18", "layer1", "layer4", 33, 17, 0},
        {"pspnet_resnet101_os16", "layer1", "layer4", 33, 9, 0}}) {
    const Architecture arch = Make(Spec(one.name, 19, 3, 129));
    EXPECT_TRUE(arch.dense());
    EXPECT_EQ(arch.FindTap(one.early)->shape[1], one.early_side) << one.name;
    EXPECT_EQ(arch.FindTap(one.last)->shape[1], one.last_side) << one.name;
    EXPECT_EQ(arch.stages().size(), 4u) << one.name;
    EXPECT_EQ(arch.stages().front(), one.early);
    EXPECT_EQ(arch.stages().back(), one.last);
    EXPECT_THAT(arch.FindTap("")->shape, ElementsAre(19, 129, 129)) << one.name;
    const bool psp = one.logits_side == 0;
    EXPECT_EQ(arch.FindTap(psp ? "cls" : "classifier")->shape[1], psp ? one.last_side : one.logits_side) << one.name;
    EXPECT_EQ(arch.HeadModules(),
              psp ? (std::vector<std::string>{"ppm", "cls"}) : (std::vector<std::string>{"classifier"}))
        << one.name;
  }
}

TEST(ArchitectureTest, WhatReadsAnEarlyMapLeavesNoPlaceToCutUntilThen) {
  const Architecture plus = Make(Spec("deeplabv3plus_resnet18", 19, 3, 65));
  EXPECT_TRUE(plus.CanStartAfter("layer1"));
  EXPECT_FALSE(plus.CanStartAfter("layer2")) << "classifier.project reads layer1";
  EXPECT_FALSE(plus.CanStartAfter("layer4"));
  EXPECT_TRUE(plus.CanStartAfter("classifier"));
  EXPECT_FALSE(plus.Reaches("layer2", "classifier.project"));
  EXPECT_TRUE(plus.Reaches("layer1", "classifier.project"));
  const Architecture deeplab = Make(Spec("deeplabv3_resnet18", 19, 3, 65));
  EXPECT_TRUE(deeplab.CanStartAfter("layer4"));
  EXPECT_FALSE(deeplab.CanStartAfter("classifier.0.convs.0"));
  EXPECT_TRUE(deeplab.CanStartAfter("classifier.0"));
  EXPECT_THAT(deeplab.FindTap("classifier.0.convs")->shape, ElementsAre(5 * 256, 9, 9));
  EXPECT_THAT(Make(Spec("pspnet_resnet18", 19, 3, 65)).FindTap("ppm")->shape, ElementsAre(1024, 9, 9));
  EXPECT_THAT(Refusal(Spec("pspnet_resnet18", 256)), HasSubstr("num_classes is 256, must be from 1 to 255"));
}

// Of the convolution that would have the stage's stride; all others are dense.
TEST(ArchitectureTest, AnFcnsFirstBlocksHaveTheDilationOfTheStageBefore) {
  for (const auto& [name, convolution] : {std::pair("fcn_resnet50", "conv2"), std::pair("fcn_resnet18", "conv1")}) {
    std::map<std::string, std::vector<uint32_t>> dilations;
    const Architecture arch = Make(Spec(name));
    for (const ModuleDef& stage : arch.root().children) {
      for (const ModuleDef& block : stage.children) {
        for (const ModuleDef& part : block.children) {
          if (part.kind != ModuleKind::kConv2d) continue;
          if (part.name == convolution) {
            dilations[stage.name].push_back(part.dilation);
          } else {
            EXPECT_EQ(part.dilation, 1u) << name << " " << stage.name << " " << part.name;
          }
        }
      }
    }
    const bool deep = std::string_view(name) == "fcn_resnet50";
    EXPECT_EQ(dilations["layer2"], std::vector<uint32_t>(deep ? 4 : 2, 1)) << name;
    EXPECT_EQ(dilations["layer3"], (deep ? std::vector<uint32_t>{1, 2, 2, 2, 2, 2} : std::vector<uint32_t>{1, 2}));
    EXPECT_EQ(dilations["layer4"], (deep ? std::vector<uint32_t>{2, 4, 4} : std::vector<uint32_t>{2, 4})) << name;
  }
}

TEST(ArchitectureTest, StagesAndHead) {
  const Architecture cifar = Make(Spec("cifar_resnet20"));
  EXPECT_THAT(cifar.stages(), ElementsAre("layer1", "layer2", "layer3"));
  EXPECT_THAT(cifar.StageModules(0), ElementsAre("conv1", "bn1", "layer1"));
  EXPECT_THAT(cifar.StageModules(1), ElementsAre("layer2"));
  EXPECT_THAT(cifar.StageModules(3), ElementsAre());
  EXPECT_THAT(cifar.HeadModules(), ElementsAre("fc"));
  EXPECT_EQ(Make(Spec("resnet18", 10, 3, 64)).stages().size(), 4u);
}

TEST(ArchitectureTest, WidthScalesEveryStage) {
  ModelSpec spec = Spec("cifar_resnet8");
  EXPECT_EQ(Make(spec).spec().width, 16u);
  spec.width = 5;
  EXPECT_THAT(Make(spec).FindTap("layer3")->shape, ElementsAre(20, 8, 8));
}

TEST(ArchitectureTest, DefaultsAreTheFamilys) {
  const ModelSpec cifar = Architecture::WithDefaults({.arch = "cifar_resnet8"});
  EXPECT_TRUE(Architecture::Create(cifar).ok());
  EXPECT_EQ(cifar.image_height, 32u);
  const ModelSpec resnet = Architecture::WithDefaults({.arch = "resnet18", .num_classes = 5});
  EXPECT_EQ(resnet.num_classes, 5u);
  EXPECT_EQ(Make(resnet).FindTap("layer4")->shape, (TapShape{512, 7, 7}));
  EXPECT_EQ(Architecture::WithDefaults({.arch = "mobilenet_v2"}).width, 32u);
  EXPECT_EQ(Architecture::WithDefaults({.arch = "cifar_vgg8_bn"}).image_width, 32u);
  EXPECT_EQ(Architecture::WithDefaults({.arch = "torchscript"}).width, 0u) << "not of the zoo: as it is";
  const ModelSpec fcn = Architecture::WithDefaults({.arch = "fcn_resnet50"});
  EXPECT_EQ(Make(fcn).FindTap("")->shape, (TapShape{21, 520, 520}));
  EXPECT_EQ(Make(fcn).FindTap("classifier")->shape, (TapShape{21, 65, 65}));
}

TEST(ArchitectureTest, EveryNameCanBeBuilt) {
  for (const std::string& name : Architecture::Names()) EXPECT_GT(Make(Spec(name)).ParameterCount(), 0u) << name;
}

TEST(ArchitectureTest, RefusalsNameValueAndRemedy) {
  EXPECT_THAT(Refusal(Spec("cifar_resnet21")),
              HasSubstr("unknown architecture 'cifar_resnet21'; did you mean 'cifar_resnet"));
  EXPECT_THAT(Refusal(Spec("")), HasSubstr("known: cifar_resnet8"));
  EXPECT_THAT(Refusal(Spec("resnet18", 0)), HasSubstr("num_classes is 0"));
  EXPECT_THAT(Refusal(Spec("resnet18", 10, 0)), HasSubstr("in_channels is 0"));
  EXPECT_THAT(Refusal(Spec("cifar_resnet8", 10, 3, 7)),
              HasSubstr("image height in pixels is 7, must be from 8 to 8192"));
  EXPECT_THAT(Refusal(Spec("cifar_resnet8", 4000000000u)), HasSubstr("num_classes is 4000000000"));
  EXPECT_THAT(Refusal(Spec("fcn_resnet18", 256)), HasSubstr("num_classes is 256, must be from 1 to 255"));
  EXPECT_THAT(Refusal(Spec("fcn_resnet152")), HasSubstr("did you mean 'fcn_resnet1"));
  ModelSpec spec = Spec("cifar_resnet8");
  spec.mean = {0.5f};
  EXPECT_THAT(Refusal(spec), HasSubstr("mean has 1 values for 3 input channels"));
  spec.mean.clear();
  spec.std = {1, 1, 0};
  EXPECT_THAT(Refusal(spec), HasSubstr("std contains 0"));
}

TEST(ExpandModuleGlobsTest, StarStaysInsideOnePartAndDoubleStarCrosses) {
  const Architecture arch = Make(Spec("cifar_resnet8"));
  const auto expand = [&](std::vector<std::string> globs) {
    const auto expanded = ExpandModuleGlobs(arch, globs);
    EXPECT_TRUE(expanded.ok()) << expanded.status();
    return expanded.ok() ? *expanded : std::vector<std::string>{};
  };
  EXPECT_THAT(expand({"layer1"}), ElementsAre("layer1"));
  EXPECT_THAT(expand({"layer*"}), ElementsAre("layer1", "layer2", "layer3"));
  EXPECT_THAT(expand({"layer1.*"}), ElementsAre("layer1.0"));
  EXPECT_THAT(expand({"**"}), ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3", "fc"));
  EXPECT_THAT(expand({"*"}), ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3", "fc"));
  EXPECT_THAT(expand({"**.conv1"}), ElementsAre("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"));
  EXPECT_THAT(expand({"**downsample**"}), ElementsAre("layer2.0.downsample", "layer3.0.downsample"));
  EXPECT_THAT(expand({"layer1.0.bn*"}), ElementsAre("layer1.0.bn1", "layer1.0.bn2"));
  EXPECT_THAT(expand({"fc", "layer2", "layer2.0.conv1"}), ElementsAre("layer2", "fc")) << "tree order, minimal";
  EXPECT_THAT(expand({}), ElementsAre());
}

TEST(ExpandModuleGlobsTest, MatchingNothingNamesTheGlobAndTheNearestPath) {
  const Architecture arch = Make(Spec("cifar_resnet8"));
  const auto refusal = [&](const std::string& glob) {
    const auto expanded = ExpandModuleGlobs(arch, {"fc", glob});
    EXPECT_EQ(expanded.status().code(), StatusCode::kInvalidArgument);
    return std::string(expanded.status().message());
  };
  EXPECT_THAT(refusal("layer4"), HasSubstr("'layer4' matches no module of cifar_resnet8; did you mean 'layer"));
  EXPECT_THAT(refusal("relu"), HasSubstr("has no parameters"));
  EXPECT_THAT(refusal(""), HasSubstr("matches no module"));
  EXPECT_THAT(refusal("*.conv1"), HasSubstr("matches no module"))
      << "one star stays inside one part: no path is x.conv1";
  EXPECT_THAT(refusal(std::string(60, '*') + "x"), HasSubstr("matches no module")) << "and answers at once";
}

TEST(IsUnderTest, ComparesWholeParts) {
  EXPECT_TRUE(IsUnder("layer1", "layer1"));
  EXPECT_TRUE(IsUnder("layer1.0.conv1", "layer1"));
  EXPECT_FALSE(IsUnder("layer10.0", "layer1"));
  EXPECT_FALSE(IsUnder("layer1", "layer1.0"));
  EXPECT_TRUE(IsUnder("fc", ""));
}

}  // namespace
}  // namespace distill
