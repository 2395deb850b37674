#include "student_worker/pipeline/step_pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <set>
#include <span>

#include "common/str_cat.h"
#include "student_worker/data/training_images.h"
#include "tests/student_worker/data/sample_readers.h"
#include "tests/student_worker/feature/test_teacher.h"

namespace distill {
namespace {

using testing::Fault;
using ::testing::HasSubstr;
using testing::kDigest;
using testing::kModel;
using testing::ReaderOf;
using testing::ReferenceTap;
using testing::TestTeacher;

constexpr uint32_t kC = 3, kH = 6, kW = 5;
constexpr uint64_t kImages = 50;

std::shared_ptr<const Dataset> MakeData() {
  std::vector<uint8_t> pixels(kImages * kC * kH * kW);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 7 + i / 90);
  std::vector<int64_t> labels;
  for (uint64_t i = 0; i < kImages; ++i) labels.push_back(i % 10);
  auto data = MakeMemoryDataset(kC, kH, kW, 10, std::move(pixels), std::move(labels));
  EXPECT_TRUE(data.ok()) << data.status();
  return *data;
}

std::shared_ptr<const SampleReader> Augmented(std::shared_ptr<const Dataset> data) {
  return ReaderOf(std::move(data), {{"pad_crop", {{"padding", {2}}}}, {"horizontal_flip", {}}}, 5);
}

StepPipeline::Options Options(TeacherPool* pool, uint64_t end_step = 20) {
  StepPipeline::Options options;
  options.samples = Augmented(MakeData());
  options.sampler = {.seed = 5, .batch_size = 8};
  options.pool = pool;
  options.end_step = end_step;
  options.depth = 4;
  return options;
}

std::unique_ptr<StepPipeline> Make(StepPipeline::Options options) {
  auto pipeline = StepPipeline::Create(std::move(options));
  EXPECT_TRUE(pipeline.ok()) << pipeline.status();
  return *std::move(pipeline);
}

std::unique_ptr<TeacherPool> MakePool(const std::vector<TeacherEndpoint>& teachers, uint64_t window_bytes = 1 << 20) {
  TeacherPool::Options options;
  options.model = kModel;
  options.digest = kDigest;
  options.taps = {{"maps"}, {""}};
  options.tap_shapes = {{kC, kH, kW}, {kC}};
  options.window_bytes = window_bytes;
  options.health.min_backoff = std::chrono::milliseconds(5);
  auto pool = TeacherPool::Create(options);
  EXPECT_TRUE(pool.ok()) << pool.status();
  (*pool)->SetTeachers(teachers);
  return *std::move(pool);
}

std::vector<uint8_t> Pixels(const ImageBatch& images) {
  return {images.pixels.data, images.pixels.data + images.pixels.size};
}

void ExpectFeaturesOfItsPixels(const StepInput& input) {
  ASSERT_EQ(input.features.taps.size(), 2);
  for (size_t t = 0; t < 2; ++t) {
    const std::vector<float> expected = ReferenceTap(t == 0 ? "maps" : "", input.images);
    const Buffer& bytes = input.features.taps[t].bytes;
    ASSERT_EQ(bytes.size, expected.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(bytes.data, expected.data(), bytes.size), 0) << "step " << input.step << " tap " << t;
  }
}

// All steps of a pipeline, with everything that must repeat.
struct Steps {
  std::vector<std::vector<uint32_t>> ids;
  std::vector<std::vector<uint8_t>> pixels;
  std::vector<std::vector<int64_t>> labels;
  bool operator==(const Steps&) const = default;
};

Steps Drain(StepPipeline* pipeline, uint64_t first_step = 0) {
  Steps steps;
  uint64_t step = first_step;
  while (true) {
    auto input = pipeline->Next();
    if (!input.ok()) {
      EXPECT_EQ(input.status().code(), StatusCode::kOutOfRange) << input.status();
      return steps;
    }
    EXPECT_EQ(input->step, step);
    EXPECT_EQ(input->epoch, step / 6);  // 50 images, batches of 8
    EXPECT_EQ(input->images.n, input->sample_ids.size());
    EXPECT_GE(input->data_seconds, 0);
    EXPECT_GE(input->feature_seconds, 0);
    if (!input->features.taps.empty()) ExpectFeaturesOfItsPixels(*input);
    steps.ids.push_back(input->sample_ids);
    steps.pixels.push_back(Pixels(input->images));
    steps.labels.push_back(input->labels);
    ++step;
  }
}

TEST(StepPipelineTest, DeliversStepsInOrderWithAugmentedPixelsAndLabels) {
  const auto reader = Augmented(MakeData());
  const Steps steps = Drain(Make(Options(nullptr)).get());
  ASSERT_EQ(steps.ids.size(), 20);
  for (size_t s = 0; s < 20; ++s) {
    const std::vector<uint32_t> order = EpochOrder(5, s / 6, kImages);
    for (size_t i = 0; i < 8; ++i) {
      const uint32_t id = order[s % 6 * 8 + i];
      EXPECT_EQ(steps.ids[s][i], id);
      EXPECT_EQ(steps.labels[s][i], id % 10);
      const std::vector<uint8_t> expected = reader->Read(std::vector<uint32_t>{id}, s / 6).value().pixels;
      EXPECT_EQ(std::memcmp(steps.pixels[s].data() + i * expected.size(), expected.data(), expected.size()), 0)
          << "step " << s << " image " << i;
    }
  }
}

TEST(StepPipelineTest, RanksTogetherSeeExactlyWhatOneRankSees) {
  const Steps alone = Drain(Make(Options(nullptr)).get());
  for (uint32_t world : {2u, 4u}) {
    std::vector<Steps> ranks;
    for (uint32_t rank = 0; rank < world; ++rank) {
      auto options = Options(nullptr);
      options.sampler.world_size = world;
      options.sampler.rank = rank;
      options.depth = 1 + rank;
      ranks.push_back(Drain(Make(std::move(options)).get()));
    }
    Steps joined = ranks[0];
    for (uint32_t rank = 1; rank < world; ++rank) {
      for (size_t s = 0; s < 20; ++s) {
        auto append = [](auto* to, const auto& from) { to->insert(to->end(), from.begin(), from.end()); };
        append(&joined.ids[s], ranks[rank].ids[s]);
        append(&joined.pixels[s], ranks[rank].pixels[s]);
        append(&joined.labels[s], ranks[rank].labels[s]);
      }
    }
    EXPECT_EQ(joined, alone) << "world " << world;
  }
}

TEST(StepPipelineTest, StartingInTheMiddleGivesTheSameSteps) {
  Steps all = Drain(Make(Options(nullptr)).get());
  auto options = Options(nullptr);
  options.first_step = 13;
  const Steps rest = Drain(Make(std::move(options)).get(), 13);
  all.pixels.erase(all.pixels.begin(), all.pixels.begin() + 13);
  EXPECT_EQ(rest.pixels, all.pixels);
}

TEST(StepPipelineTest, TeachersSeeTheSamePixelsHoweverManyThereAreAndWhateverHappensToThem) {
  const Steps without = Drain(Make(Options(nullptr, 40)).get());
  for (int count = 1; count <= 3; ++count) {
    for (bool killed : {false, true}) {
      if (count == 1 && killed) continue;
      std::vector<std::unique_ptr<TestTeacher>> teachers;
      std::vector<TeacherEndpoint> endpoints;
      for (int i = 0; i < count; ++i) {
        teachers.push_back(TestTeacher::Start({.name = StrCat("t", i),
                                               .chunk_bytes = 1000,
                                               .fault = killed && i == 0 ? Fault::kDieMidAnswer : Fault::kNone,
                                               .fault_at = 2}));
        endpoints.push_back(teachers.back()->endpoint());
      }
      auto pool = MakePool(endpoints);
      auto pipeline = Make(Options(pool.get(), 40));
      EXPECT_EQ(Drain(pipeline.get()), without) << count << " teachers, killed " << killed;
    }
  }
}

// ---- Images without labels

// 80 images; the last tenth has lost its labels. Image i's first byte is i.
constexpr uint64_t kWith = 72, kWithout = 8;

TrainingImages NineTenthsLabelled() {
  const auto make = [](uint64_t first, uint64_t count, bool labelled) {
    std::vector<uint8_t> pixels(count * kC * kH * kW, 9);
    std::vector<int64_t> labels;
    for (uint64_t i = 0; i < count; ++i) {
      pixels[i * kC * kH * kW] = static_cast<uint8_t>(first + i);
      labels.push_back(labelled ? static_cast<int64_t>(i % 10) : kNoLabel);
    }
    return MakeMemoryDataset(kC, kH, kW, 10, std::move(pixels), std::move(labels)).value();
  };
  const DataSplits splits{make(0, kWith, true), make(200, 1, true), make(kWith, kWithout, false)};
  return PrepareTrainingImages(splits, 0, 5).value();
}

StepPipeline::Options OptionsOf(const StagePlan& stage, uint64_t first_step, TeacherPool* pool = nullptr) {
  auto options = Options(pool, first_step + stage.steps);
  options.first_step = first_step;
  options.samples = Augmented(ImagesOfStage(NineTenthsLabelled(), stage, options.sampler.batch_size).value());
  return options;
}

std::vector<StepInput> Inputs(StepPipeline::Options options) {
  const uint64_t steps = options.end_step - options.first_step;
  const auto pipeline = Make(std::move(options));
  std::vector<StepInput> inputs;
  for (uint64_t s = 0; s < steps; ++s) {
    auto input = pipeline->Next();
    EXPECT_TRUE(input.ok()) << input.status();
    if (!input.ok()) break;
    inputs.push_back(*std::move(input));
    inputs.back().data_seconds = inputs.back().feature_seconds = 0;
  }
  return inputs;
}

// Three backbone phases and the head, as the preset makes them with unlabelled_ok.
std::vector<StagePlan> PhasesWithUnlabelled() {
  std::vector<StagePlan> stages(4, StagePlan{.name = "mimic", .steps = 20, .unlabelled_ok = true});
  stages[3] = StagePlan{.name = "head", .steps = 20, .uses_labels = true};
  return stages;
}

TEST(UnlabelledImagesTest, BackbonePhasesSeeAllImagesAndTheHeadThoseWithLabels) {
  uint64_t first_step = 0;
  for (const StagePlan& stage : PhasesWithUnlabelled()) {
    std::set<uint32_t> seen;
    for (const StepInput& input : Inputs(OptionsOf(stage, first_step))) {
      for (size_t i = 0; i < input.sample_ids.size(); ++i) {
        seen.insert(input.sample_ids[i]);
        EXPECT_EQ(input.labels[i] == kNoLabel, input.sample_ids[i] >= kWith);
      }
    }
    const uint64_t expected = stage.uses_labels ? kWith : kWith + kWithout;
    EXPECT_EQ(seen.size(), expected) << stage.name;
    EXPECT_EQ(*seen.rbegin() + 1, expected) << stage.name;
    first_step += stage.steps;
  }
}

TEST(UnlabelledImagesTest, RanksAndRestartsAtAnyStepSeeWhatOneRankSeesAndSoDoTeachers) {
  auto teacher = TestTeacher::Start({});
  const StagePlan stage = PhasesWithUnlabelled()[1];
  const std::vector<StepInput> alone = Inputs(OptionsOf(stage, 20));
  ASSERT_EQ(alone.size(), 20);
  for (uint32_t world : {1u, 2u, 4u}) {
    for (uint32_t rank = 0; rank < world; ++rank) {
      for (uint64_t start : {20u, 21u, 29u, 33u, 39u}) {
        auto pool = MakePool({teacher->endpoint()});
        auto options = OptionsOf(stage, 20, start == 33 ? pool.get() : nullptr);
        options.first_step = start;  // resumed there
        options.sampler.world_size = world;
        options.sampler.rank = rank;
        for (const StepInput& input : Inputs(std::move(options))) {
          const StepInput& whole = alone[input.step - 20];
          const size_t n = 8 / world, at = rank * n, bytes = kC * kH * kW;
          ASSERT_EQ(input.sample_ids.size(), n);
          for (size_t i = 0; i < n; ++i) {
            EXPECT_EQ(input.sample_ids[i], whole.sample_ids[at + i]) << "step " << input.step;
            EXPECT_EQ(input.labels[i], whole.labels[at + i]);
          }
          EXPECT_EQ(std::memcmp(input.images.pixels.data, whole.images.pixels.data + at * bytes, n * bytes), 0)
              << "step " << input.step << " world " << world;
          if (start == 33) ExpectFeaturesOfItsPixels(input);
        }
      }
    }
  }
}

// ---- Label maps

// MakeData() with label maps instead of labels: image i's map holds (i + y + 2 * x) % 10, and kIgnoredPixel at (0, 0).
std::shared_ptr<const Dataset> MakeDataWithMaps() {
  const auto data = MakeData();
  std::vector<uint8_t> pixels, maps;
  for (uint64_t i = 0; i < kImages; ++i) {
    Picture picture;
    EXPECT_TRUE(data->Read(i, &picture).ok());
    pixels.insert(pixels.end(), picture.pixels.begin(), picture.pixels.end());
    for (uint32_t p = 0; p < kH * kW; ++p) {
      maps.push_back(p == 0 ? kIgnoredPixel : static_cast<uint8_t>((i + p / kW + 2 * (p % kW)) % 10));
    }
  }
  return MakeMemoryDataset(kC, kH, kW, 10, std::move(pixels), std::vector<int64_t>(kImages, kNoLabel), std::move(maps))
      .value();
}

TEST(LabelMapsTest, EachStepHasTheMapsOfItsImagesAugmentedInTheSameWay) {
  const auto reader = Augmented(MakeDataWithMaps());
  auto options = Options(nullptr);
  options.samples = reader;
  const Steps plain = Drain(Make(Options(nullptr)).get());
  const std::vector<StepInput> inputs = Inputs(std::move(options));
  ASSERT_EQ(inputs.size(), 20);
  constexpr size_t kMap = kH * kW;
  for (const StepInput& input : inputs) {
    EXPECT_EQ(Pixels(input.images), plain.pixels[input.step]) << "label maps change no pixel";
    EXPECT_EQ(input.labels, std::vector<int64_t>(8, kNoLabel));
    ASSERT_EQ(input.label_maps.size(), 8 * kMap);
    for (size_t i = 0; i < 8; ++i) {
      const std::vector<uint8_t> expected =
          reader->Read(std::span(&input.sample_ids[i], 1), input.epoch).value().label_maps;
      EXPECT_EQ(std::memcmp(input.label_maps.data() + i * kMap, expected.data(), kMap), 0)
          << "step " << input.step << " image " << i;
      // What is padding in the picture has no label.
      const VisibleRect& visible = input.visible[i];
      for (uint32_t y = 0; y < kH; ++y) {
        for (uint32_t x = 0; x < kW; ++x) {
          if (y >= visible.top && y < visible.bottom && x >= visible.left && x < visible.right) continue;
          EXPECT_EQ(input.label_maps[i * kMap + y * kW + x], kIgnoredPixel);
        }
      }
    }
  }
  for (const StepInput& input : Inputs(Options(nullptr))) EXPECT_TRUE(input.label_maps.empty());
}

TEST(LabelMapsTest, RanksAndRestartsSeeWhatOneRankSees) {
  const auto from = [](uint64_t first_step, uint32_t rank, uint32_t world) {
    auto options = Options(nullptr);
    options.samples = Augmented(MakeDataWithMaps());
    options.first_step = first_step;
    options.sampler.rank = rank;
    options.sampler.world_size = world;
    return Inputs(std::move(options));
  };
  const std::vector<StepInput> alone = from(0, 0, 1);
  for (const uint32_t rank : {0u, 1u}) {
    for (const StepInput& input : from(13, rank, 2)) {
      const std::vector<uint8_t>& whole = alone[input.step].label_maps;
      const auto half = whole.begin() + rank * whole.size() / 2;
      EXPECT_EQ(input.label_maps, std::vector<uint8_t>(half, half + whole.size() / 2)) << "step " << input.step;
    }
  }
}

TEST(StepPipelineTest, AWindowOfOneBatchIsEnough) {
  auto teacher = TestTeacher::Start({});
  const uint64_t batch_bytes = 8 * (kC * kH * kW + kC) * sizeof(float);
  auto pool = MakePool({teacher->endpoint()}, batch_bytes);
  auto pipeline = Make(Options(pool.get()));
  for (int s = 0; s < 20; ++s) {
    auto input = pipeline->Next();  // the last step's features are gone by now
    ASSERT_TRUE(input.ok()) << input.status();
    EXPECT_LE(pool->window_used(), batch_bytes);
  }
}

TEST(StepPipelineTest, AtMostDepthStepsAreAskedAhead) {
  std::atomic<uint64_t> granted = 0;
  auto teacher = TestTeacher::Start({.on_credit = [&](uint64_t bytes) { granted += bytes; }});
  const uint64_t batch_bytes = 8 * (kC * kH * kW + kC) * sizeof(float);
  auto pool = MakePool({teacher->endpoint()});
  auto pipeline = Make(Options(pool.get()));
  for (uint64_t s = 0; s < 20; ++s) {
    auto input = pipeline->Next();
    ASSERT_TRUE(input.ok()) << input.status();
    EXPECT_LE(granted, (s + 1 + 4) * batch_bytes);
  }
}

TEST(StepPipelineTest, AnErrorIsDeliveredAtItsStepAndStays) {
  auto teacher = TestTeacher::Start({.fault = Fault::kErrorInvalid, .fault_at = 3});
  auto pool = MakePool({teacher->endpoint()});
  auto pipeline = Make(Options(pool.get()));
  for (uint64_t s = 0; s < 3; ++s) {
    auto input = pipeline->Next();
    ASSERT_TRUE(input.ok()) << "step " << s << ": " << input.status();
    EXPECT_EQ(input->step, s);
  }
  for (int again = 0; again < 2; ++again) {
    const Status status = pipeline->Next().status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("features of step 3"));
  }
}

TEST(StepPipelineTest, StopUnblocksNextAndCancelsRequests) {
  auto teacher = TestTeacher::Start({.hold = true});
  auto pool = MakePool({teacher->endpoint()});
  auto pipeline = Make(Options(pool.get()));
  Status status;
  std::thread consumer([&] { status = pipeline->Next().status(); });
  ASSERT_TRUE(teacher->WaitForReceived(1));
  pipeline->Stop();
  consumer.join();
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(pipeline->Next().status().code(), StatusCode::kCancelled);
  pipeline->Stop();
  pipeline.reset();
  // The pool serves the next pipeline.
  teacher->Hold(false);
  EXPECT_EQ(Drain(Make(Options(pool.get(), 5)).get()).ids.size(), 5);
}

TEST(StepPipelineTest, NextCanGiveUpWaitingAndBeCalledAgain) {
  auto teacher = TestTeacher::Start({.hold = true});
  auto pool = MakePool({teacher->endpoint()});
  auto pipeline = Make(Options(pool.get()));
  ASSERT_TRUE(teacher->WaitForReceived(1));
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(pipeline->Next(std::chrono::milliseconds(30)).status().code(), StatusCode::kDeadlineExceeded);
  }
  teacher->Hold(false);
  auto input = pipeline->Next();
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->step, 0);
  ExpectFeaturesOfItsPixels(*input);
  EXPECT_GE(input->data_seconds + input->feature_seconds, 0.06);  // what was waited before counts
}

TEST(StepPipelineTest, DestructionWithoutTeachersDoesNotHang) {
  auto pool = MakePool({});
  auto pipeline = Make(Options(pool.get()));
  pipeline.reset();
  pipeline = Make(Options(nullptr, 1u << 30));
  ASSERT_TRUE(pipeline->Next().ok());
}

TEST(StepPipelineTest, AnEmptyRangeEndsAtOnce) {
  auto pipeline = Make(Options(nullptr, 0));
  EXPECT_EQ(pipeline->Next().status().code(), StatusCode::kOutOfRange);
}

TEST(StepPipelineTest, ImpossibleOptionsAreRefused) {
  auto code = [](void (*change)(StepPipeline::Options*)) {
    auto options = Options(nullptr);
    change(&options);
    return StepPipeline::Create(std::move(options)).status().code();
  };
  EXPECT_EQ(code([](StepPipeline::Options* o) { o->samples = nullptr; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](StepPipeline::Options* o) { o->depth = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](StepPipeline::Options* o) { o->sampler.batch_size = 51; }), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
