#include "common/zoo/zoo_net.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "common/str_cat.h"
#include "common/zoo/weights.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

ModelSpec Spec(std::string arch, uint32_t width, uint32_t channels = 1, uint32_t image = 16) {
  return {.arch = std::move(arch),
          .width = width,
          .num_classes = 7,
          .in_channels = channels,
          .image_height = image,
          .image_width = image};
}
// One of each family that is not made of torchvision's residual blocks, and of each way to wire a block.
std::vector<ModelSpec> OtherFamilies() {
  return {Spec("cifar_resnet8x4", 2),       Spec("cifar_wrn_16_2", 2),         Spec("cifar_vgg8_bn", 2),
          Spec("cifar_mobilenet_v2", 4, 3), Spec("cifar_shufflenet_v2", 4, 3), Spec("vgg11_bn", 1, 3, 33),
          Spec("mobilenet_v1", 4, 3, 41),   Spec("mobilenet_v2", 8, 3, 41),    Spec("shufflenet_v2_x0_5", 4, 3, 41)};
}
std::vector<ModelSpec> Segmenters() {
  return {Spec("deeplabv3_resnet18_os16", 2, 3, 41), Spec("deeplabv3_mobilenet_v2", 8, 3, 33),
          Spec("deeplabv3plus_resnet18", 2, 3, 33), Spec("deeplabv3plus_mobilenet_v2_os16", 8, 3, 41),
          Spec("pspnet_resnet50", 1, 3, 41)};
}
std::vector<ModelSpec> WithOtherFamilies(std::vector<ModelSpec> specs) {
  for (const ModelSpec& spec : OtherFamilies()) specs.push_back(spec);
  for (const ModelSpec& spec : Segmenters()) specs.push_back(spec);
  return specs;
}
std::shared_ptr<ZooNet> Make(const ModelSpec& spec, uint64_t seed = 1) {
  auto net = ZooNet::Create(spec);
  EXPECT_TRUE(net.ok()) << net.status();
  (*net)->InitWeights(seed);
  return *net;
}
torch::Tensor Input(const ModelSpec& spec, int64_t n = 3) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{5});
  return torch::empty({n, spec.in_channels, spec.image_height, spec.image_width}).normal_(0, 1, generator);
}
std::vector<torch::Tensor> Forward(ZooNet& net, const torch::Tensor& x, const std::vector<std::string>& taps) {
  auto values = net.Forward(x, taps);
  EXPECT_TRUE(values.ok()) << values.status();
  return *std::move(values);
}
std::vector<std::string> TapPaths(const Architecture& arch) {
  std::vector<std::string> paths;
  for (const TapInfo& tap : arch.taps()) paths.push_back(tap.path);
  return paths;
}
torch::Tensor BufferOf(ZooNet& net, const std::string& name) { return net.named_buffers()[name]; }

TEST(ZooNetTest, StateHasTheArchitecturesNamesOrderAndShapes) {
  for (const auto& spec : WithOtherFamilies({Spec("cifar_resnet14", 4), Spec("resnet18", 4, 3, 32),
                                             Spec("resnet50", 4, 3, 32), Spec("fcn_resnet18", 4, 3, 32)})) {
    const auto net = Make(spec);
    std::vector<std::string> parameters, expected;
    for (const auto& item : net->named_parameters()) parameters.push_back(item.key());
    for (const StateEntry& entry : net->architecture().StateDict()) {
      if (!entry.is_buffer) expected.push_back(entry.name);
      const torch::Tensor value =
          entry.is_buffer ? net->named_buffers()[entry.name] : net->named_parameters()[entry.name];
      EXPECT_EQ(value.sizes().vec(), entry.shape) << entry.name;
      EXPECT_EQ(value.scalar_type(), entry.is_integer ? torch::kInt64 : torch::kFloat32) << entry.name;
    }
    EXPECT_EQ(parameters, expected);
    EXPECT_EQ(parameters.size() + net->named_buffers().size(), net->architecture().StateDict().size());
  }
}

TEST(ZooNetTest, EveryTapHasTheShapeTheArchitectureSays) {
  ModelSpec oblong = Spec("fcn_resnet50", 4, 3, 45);
  oblong.image_width = 61;
  for (const auto& spec :
       WithOtherFamilies({Spec("cifar_resnet14", 4, 1, 17), Spec("resnet18", 4, 3, 33), Spec("resnet50", 4, 3, 40),
                          Spec("fcn_resnet18", 4, 3, 8), Spec("fcn_resnet34", 2, 1, 33), oblong})) {
    const auto net = Make(spec);
    const std::vector<std::string> paths = TapPaths(net->architecture());
    const auto values = Forward(*net, Input(spec), paths);
    for (size_t i = 0; i < paths.size(); ++i) {
      std::vector<int64_t> expected = {3};
      for (uint32_t d : net->architecture().taps()[i].shape) expected.push_back(d);
      EXPECT_EQ(values[i].sizes().vec(), expected) << spec.arch << " " << paths[i];
    }
  }
}

// All taps at once forbid every in-place operation; one tap alone allows nearly all.
// Property 6 of the stage-by-stage specification (SSKD): a truncated forward is bit-equal to the full one.
TEST(ZooNetTest, ATapHasTheSameValueAloneAndInCompany) {
  for (const auto& spec :
       WithOtherFamilies({Spec("cifar_resnet8", 4), Spec("resnet50", 4, 3, 32), Spec("fcn_resnet18", 2, 3, 16)})) {
    const auto net = Make(spec);
    net->eval();
    const torch::NoGradGuard no_grad;
    const torch::Tensor x = Input(spec);
    const torch::Tensor x_before = x.clone();
    const std::vector<std::string> paths = TapPaths(net->architecture());
    const auto together = Forward(*net, x, paths);
    for (size_t i = 0; i < paths.size(); ++i) {
      EXPECT_TRUE(torch::equal(Forward(*net, x, {paths[i]})[0], together[i])) << spec.arch << " " << paths[i];
    }
    EXPECT_TRUE(torch::equal(x, x_before));
  }
}

TEST(ZooNetTest, TapsMeanWhatTheirNamesSay) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  net->eval();
  const auto v = Forward(*net, Input(spec),
                         {"bn1", "relu", "layer2.0.bn2", "layer2.0.downsample", "layer2.0.downsample.1", "layer2.0.add",
                          "layer2.0", "layer2", "layer3", "avgpool", "flatten", "fc", "", "layer2"});
  EXPECT_TRUE(torch::equal(v[1], v[0].relu()));
  EXPECT_TRUE(torch::equal(v[3], v[4]));
  EXPECT_TRUE(torch::equal(v[5], v[2] + v[3]));
  EXPECT_TRUE(torch::equal(v[6], v[5].relu()));
  EXPECT_TRUE(torch::equal(v[7], v[6]));
  EXPECT_TRUE(torch::allclose(v[9].flatten(1), v[8].mean({2, 3})));
  EXPECT_TRUE(torch::equal(v[10], v[9].flatten(1)));
  EXPECT_TRUE(torch::equal(v[12], v[11]));
  EXPECT_TRUE(torch::equal(v[13], v[7])) << "the same tap twice";
  EXPECT_LT(v[5].min().item<float>(), 0) << "add is the pre-ReLU tap";
}

TEST(ZooNetTest, AnFcnsTapsMeanWhatTheirNamesSay) {
  const auto spec = Spec("fcn_resnet18", 4, 3, 42);
  const auto net = Make(spec);
  net->eval();
  const auto v =
      Forward(*net, Input(spec), {"classifier.1", "classifier.2", "classifier.4", "classifier", "upsample", ""});
  EXPECT_TRUE(torch::equal(v[1], v[0].relu()));
  const torch::Tensor logits =
      torch::conv2d(v[1], net->named_parameters()["classifier.4.weight"], net->named_parameters()["classifier.4.bias"]);
  EXPECT_TRUE(torch::allclose(v[2], logits, 1e-5, 1e-6));
  EXPECT_TRUE(torch::equal(v[3], v[2]));
  EXPECT_TRUE(torch::equal(v[5], v[4]));
  // Corners not aligned: the middle of a big pixel has its value. 42 / 6 = 7 pixels, whose fourth is the middle.
  EXPECT_TRUE(torch::allclose(v[4].slice(2, 3, 42, 7).slice(3, 3, 42, 7), v[3], 1e-5, 1e-6));
}

TEST(ZooNetTest, AnFcnsPrefixLeavesTheClassifierAlone) {
  const auto spec = Spec("fcn_resnet18", 4, 3, 32);
  const auto net = Make(spec);
  net->train();
  Forward(*net, Input(spec), {"layer4"});
  EXPECT_EQ(BufferOf(*net, "layer4.1.bn2.num_batches_tracked").item<int64_t>(), 1);
  EXPECT_EQ(BufferOf(*net, "classifier.1.num_batches_tracked").item<int64_t>(), 0);
}

TEST(ZooNetTest, ASegmenterTakesPicturesOfAnySizeAsOneMadeForThatSize) {
  for (const ModelSpec& spec : {Spec("fcn_resnet18", 4, 3, 32), Spec("deeplabv3plus_resnet18_os16", 2, 3, 33),
                                Spec("pspnet_resnet18", 2, 3, 41)}) {
    ModelSpec other = spec;
    other.image_height = 57;
    other.image_width = 38;
    const auto net = Make(spec), made = Make(other);
    net->eval();
    made->eval();
    const torch::NoGradGuard no_grad;
    const torch::Tensor x = Input(other, 2);
    const auto got = net->ForwardAtAnySize(x);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(torch::equal(*got, Forward(*made, x, {""})[0])) << spec.arch;
    EXPECT_TRUE(torch::equal(*net->ForwardAtAnySize(Input(spec)), Forward(*net, Input(spec), {""})[0])) << spec.arch;
  }
  const auto fcn = Make(Spec("fcn_resnet18", 4, 3, 32));
  for (const auto& [x, why] : {std::pair{torch::zeros({1, 3, 7, 40}), "of at least 8 pixels a side"},
                               {torch::zeros({1, 1, 40, 40}), "must be floating point (N, 3, H, W)"},
                               {torch::zeros({1, 3, 40, 40}, torch::kUInt8), "must be floating point"}}) {
    EXPECT_THAT(fcn->ForwardAtAnySize(x).status().ToString(), HasSubstr(why));
  }
  EXPECT_THAT(Make(Spec("cifar_resnet8", 4))->ForwardAtAnySize(torch::zeros({1, 1, 32, 32})).status().ToString(),
              HasSubstr("cifar_resnet8 answers for every image"));
}

TEST(ZooNetTest, PrefixExecutionStopsRightAfterTheLastTap) {
  const auto spec = Spec("cifar_resnet14", 4);
  const auto net = Make(spec);
  net->train();
  Forward(*net, Input(spec), {"layer1", "layer2.0.bn1"});
  const auto count = [&](const std::string& bn) { return BufferOf(*net, bn + ".num_batches_tracked").item<int64_t>(); };
  EXPECT_EQ(count("bn1"), 1);
  EXPECT_EQ(count("layer1.1.bn2"), 1);
  EXPECT_EQ(count("layer2.0.bn1"), 1);
  EXPECT_EQ(count("layer2.0.bn2"), 0);
  EXPECT_EQ(count("layer2.1.bn1"), 0);
  EXPECT_EQ(count("layer3.0.bn1"), 0);
}

TEST(ZooNetTest, FrozenPrefixKeepsItsStatisticsWhileTheRestTrains) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  net->train();
  for (const std::string& path : net->architecture().StageModules(0)) {
    net->FindModule(path)->eval();
    for (torch::Tensor& p : net->FindModule(path)->parameters()) p.requires_grad_(false);
  }
  const torch::Tensor mean_before = BufferOf(*net, "layer1.0.bn1.running_mean").clone();
  const auto values = Forward(*net, Input(spec), {"layer1", ""});
  values[1].sum().backward();
  EXPECT_TRUE(torch::equal(BufferOf(*net, "layer1.0.bn1.running_mean"), mean_before));
  EXPECT_EQ(BufferOf(*net, "bn1.num_batches_tracked").item<int64_t>(), 0);
  EXPECT_EQ(BufferOf(*net, "layer2.0.bn1.num_batches_tracked").item<int64_t>(), 1);
  EXPECT_FALSE(values[0].requires_grad());
  EXPECT_FALSE(net->named_parameters()["conv1.weight"].grad().defined());
  EXPECT_TRUE(net->named_parameters()["layer2.0.conv1.weight"].grad().defined());
}

TEST(ZooNetTest, GradientsDoNotDependOnWhichTapsAreTaken) {
  const auto spec = Spec("resnet50", 4, 3, 32);
  const auto gradient = [&](const std::vector<std::string>& extra) {
    const auto net = Make(spec);
    net->train();
    std::vector<std::string> taps = extra;
    taps.push_back("");
    torch::nn::functional::cross_entropy(Forward(*net, Input(spec), taps).back(), torch::tensor({0, 1, 2})).backward();
    std::vector<torch::Tensor> gradients;
    for (const torch::Tensor& p : net->parameters()) gradients.push_back(p.grad().flatten());
    return torch::cat(gradients);
  };
  const torch::Tensor plain = gradient({});
  EXPECT_GT(plain.abs().max().item<float>(), 0);
  EXPECT_TRUE(torch::equal(plain, gradient(TapPaths(Make(spec)->architecture()))));
}

TEST(ZooNetTest, TheOtherFamiliesGradientsReachEverythingAndDoNotDependOnWhichTapsAreTaken) {
  for (const ModelSpec& spec : OtherFamilies()) {
    const auto gradient = [&](const std::vector<std::string>& extra) {
      const auto net = Make(spec);
      net->train();
      std::vector<std::string> taps = extra;
      taps.push_back("");
      torch::nn::functional::cross_entropy(Forward(*net, Input(spec), taps).back(), torch::tensor({0, 1, 2}))
          .backward();
      std::vector<torch::Tensor> gradients;
      for (const auto& item : net->named_parameters()) {
        EXPECT_TRUE(item.value().grad().defined()) << spec.arch << " " << item.key();
        gradients.push_back(item.value().grad().flatten());
      }
      return torch::cat(gradients);
    };
    const torch::Tensor plain = gradient({});
    EXPECT_GT(plain.abs().max().item<float>(), 0) << spec.arch;
    EXPECT_TRUE(torch::equal(plain, gradient(TapPaths(Make(spec)->architecture())))) << spec.arch;
  }
}

TEST(ZooNetTest, TheSegmentersGradientsReachEverythingAndDoNotDependOnWhichTapsAreTaken) {
  for (const ModelSpec& spec : Segmenters()) {
    const int64_t side = spec.image_height;
    const auto gradient = [&](const std::vector<std::string>& extra) {
      const auto net = Make(spec);
      net->train();
      std::vector<std::string> taps = extra;
      taps.push_back("");
      const torch::Tensor labels = torch::arange(3 * side * side).remainder(7).view({3, side, side});
      torch::nn::functional::cross_entropy(Forward(*net, Input(spec), taps).back(), labels).backward();
      std::vector<torch::Tensor> gradients;
      for (const auto& item : net->named_parameters()) {
        EXPECT_TRUE(item.value().grad().defined()) << spec.arch << " " << item.key();
        gradients.push_back(item.value().grad().flatten());
      }
      return torch::cat(gradients);
    };
    const torch::Tensor plain = gradient({});
    EXPECT_GT(plain.abs().max().item<float>(), 0) << spec.arch;
    EXPECT_TRUE(torch::equal(plain, gradient(TapPaths(Make(spec)->architecture())))) << spec.arch;
  }
}

TEST(ZooNetTest, APreactivationTapComesBeforeItsRelu) {
  const auto vgg = Make(Spec("cifar_vgg8_bn", 2));
  vgg->eval();
  const auto maps = Forward(*vgg, Input(Spec("cifar_vgg8_bn", 2)), {"block1", "relu1"});
  EXPECT_LT(maps[0].min().item<float>(), 0);
  EXPECT_TRUE(torch::equal(maps[1], maps[0].relu()));
}

TEST(ZooNetTest, ReluSixEndsAtSix) {
  const ModelSpec spec = Spec("mobilenet_v2", 8, 3, 41);
  const auto net = Make(spec);
  net->eval();
  const auto maps = Forward(*net, 100 * Input(spec), {"features.0.1", "features.0.2", "features.0"});
  EXPECT_GT(maps[0].max().item<float>(), 6);
  EXPECT_TRUE(torch::equal(maps[1], maps[0].clamp(0, 6)));
  EXPECT_TRUE(torch::equal(maps[2], maps[1]));
}

TEST(ZooNetTest, AnFcnsGradientReachesEverythingAndDoesNotDependOnWhichTapsAreTaken) {
  const auto spec = Spec("fcn_resnet50", 2, 3, 24);
  const auto gradient = [&](const std::vector<std::string>& extra) {
    const auto net = Make(spec);
    net->train();
    std::vector<std::string> taps = extra;
    taps.push_back("");
    const torch::Tensor labels = torch::arange(3 * 24 * 24).remainder(7).view({3, 24, 24});
    torch::nn::functional::cross_entropy(Forward(*net, Input(spec), taps).back(), labels).backward();
    std::vector<torch::Tensor> gradients;
    for (const auto& item : net->named_parameters()) {
      EXPECT_TRUE(item.value().grad().defined()) << item.key();
      gradients.push_back(item.value().grad().flatten());
    }
    return torch::cat(gradients);
  };
  const torch::Tensor plain = gradient({});
  EXPECT_GT(plain.abs().max().item<float>(), 0);
  EXPECT_TRUE(torch::equal(plain, gradient(TapPaths(Make(spec)->architecture()))));
}

TEST(ZooNetTest, GradientFlowsFromATapInTheMiddle) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  net->train();
  Forward(*net, Input(spec), {"layer2.0.add"})[0].pow(2).sum().backward();
  EXPECT_GT(net->named_parameters()["conv1.weight"].grad().abs().max().item<float>(), 0);
  EXPECT_FALSE(net->named_parameters()["layer3.0.conv1.weight"].grad().defined());
}

TEST(ZooNetTest, InitialWeightsDependOnTheSeedAlone) {
  const auto spec = Spec("cifar_resnet8", 16);
  torch::manual_seed(1);
  const auto a = Make(spec, 3);
  torch::manual_seed(2);
  const auto b = Make(spec, 3);
  const auto c = Make(spec, 4);
  for (const auto& item : a->named_parameters()) {
    EXPECT_TRUE(torch::equal(item.value(), b->named_parameters()[item.key()])) << item.key();
  }
  EXPECT_FALSE(torch::equal(a->named_parameters()["conv1.weight"], c->named_parameters()["conv1.weight"]));
  // He et al. 2015, fan out: std = sqrt(2 / (64 * 9)) for the last convolution; 36,864 samples.
  const torch::Tensor last = a->named_parameters()["layer3.0.conv2.weight"];
  EXPECT_NEAR(last.std().item<double>(), std::sqrt(2.0 / (64 * 9)), 0.001);
  EXPECT_LE(a->named_parameters()["fc.weight"].abs().max().item<double>(), 1.0 / 8);
  EXPECT_EQ(a->named_parameters()["bn1.weight"].min().item<float>(), 1);
}

// As the references' constructors draw them.
TEST(ZooNetTest, InitialWeightsAreTheReferencesDistributions) {
  const auto parameter = [](const std::shared_ptr<ZooNet>& net, const char* name) {
    return net->named_parameters()[name].detach();
  };
  const auto std_of = [](const torch::Tensor& x) { return x.std().item<double>(); };
  const auto mobile = Make(Spec("mobilenet_v2", 32, 3, 41));
  EXPECT_NEAR(std_of(parameter(mobile, "classifier.1.weight")), 0.01, 5e-4);
  EXPECT_EQ(parameter(mobile, "classifier.1.bias").abs().max().item<float>(), 0);
  // torch counts the fan out of a depthwise convolution as if it were dense.
  EXPECT_NEAR(std_of(parameter(mobile, "features.17.conv.1.0.weight")), std::sqrt(2.0 / (960 * 9)), 5e-4);
  const auto shuffle = Make(Spec("shufflenet_v2_x0_5", 24, 3, 41));
  const torch::Tensor depthwise = parameter(shuffle, "stage3.0.branch2.3.weight");
  EXPECT_LE(depthwise.abs().max().item<double>(), 1.0 / 3);
  EXPECT_GT(depthwise.abs().max().item<double>(), 0.3);
  EXPECT_GT(parameter(shuffle, "fc.bias").abs().max().item<double>(), 0);
  const auto vgg = Make(Spec("cifar_vgg8_bn", 8));
  EXPECT_EQ(parameter(vgg, "block0.0.bias").abs().max().item<float>(), 0);
  EXPECT_NEAR(std_of(parameter(vgg, "block4.0.weight")), std::sqrt(2.0 / (64 * 9)), 1e-3);
  const auto wide = Make(Spec("cifar_wrn_16_1", 16));
  EXPECT_EQ(parameter(wide, "fc.bias").abs().max().item<float>(), 0);
  EXPECT_GT(parameter(wide, "fc.weight").abs().max().item<double>(), 0.1);
}

TEST(ZooNetTest, AnFcnsLogitsStartSmallWhateverTheNumberOfClasses) {
  ModelSpec spec = Spec("fcn_resnet18", 16, 3, 32);
  spec.num_classes = 2;
  const auto net = Make(spec);
  net->train();
  // 8 * width channels in, a quarter of them inside.
  const double bound = 1 / std::sqrt(32.0);
  for (const char* name : {"classifier.4.weight", "classifier.4.bias"}) {
    const double largest = net->named_parameters()[name].abs().max().item<double>();
    EXPECT_LE(largest, bound) << name;
    EXPECT_GT(largest, 0) << name;
  }
  EXPECT_LT(Forward(*net, Input(spec), {""})[0].std().item<double>(), 1);
}

TEST(ZooNetTest, InputAndTapErrorsSayWhatIsExpected) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  const auto refusal = [&](const torch::Tensor& x, const std::vector<std::string>& taps) {
    const auto values = net->Forward(x, taps);
    EXPECT_EQ(values.status().code(), StatusCode::kInvalidArgument);
    return std::string(values.status().message());
  };
  const torch::Tensor x = Input(spec);
  EXPECT_THAT(refusal(x, {"layer9"}), HasSubstr("no tap 'layer9'; did you mean 'layer"));
  EXPECT_THAT(refusal(x, {}), HasSubstr("no tap was asked for"));
  EXPECT_THAT(refusal(torch::zeros({3, 2, 16, 16}), {""}),
              HasSubstr("Float (3, 2, 16, 16), must be floating point (N, 1, 16, 16)"));
  EXPECT_THAT(refusal(torch::zeros({1, 16, 16}), {""}), HasSubstr("must be"));
  EXPECT_THAT(refusal(x.to(torch::kUInt8), {""}), HasSubstr("Byte"));
  EXPECT_THAT(refusal(torch::Tensor(), {""}), HasSubstr("nothing"));
  EXPECT_EQ(net->Forward(x.to(torch::kFloat64), {""}).status().code(), StatusCode::kInternal)
      << "torch's own complaint is a Status";
}

TEST(ZooNetTest, FindModuleKnowsWhatHasParameters) {
  const auto net = Make(Spec("cifar_resnet8", 4));
  for (const std::string& path : net->architecture().ModulePaths()) EXPECT_NE(net->FindModule(path), nullptr) << path;
  EXPECT_EQ(net->FindModule(""), net.get());
  EXPECT_EQ(net->FindModule("layer2.0.downsample.1")->parameters().size(), 2u);
  for (const char* path : {"relu", "layer1.0.add", "layer1.1", "layer9", "layer1.", "layer"}) {
    EXPECT_EQ(net->FindModule(path), nullptr) << path;
  }
}

TEST(ZooNetTest, ChannelsLastGivesTheSameValues) {
  const auto spec = Spec("resnet18", 8, 3, 32);
  const auto net = Make(spec);
  net->eval();
  const torch::Tensor x = Input(spec);
  const torch::Tensor a = Forward(*net, x, {""})[0];
  const torch::Tensor b = Forward(*net, x.contiguous(torch::MemoryFormat::ChannelsLast), {""})[0];
  EXPECT_TRUE(torch::allclose(a, b, 1e-4, 1e-5)) << (a - b).abs().max();
}

TEST(NormalizePixelsTest, SubtractsMeanAndDividesByStdPerChannel) {
  ModelSpec spec = Spec("cifar_resnet8", 4, 2, 8);
  const torch::Tensor pixels = torch::arange(0, 256, torch::kUInt8).view({2, 2, 8, 8});
  const torch::Tensor plain = NormalizePixels(pixels, spec, false);
  EXPECT_EQ(plain.scalar_type(), torch::kFloat32);
  EXPECT_EQ(plain.max().item<float>(), 1.0f);
  spec.mean = {0.5f, 0.25f};
  spec.std = {0.5f, 2.0f};
  const torch::Tensor x = NormalizePixels(pixels, spec, true);
  EXPECT_TRUE(x.is_contiguous(torch::MemoryFormat::ChannelsLast));
  EXPECT_FLOAT_EQ(x[1][0][0][0].item<float>(), (128 / 255.0f - 0.5f) / 0.5f);
  EXPECT_FLOAT_EQ(x[0][1][7][7].item<float>(), (127 / 255.0f - 0.25f) / 2.0f);
  EXPECT_EQ(pixels.max().item<uint8_t>(), 255) << "the pixels stay";
}

TEST(WeightsTest, RoundTripIsExactAndCarriesTheSpec) {
  ModelSpec spec = Spec("cifar_resnet8", 4);
  spec.mean = {0.25f};
  spec.std = {0.5f};
  const auto a = Make(spec, 1);
  a->train();
  Forward(*a, Input(spec), {""});  // statistics away from their start
  const SafetensorsFile file = SaveWeights(*a);
  EXPECT_EQ(*SpecFromMetadata(file.metadata), spec);
  const auto b = Make(spec, 2);
  ASSERT_TRUE(LoadWeights(file, b.get()).ok());
  for (const auto& item : a->named_parameters())
    EXPECT_TRUE(torch::equal(item.value(), b->named_parameters()[item.key()]));
  for (const auto& item : a->named_buffers()) EXPECT_TRUE(torch::equal(item.value(), b->named_buffers()[item.key()]));
  EXPECT_TRUE(b->named_parameters()["conv1.weight"].requires_grad());
}

TEST(WeightsTest, SavedBytesDoNotChangeWithTheNet) {
  const auto net = Make(Spec("cifar_resnet8", 4));
  const SafetensorsFile file = SaveWeights(*net);
  const float before = reinterpret_cast<const float*>(file.tensors.at("fc.bias").bytes.data)[0];
  net->InitWeights(99);
  EXPECT_EQ(reinterpret_cast<const float*>(file.tensors.at("fc.bias").bytes.data)[0], before);
}

TEST(WeightsTest, MismatchesAreNamedWithCountsAndNothingIsLoaded) {
  const auto net = Make(Spec("cifar_resnet8", 4), 1);
  SafetensorsFile file = SaveWeights(*Make(Spec("cifar_resnet8", 4), 2));
  file.tensors["extra.weight"] = file.tensors["fc.weight"];
  file.tensors.erase("bn1.weight");
  file.tensors.erase("bn1.bias");
  file.tensors["fc.weight"].shape = {16, 7};
  file.tensors["conv1.weight"].dtype = "I32";
  const torch::Tensor before = net->named_parameters()["layer1.0.conv1.weight"].clone();
  const Status status = LoadWeights(file, net.get());
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("2 missing (first: bn1.weight)"));
  EXPECT_THAT(message, HasSubstr("1 unexpected (first: extra.weight)"));
  EXPECT_THAT(message, HasSubstr("1 of another shape (first: fc.weight is [16, 7], needs [7, 16])"));
  EXPECT_THAT(message, HasSubstr("1 of another dtype (first: conv1.weight is I32)"));
  EXPECT_TRUE(torch::equal(net->named_parameters()["layer1.0.conv1.weight"], before));
}

TEST(WeightsTest, OldFilesWithoutBatchCountsAndHalfPrecisionFilesLoad) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto source = Make(spec, 2);
  SafetensorsFile file = SaveWeights(*source);
  for (const StateEntry& entry : source->architecture().StateDict()) {
    if (entry.is_integer) file.tensors.erase(entry.name);
  }
  const torch::Tensor half = source->named_parameters()["fc.weight"].detach().to(torch::kFloat16);
  file.tensors["fc.weight"].dtype = "F16";
  file.tensors["fc.weight"].bytes = {static_cast<const uint8_t*>(half.data_ptr()), half.nbytes(),
                                     std::make_shared<torch::Tensor>(half)};
  const auto net = Make(spec, 1);
  const Status status = LoadWeights(file, net.get());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(torch::equal(net->named_parameters()["fc.weight"], half.to(torch::kFloat32)));
}

TEST(WeightsTest, TorchvisionsOwnNamesOfAnFcnGetTheRemedy) {
  const auto net = Make(Spec("fcn_resnet18", 4, 3, 32));
  const SafetensorsFile flat = SaveWeights(*net);
  SafetensorsFile theirs;
  for (const auto& [name, tensor] : flat.tensors)
    theirs.tensors[name.starts_with("classifier.") ? name : "backbone." + name] = tensor;
  const Status status = LoadWeights(theirs, net.get());
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("take the prefix 'backbone.' from the names"));
  EXPECT_TRUE(LoadWeights(flat, net.get()).ok());
}

// Property 9 of the stage-by-stage specification (prefix cache): with the same input map, the rest of the net does not
// know whether the prefix ran.
TEST(ForwardAfterTest, IsBitEqualToTheFullForwardFromEveryTopLevelMap) {
  for (const auto& spec : {Spec("cifar_resnet8", 4), Spec("resnet18", 4, 3, 32)}) {
    const auto net = Make(spec);
    net->eval();
    const torch::NoGradGuard no_grad;
    const torch::Tensor x = Input(spec);
    for (const std::string start : {"conv1", "bn1", "relu", "layer1", "layer2", "layer3"}) {
      ASSERT_TRUE(net->architecture().CanStartAfter(start)) << start;
      const auto full = Forward(*net, x, {start, "layer3.0.add", ""});
      const torch::Tensor before = full[0].clone();
      const std::vector<std::string> taps =
          start == "layer3" ? std::vector<std::string>{"", ""} : std::vector<std::string>{"layer3.0.add", ""};
      auto rest = net->ForwardAfter(start, full[0], taps);
      ASSERT_TRUE(rest.ok()) << start << ": " << rest.status();
      EXPECT_TRUE(torch::equal((*rest)[0], full[start == "layer3" ? 2 : 1])) << spec.arch << " " << start;
      EXPECT_TRUE(torch::equal((*rest)[1], full[2])) << spec.arch << " " << start;
      EXPECT_TRUE(torch::equal(full[0], before)) << "the given map was overwritten after " << start;
    }
  }
}

TEST(ForwardAfterTest, StartsWhereverANetworkCanBeCut) {
  for (const ModelSpec& spec : WithOtherFamilies({Spec("cifar_resnet8", 4)})) {
    const auto net = Make(spec);
    net->eval();
    const torch::NoGradGuard no_grad;
    std::vector<std::string> cuts;
    for (const TapInfo& tap : net->architecture().taps()) {
      if (tap.is_cut && tap.shape.size() == 3) cuts.push_back(tap.path);
    }
    EXPECT_GT(cuts.size(), 4u) << spec.arch;
    std::vector<std::string> taps = cuts;
    taps.push_back("");
    const auto full = Forward(*net, Input(spec), taps);
    for (size_t i = 0; i < cuts.size(); ++i) {
      const torch::Tensor before = full[i].clone();
      const std::vector<std::string> rest(taps.begin() + static_cast<ptrdiff_t>(i) + 1, taps.end());
      auto values = net->ForwardAfter(cuts[i], full[i], rest);
      ASSERT_TRUE(values.ok()) << values.status();
      for (size_t j = 0; j < rest.size(); ++j) {
        EXPECT_TRUE(torch::equal((*values)[j], full[i + 1 + j])) << spec.arch << " " << cuts[i] << " -> " << rest[j];
      }
      EXPECT_TRUE(torch::equal(full[i], before)) << spec.arch << ": overwritten after " << cuts[i];
    }
  }
}

TEST(ForwardAfterTest, AnFcnStartsAfterAnyOfItsTopLevelMaps) {
  ModelSpec spec = Spec("fcn_resnet18", 4, 3, 40);
  spec.image_width = 29;
  const auto net = Make(spec);
  net->eval();
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = Input(spec);
  for (const std::string start : {"maxpool", "layer1", "layer4", "classifier", "upsample"}) {
    const auto full = Forward(*net, x, {start, ""});
    auto rest = net->ForwardAfter(start, full[0], {""});
    ASSERT_TRUE(rest.ok()) << start << ": " << rest.status();
    EXPECT_TRUE(torch::equal((*rest)[0], full[1])) << start;
  }
}

TEST(ForwardAfterTest, WhatComesBeforeDoesNotRunAndWhatComesAfterTheLastTapNeither) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  net->train();
  const torch::Tensor map = torch::rand({3, 4, 16, 16});
  ASSERT_TRUE(net->ForwardAfter("layer1", map, {"layer2"}).ok());
  for (const char* bn : {"bn1", "layer1.0.bn1", "layer3.0.bn1"})
    EXPECT_EQ(BufferOf(*net, std::string(bn) + ".num_batches_tracked").item<int64_t>(), 0) << bn;
  EXPECT_EQ(BufferOf(*net, "layer2.0.bn1.num_batches_tracked").item<int64_t>(), 1);
}

TEST(ForwardAfterTest, GradientReachesTheGivenMapAndTheRest) {
  const auto spec = Spec("cifar_resnet8", 4);
  const auto net = Make(spec);
  torch::Tensor map = torch::rand({3, 4, 16, 16}).requires_grad_(true);
  auto values = net->ForwardAfter("layer1", map, {""});
  ASSERT_TRUE(values.ok()) << values.status();
  (*values)[0].sum().backward();
  EXPECT_TRUE(map.grad().defined());
  for (const auto& item : net->named_parameters()) {
    const bool before =
        item.key().starts_with("conv1") || item.key().starts_with("bn1") || item.key().starts_with("layer1");
    EXPECT_EQ(item.value().grad().defined(), !before) << item.key();
  }
}

TEST(ForwardAfterTest, ErrorsSayWhatIsExpected) {
  const auto net = Make(Spec("cifar_resnet8", 4));
  const torch::Tensor map = torch::rand({3, 4, 16, 16});
  const auto refusal = [&](const std::string& start, const torch::Tensor& value, const std::vector<std::string>& taps) {
    const auto values = net->ForwardAfter(start, value, taps);
    EXPECT_EQ(values.status().code(), StatusCode::kInvalidArgument) << start;
    return values.status().ToString();
  };
  EXPECT_THAT(refusal("layer1.0.conv1", map, {""}), HasSubstr("lies inside a block"));
  EXPECT_THAT(refusal("nothing", map, {""}), HasSubstr("'nothing'"));
  EXPECT_THAT(refusal("", map, {""}), HasSubstr("cannot start after ''"));
  EXPECT_THAT(refusal("layer1", map.slice(1, 0, 3), {""}), HasSubstr("(N, 4, 16, 16)"));
  EXPECT_THAT(refusal("layer1", map.to(torch::kInt64), {""}), HasSubstr("floating point"));
  EXPECT_THAT(refusal("layer1", {}, {""}), HasSubstr("nothing"));
  EXPECT_THAT(refusal("layer1", map, {}), HasSubstr("no tap"));
  EXPECT_THAT(refusal("layer1", map, {"layer1"}), HasSubstr("lies before it"));
  EXPECT_THAT(refusal("layer1", map, {"bn1"}), HasSubstr("lies before it"));
  EXPECT_THAT(refusal("layer1", map, {"layer4"}), HasSubstr("no tap 'layer4'"));
  EXPECT_THAT(refusal("fc", torch::rand({3, 7}), {""}), HasSubstr("fc"));
}

}  // namespace
}  // namespace distill
