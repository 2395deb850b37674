// Files cross between this program and plain Python (torch, torchvision, safetensors), both ways.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <ostream>

#include "common/str_cat.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

// As in the script's NETS; `inner`: a tap that the reference does not have as a module, or has deep inside.
struct Net {
  std::string name, arch;
  uint32_t width, image_height, image_width;
  std::string tap, inner;
  ModelSpec spec() const {
    return {.arch = arch,
            .width = width,
            .num_classes = 7,
            .in_channels = 3,
            .image_height = image_height,
            .image_width = image_width};
  }
};
struct Family {
  std::string name;
  std::vector<Net> both_ways, from_python;
};
void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

std::vector<Family> Families() {
  const Family imagenet{"ImageNet",
                        {{"resnet18", "resnet18", 64, 40, 48, "layer2", "layer1.0.add"},
                         {"resnet50", "resnet50", 64, 40, 48, "layer2", "layer1.0.add"},
                         {"vgg11_bn", "vgg11_bn", 8, 72, 64, "features.14", "avgpool"},
                         {"mobilenet_v1", "mobilenet_v1", 32, 64, 45, "model.5", "model.5.3"},
                         {"mobilenet_v2_half", "mobilenet_v2", 16, 64, 45, "features.6", "features.3.add"},
                         {"shufflenet_v2_x0_5", "shufflenet_v2_x0_5", 24, 64, 45, "stage3", "stage3.1.branch2.4"}},
                        {{"mobilenet_v2", "mobilenet_v2", 32, 64, 45, "features.6", ""},
                         {"shufflenet_v2_x1_5", "shufflenet_v2_x1_5", 24, 64, 45, "stage3", ""}}};
  const Family cifar{"Cifar",
                     {{"cifar_resnet20", "cifar_resnet20", 16, 40, 48, "layer2", "layer1.0.add"},
                      {"cifar_resnet8x4", "cifar_resnet8x4", 32, 32, 32, "layer2", "layer1.0.downsample"},
                      {"cifar_wrn_16_2", "cifar_wrn_16_2", 16, 32, 32, "block2", "block2.layer.0.relu1"},
                      {"cifar_vgg13_bn", "cifar_vgg13_bn", 16, 64, 64, "block3.4", "relu3"},
                      {"cifar_mobilenet_v2", "cifar_mobilenet_v2", 16, 32, 32, "blocks.2", "blocks.2.1.add"},
                      {"cifar_shufflenet_v2", "cifar_shufflenet_v2", 24, 32, 32, "layer2", "layer2.1.bn3"}},
                     {{"cifar_wrn_40_1", "cifar_wrn_40_1", 16, 33, 32, "block2.layer.3", ""},
                      {"cifar_vgg8_bn", "cifar_vgg8_bn", 64, 32, 32, "block2", ""}}};
  const Family dilated{
      "Dilated",
      {{"fcn_resnet18", "fcn_resnet18", 64, 29, 37, "layer2", "layer1.0.add"},
       {"deeplabv3_resnet18_os16", "deeplabv3_resnet18_os16", 64, 45, 61, "layer3", "classifier.0.convs"},
       {"deeplabv3_mobilenet_v2", "deeplabv3_mobilenet_v2", 32, 45, 61, "features.13", "classifier.0.convs.4"}},
      {{"fcn_resnet50", "fcn_resnet50", 64, 29, 37, "layer2", ""},
       {"fcn_resnet101", "fcn_resnet101", 64, 29, 37, "layer2", ""},
       {"deeplabv3_resnet50", "deeplabv3_resnet50", 64, 29, 37, "layer2", ""}}};
  const Family pooled{"Pooled",
                      {{"deeplabv3plus_resnet18_os16", "deeplabv3plus_resnet18_os16", 64, 45, 61, "classifier.aspp",
                        "classifier.project.1"},
                       {"deeplabv3plus_mobilenet_v2_os16", "deeplabv3plus_mobilenet_v2_os16", 32, 45, 61,
                        "high_level_features.13", "classifier"},
                       {"pspnet_resnet18", "pspnet_resnet18", 64, 57, 49, "layer3", "ppm.features.2"}},
                      {{"deeplabv3plus_resnet18", "deeplabv3plus_resnet18", 64, 45, 61, "layer4", ""},
                       {"pspnet_resnet50", "pspnet_resnet50", 64, 57, 49, "ppm", ""}}};
  return {imagenet, cifar, dilated, pooled};
}

class PythonTest : public ::testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    if (!fs::exists(DISTILL_TEST_PYTHON)) {
      GTEST_SKIP() << "needs " DISTILL_TEST_PYTHON
                      " with torch, torchvision and safetensors (scripts/setup.sh makes it)";
    }
    folder_ = fs::path(::testing::TempDir()) / StrCat("zoo_python_test_", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }
  // Exit code of the script; kLacksPackages when its Python cannot import what it needs.
  static constexpr int kLacksPackages = 77;
  int RunScript(const std::string& verb, const std::vector<Net>& nets) {
    std::string command =
        StrCat("'", DISTILL_TEST_PYTHON, "' '", DISTILL_TEST_ZOO_SCRIPT, "' ", verb, " '", folder_.string(), "'");
    for (const Net& net : nets) command += " " + net.name;
    return WEXITSTATUS(std::system(command.c_str()));
  }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  fs::path folder_;
};
INSTANTIATE_TEST_SUITE_P(Families, PythonTest, ::testing::ValuesIn(Families()),
                         [](const auto& info) { return info.param.name; });

torch::Tensor AsTensor(const SafeTensor& tensor) {
  torch::Tensor copy = torch::empty(tensor.shape);
  std::memcpy(copy.data_ptr(), tensor.bytes.data, tensor.bytes.size);
  return copy;
}
// To a hundred thousandth of the largest value.
void ExpectSame(const torch::Tensor& got, const torch::Tensor& expected, const std::string& what) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  const float worst = (got - expected).abs().max().item<float>(), largest = expected.abs().max().item<float>();
  EXPECT_LE(worst, 1e-5 * largest) << what << ": largest difference " << worst << ", largest value " << largest;
}
SafeTensor FromTensor(const torch::Tensor& tensor) {
  const torch::Tensor held = tensor.detach().contiguous();
  return {"F32", held.sizes().vec(),
          Buffer{static_cast<const uint8_t*>(held.data_ptr()), held.nbytes(), std::make_shared<torch::Tensor>(held)}};
}

TEST_P(PythonTest, TorchvisionsWeightsLoadAndGiveItsLogits) {
  std::vector<Net> nets = GetParam().both_ways;
  nets.insert(nets.end(), GetParam().from_python.begin(), GetParam().from_python.end());
  const int exit_code = RunScript("write", nets);
  if (exit_code == kLacksPackages) GTEST_SKIP() << "Python lacks torchvision or safetensors";
  ASSERT_EQ(exit_code, 0) << "the script says above why";
  for (const Net& one : nets) {
    const auto weights = ReadSafetensors(Path(one.name + ".safetensors"));
    ASSERT_TRUE(weights.ok()) << weights.status();
    const auto net = *ZooNet::Create(one.spec());
    const Status status = LoadWeights(*weights, net.get());
    ASSERT_TRUE(status.ok()) << status;
    net->eval();
    const auto values = ReadSafetensors(Path(one.name + ".values.safetensors"));
    ASSERT_TRUE(values.ok()) << values.status();
    const torch::NoGradGuard no_grad;
    const auto got = *net->Forward(AsTensor(values->tensors.at("x")), {one.tap, ""});
    ExpectSame(got[0], AsTensor(values->tensors.at(one.tap)), one.name + " " + one.tap);
    ExpectSame(got[1], AsTensor(values->tensors.at("logits")), one.name + " logits");
  }
  // As torch.jit.script makes it of the module: its forward returns {"out": logits}.
  if (!fs::exists(Path("fcn_resnet50.scripted.pt"))) return;
  const auto values = ReadSafetensors(Path("fcn_resnet50.values.safetensors"));
  const auto scripted = TorchScriptNet::Load(Path("fcn_resnet50.scripted.pt"), GetParam().from_python[0].spec());
  ASSERT_TRUE(scripted.ok()) << scripted.status();
  const auto got = (*scripted)->Forward(AsTensor(values->tensors.at("x")), {""});
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSame((*got)[0], AsTensor(values->tensors.at("logits")), "scripted");
}

TEST_P(PythonTest, PythonLoadsOurWeightsAndArchives) {
  const std::vector<Net>& nets = GetParam().both_ways;
  for (const Net& one : nets) {
    const ModelSpec spec = one.spec();
    const auto net = *ZooNet::Create(spec);
    net->InitWeights(7);
    const auto height = static_cast<int64_t>(spec.image_height), width = static_cast<int64_t>(spec.image_width);
    const torch::Tensor x = torch::linspace(-2, 2, 2 * 3 * height * width).view({2, 3, height, width});
    net->train();
    ASSERT_TRUE(net->Forward(x, {""}).ok());
    net->eval();
    const torch::NoGradGuard no_grad;
    const auto values = *net->Forward(x, {one.inner, one.tap, ""});
    SafetensorsFile io;
    io.tensors["x"] = FromTensor(x);
    io.tensors[one.inner] = FromTensor(values[0]);
    io.tensors[one.tap] = FromTensor(values[1]);
    io.tensors["logits"] = FromTensor(values[2]);
    ASSERT_TRUE(WriteSafetensors(Path(one.name + ".values.safetensors"), io).ok());
    ASSERT_TRUE(WriteSafetensors(Path(one.name + ".safetensors"), SaveWeights(*net)).ok());
    ASSERT_TRUE(SaveTorchScript(*net, Path(one.name + ".pt")).ok());
    ASSERT_TRUE(SaveTorchScript(*net, Path(one.name + ".taps.pt"), {one.inner, one.tap}).ok());
  }
  const int exit_code = RunScript("read", nets);
  if (exit_code == kLacksPackages) GTEST_SKIP() << "Python lacks torchvision or safetensors";
  EXPECT_EQ(exit_code, 0) << "the script says above what differs";
}

}  // namespace
}  // namespace distill
