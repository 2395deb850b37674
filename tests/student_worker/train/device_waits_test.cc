// How often the host would wait for a GPU in one training step, counted on the CPU: through torch's RecordFunction,
// which sees every operator. These read a value from the device, or need its values to know a shape.
//
// Beyond these a step copies its terms to the host once (Objective::Compute) and, with more than one rank, the sums of
// the ranks' meeting (Lockstep); neither shows here, where host and device are one.
#include <ATen/record_function.h>
#include <absl/synchronization/mutex.h>

#include "student_worker/train/trainable_set.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

constexpr const char* kWaits[] = {"aten::_local_scalar_dense",
                                  "aten::nonzero",
                                  "aten::masked_select",
                                  "aten::is_nonzero",
                                  "aten::equal",
                                  "aten::allclose",
                                  "aten::_unique2",
                                  "aten::unique_dim"};

using Counts = std::map<std::string, int>;

absl::Mutex mutex;
Counts seen ABSL_GUARDED_BY(mutex);

std::unique_ptr<at::ObserverContext> Note(const at::RecordFunction& function) {
  const std::string name = function.name();
  if (std::none_of(std::begin(kWaits), std::end(kWaits), [&](const char* wait) { return name == wait; }))
    return nullptr;
  absl::MutexLock lock(&mutex);
  ++seen[name];
  return nullptr;
}

Counts WaitsIn(const std::function<void()>& work) {
  {
    absl::MutexLock lock(&mutex);
    seen.clear();
  }
  const at::CallbackHandle handle = at::addGlobalCallback(at::RecordFunctionCallback(Note));
  work();
  at::removeCallback(handle);
  absl::MutexLock lock(&mutex);
  return seen;
}

LossPlan Kd(double weight) {
  LossPlan loss;
  loss.name = loss.type = "kd";
  loss.weight = weight;
  loss.needs_teacher = true;
  return loss;
}

LossPlan OnMaps(const std::string& type, const std::string& tap, uint32_t channels, Knobs knobs = {}) {
  LossPlan loss = FeatureLoss(type, tap, channels, 2 * channels);
  loss.knobs = std::move(knobs);
  return loss;
}

struct Case {
  std::string name;
  StagePlan stage;
  Counts allowed;
  std::string why;  // of what is allowed
};

std::vector<Case> Cases() {
  LossPlan tat =
      OnMaps("tat", "layer3", 16,
             {{"mode", "plain"}, {"gamma", "conv3x3_bn"}, {"phi", "conv3x3_bn"}, {"spatial_mismatch", "none"}});
  tat.adapter = "none";
  LossPlan transform = OnMaps("channel_transform", "layer3", 16, {{"reduction", "mean"}});
  transform.adapter = "none";
  const std::string fused =
      "a fused CPU kernel asks for the factor on its gradient (losses/kernel_view.cc); on a GPU it is multiplied there";
  std::vector<Case> cases;
  // The presets, as coordinator/jobfile/presets.cc writes them. tat has two maps that get gradients.
  cases.push_back({"scratch", Stage("train", WholeNet(), {CrossEntropy()}, 3), {}, ""});
  cases.push_back(
      {"kd", Stage("train", WholeNet(), {CrossEntropy(0.1), Kd(0.9)}, 3), {{"aten::_local_scalar_dense", 1}}, fused});
  cases.push_back(
      {"cwd",
       Stage("train", WholeNet(),
             {CrossEntropy(), OnMaps("cwd", "layer1", 4), OnMaps("cwd", "layer2", 8), OnMaps("cwd", "layer3", 16)}, 3),
       {{"aten::_local_scalar_dense", 3}},
       fused});
  cases.push_back({"channel_transform", Stage("train", WholeNet(), {CrossEntropy(), transform}, 3), {}, ""});
  cases.push_back(
      {"tat", Stage("train", WholeNet(), {CrossEntropy(), tat}, 3), {{"aten::_local_scalar_dense", 2}}, fused});
  cases.push_back({"sskd_mimic", Stage("mimic-1", {"conv1", "bn1", "layer1"}, {OnMaps("l2", "layer1", 4)}, 3), {}, ""});
  cases.push_back({"sskd_head", Stage("head", {"fc"}, {CrossEntropy()}, 3), {}, ""});
  // What presets do not write.
  for (const char* optimizer : {"adamw", "lamb"}) {
    StagePlan stage = Stage("train", WholeNet(), {CrossEntropy()}, 3);
    stage.optimizer.type = optimizer;
    stage.optimizer.lr = 0.001;
    stage.optimizer.clip_norm = 1;
    stage.optimizer.ema_decay = 0.99;
    cases.push_back({optimizer, stage, {}, ""});
  }
  LossPlan dkd = Kd(1);
  dkd.name = dkd.type = "dkd";
  cases.push_back({"dkd", Stage("train", WholeNet(), {CrossEntropy(), dkd}, 3), {}, ""});
  LossPlan sp = FeatureLoss("sp", "layer2", 8, 16);
  sp.adapter = "none";
  cases.push_back({"sp",
                   Stage("train", WholeNet(), {CrossEntropy(), sp}, 3),
                   {{"aten::_local_scalar_dense", 1}},
                   "it is computed on the batch of all ranks, after their meeting, and told from there"});
  return cases;
}

class DeviceWaitsTest : public testing::TestWithParam<Case> {};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

TEST_P(DeviceWaitsTest, AStepWaitsForNothingElse) {
  Rank rank(SmallPlan({GetParam().stage}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  if (!runner->teacher_taps().empty()) source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
  Take(runner->Step(&source, 0));  // an optimizer's first step makes its state
  StepInput input = Take(source.Next({}));
  struct Given : StepSource {
    StepInput input;
    StatusOr<StepInput> Next(std::chrono::milliseconds) override { return std::move(input); }
  } given;
  given.input = std::move(input);
  bool stepped = false;
  const Counts waits = WaitsIn([&] { stepped = Take(runner->Step(&given, 1)).stepped; });
  EXPECT_TRUE(stepped);
  EXPECT_EQ(waits, GetParam().allowed) << GetParam().why;
}

INSTANTIATE_TEST_SUITE_P(Stages, DeviceWaitsTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// A label for every pixel, some without, on a network that answers for every pixel.
TEST(DenseDeviceWaitsTest, AStepWaitsForNothing) {
  LossPlan aux;
  aux.name = aux.type = "aux_classifier";
  aux.weight = 0.4;
  aux.student_tap = "layer3";
  aux.student_channels = 32;
  aux.teacher_channels = 4;
  StagePlan stage =
      Stage("train", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "classifier"}, {CrossEntropy(), aux}, 3);
  JobPlan plan = SmallPlan({stage});
  plan.student.arch = "fcn_resnet18";
  plan.student.width = 8;
  plan.student.image_height = plan.student.image_width = 32;
  Rank rank(plan);
  auto runner = rank.Runner();
  struct Pixels : StepSource {
    StatusOr<StepInput> Next(std::chrono::milliseconds) override {
      StepInput input;
      std::vector<uint8_t> pixels(4 * 32 * 32);
      for (size_t i = 0; i < pixels.size(); ++i) {
        pixels[i] = static_cast<uint8_t>(i * 37 % 251);
        input.label_maps.push_back(i % 5 == 4 ? kIgnoredPixel : static_cast<uint8_t>(i % 4));
      }
      input.labels.assign(4, kNoLabel);
      input.images = {4, 1, 32, 32, Buffer::FromVector(std::move(pixels))};
      return input;
    }
  } source;
  Take(runner->Step(&source, 0));
  EXPECT_EQ(WaitsIn([&] { Take(runner->Step(&source, 1)); }), Counts());
}

// That the counting counts.
TEST(DenseDeviceWaitsTest, WhatWaitsIsSeen) {
  const Counts waits = WaitsIn([] {
    const torch::Tensor x = torch::ones({3});
    (void)x.sum().item<float>();
    (void)x.gt(0).nonzero();
    (void)x.index({x.gt(0)});
  });
  EXPECT_EQ(waits, (Counts{{"aten::_local_scalar_dense", 1}, {"aten::nonzero", 2}}));
}

}  // namespace
}  // namespace distill
