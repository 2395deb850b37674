#include "student_worker/train/evaluate.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "student_worker/train/evaluation_views.h"
#include "tests/student_worker/data/sample_readers.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

// Blank images of a few classes; `on_copy` runs before an image is handed out.
class ScriptedDataset : public Dataset {
 public:
  ScriptedDataset(uint64_t size, std::function<void(uint64_t)> on_copy, uint32_t classes = 4)
      : size_(size), on_copy_(std::move(on_copy)), classes_(classes) {}
  uint64_t size() const override { return size_; }
  uint32_t channels() const override { return 1; }
  uint32_t height() const override { return 12; }
  uint32_t width() const override { return 12; }
  uint32_t classes() const override { return classes_; }
  std::string Where(uint64_t) const override { return "blank"; }
  Status Read(uint64_t index, Picture* out) const override {
    on_copy_(index);
    *out = {1, 12, 12, std::vector<uint8_t>(144), {}};
    return OkStatus();
  }
  int64_t label(uint64_t index) const override { return static_cast<int64_t>(index % classes_); }
  bool has_label_maps() const override { return false; }

 private:
  const uint64_t size_;
  const std::function<void(uint64_t)> on_copy_;
  const uint32_t classes_;
};

JobPlan Plan() { return SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 1)}); }

StatusOr<std::optional<Score>> EvaluateOn(Rank* rank, const std::shared_ptr<const Dataset>& data) {
  return Evaluate(rank->net.get(), *testing::ReaderOf(data), rank->plan, rank->lockstep.get(), rank->control,
                  torch::kCPU);
}

// One of four classes is right for blank images, whichever it is.
TEST(EvaluateTest, ARankThatTakesLongerThanTheCollectiveTimeoutIsWaitedFor) {
  constexpr std::chrono::seconds kTimeout{3};
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(Plan(), number, 2, std::move(store), kTimeout);
    const auto data = std::make_shared<const ScriptedDataset>(64, [&](uint64_t index) {
      if (index == 40) std::this_thread::sleep_for(2 * kTimeout);  // of rank 1's part
    });
    const auto score = EvaluateOn(&rank, data);
    ASSERT_TRUE(score.ok()) << score.status();
    ASSERT_TRUE(score->has_value());
    EXPECT_EQ((*score)->metrics, (std::vector<NamedNumber>{{"top1", 0.25}}));
    EXPECT_THAT((*score)->by_class.labelled, ::testing::Each(16u));
  });
}

// The same logits for all images: of eight classes, each in turn the label, one is the answer and five are among the
// first five.
TEST(EvaluateTest, OfMoreThanFiveClassesTheFirstFiveCountToo) {
  JobPlan plan = Plan();
  plan.student.num_classes = 8;
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, 2, std::move(store));
    const auto score = EvaluateOn(&rank, std::make_shared<const ScriptedDataset>(
                                             64, [](uint64_t) {}, 8));
    ASSERT_TRUE(score.ok()) << score.status();
    ASSERT_TRUE(score->has_value());
    EXPECT_EQ((*score)->metrics, (std::vector<NamedNumber>{{"top1", 1.0 / 8}, {"top5", 5.0 / 8}}));
    EXPECT_THAT((*score)->by_class.right, ::testing::UnorderedElementsAre(8u, 0u, 0u, 0u, 0u, 0u, 0u, 0u));
  });
}

// Pictures of noise, by whose right answers two nets can be told apart.
std::shared_ptr<const Dataset> Noise(const ModelSpec& spec, int64_t images, bool dense) {
  torch::manual_seed(3);
  const int64_t height = spec.image_height, width = spec.image_width;
  const torch::Tensor pixels = torch::randint(256, {images, spec.in_channels, height, width}, torch::kUInt8);
  const torch::Tensor maps = torch::randint(spec.num_classes, {images, height, width}, torch::kUInt8);
  const torch::Tensor classes = torch::randint(spec.num_classes, {images}, torch::kInt64);
  const auto bytes = [](const torch::Tensor& tensor) {
    return std::vector<uint8_t>(tensor.data_ptr<uint8_t>(), tensor.data_ptr<uint8_t>() + tensor.numel());
  };
  std::vector<int64_t> labels(static_cast<size_t>(images), kNoLabel);
  if (!dense) labels.assign(classes.data_ptr<int64_t>(), classes.data_ptr<int64_t>() + images);
  return Take(MakeMemoryDataset(spec.in_channels, spec.image_height, spec.image_width, spec.num_classes, bytes(pixels),
                                std::move(labels), dense ? bytes(maps) : std::vector<uint8_t>()));
}

// How often each class is the answer by the mean probabilities of both views, computed here on all images at once.
std::vector<uint64_t> AnswersOfBothViews(StudentNet* net, const Dataset& data, const ModelSpec& spec) {
  const auto images = static_cast<int64_t>(data.size());
  torch::Tensor pixels = torch::empty({images, data.channels(), data.height(), data.width()}, torch::kUInt8);
  for (int64_t i = 0; i < images; ++i) {
    Picture picture;
    EXPECT_TRUE(data.Read(static_cast<uint64_t>(i), &picture).ok());
    std::copy(picture.pixels.begin(), picture.pixels.end(), pixels[i].data_ptr<uint8_t>());
  }
  const torch::NoGradGuard no_grad;
  const auto probabilities = [&](const torch::Tensor& view) {
    return Take(net->Forward(NormalizePixels(view, spec, true), {""}))[0].softmax(1);
  };
  torch::Tensor mirrored = probabilities(pixels.flip({3}));
  if (mirrored.dim() == 4) mirrored = mirrored.flip({3});
  const torch::Tensor mean = (probabilities(pixels) + mirrored) / 2;
  const torch::Tensor counts = mean.argmax(1).flatten().bincount({}, spec.num_classes);
  return {counts.data_ptr<int64_t>(), counts.data_ptr<int64_t>() + counts.numel()};
}

TEST(EvaluateTest, WithAFlipBothViewsAreAnsweredTogether) {
  for (const bool dense : {false, true}) {
    JobPlan plan = Plan();
    if (dense) {
      plan.student.arch = "fcn_resnet18";
      plan.student.width = 8;
      plan.student.image_height = plan.student.image_width = 32;
    }
    const auto data = Noise(plan.student, dense ? 3 : 200, dense);
    Rank rank(plan);
    rank.net->eval();
    const auto plain = EvaluateOn(&rank, data);
    rank.plan.evaluate_flip = true;
    const auto both = EvaluateOn(&rank, data);
    ASSERT_TRUE(plain.ok() && both.ok()) << plain.status() << both.status();
    EXPECT_EQ((*both)->by_class.answered, AnswersOfBothViews(rank.net.get(), *data, plan.student));
    EXPECT_NE((*both)->by_class.answered, (*plain)->by_class.answered) << "the test shows nothing";
  }
}

// What windows and scales mean, in plain loops: of every picture, in doubles, the mean probabilities at every pixel.
std::vector<uint64_t> AnswersOfWindows(ZooNet* net, const Dataset& data, const JobPlan& plan) {
  const int64_t height = data.height(), width = data.width(), classes = plan.student.num_classes;
  const int64_t tall = plan.evaluate_window[0], wide = plan.evaluate_window[1];
  const torch::NoGradGuard no_grad;
  std::vector<uint64_t> counts(static_cast<size_t>(classes));
  for (uint64_t i = 0; i < data.size(); ++i) {
    Picture picture;
    EXPECT_TRUE(data.Read(i, &picture).ok());
    const torch::Tensor image = torch::from_blob(picture.pixels.data(), {1, 1, height, width}, torch::kUInt8);
    torch::Tensor sum = torch::zeros({1, classes, height, width}, torch::kFloat64);
    for (const double scale : plan.evaluate_scales) {
      const int64_t h = std::lround(scale * static_cast<double>(height));
      const int64_t w = std::lround(scale * static_cast<double>(width));
      torch::Tensor scaled =
          torch::nn::functional::interpolate(image.to(torch::kFloat32), torch::nn::functional::InterpolateFuncOptions()
                                                                            .size(std::vector<int64_t>{h, w})
                                                                            .mode(torch::kBilinear)
                                                                            .align_corners(false));
      scaled = scaled.round().to(torch::kUInt8);
      const int64_t above = std::max<int64_t>(0, tall - h) / 2, before = std::max<int64_t>(0, wide - w) / 2;
      torch::Tensor canvas =
          torch::full({1, 1, std::max(h, tall), std::max(w, wide)}, std::lround(255 * 0.4), torch::kUInt8);
      canvas.slice(2, above, above + h).slice(3, before, before + w).copy_(scaled);
      torch::Tensor total = torch::zeros({1, classes, canvas.size(2), canvas.size(3)}, torch::kFloat64);
      torch::Tensor seen = torch::zeros({canvas.size(2), canvas.size(3)}, torch::kFloat64);
      const auto grid = [](int64_t length, int64_t window, int64_t stride) {  // as the papers' code
        std::vector<int64_t> starts;
        const int64_t steps = std::max<int64_t>(length - window + stride - 1, 0) / stride + 1;
        for (int64_t k = 0; k < steps; ++k) starts.push_back(std::min(k * stride + window, length) - window);
        return starts;
      };
      for (const int64_t top : grid(canvas.size(2), tall, plan.evaluate_stride[0])) {
        for (const int64_t left : grid(canvas.size(3), wide, plan.evaluate_stride[1])) {
          for (const bool mirrored : {false, true}) {
            torch::Tensor view = canvas.slice(2, top, top + tall).slice(3, left, left + wide).clone();
            if (mirrored) view = view.flip({3});
            torch::Tensor answer = Take(net->Forward(NormalizePixels(view, plan.student, true), {""}))[0].softmax(1);
            if (mirrored) answer = answer.flip({3});
            total.slice(2, top, top + tall).slice(3, left, left + wide) += answer;
            seen.slice(0, top, top + tall).slice(1, left, left + wide) += 1;
          }
        }
      }
      const torch::Tensor mean = (total / seen).slice(2, above, above + h).slice(3, before, before + w);
      sum += torch::nn::functional::interpolate(mean, torch::nn::functional::InterpolateFuncOptions()
                                                          .size(std::vector<int64_t>{height, width})
                                                          .mode(torch::kBilinear)
                                                          .align_corners(false));
    }
    const torch::Tensor answers = sum.argmax(1).flatten();
    for (int64_t p = 0; p < answers.numel(); ++p) ++counts[static_cast<size_t>(answers[p].item<int64_t>())];
  }
  return counts;
}

JobPlan DensePlan() {
  JobPlan plan = Plan();
  plan.student.arch = "fcn_resnet18";
  plan.student.width = 8;
  plan.student.image_height = plan.student.image_width = 32;
  return plan;
}

TEST(EvaluateTest, WindowsAndScalesAreWhatPlainLoopsSay) {
  JobPlan plan = DensePlan();
  plan.evaluate_flip = true;
  plan.evaluate_scales = {0.5, 1, 1.3};  // the first is smaller than a window
  plan.evaluate_window = {32, 32};
  plan.evaluate_stride = {20, 13};
  ModelSpec larger = plan.student;
  larger.image_height = 45;
  larger.image_width = 52;
  const auto data = Noise(larger, 3, true);
  Rank rank(plan);
  rank.net->eval();
  const auto score = EvaluateOn(&rank, data);
  ASSERT_TRUE(score.ok()) << score.status();
  const std::vector<uint64_t> expected = AnswersOfWindows(rank.net.get(), *data, plan);
  for (size_t k = 0; k < expected.size(); ++k) {  // a pixel of equal probabilities may fall either way
    EXPECT_NEAR(static_cast<double>((*score)->by_class.answered[k]), static_cast<double>(expected[k]), 2) << k;
  }
  // Nothing of it goes without saying.
  for (int part = 0; part < 3; ++part) {
    rank.plan = plan;
    if (part == 0) rank.plan.evaluate_flip = false;
    if (part == 1) rank.plan.evaluate_scales = {1};
    if (part == 2) rank.plan.evaluate_stride = {32, 32};
    EXPECT_NE((*EvaluateOn(&rank, data))->by_class.answered, (*score)->by_class.answered) << part;
  }
}

// Ranks share the pictures, and whole pictures of another size than the student's go through it as they are.
TEST(EvaluateTest, PicturesOfAnotherSizeAreSeenAsAWhole) {
  JobPlan plan = DensePlan();
  plan.evaluate_scales = {1};
  ModelSpec larger = plan.student;
  larger.image_height = 40;
  larger.image_width = 56;
  const auto data = Noise(larger, 5, true);
  const auto wide = Take(ZooNet::Create(larger));
  std::vector<uint64_t> expected(4);
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, 2, std::move(store));
    const auto score = EvaluateOn(&rank, data);
    ASSERT_TRUE(score.ok()) << score.status();
    if (number == 0) expected = (*score)->by_class.answered;
  });
  wide->InitWeights(plan.seed);
  Rank rank(plan);
  rank.net = wide;
  rank.plan.student = larger;
  rank.plan.evaluate_scales = {};
  EXPECT_EQ((*Take(EvaluateOn(&rank, data))).by_class.answered, expected);
  // Which a network for pictures as a whole cannot.
  Rank images(Plan());
  ModelSpec other = images.plan.student;
  other.image_height = 16;
  images.plan.evaluate_scales = {1};
  EXPECT_THAT(EvaluateOn(&images, Noise(other, 3, false)).status().ToString(),
              ::testing::HasSubstr("cifar_resnet8 answers for every image, and takes images of [12, 12] only"));
}

TEST(EvaluateTest, ViewsThatMakeNoSenseAreRefused) {
  const auto refusal = [](const std::function<void(JobPlan*)>& change) {
    JobPlan plan = DensePlan();
    change(&plan);
    return EvaluationViews::Create(plan, 64, 64).status().ToString();
  };
  EXPECT_THAT(refusal([](JobPlan* plan) { plan->evaluate_scales = {0}; }), ::testing::HasSubstr("a scale is 0"));
  EXPECT_THAT(refusal([](JobPlan* plan) { plan->evaluate_scales = {NAN}; }), ::testing::HasSubstr("a scale is nan"));
  EXPECT_THAT(refusal([](JobPlan* plan) { plan->evaluate_window = {32}; }), ::testing::HasSubstr("two sides"));
  EXPECT_THAT(refusal([](JobPlan* plan) {
                plan->evaluate_window = {32, 32};
                plan->evaluate_stride = {33, 32};
              }),
              ::testing::HasSubstr("no longer than the window's"));
  EXPECT_THAT(refusal([](JobPlan* plan) {
                plan->evaluate_scales = {1000};
                plan->evaluate_window = {32, 32};
                plan->evaluate_stride = {1, 1};
              }),
              ::testing::HasSubstr("more than 100000 windows"));
}

// Without the stop the test would run for hours.
TEST(EvaluateTest, AStopThatOneRankIsAskedForEndsItOnAll) {
  for (const bool cancel : {true, false}) {
    OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
      Rank rank(Plan(), number, 2, std::move(store));
      const auto data = std::make_shared<const ScriptedDataset>(uint64_t{1} << 30, [&](uint64_t index) {
        if (index != (uint64_t{1} << 29) + 1000) return;  // of rank 1's part
        cancel ? rank.control.Cancel() : rank.control.Terminate();
      });
      const auto score = EvaluateOn(&rank, data);
      ASSERT_TRUE(score.ok()) << score.status();
      EXPECT_FALSE(score->has_value());
      EXPECT_TRUE(rank.lockstep->stopping());
      EXPECT_EQ(rank.lockstep->cancel_asked(), cancel);
    });
  }
}

TEST(EvaluateTest, ARevocationEndsIt) {
  Rank rank(Plan());
  const auto data = std::make_shared<const ScriptedDataset>(uint64_t{1} << 30, [&](uint64_t index) {
    if (index == 1000) rank.control.Revoke();
  });
  EXPECT_EQ(EvaluateOn(&rank, data).status().code(), StatusCode::kCancelled);
}

TEST(EvaluateTest, AnExceptionOnOneRankReachesTheOthersAsAFailure) {
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(Plan(), number, 2, std::move(store));
    const auto data = std::make_shared<const ScriptedDataset>(64, [&](uint64_t index) {
      if (index == 40) throw std::bad_alloc();
    });
    const Status status = EvaluateOn(&rank, data).status();
    EXPECT_EQ(status.code(), number == 0 ? StatusCode::kAborted : StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(rank.lockstep->peer_failed(), number == 0);
  });
}

}  // namespace
}  // namespace distill
