// Every byte once: what becomes of a feature byte between the teacher's network and the student's loss, counted by the
// code itself (common/wire/copy_count.h) along the whole way: engine, service, gRPC, pool, loss.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "common/metrics/metrics.h"
#include "common/plan/loss_schema.h"
#include "common/safetensors/safetensors.h"
#include "common/wire/copy_count.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/losses/loss.h"
#include "student_worker/train/tensor_io.h"
#include "teacher_server/torch_teacher_engine.h"
#include "tests/harness/process.h"
#include "tests/integration/loopback_features.h"
#include "tests/teacher_server/model_fixture.h"

namespace distill {
namespace {

constexpr uint32_t kImages = 64, kSide = 16;

std::unique_ptr<Loss> MakeLossOf(const std::string& type) {
  LossPlan plan;
  plan.name = plan.type = type;
  plan.needs_teacher = true;
  plan.knobs = CompleteKnobs(*FindLossSchema(type), {}).value();
  return MakeLoss(plan).value();
}

// Bytes copied on the way for each byte delivered, with CWD on two maps and KD on the logits. The student is of the
// teacher's architecture, and its maps lie as its network computes them.
double CopiedPerByte(WireDtype maps) {
  testing::TempDir folder;
  const std::string file = folder / "m.safetensors";
  EXPECT_TRUE(WriteSafetensors(file, testing::TestWeights(testing::TestSpec(), 7)).ok());
  MetricsRegistry metrics;
  TorchTeacherOptions options;
  options.models = {{"m", file}};
  options.device = "cpu";
  options.threads = 1;
  const auto engine = CreateTorchTeacherEngine(options, &metrics).value();
  std::vector<uint8_t> pixels(kImages * 3 * kSide * kSide);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 2654435761u >> 16);
  const ImageBatch images{kImages, 3, kSide, kSide, Buffer::FromVector(std::move(pixels))};
  const bool narrow = maps != WireDtype::kF32;
  const std::vector<TapRequest> taps = {{"layer1", {maps, narrow}}, {"layer2", {maps, narrow}}, {"", {}}};

  const uint64_t before = FeatureBytesCopied();
  const StatusOr<FeatureBatch> features = testing::FetchOverLoopback(engine.get(), taps, images);
  EXPECT_TRUE(features.ok()) << features.status();
  if (!features.ok()) return 0;
  std::vector<torch::Tensor> teacher;
  uint64_t delivered = 0;
  for (const WireTensor& tensor : features->taps) {
    delivered += tensor.bytes.size;
    teacher.push_back(FromWireTensor(tensor).value());
    EXPECT_EQ(teacher.back().const_data_ptr(), tensor.bytes.data);
  }
  const auto net = ZooNet::Create(testing::TestSpec()).value();
  const auto student =
      net->Forward(NormalizePixels(FromImages(images).value(), testing::TestSpec(), /*channels_last=*/true),
                   {"layer1", "layer2", ""})
          .value();
  torch::Tensor total;
  for (size_t i = 0; i < 3; ++i) {
    LossInputs inputs;
    inputs.student = student[i];
    inputs.teacher = teacher[i];
    const torch::Tensor term = MakeLossOf(i < 2 ? "cwd" : "kd")->Compute(inputs).value();
    EXPECT_GT(term.item<double>(), 0);
    total = total.defined() ? total + term : term;
  }
  total.backward();
  return static_cast<double>(FeatureBytesCopied() - before) / static_cast<double>(delivered);
}

TEST(FeatureBytesTest, AFloat32ByteIsCopiedOnceBetweenTheTeachersNetworkAndTheLoss) {
  EXPECT_EQ(CopiedPerByte(WireDtype::kF32), 1);
}

// The second time is the teacher's cast, which makes them.
TEST(FeatureBytesTest, AByteOf16BitsIsWrittenTwice) {
  const double copied = CopiedPerByte(WireDtype::kBf16);
  EXPECT_GT(copied, 1.5);
  EXPECT_LE(copied, 2);
}

}  // namespace
}  // namespace distill
