// A TorchScript archive as a student: what StudentNet promises, by a network that is not of the zoo.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/str_cat.h"
#include "common/zoo/batch_norm.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"
#include "tests/common/zoo/archive_fixture.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ArchiveStudentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / StrCat("archive_student_test_", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  StatusOr<std::unique_ptr<TorchScriptNet>> Load(const torch::jit::Module& module) {
    module.save(Path("net.pt"));
    return TorchScriptNet::Load(Path("net.pt"), spec_, {.training = true, .stages = {"layer1", "layer2"}});
  }
  std::unique_ptr<TorchScriptNet> Own() {
    auto net = Load(OwnNetwork());
    EXPECT_TRUE(net.ok()) << net.status();
    return *std::move(net);
  }
  std::string Refusal(const torch::jit::Module& module) {
    const auto net = Load(module);
    return net.ok() ? "accepted" : std::string(net.status().message());
  }
  static torch::Tensor StateOf(const StudentNet& net, const std::string& name) {
    for (const StudentNet::StateTensor& one : net.State()) {
      if (one.name == name) return one.tensor;
    }
    ADD_FAILURE() << "no state '" << name << "'";
    return {};
  }

  const ModelSpec spec_ = {
      .arch = "torchscript", .in_channels = 1, .image_height = 12, .image_width = 12, .mean = {0.4f}, .std = {0.3f}};
  const torch::Tensor x_ = torch::linspace(-1, 1, 3 * 144).view({3, 1, 12, 12});
  fs::path folder_;
};

TEST_F(ArchiveStudentTest, DescribesItselfAsTheZooDoes) {
  const auto net = Own();
  const Architecture& arch = net->architecture();
  EXPECT_EQ(arch.spec().num_classes, 4u);
  EXPECT_FALSE(arch.dense());
  std::vector<std::string> taps;
  for (const TapInfo& tap : arch.taps()) taps.push_back(tap.path);
  EXPECT_THAT(taps, ElementsAre("stem", "side", "layer1", "layer2"));
  EXPECT_THAT(arch.FindTap("layer2")->shape, ElementsAre(8, 6, 6));
  EXPECT_THAT(arch.ModulePaths(), ElementsAre("scale", "conv1", "bn1", "layer1", "layer1.conv", "layer1.bn", "layer2",
                                              "layer2.conv", "layer2.bn", "layer2.shortcut", "fc"));
  EXPECT_THAT(arch.stages(), ElementsAre("layer1", "layer2"));
  EXPECT_THAT(arch.StageModules(0), ElementsAre("conv1", "bn1", "layer1"));
  EXPECT_THAT(arch.StageModules(1), ElementsAre("layer2"));
  EXPECT_THAT(arch.HeadModules(), ElementsAre("scale", "fc"));
  // What the graph says, not the order: `side` does not see the batch norm behind it.
  EXPECT_TRUE(arch.Reaches("layer1.conv", "side"));
  EXPECT_FALSE(arch.Reaches("layer1.bn", "side"));
  EXPECT_TRUE(arch.CanStartAfter("stem"));
  EXPECT_FALSE(arch.CanStartAfter("side"));  // the sum goes around it
  EXPECT_EQ(arch.ParameterCount(), net->ParameterCount());
}

TEST_F(ArchiveStudentTest, RunsOnlyWhatTheTapsNeedAndLeavesOtherStatisticsAlone) {
  const auto net = Own();
  net->SetTraining("", true);
  const auto got = net->Forward(x_, {"layer1", "stem"});
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT((*got)[0].sizes(), ElementsAre(3, 4, 12, 12));
  EXPECT_FALSE(StateOf(*net, "bn1.running_mean").equal(torch::zeros({4})));
  EXPECT_EQ(StateOf(*net, "layer1.bn.num_batches_tracked").item<int64_t>(), 1);
  EXPECT_TRUE(StateOf(*net, "layer2.bn.running_mean").equal(torch::zeros({8})));
  EXPECT_EQ(StateOf(*net, "layer2.bn.num_batches_tracked").item<int64_t>(), 0);
  EXPECT_THAT(std::string(net->Forward(x_, {"layer3"}).status().message()), HasSubstr("no tap 'layer3'; did you mean"));
  EXPECT_FALSE(net->Forward(x_, {}).ok());
}

TEST_F(ArchiveStudentTest, ComputesWhatTheArchiveComputesAndItsGradients) {
  const auto net = Own();
  torch::jit::Module whole = OwnNetwork();
  const auto expected = whole.forward({x_}).toGenericDict();
  const auto got = net->Forward(x_, {"side", "layer2", ""});
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE((*got)[0].equal(expected.at("side").toTensor()));
  EXPECT_TRUE((*got)[1].equal(expected.at("layer2").toTensor()));
  EXPECT_TRUE((*got)[2].equal(expected.at("output").toTensor()));
  torch::Tensor weight = StateOf(*net, "layer2.shortcut.weight").requires_grad_(true);
  (*net->Forward(x_, {""}))[0].square().sum().backward();
  for (const auto& parameter : whole.named_parameters()) parameter.value.requires_grad_(true);
  whole.forward({x_}).toGenericDict().at("output").toTensor().square().sum().backward();
  EXPECT_TRUE(torch::allclose(
      weight.grad(), whole.attr("layer2").toModule().attr("shortcut").toModule().attr("weight").toTensor().grad()));
}

TEST_F(ArchiveStudentTest, StartsAtACutAndNowhereElse) {
  const auto net = Own();
  const auto all = *net->Forward(x_, {"layer1", "layer2", ""});
  net->SetTraining("", true);
  net->SetTraining("layer2", false);
  net->SetTraining("fc", false);
  const torch::Tensor before = StateOf(*net, "bn1.running_mean").clone();
  const auto rest = net->ForwardAfter("layer1", all[0], {"layer2"});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_TRUE((*rest)[0].equal(all[1]));
  EXPECT_TRUE(StateOf(*net, "bn1.running_mean").equal(before));
  EXPECT_EQ(StateOf(*net, "bn1.num_batches_tracked").item<int64_t>(), 0);
  EXPECT_THAT(std::string(net->ForwardAfter("side", all[0], {""}).status().message()), HasSubstr("cannot start after"));
  EXPECT_THAT(std::string(net->ForwardAfter("layer1", all[0], {"stem"}).status().message()),
              HasSubstr("lies before it"));
  EXPECT_FALSE(net->ForwardAfter("layer1", all[1], {""}).ok());  // another shape
}

TEST_F(ArchiveStudentTest, ItsBatchNormsTakeNoOtherRanks) {
  struct Ranks : NormRanks {
    uint32_t rank() const override { return 0; }
    uint32_t size() const override { return 2; }
    void Sum(const torch::Tensor&) override {}
  } ranks;
  const auto net = Own();
  EXPECT_TRUE(net->SetNormRanks(nullptr).ok());
  EXPECT_THAT(std::string(net->SetNormRanks(&ranks).message()), HasSubstr("leave sync_batch_norm out"));
}

TEST_F(ArchiveStudentTest, EachModuleHasItsOwnMode) {
  const auto net = Own();
  net->SetTraining("layer1", true);
  const std::vector<bool> modes = net->Modes();
  EXPECT_TRUE(net->Forward(x_, {""}).ok());
  EXPECT_EQ(StateOf(*net, "layer1.bn.num_batches_tracked").item<int64_t>(), 1);
  EXPECT_EQ(StateOf(*net, "bn1.num_batches_tracked").item<int64_t>(), 0);
  net->SetTraining("", false);
  EXPECT_NE(net->Modes(), modes);
  net->SetModes(modes);
  EXPECT_EQ(net->Modes(), modes);
}

TEST_F(ArchiveStudentTest, ItsStateCrossesFilesAndItsExportIsAnArchiveAgain) {
  const auto net = Own();
  {
    const torch::NoGradGuard no_grad;
    StateOf(*net, "fc.weight").fill_(0.25);
    StateOf(*net, "scale").fill_(3);
  }
  const auto other = Own();
  ASSERT_TRUE(LoadWeights(SaveWeights(*net), other.get()).ok());
  EXPECT_TRUE((*other->Forward(x_, {""}))[0].equal((*net->Forward(x_, {""}))[0]));
  net->SetTraining("", true);
  ASSERT_TRUE(net->Export(Path("out.pt")).ok());
  const auto again = TorchScriptNet::Load(Path("out.pt"), spec_, {.training = true});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*(*again)->Forward(x_, {"layer2", ""}))[1].equal((*other->Forward(x_, {""}))[0]));
  // The file of another network is refused by name.
  SafetensorsFile file = SaveWeights(*net);
  file.tensors.erase("scale");
  EXPECT_THAT(std::string(LoadWeights(file, other.get()).message()), HasSubstr("1 missing (first: scale)"));
}

TEST_F(ArchiveStudentTest, WhatCannotBeTrainedIsRefusedWithTheReason) {
  torch::jit::Module half = OwnNetwork();
  half.to(torch::kFloat16);
  EXPECT_NE(Refusal(half), "accepted");

  torch::jit::Module frozen = torch::jit::freeze(OwnNetwork());
  EXPECT_THAT(Refusal(frozen), HasSubstr("batch normalization cannot be switched"));

  const auto with = [](const std::string& forward) {
    torch::jit::Module module("Net");
    module.register_attribute("training", c10::BoolType::get(), true);
    module.register_parameter("weight", torch::ones({4, 144}).requires_grad_(true), false);
    module.register_buffer("calls", torch::zeros({}));
    module.define(forward);
    return module;
  };
  EXPECT_EQ(
      Refusal(with("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x.flatten(1), self.weight)\n")),
      "TorchScript archive '" + Path("net.pt") + "': stages: 'layer1' is no tap of it");
  const auto load = [&](const std::string& forward) {
    with(forward).save(Path("net.pt"));
    return TorchScriptNet::Load(Path("net.pt"), spec_, {.training = true}).status();
  };
  EXPECT_TRUE(
      load("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x.flatten(1), self.weight)\n").ok());
  EXPECT_THAT(std::string(load("def forward(self, x: Tensor) -> Tensor:\n    self.calls = self.calls + 1\n"
                               "    return torch.linear(x.flatten(1), self.weight)\n")
                              .message()),
              HasSubstr("forward assigns to self.calls"));
  EXPECT_THAT(std::string(load("def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    y = x * 2\n"
                               "    z = torch.linear(y.relu_().flatten(1), self.weight)\n"
                               "    return {\"y\": y, \"output\": z}\n")
                              .message()),
              HasSubstr("the value of tap 'y' is overwritten later on, by aten::relu_"));
  EXPECT_THAT(std::string(load("def forward(self, x: Tensor) -> Tensor:\n"
                               "    return torch.linear(x.flatten(1), self.weight).argmax(1, True) * 1.0\n")
                              .message()),
              HasSubstr("a step in train mode fails"));
  EXPECT_THAT(std::string(load("def forward(self, x: Tensor) -> Dict[str, Tensor]:\n"
                               "    return {\"inner\": torch.linear(x.flatten(1), self.weight)}\n")
                              .message()),
              HasSubstr("its output is not there"));
}

TEST_F(ArchiveStudentTest, ATeachersArchiveStopsBehindTheLastTap) {
  torch::jit::Module module("Net");
  module.register_attribute("training", c10::BoolType::get(), false);
  // What comes after the tap fails on pictures that are not the probe's three at most.
  module.define(R"py(
def forward(self, x: Tensor) -> Dict[str, Tensor]:
    early = x * 2
    assert x.size(0) <= 3, "the late part ran"
    late = early.mean([2, 3])
    return {"early": early, "output": late}
)py");
  module.save(Path("net.pt"));
  const auto net = TorchScriptNet::Load(Path("net.pt"), spec_);
  ASSERT_TRUE(net.ok()) << net.status();
  EXPECT_TRUE((*net)->runs_prefixes());
  const torch::Tensor five = torch::ones({5, 1, 12, 12});
  EXPECT_TRUE((*net)->Forward(five, {"early"}).ok());
  EXPECT_THAT(std::string((*net)->Forward(five, {""}).status().message()), HasSubstr("the late part ran"));
}

}  // namespace
}  // namespace distill
