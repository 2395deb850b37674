#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/script.h>
#include <torch/torch.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/str_cat.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class TorchScriptTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / StrCat("torchscript_test_", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  std::shared_ptr<ZooNet> Net(const ModelSpec& spec) {
    auto net = *ZooNet::Create(spec);
    net->InitWeights(1);
    net->train();
    EXPECT_TRUE(net->Forward(Input(), {""}).ok());  // statistics away from their start
    net->eval();
    return net;
  }
  torch::Tensor Input() const { return torch::linspace(-1, 1, 4 * 3 * 32 * 32).view({4, 3, 32, 32}); }
  // An archive with this forward method.
  void WriteArchive(const std::string& name, const std::string& forward) {
    torch::jit::Module module("Odd");
    module.register_attribute("training", c10::BoolType::get(), true);
    module.define(forward);
    module.save(Path(name));
  }
  Status LoadError(const std::string& name) { return TorchScriptNet::Load(Path(name), spec_).status(); }

  const ModelSpec spec_ = {
      .arch = "resnet50", .width = 4, .num_classes = 7, .in_channels = 3, .image_height = 32, .image_width = 32};
  fs::path folder_;
};

TEST_F(TorchScriptTest, ArchiveComputesWhatTheNetComputes) {
  for (const char* arch : {"resnet50", "cifar_resnet8"}) {
    ModelSpec spec = spec_;
    spec.arch = arch;
    const auto net = Net(spec);
    ASSERT_TRUE(SaveTorchScript(*net, Path("net.pt")).ok());
    const auto loaded = TorchScriptNet::Load(Path("net.pt"), spec);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const auto expected = *net->Forward(Input(), {""});
    const auto got = (*loaded)->Forward(Input(), {""});
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(torch::equal((*got)[0], expected[0])) << arch;
    EXPECT_FALSE((*got)[0].requires_grad());
    EXPECT_EQ((*loaded)->ParameterCount(), net->architecture().ParameterCount());
    ASSERT_EQ((*loaded)->taps().size(), 1u);
    EXPECT_THAT((*loaded)->taps()[0].shape, ElementsAre(7));
  }
}

TEST_F(TorchScriptTest, ArchiveWithTapsReturnsThemByName) {
  const auto net = Net(spec_);
  const std::vector<std::string> taps = {"layer1.0.add", "layer4", "layer2.0.downsample", "flatten", "maxpool"};
  ASSERT_TRUE(SaveTorchScript(*net, Path("taps.pt"), taps).ok());
  const auto loaded = TorchScriptNet::Load(Path("taps.pt"), spec_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  std::vector<std::string> paths;
  for (const TapInfo& tap : (*loaded)->taps()) {
    paths.push_back(tap.path);
    EXPECT_EQ(tap.shape, net->architecture().FindTap(tap.path)->shape) << tap.path;
  }
  EXPECT_THAT(paths, ElementsAre("", "maxpool", "layer1.0.add", "layer2.0.downsample", "layer4", "flatten"));
  std::vector<std::string> wanted = taps;
  wanted.push_back("");
  const auto expected = *net->Forward(Input(), wanted);
  const auto got = *(*loaded)->Forward(Input(), wanted);
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(torch::equal(got[i], expected[i])) << wanted[i];
  EXPECT_THAT(std::string((*loaded)->Forward(Input(), {"layer3"}).status().message()),
              HasSubstr("no tap 'layer3'; did you mean"));
}

TEST_F(TorchScriptTest, AnFcnsArchiveAnswersPerPixelForImagesOfAnySize) {
  ModelSpec spec = spec_;
  spec.arch = "fcn_resnet18";
  const auto net = Net(spec);
  ASSERT_TRUE(SaveTorchScript(*net, Path("net.pt")).ok());
  ASSERT_TRUE(SaveTorchScript(*net, Path("taps.pt"), {"classifier", "layer4"}).ok());
  const auto loaded = TorchScriptNet::Load(Path("net.pt"), spec);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ((*loaded)->taps().size(), 1u);
  EXPECT_THAT((*loaded)->taps()[0].shape, ElementsAre(7, 32, 32));
  EXPECT_TRUE(IsDense((*loaded)->taps()[0].shape));
  EXPECT_EQ((*loaded)->ParameterCount(), net->architecture().ParameterCount());
  const auto expected = *net->Forward(Input(), {"", "classifier", "layer4"});
  EXPECT_TRUE(torch::equal((*(*loaded)->Forward(Input(), {""}))[0], expected[0]));
  const auto with_taps = TorchScriptNet::Load(Path("taps.pt"), spec);
  ASSERT_TRUE(with_taps.ok()) << with_taps.status();
  const auto got = *(*with_taps)->Forward(Input(), {"", "classifier", "layer4"});
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::equal(got[i], expected[i])) << i;

  // The same weights in a net for another size.
  ModelSpec other = spec;
  other.image_height = 45;
  other.image_width = 37;
  const auto big = *ZooNet::Create(other);
  ASSERT_TRUE(LoadWeights(SaveWeights(*net), big.get()).ok());
  big->eval();
  const torch::Tensor x = torch::linspace(-1, 1, 2 * 3 * 45 * 37).view({2, 3, 45, 37});
  const auto loaded_big = TorchScriptNet::Load(Path("net.pt"), other);
  ASSERT_TRUE(loaded_big.ok()) << loaded_big.status();
  EXPECT_TRUE(torch::equal((*(*loaded_big)->Forward(x, {""}))[0], (*big->Forward(x, {""}))[0]));
}

// What torch.jit.script makes of torchvision's segmentation networks.
TEST_F(TorchScriptTest, OutIsTheOutputWhereNoKeyIsCalledOutput) {
  WriteArchive("out.pt",
               "def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    return {\"aux\": x, \"out\": 2 * x}\n");
  const auto loaded = TorchScriptNet::Load(Path("out.pt"), spec_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  std::vector<std::string> paths;
  for (const TapInfo& tap : (*loaded)->taps()) paths.push_back(tap.path);
  EXPECT_THAT(paths, ElementsAre("", "aux", "out"));
  const auto got = *(*loaded)->Forward(Input(), {"", "out"});
  EXPECT_TRUE(torch::equal(got[0], 2 * Input()));
  EXPECT_TRUE(torch::equal(got[1], got[0]));
  WriteArchive("both.pt",
               "def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    return {\"output\": x, \"out\": 2 * x}\n");
  EXPECT_TRUE(torch::equal((*(*TorchScriptNet::Load(Path("both.pt"), spec_))->Forward(Input(), {""}))[0], Input()));
}

TEST_F(TorchScriptTest, UnknownTapIsRefusedAndNothingWritten) {
  const Status status = SaveTorchScript(*Net(spec_), Path("net.pt"), {"layer5"});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(Path("net.pt")));
}

TEST_F(TorchScriptTest, DamagedArchivesAreDataLoss) {
  ASSERT_TRUE(SaveTorchScript(*Net(spec_), Path("net.pt")).ok());
  const auto size = fs::file_size(Path("net.pt"));
  for (const double share : {0.0, 0.01, 0.5, 0.9, 0.999}) {
    fs::copy_file(Path("net.pt"), Path("cut.pt"), fs::copy_options::overwrite_existing);
    fs::resize_file(Path("cut.pt"), static_cast<uintmax_t>(static_cast<double>(size) * share));
    const Status status = LoadError("cut.pt");
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << share << " " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("cut.pt"));
  }
  std::ofstream(Path("text.pt")) << "this is no archive";
  EXPECT_EQ(LoadError("text.pt").code(), StatusCode::kDataLoss);
  EXPECT_EQ(LoadError("none.pt").code(), StatusCode::kNotFound);
}

TEST_F(TorchScriptTest, ArchivesThatBreakTheContractAreRefusedWithTheReason) {
  WriteArchive("int.pt", "def forward(self, x: Tensor) -> int:\n    return 1\n");
  EXPECT_THAT(std::string(LoadError("int.pt").message()), HasSubstr("must return a Tensor or a Dict"));
  WriteArchive("batch.pt", "def forward(self, x: Tensor) -> Tensor:\n    return torch.flatten(x)\n");
  EXPECT_THAT(std::string(LoadError("batch.pt").message()), HasSubstr("batch as first axis"));
  WriteArchive("long.pt",
               "def forward(self, x: Tensor) -> Tensor:\n    return torch.argmax(torch.flatten(x, 1), 1, True)\n");
  EXPECT_THAT(std::string(LoadError("long.pt").message()), HasSubstr("floating-point"));
  WriteArchive("shape.pt", "def forward(self, x: Tensor) -> Tensor:\n    return torch.reshape(x, [2, 5])\n");
  const Status status = LoadError("shape.pt");
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fails on a float (2, 3, 32, 32) input"));
}

// Programs whose rows are those of the images for some batches only. At load, where one, two or three pictures show it.
TEST_F(TorchScriptTest, AnArchiveWhoseRowsDoNotFollowTheImagesIsRefusedAtLoad) {
  const struct {
    std::string body, text;
  } kCases[] = {
      {"torch.flatten(x, 1)[:2]", "the output has shape [2, 3072] for 3 images, must be [3, 3072]"},
      {"torch.flatten(x, 1)[:1]", "for 2 images it is Float [1, 3072]"},
      {"torch.stack([x.mean([0, 2, 3]), x.mean([0, 2, 3])])", "has shape [2, 3] for 1 image, must be [1, 3]"},
      {"torch.reshape(x, [2, -1])", "has shape [2, 1536] for 1 image, must be [1, 3072]"},
      {"torch.reshape(x, [-1, 6144])", "for 2 images it is Float [1, 6144]"},
      {"torch.expand_copy(x.mean([1, 2, 3], True).flatten(1), [2, 1])", "fails on a float (3, 3, 32, 32) input"},
      {"torch.flatten(x, 1)[:, :1536 * x.size(0)]", "has shape [1, 1536] for 1 image, must be [1, 3072]"},
      {"torch.flip(torch.flatten(x, 1), [0])", "depends on those beside it"},
  };
  for (const auto& c : kCases) {
    WriteArchive("rows.pt", StrCat("def forward(self, x: Tensor) -> Tensor:\n    return ", c.body, "\n"));
    const Status status = LoadError("rows.pt");
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << c.body << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text)) << c.body;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rows.pt")) << c.body;
  }
}

// What a trace in training mode leaves in the program, where eval() does not reach it.
TEST_F(TorchScriptTest, AnArchiveTracedInTrainingModeIsRefusedWithTheRemedy) {
  const struct {
    std::string body, text;
  } kCases[] = {
      {"torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-05, False)", "uses the batch's statistics"},
      {"torch.batch_norm(x.mean([2, 3]), None, None, None, None, True, 0.1, 1e-05, False)",
       "uses the batch's statistics"},
      {"torch.dropout(x, 0.5, True)", "gives two answers"},
      {"torch.dropout(x, 0.01, True).mean([2, 3])", "gives two answers"},
      {"x + 0.01 * torch.rand_like(x)", "gives two answers"},
      {"x - x.mean([0], True)", "depends on those beside it"},
  };
  for (const auto& c : kCases) {
    WriteArchive("trained.pt", StrCat("def forward(self, x: Tensor) -> Dict[str, Tensor]:\n    return {\"mid\": ",
                                      c.body, ", \"output\": x.mean([2, 3])}\n"));
    const Status status = LoadError("trained.pt");
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << c.body << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text)) << c.body;
    EXPECT_THAT(std::string(status.message()), HasSubstr("call model.eval() before")) << c.body;
  }
  // In eval mode the same layers are fine, and so is what is per image by nature.
  for (const std::string body :
       {"torch.dropout(x, 0.5, False)", "torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-05, False)",
        "torch.softmax(x, 1)", "x.half()"}) {
    WriteArchive("fine.pt", StrCat("def forward(self, x: Tensor) -> Tensor:\n    return ", body, "\n"));
    EXPECT_TRUE(LoadError("fine.pt").ok()) << body << ": " << LoadError("fine.pt");
  }
}

// A program may look at the values: then only the forward itself can tell.
TEST_F(TorchScriptTest, RowsAndShapesAreComparedOnEveryForward) {
  const struct {
    std::string statement, text;
  } kCases[] = {
      {"y = y[:0]", "has shape [0, 3072] for 4 images, must be [4, 3072]"},
      {"y = y[:2]", "has shape [2, 3072] for 4 images"},
      {"y = torch.cat([y, y])", "has shape [8, 3072] for 4 images"},
      {"y = y[:, :8]", "has shape [4, 8] for 4 images"},
      {"y = y.flatten()", "has shape [12288] for 4 images"},
      {"y = y.long()", "in floating point"},
      {"y = torch.mm(y, y)", "shapes cannot be multiplied"},
  };
  for (const auto& c : kCases) {
    WriteArchive("moody.pt",
                 StrCat("def forward(self, x: Tensor) -> Tensor:\n    y = torch.flatten(x, 1)\n    if bool(x.min() "
                        "> 5.0):\n        ",
                        c.statement, "\n    return y\n"));
    const auto loaded = TorchScriptNet::Load(Path("moody.pt"), spec_);
    ASSERT_TRUE(loaded.ok()) << c.statement << ": " << loaded.status();
    EXPECT_TRUE((*loaded)->Forward(Input(), {""}).ok()) << c.statement;
    const Status status = (*loaded)->Forward(Input() + 10, {""}).status();
    EXPECT_EQ(status.code(), StatusCode::kInternal) << c.statement << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text)) << c.statement;
    EXPECT_TRUE((*loaded)->Forward(Input(), {""}).ok()) << c.statement;
  }
}

TEST_F(TorchScriptTest, AnErrorInsideTheProgramIsToldByItsCause) {
  WriteArchive("raises.pt", "def forward(self, x: Tensor) -> Tensor:\n    return torch.matmul(x, x.flatten())\n");
  const Status status = LoadError("raises.pt");
  EXPECT_THAT(std::string(status.message()), HasSubstr("Expected size for first two dimensions"));
  EXPECT_EQ(std::string(status.message()).find("failed in the TorchScript interpreter"), std::string::npos) << status;
}

}  // namespace
}  // namespace distill
