// Files cross between this program and plain Python (torch, torchvision, safetensors), both ways.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "common/str_cat.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

class PythonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(DISTILL_TEST_PYTHON)) {
      GTEST_SKIP() << "needs " DISTILL_TEST_PYTHON
                      " with torch, torchvision and safetensors (scripts/setup.sh makes it)";
    }
    command_ = StrCat("'", DISTILL_TEST_PYTHON, "' '", DISTILL_TEST_ZOO_SCRIPT, "'");
    folder_ = fs::path(::testing::TempDir()) / StrCat("zoo_python_test_", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }
  // Exit code of the script; kLacksPackages when its Python cannot import what it needs.
  static constexpr int kLacksPackages = 77;
  int RunScript(const std::string& verb) {
    return WEXITSTATUS(std::system(StrCat(command_, " ", verb, " '", folder_.string(), "'").c_str()));
  }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  static ModelSpec Spec(std::string arch, uint32_t width, uint32_t image_height, uint32_t image_width) {
    return {.arch = std::move(arch),
            .width = width,
            .num_classes = 7,
            .in_channels = 3,
            .image_height = image_height,
            .image_width = image_width};
  }
  const std::vector<ModelSpec> specs_ = {Spec("resnet18", 64, 40, 48), Spec("resnet50", 64, 40, 48),
                                         Spec("cifar_resnet20", 16, 40, 48), Spec("fcn_resnet18", 64, 29, 37)};
  // From torchvision only.
  const std::vector<ModelSpec> one_way_ = {Spec("fcn_resnet50", 64, 29, 37), Spec("fcn_resnet101", 64, 29, 37)};
  std::string command_;
  fs::path folder_;
};

torch::Tensor AsTensor(const SafeTensor& tensor) {
  torch::Tensor copy = torch::empty(tensor.shape);
  std::memcpy(copy.data_ptr(), tensor.bytes.data, tensor.bytes.size);
  return copy;
}
SafeTensor FromTensor(const torch::Tensor& tensor) {
  const torch::Tensor held = tensor.detach().contiguous();
  return {"F32", held.sizes().vec(),
          Buffer{static_cast<const uint8_t*>(held.data_ptr()), held.nbytes(), std::make_shared<torch::Tensor>(held)}};
}

TEST_F(PythonTest, TorchvisionsWeightsLoadAndGiveItsLogits) {
  const int exit_code = RunScript("write");
  if (exit_code == kLacksPackages) GTEST_SKIP() << "Python lacks torchvision or safetensors";
  ASSERT_EQ(exit_code, 0) << "the script says above why";
  std::vector<ModelSpec> specs = specs_;
  specs.insert(specs.end(), one_way_.begin(), one_way_.end());
  for (const ModelSpec& spec : specs) {
    const auto weights = ReadSafetensors(Path(spec.arch + ".safetensors"));
    ASSERT_TRUE(weights.ok()) << weights.status();
    const auto net = *ZooNet::Create(spec);
    const Status status = LoadWeights(*weights, net.get());
    ASSERT_TRUE(status.ok()) << status;
    net->eval();
    const auto values = ReadSafetensors(Path(spec.arch + ".values.safetensors"));
    ASSERT_TRUE(values.ok()) << values.status();
    const torch::NoGradGuard no_grad;
    const auto got = *net->Forward(AsTensor(values->tensors.at("x")), {"layer2", ""});
    for (const auto& [name, value] : {std::pair("layer2", got[0]), std::pair("logits", got[1])}) {
      const torch::Tensor expected = AsTensor(values->tensors.at(name));
      EXPECT_TRUE(torch::allclose(value, expected, 1e-4, 1e-4))
          << spec.arch << " " << name << ": largest difference " << (value - expected).abs().max().item<float>();
    }
  }
  // torchvision's own module, scripted: its forward returns {"out": logits}.
  const auto values = ReadSafetensors(Path("fcn_resnet50.values.safetensors"));
  const auto scripted = TorchScriptNet::Load(Path("fcn_resnet50.scripted.pt"), one_way_[0]);
  ASSERT_TRUE(scripted.ok()) << scripted.status();
  const auto got = (*scripted)->Forward(AsTensor(values->tensors.at("x")), {""});
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(torch::allclose((*got)[0], AsTensor(values->tensors.at("logits")), 1e-4, 1e-4));
}

TEST_F(PythonTest, PythonLoadsOurWeightsAndArchives) {
  for (const ModelSpec& spec : specs_) {
    const auto net = *ZooNet::Create(spec);
    net->InitWeights(7);
    const auto height = static_cast<int64_t>(spec.image_height), width = static_cast<int64_t>(spec.image_width);
    const torch::Tensor x = torch::linspace(-2, 2, 2 * 3 * height * width).view({2, 3, height, width});
    net->train();
    ASSERT_TRUE(net->Forward(x, {""}).ok());
    net->eval();
    const torch::NoGradGuard no_grad;
    const auto values = *net->Forward(x, {"layer1.0.add", "layer2", ""});
    SafetensorsFile io;
    io.tensors["x"] = FromTensor(x);
    io.tensors["layer1.0.add"] = FromTensor(values[0]);
    io.tensors["layer2"] = FromTensor(values[1]);
    io.tensors["logits"] = FromTensor(values[2]);
    ASSERT_TRUE(WriteSafetensors(Path(spec.arch + ".values.safetensors"), io).ok());
    ASSERT_TRUE(WriteSafetensors(Path(spec.arch + ".safetensors"), SaveWeights(*net)).ok());
    ASSERT_TRUE(SaveTorchScript(*net, Path(spec.arch + ".pt")).ok());
    ASSERT_TRUE(SaveTorchScript(*net, Path(spec.arch + ".taps.pt"), {"layer1.0.add", "layer2"}).ok());
  }
  const int exit_code = RunScript("read");
  if (exit_code == kLacksPackages) GTEST_SKIP() << "Python lacks torchvision or safetensors";
  EXPECT_EQ(exit_code, 0) << "the script says above what differs";
}

}  // namespace
}  // namespace distill
