// The LibTorch engine through its plain interface: no torch here, expected values are worked out with plain loops.
#include "teacher_server/torch_teacher_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <future>
#include <map>
#include <thread>

#include "common/hash/sha256.h"
#include "common/wire/copy_count.h"
#include "common/zoo/model_metadata.h"
#include "tests/harness/process.h"
#include "tests/teacher_server/model_fixture.h"

namespace distill {
namespace {

using ::distill::testing::ReadFileOrEmpty;
using ::distill::testing::TempDir;
using ::distill::testing::TestSpec;
using ::distill::testing::TestWeights;
using ::distill::testing::WriteFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kSide = 16;

ImageBatch MakeImages(uint32_t n, uint32_t seed = 1) {
  std::vector<uint8_t> pixels(n * 3 * kSide * kSide);
  uint32_t state = seed;
  for (uint8_t& pixel : pixels) pixel = (state = state * 1664525u + 1013904223u) >> 24;
  return ImageBatch{n, 3, kSide, kSide, Buffer::FromVector(std::move(pixels))};
}
// The tensor's elements in the order of its shape, however it lies.
template <typename Element>
std::vector<Element> Elements(const WireTensor& tensor) {
  std::vector<Element> values(tensor.bytes.size / sizeof(Element));
  std::memcpy(values.data(), tensor.bytes.data, tensor.bytes.size);
  if (tensor.layout == TensorLayout::kRowMajor) return values;
  std::vector<Element> ordered;
  const uint64_t channels = tensor.shape[1], plane = uint64_t{tensor.shape[2]} * tensor.shape[3];
  for (uint64_t n = 0; n < tensor.shape[0]; ++n) {
    for (uint64_t c = 0; c < channels; ++c) {
      for (uint64_t p = 0; p < plane; ++p) ordered.push_back(values[(n * plane + p) * channels + c]);
    }
  }
  return ordered;
}
std::vector<float> Floats(const WireTensor& tensor) { return Elements<float>(tensor); }
std::vector<uint16_t> Halves(const WireTensor& tensor) { return Elements<uint16_t>(tensor); }
uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
// Round to nearest, ties to even.
uint16_t ToBf16(float value) {
  const uint32_t bits = Bits(value);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
// By definition: the nearest multiple of the spacing of half floats at this magnitude, ties to even.
double ToF16(float value) {
  if (value == 0) return 0;
  const int exponent = std::max(std::ilogb(std::fabs(value)), -14);
  return std::nearbyint(std::ldexp(static_cast<double>(value), 10 - exponent)) * std::ldexp(1.0, exponent - 10);
}
double F16Value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

class TorchTeacherEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = dir_ / "m.safetensors";
    weights_ = TestWeights(TestSpec(), /*seed=*/7);
    ASSERT_TRUE(WriteSafetensors(file_, weights_).ok());
  }
  void StartEngine(uint32_t max_batch = 64) {
    StatusOr<std::unique_ptr<TeacherEngine>> engine = CreateTorchTeacherEngine(Options(max_batch), &metrics_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  TorchTeacherOptions Options(uint32_t max_batch = 64) {
    TorchTeacherOptions options;
    options.models = {{"m", file_}};
    options.device = "cpu";
    options.threads = 1;
    options.max_batch_images = max_batch;
    return options;
  }
  TeacherRequest Request(ImageBatch images, std::vector<TapRequest> taps, bool exclusive = true) {
    TeacherRequest request;
    request.client = 1;
    request.taps = std::make_shared<const std::vector<TapRequest>>(std::move(taps));
    request.images = std::move(images);
    request.exclusive = exclusive;
    return request;
  }
  std::future<StatusOr<FeatureBatch>> Submit(TeacherRequest request) {
    auto promise = std::make_shared<std::promise<StatusOr<FeatureBatch>>>();
    engine_->Submit(std::move(request),
                    [promise](StatusOr<FeatureBatch> answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }
  FeatureBatch Run(TeacherRequest request) {
    StatusOr<FeatureBatch> answer = Submit(std::move(request)).get();
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? *std::move(answer) : FeatureBatch();
  }
  Status LoadError() { return CreateTorchTeacherEngine(Options(), &metrics_).status(); }

  TempDir dir_;
  std::string file_;
  SafetensorsFile weights_;
  MetricsRegistry metrics_;
  std::unique_ptr<TeacherEngine> engine_;
};

TEST_F(TorchTeacherEngineTest, DescribesWhatItServes) {
  StartEngine();
  ASSERT_EQ(engine_->models().size(), 1);
  const TeacherModel& model = engine_->models()[0];
  EXPECT_EQ(model.served.name, "m");
  EXPECT_EQ(model.served.spec.arch, "cifar_resnet8");
  EXPECT_EQ(model.served.spec.width, 8);
  EXPECT_EQ(model.served.bytes, ReadFileOrEmpty(file_).size());
  EXPECT_EQ(model.served.digest, Sha256Hex(CanonicalText(model.served.spec) + ReadFileOrEmpty(file_)));
  uint64_t trained = 0;
  for (const auto& [name, tensor] : weights_.tensors) {
    if (name.find("running_") == std::string::npos && name.find("num_batches") == std::string::npos)
      trained += tensor.bytes.size / 4;
  }
  EXPECT_EQ(model.served.parameters, trained);
  EXPECT_TRUE(model.served.taps.empty());  // the coordinator knows zoo networks itself
  EXPECT_THAT(model.output_shape, ElementsAre(10));
  std::map<std::string, std::vector<uint32_t>> shapes;
  for (const ServedTap& tap : model.taps) shapes[tap.path] = tap.shape;
  EXPECT_THAT(shapes.at("layer2"), ElementsAre(16, kSide / 2, kSide / 2));
}

// The first layers by plain loops: pixels, mean and std, channel order, padding, eval-mode batch norm.
TEST_F(TorchTeacherEngineTest, FirstLayersEqualPlainLoops) {
  StartEngine();
  const ImageBatch images = MakeImages(2);
  const FeatureBatch answer = Run(Request(images, {{"conv1"}, {"bn1"}}));
  ASSERT_EQ(answer.taps.size(), 2);
  EXPECT_THAT(answer.taps[0].shape, ElementsAre(2, 8, kSide, kSide));
  const std::vector<float> conv = Floats(answer.taps[0]), norm = Floats(answer.taps[1]);
  const ModelSpec spec = TestSpec();
  auto values = [&](const std::string& name) {
    const Buffer& bytes = weights_.tensors.at(name).bytes;
    std::vector<float> out(bytes.size / 4);
    std::memcpy(out.data(), bytes.data, bytes.size);
    return out;
  };
  const std::vector<float> kernel = values("conv1.weight"), scale = values("bn1.weight"), shift = values("bn1.bias"),
                           mean = values("bn1.running_mean"), variance = values("bn1.running_var");
  size_t index = 0;
  for (uint32_t n = 0; n < 2; ++n) {
    for (uint32_t k = 0; k < 8; ++k) {
      for (int y = 0; y < int{kSide}; ++y) {
        for (int x = 0; x < int{kSide}; ++x, ++index) {
          double sum = 0;
          for (uint32_t c = 0; c < 3; ++c) {
            for (int dy = -1; dy <= 1; ++dy) {
              for (int dx = -1; dx <= 1; ++dx) {
                if (y + dy < 0 || y + dy >= int{kSide} || x + dx < 0 || x + dx >= int{kSide}) continue;
                const uint8_t pixel = images.pixels.data[((n * 3 + c) * kSide + y + dy) * kSide + x + dx];
                sum += (pixel / 255.0 - spec.mean[c]) / spec.std[c] * kernel[((k * 3 + c) * 3 + dy + 1) * 3 + dx + 1];
              }
            }
          }
          ASSERT_NEAR(conv[index], sum, 1e-5) << "conv1 n=" << n << " k=" << k << " y=" << y << " x=" << x;
          const double normalised = (sum - mean[k]) / std::sqrt(variance[k] + 1e-5) * scale[k] + shift[k];
          ASSERT_NEAR(norm[index], normalised, 1e-4) << "bn1 n=" << n << " k=" << k << " y=" << y << " x=" << x;
        }
      }
    }
  }
}

TEST_F(TorchTeacherEngineTest, APrefixGivesTheSameBitsAsTheWholeNetwork) {
  StartEngine();
  const ImageBatch images = MakeImages(5);
  const FeatureBatch all = Run(Request(images, {{"conv1"}, {"layer1"}, {"layer2"}, {"layer3"}, {""}}));
  ASSERT_EQ(all.taps.size(), 5);
  const std::vector<std::string> paths = {"conv1", "layer1", "layer2", "layer3", ""};
  for (size_t i = 0; i < paths.size(); ++i) {
    const FeatureBatch alone = Run(Request(images, {{paths[i]}}));
    EXPECT_EQ(alone.taps[0].shape, all.taps[i].shape);
    EXPECT_EQ(Floats(alone.taps[0]), Floats(all.taps[i])) << "tap '" << paths[i] << "'";
  }
  // Order and repetition are the client's.
  const FeatureBatch swapped = Run(Request(images, {{""}, {"layer1"}, {""}}));
  EXPECT_EQ(Floats(swapped.taps[0]), Floats(all.taps[4]));
  EXPECT_EQ(Floats(swapped.taps[1]), Floats(all.taps[1]));
  EXPECT_EQ(Floats(swapped.taps[2]), Floats(all.taps[4]));
}

TEST_F(TorchTeacherEngineTest, HalfPrecisionIsRoundedToNearestAfterTheRowMaximumIsTakenOff) {
  StartEngine();
  const ImageBatch images = MakeImages(3);
  const FeatureBatch answer = Run(Request(images, {{"layer2.0.add", WireDtype::kF32},
                                                   {"layer2.0.add", WireDtype::kBf16},
                                                   {"layer2.0.add", WireDtype::kF16},
                                                   {"layer2.0.add", WireDtype::kF32, true},
                                                   {"layer2.0.add", WireDtype::kBf16, true}}));
  ASSERT_EQ(answer.taps.size(), 5);
  const std::vector<float> raw = Floats(answer.taps[0]), lowered = Floats(answer.taps[3]);
  const std::vector<uint16_t> bf16 = Halves(answer.taps[1]), f16 = Halves(answer.taps[2]),
                              lowered_bf16 = Halves(answer.taps[4]);
  const size_t plane = kSide / 2 * kSide / 2;
  ASSERT_EQ(raw.size(), 3 * 16 * plane);
  ASSERT_EQ(lowered.size(), raw.size());
  for (size_t row = 0; row < raw.size() / plane; ++row) {
    const float max = *std::max_element(raw.begin() + row * plane, raw.begin() + (row + 1) * plane);
    for (size_t i = row * plane; i < (row + 1) * plane; ++i) {
      ASSERT_EQ(bf16[i], ToBf16(raw[i])) << "element " << i << " of value " << raw[i];
      ASSERT_EQ(F16Value(f16[i]), ToF16(raw[i])) << "element " << i << " of value " << raw[i];
      ASSERT_EQ(lowered[i], raw[i] - max) << "element " << i;
      ASSERT_EQ(lowered_bf16[i] & 0x7fff, ToBf16(raw[i] - max) & 0x7fff) << "element " << i;
    }
  }
}

// Networks here run channels last, and so their maps travel: nothing is transposed, and float32 is not even copied.
TEST_F(TorchTeacherEngineTest, MapsTravelAsTheyLieAndFloat32IsNotCopied) {
  StartEngine();
  const uint64_t before = FeatureBytesCopied();
  const FeatureBatch exact = Run(Request(MakeImages(4), {{"layer1"}, {"layer2"}, {""}}));
  EXPECT_EQ(FeatureBytesCopied(), before);
  EXPECT_EQ(exact.taps[0].layout, TensorLayout::kChannelsLast);
  EXPECT_EQ(exact.taps[1].layout, TensorLayout::kChannelsLast);
  EXPECT_EQ(exact.taps[2].layout, TensorLayout::kRowMajor);
  // 16 bits are written once, whatever is taken off before.
  const FeatureBatch narrow =
      Run(Request(MakeImages(4), {{"layer1", WireDtype::kBf16}, {"layer2", WireDtype::kF16, true}}));
  EXPECT_EQ(FeatureBytesCopied() - before, narrow.taps[0].bytes.size + narrow.taps[1].bytes.size);
  EXPECT_EQ(narrow.taps[1].layout, TensorLayout::kChannelsLast);
  EXPECT_EQ(narrow.taps[1].encoding, (TapEncoding{WireDtype::kF16, true}));
}

// Maps of many shapes and both layouts, so that tiles end everywhere.
TEST_F(TorchTeacherEngineTest, TheRowMaximumIsTakenOffInBothLayouts) {
  file_ = dir_ / "map.pt";
  for (const std::string layout : {"x.contiguous()", "x"}) {  // as it comes: channels last
    for (const std::string size : {"[16, 16]", "[200, 300]", "[1, 70000]", "[70000, 1]"}) {
      testing::WriteProgram("def forward(self, x: Tensor) -> Tensor:\n    x = torch.upsample_bilinear2d(x, " + size +
                                ", False)\n    return " + layout + "\n",
                            file_);
      StartEngine();
      const FeatureBatch answer = Run(Request(MakeImages(3), {{""}, {"", WireDtype::kF32, true}}));
      ASSERT_EQ(answer.taps.size(), 2);
      const std::vector<float> raw = Floats(answer.taps[0]), lowered = Floats(answer.taps[1]);
      ASSERT_EQ(lowered.size(), raw.size());
      const size_t plane = raw.size() / 9;
      for (size_t row = 0; row < 9; ++row) {
        const float max = *std::max_element(raw.begin() + row * plane, raw.begin() + (row + 1) * plane);
        for (size_t i = row * plane; i < (row + 1) * plane; ++i) ASSERT_EQ(lowered[i], raw[i] - max) << layout << size;
      }
      engine_.reset();
    }
  }
}

TEST_F(TorchTeacherEngineTest, AMergedResultEqualsTheSingleOneAndIsSplitRight) {
  StartEngine(/*max_batch=*/64);
  const ImageBatch a = MakeImages(3, 11), b = MakeImages(5, 12);
  const std::vector<TapRequest> taps = {{"layer1"}, {""}};
  const FeatureBatch alone_a = Run(Request(a, taps)), alone_b = Run(Request(b, taps));
  Counter& images =
      metrics_.GetCounter("distill_teacher_images_total", "Images run through a model.", {{"model", "m"}});
  const double before = images.Value();

  // The first request's callback holds the model's thread until the others are queued.
  std::promise<void> queued;
  std::promise<void> busy;
  engine_->Submit(Request(MakeImages(1), taps), [&](StatusOr<FeatureBatch>) {
    busy.set_value();
    queued.get_future().wait();
  });
  busy.get_future().wait();
  TeacherRequest request_a = Request(a, taps, /*exclusive=*/false), request_b = Request(b, taps, /*exclusive=*/false);
  request_b.client = 2;
  auto answer_a = Submit(std::move(request_a)), answer_b = Submit(std::move(request_b));
  EXPECT_EQ(engine_->QueueLength(), 2);
  queued.set_value();
  const FeatureBatch merged_a = answer_a.get().value(), merged_b = answer_b.get().value();
  EXPECT_EQ(images.Value() - before, 9);
  // Both came from one pass: they share its time and its storage.
  EXPECT_EQ(merged_a.compute_seconds, merged_b.compute_seconds);
  EXPECT_EQ(merged_a.taps[0].bytes.data + merged_a.taps[0].bytes.size, merged_b.taps[0].bytes.data);
  auto expect_near = [](const FeatureBatch& got, const FeatureBatch& want) {
    for (size_t tap = 0; tap < 2; ++tap) {
      EXPECT_EQ(got.taps[tap].shape, want.taps[tap].shape);
      const std::vector<float> x = Floats(got.taps[tap]), y = Floats(want.taps[tap]);
      ASSERT_EQ(x.size(), y.size());
      for (size_t i = 0; i < x.size(); ++i)
        ASSERT_NEAR(x[i], y[i], 1e-6 * (1 + std::fabs(y[i]))) << "tap " << tap << " element " << i;
    }
  };
  expect_near(merged_a, alone_a);
  expect_near(merged_b, alone_b);
}

TEST_F(TorchTeacherEngineTest, ExclusiveResultsAreBitEqualWhateverTheCompany) {
  StartEngine();
  const std::vector<TapRequest> taps = {{"layer2"}, {""}};
  std::vector<FeatureBatch> quiet;
  for (uint32_t i = 0; i < 8; ++i) quiet.push_back(Run(Request(MakeImages(1 + i, i), taps)));
  std::vector<std::future<StatusOr<FeatureBatch>>> crowd;
  for (uint32_t i = 0; i < 8; ++i) {
    TeacherRequest other = Request(MakeImages(4, 100 + i), taps, /*exclusive=*/false);
    other.client = 2;
    Submit(std::move(other));
    crowd.push_back(Submit(Request(MakeImages(1 + i, i), taps)));
  }
  for (uint32_t i = 0; i < 8; ++i) {
    const FeatureBatch answer = crowd[i].get().value();
    for (size_t tap = 0; tap < 2; ++tap)
      EXPECT_EQ(Floats(answer.taps[tap]), Floats(quiet[i].taps[tap])) << "batch " << i;
  }
}

TEST_F(TorchTeacherEngineTest, CancelledDrainedAndStoppedRequestsEachGetTheirAnswer) {
  StartEngine();
  std::promise<void> queued;
  std::promise<void> busy;
  engine_->Submit(Request(MakeImages(1), {{"conv1"}}), [&](StatusOr<FeatureBatch>) {
    busy.set_value();
    queued.get_future().wait();
  });
  busy.get_future().wait();
  std::vector<std::future<StatusOr<FeatureBatch>>> answers;
  for (uint64_t client : {1, 1, 2, 3}) {
    TeacherRequest request = Request(MakeImages(1), {{"conv1"}});
    request.client = client;
    request.tag = answers.size();
    answers.push_back(Submit(std::move(request)));
  }
  engine_->Cancel(1, 1);
  EXPECT_EQ(answers[1].get().status().code(), StatusCode::kCancelled);
  engine_->CancelClient(2);
  EXPECT_EQ(answers[2].get().status().code(), StatusCode::kCancelled);
  EXPECT_FALSE(engine_->Drain(std::chrono::milliseconds(0)));
  EXPECT_EQ(Submit(Request(MakeImages(1), {{"conv1"}})).get().status().code(), StatusCode::kUnavailable);
  queued.set_value();
  EXPECT_TRUE(engine_->Drain(std::chrono::seconds(60)));
  EXPECT_TRUE(answers[0].get().ok());
  EXPECT_TRUE(answers[3].get().ok());
  engine_->Stop();
  engine_->Stop();
  EXPECT_EQ(Submit(Request(MakeImages(1), {{"conv1"}})).get().status().code(), StatusCode::kUnavailable);
}

TEST_F(TorchTeacherEngineTest, StopDropsWhatWaits) {
  StartEngine();
  std::promise<void> queued;
  std::promise<void> busy;
  engine_->Submit(Request(MakeImages(1), {{"conv1"}}), [&](StatusOr<FeatureBatch>) {
    busy.set_value();
    queued.get_future().wait();
  });
  busy.get_future().wait();
  auto waiting = Submit(Request(MakeImages(1), {{"conv1"}}));
  std::thread stop([&] { engine_->Stop(); });
  EXPECT_EQ(waiting.get().status().code(), StatusCode::kCancelled);
  queued.set_value();
  stop.join();
}

TEST_F(TorchTeacherEngineTest, ASidecarDescribesAFileWithoutMetadata) {
  SafetensorsFile bare = weights_;
  bare.metadata.clear();
  ASSERT_TRUE(WriteSafetensors(file_, bare).ok());
  EXPECT_EQ(LoadError().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(LoadError().message()), HasSubstr("m.safetensors.yaml"));
  const std::string sidecar =
      "arch: cifar_resnet8\nwidth: 8\nnum_classes: 10\nin_channels: 3\nimage: 16x16\nmean: [0.5, 0.4, 0.3]\nstd: [0.2, "
      "0.25, 0.3]\n";
  WriteFile(file_ + ".yaml", sidecar);
  StartEngine();
  EXPECT_EQ(engine_->models()[0].served.spec, TestSpec());
  engine_.reset();
  // Beside metadata it must say the same.
  ASSERT_TRUE(WriteSafetensors(file_, weights_).ok());
  EXPECT_TRUE(LoadError().ok());
  WriteFile(file_ + ".yaml", sidecar + "\n# other\n");
  EXPECT_TRUE(LoadError().ok());
  WriteFile(file_ + ".yaml", std::string(sidecar).replace(sidecar.find("0.5"), 3, "0.6"));
  EXPECT_EQ(LoadError().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(LoadError().message()), HasSubstr("contradicts"));
}

TEST_F(TorchTeacherEngineTest, DamagedMissingAndMismatchedFilesAreRefused) {
  const std::string good = ReadFileOrEmpty(file_);
  WriteFile(file_, good.substr(0, good.size() - 100));
  EXPECT_EQ(LoadError().code(), StatusCode::kDataLoss);
  WriteFile(file_, "not a model");
  EXPECT_EQ(LoadError().code(), StatusCode::kDataLoss);
  SafetensorsFile other = weights_;
  other.metadata = SpecToMetadata(TestSpec("cifar_resnet14"));
  ASSERT_TRUE(WriteSafetensors(file_, other).ok());
  EXPECT_EQ(LoadError().code(), StatusCode::kFailedPrecondition);
  other.metadata["distill.arch"] = "cifar_resnet9";
  ASSERT_TRUE(WriteSafetensors(file_, other).ok());
  EXPECT_EQ(LoadError().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(LoadError().message()), HasSubstr("did you mean"));
  file_ = dir_ / "gone.safetensors";
  EXPECT_EQ(LoadError().code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(LoadError().message()), HasSubstr("gone.safetensors"));
  file_ = dir_ / "junk.pt";
  WriteFile(file_, "not an archive");
  EXPECT_EQ(LoadError().code(), StatusCode::kInvalidArgument);  // no sidecar
  WriteFile(file_ + ".yaml", "in_channels: 3\nimage: 16x16\n");
  EXPECT_EQ(LoadError().code(), StatusCode::kDataLoss);
}

TEST_F(TorchTeacherEngineTest, ServesTorchScriptArchivesLikeTheNetworkTheyCameFrom) {
  StartEngine();
  const ImageBatch images = MakeImages(4);
  const FeatureBatch zoo = Run(Request(images, {{"layer1"}, {"layer3", WireDtype::kBf16}, {""}}));
  engine_.reset();
  ASSERT_TRUE(testing::WriteTestArchive(file_, dir_ / "m.pt", {"layer1", "layer3"}).ok());
  WriteFile(dir_ / "m.pt.yaml", "in_channels: 3\nimage: 16x16\nmean: [0.5, 0.4, 0.3]\nstd: [0.2, 0.25, 0.3]\n");
  file_ = dir_ / "m.pt";
  StartEngine();
  const TeacherModel& model = engine_->models()[0];
  EXPECT_EQ(model.served.spec.arch, "torchscript");
  EXPECT_EQ(model.served.spec.num_classes, 10);
  EXPECT_THAT(model.output_shape, ElementsAre(10));
  EXPECT_EQ(model.served.taps.size(), 3);
  const FeatureBatch script = Run(Request(images, {{"layer1"}, {"layer3", WireDtype::kBf16}, {""}}));
  for (size_t tap : {0, 2}) {
    const std::vector<float> x = Floats(script.taps[tap]), y = Floats(zoo.taps[tap]);
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(x[i], y[i], 1e-5 * (1 + std::fabs(y[i]))) << "tap " << tap << " element " << i;
  }
  EXPECT_EQ(script.taps[1].bytes.size, zoo.taps[1].bytes.size);
}

TEST_F(TorchTeacherEngineTest, ServesAnswersPerPixelOfZooNetworksAndArchives) {
  ASSERT_TRUE(WriteSafetensors(file_, TestWeights(TestSpec("fcn_resnet18"), /*seed=*/7)).ok());
  StartEngine();
  const ImageBatch images = MakeImages(3);
  const std::vector<TapRequest> taps = {{""}, {"classifier", WireDtype::kF32, /*less_row_max=*/true}};
  EXPECT_THAT(engine_->models()[0].output_shape, ElementsAre(10, kSide, kSide));
  const FeatureBatch zoo = Run(Request(images, taps));
  EXPECT_THAT(zoo.taps[0].shape, ElementsAre(3, 10, kSide, kSide));
  EXPECT_THAT(zoo.taps[1].shape, ElementsAre(3, 10, 2, 2));
  engine_.reset();
  ASSERT_TRUE(testing::WriteTestArchive(file_, dir_ / "m.pt", {"classifier"}).ok());
  WriteFile(dir_ / "m.pt.yaml", "in_channels: 3\nimage: [16, 16]\nmean: [0.5, 0.4, 0.3]\nstd: [0.2, 0.25, 0.3]\n");
  file_ = dir_ / "m.pt";
  StartEngine();
  EXPECT_THAT(engine_->models()[0].output_shape, ElementsAre(10, kSide, kSide));
  EXPECT_EQ(engine_->models()[0].served.spec.num_classes, 10);
  const FeatureBatch script = Run(Request(images, taps));
  for (size_t tap : {0, 1}) {
    EXPECT_EQ(script.taps[tap].shape, zoo.taps[tap].shape);
    const std::vector<float> x = Floats(script.taps[tap]), y = Floats(zoo.taps[tap]);
    ASSERT_EQ(x.size(), y.size());
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(x[i], y[i], 1e-5 * (1 + std::fabs(y[i]))) << "tap " << tap << " element " << i;
  }
}

// An archive that gives no rows, too few or too many for some images: an error that says so, and the server lives on.
TEST_F(TorchTeacherEngineTest, AnArchiveWhoseRowsAreNotTheImagesAnswersWithAnError) {
  file_ = dir_ / "moody.pt";
  for (const std::string rows : {"y = y[:0]", "y = y[:1]", "y = torch.cat([y, y])", "y = y[:, :4]"}) {
    testing::WriteProgram(
        "def forward(self, x: Tensor) -> Tensor:\n    y = x.mean([2, 3])\n    y = torch.cat([y, y], 1)\n    if "
        "bool(x.max() "
        "== 0.0):\n        " +
            rows + "\n    return y\n",
        file_);
    StartEngine();
    EXPECT_EQ(Run(Request(MakeImages(4), {{""}})).taps[0].bytes.size, 4 * 6 * 4);
    ImageBatch black = MakeImages(4);
    black.pixels = Buffer::FromVector(std::vector<uint8_t>(black.pixels.size));
    const Status status = Submit(Request(black, {{""}})).get().status();
    EXPECT_EQ(status.code(), StatusCode::kInternal) << rows << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("must be [4, 6]")) << rows;
    EXPECT_EQ(Run(Request(MakeImages(2), {{""}})).taps[0].bytes.size, 2 * 6 * 4);
    engine_.reset();
  }
}

TEST_F(TorchTeacherEngineTest, AModelOfAFolderThatCannotBeServedIsLeftOutTheOthersAreServed) {
  testing::WriteProgram("def forward(self, x: Tensor) -> Tensor:\n    return x.flatten()\n", dir_ / "odd.pt");
  WriteFile(dir_ / "empty.pt", "");
  TorchTeacherOptions options = Options();
  options.models = {{"odd", dir_ / "odd.pt", false}, {"empty", dir_ / "empty.pt", false}, {"m", file_, false}};
  options.already_left_out = 2;
  StatusOr<std::unique_ptr<TeacherEngine>> engine = CreateTorchTeacherEngine(options, &metrics_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_EQ((*engine)->models().size(), 1);
  EXPECT_EQ((*engine)->models()[0].served.name, "m");
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("distill_teacher_models_left_out 4"));
  options.models.pop_back();
  const Status none = CreateTorchTeacherEngine(options, &metrics_).status();
  EXPECT_THAT(std::string(none.message()), HasSubstr("none of the 2 models can be served: model 'odd': "));
  EXPECT_THAT(std::string(none.message()), HasSubstr("an empty file"));
  // One that was named stays fatal.
  options.models = {{"m", file_, true}, {"empty", dir_ / "empty.pt", true}};
  EXPECT_EQ(CreateTorchTeacherEngine(options, &metrics_).status().code(), StatusCode::kDataLoss);
}

// 1 MB whose description asks for some 240 G parameters: refused by names and shapes, before memory is taken.
TEST_F(TorchTeacherEngineTest, ADescriptionFarLargerThanItsFileIsRefusedAtOnce) {
  ModelSpec huge = TestSpec("resnet152");
  huge.width = 4096;
  weights_.metadata = SpecToMetadata(huge);
  ASSERT_TRUE(WriteSafetensors(file_, weights_).ok());
  const Status status = LoadError();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("needs [4096, 3, 7, 7]"));
}

TEST_F(TorchTeacherEngineTest, AWrappersPrefixIsTakenOff) {
  SafetensorsFile wrapped;
  wrapped.metadata = weights_.metadata;
  for (const auto& [name, tensor] : weights_.tensors) wrapped.tensors["module." + name] = tensor;
  StartEngine();
  const FeatureBatch plain = Run(Request(MakeImages(2), {{""}}));
  engine_.reset();
  ASSERT_TRUE(WriteSafetensors(file_, wrapped).ok());
  StartEngine();
  EXPECT_EQ(Floats(Run(Request(MakeImages(2), {{""}})).taps[0]), Floats(plain.taps[0]));
}

// Of a merged batch: the part of a client that is slow to fetch it must not hold the others' features.
TEST_F(TorchTeacherEngineTest, ASmallPartOfAMergedBatchIsItsOwnMemory) {
  StartEngine(/*max_batch=*/64);
  std::vector<std::future<StatusOr<FeatureBatch>>> answers;
  // The first keeps the model busy while the others gather.
  answers.push_back(Submit(Request(MakeImages(64, 9), {{"layer1"}}, /*exclusive=*/false)));
  for (uint64_t client = 2; client <= 9; ++client) {
    TeacherRequest request = Request(MakeImages(4, client), {{"layer1"}}, false);
    request.client = client;
    answers.push_back(Submit(std::move(request)));
  }
  std::vector<FeatureBatch> parts;
  for (auto& answer : answers) parts.push_back(answer.get().value());
  // Rows that share a storage lie beside one another; copies do not.
  for (size_t i = 1; i + 1 < parts.size(); ++i) {
    const WireTensor& one = parts[i].taps[0];
    EXPECT_EQ(one.bytes.size, LayoutOf(one.shape, one.encoding).bytes);
    EXPECT_NE(one.bytes.data + one.bytes.size, parts[i + 1].taps[0].bytes.data) << i;
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    TeacherRequest alone = Request(MakeImages(4, i + 1), {{"layer1"}});
    const std::vector<float> expected = Floats(Run(std::move(alone)).taps[0]);
    const std::vector<float> got = Floats(parts[i].taps[0]);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t k = 0; k < got.size(); ++k)
      ASSERT_NEAR(got[k], expected[k], 1e-4) << "client " << i + 1 << " value " << k;
  }
}

TEST_F(TorchTeacherEngineTest, DevicesAreNamedOrRefused) {
  EXPECT_EQ(DescribeTeacherDevice("cpu").value(), "cpu");
  EXPECT_EQ(DescribeTeacherDevice("tpu").status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(DescribeTeacherDevice("auto").ok());
}

}  // namespace
}  // namespace distill
