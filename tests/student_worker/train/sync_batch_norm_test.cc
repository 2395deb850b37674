// Batch norms over all ranks: alone, and in the steps of a stage.
#include "common/zoo/batch_norm.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::IsEmpty;
using testing::Not;

double Gap(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).abs().max().item<double>();
}

// Ranks of unequal statistics, far from 0: where sums of squares would cancel, and where a mean of the ranks' variances
// would be wrong.
TEST(BatchNormOverRanksTest, IsTorchsOnTheWholeBatch) {
  constexpr int64_t kRanks = 3, kEach = 2, kChannels = 5;
  for (const auto format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      torch::manual_seed(11);
      const torch::Tensor offsets = torch::arange(kRanks * kEach, torch::kFloat32).view({-1, 1, 1, 1});
      const torch::Tensor images = (torch::randn({kRanks * kEach, kChannels, 7, 6}) * 0.3 + 5 + offsets).to(dtype);
      const torch::Tensor gradient = torch::randn({kRanks * kEach, kChannels, 7, 6}).to(dtype);
      const torch::Tensor weight = torch::rand({kChannels}) + 0.5, bias = torch::randn({kChannels});
      torch::Tensor x = images.clone().to(torch::kFloat32).requires_grad_();
      torch::Tensor w = weight.clone().requires_grad_(), b = bias.clone().requires_grad_();
      const torch::Tensor mean = torch::ones({kChannels}), var = torch::full({kChannels}, 2.0f);
      const torch::Tensor y = torch::batch_norm(x, w, b, mean, var, /*training=*/true, 0.1, 1e-5, false);
      y.backward(gradient.to(torch::kFloat32));

      std::vector<torch::Tensor> ys(kRanks), dxs(kRanks), dws(kRanks), dbs(kRanks), means(kRanks), vars(kRanks);
      OnRanks(kRanks, [&](uint32_t number, std::shared_ptr<KvClient> store) {
        Rank rank(SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 1)}), number, kRanks, std::move(store));
        RanksOfGroup ranks(rank.group.get());
        const auto part = [&](const torch::Tensor& whole) {
          return whole.narrow(0, number * kEach, kEach).clone().contiguous(format);
        };
        torch::Tensor mine = part(images).requires_grad_();
        torch::Tensor own_w = weight.clone().requires_grad_(), own_b = bias.clone().requires_grad_();
        means[number] = torch::ones({kChannels});
        vars[number] = torch::full({kChannels}, 2.0f);
        ys[number] = BatchNormOverRanks(mine, own_w, own_b, means[number], vars[number], 0.1, 1e-5, &ranks);
        EXPECT_TRUE(ys[number].is_contiguous(format));
        EXPECT_EQ(ys[number].scalar_type(), dtype);
        // As behind a transposition: in the other layout.
        const auto other = format == torch::MemoryFormat::Contiguous ? torch::MemoryFormat::ChannelsLast
                                                                     : torch::MemoryFormat::Contiguous;
        ys[number].backward(part(gradient).contiguous(other));
        dxs[number] = mine.grad();
        dws[number] = own_w.grad();
        dbs[number] = own_b.grad();
      });
      const double rounding = dtype == torch::kFloat32 ? 1e-5 : 0.04;
      EXPECT_LT(Gap(torch::cat(ys), y), rounding);
      EXPECT_LT(Gap(torch::cat(dxs), x.grad()), rounding);
      EXPECT_LT(Gap(torch::stack(dws).sum(0), w.grad()), 1e-5 * 40);  // sums of 252 terms
      EXPECT_LT(Gap(torch::stack(dbs).sum(0), b.grad()), 1e-5 * 40);
      for (int64_t rank = 0; rank < kRanks; ++rank) {
        EXPECT_LT(Gap(means[rank], mean), 1e-5);
        EXPECT_LT(Gap(vars[rank], var), 1e-5);
        EXPECT_TRUE(torch::equal(means[rank], means[0]) && torch::equal(vars[rank], vars[0]));
      }
    }
  }
}

std::vector<StepResult> Train(StageRunner* runner, StepSource* source, uint64_t first, uint64_t end) {
  std::vector<StepResult> results;
  for (uint64_t step = first; step < end; ++step) results.push_back(Take(runner->Step(source, step)));
  return results;
}

// Batch norms in the net, in an adapter and in the embeddings of a loss.
JobPlan Plan(uint64_t steps) {
  LossPlan l2 = FeatureLoss("l2", "layer1", 4, 8);
  l2.adapter = "conv1x1_bn_relu";
  LossPlan tat = FeatureLoss("tat", "layer3", 16, 32);
  tat.adapter = "none";
  tat.knobs = {{"gamma", "conv3x3_bn"}, {"phi", "conv3x3_bn"}, {"mode", "plain"}, {"spatial_mismatch", "none"}};
  StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy(), l2, tat}, steps);
  stage.optimizer.lr = 0.01;
  JobPlan plan = SmallPlan({stage});
  plan.sync_batch_norm = true;
  return plan;
}

struct Trained {
  std::vector<StepResult> results;
  std::map<std::string, torch::Tensor> state;
};

std::vector<Trained> TrainOn(const JobPlan& plan, uint32_t ranks, const std::shared_ptr<ZooNet>& teacher) {
  std::vector<Trained> trained(ranks);
  OnRanks(ranks, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, ranks, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, number, ranks);
    source.SetTeacher(teacher, runner->teacher_taps());
    trained[number].results = Train(runner.get(), &source, 0, plan.stages[0].steps);
    trained[number].state = StateOf(*rank.net);
    if (number != 0) return;
    // Alone, as on held-out images: the other ranks are not asked.
    SyntheticSource held_out(100, 8);
    held_out.SetTeacher(teacher, runner->teacher_taps());
    EXPECT_TRUE(std::isfinite(Take(runner->Measure(&held_out, 2, 0, [] { return true; }))));
  });
  return trained;
}

TEST(SyncBatchNormTest, AnyNumberOfRanksTrainsAsOneWithTheWholeBatch) {
  JobPlan plan = Plan(3);
  const auto teacher = SmallTeacher(8);
  const Trained alone = TrainOn(plan, 1, teacher)[0];
  for (const uint32_t ranks : {2u, 4u}) {
    const std::vector<Trained> together = TrainOn(plan, ranks, teacher);
    for (size_t step = 0; step < 3; ++step) {
      EXPECT_NEAR(together[0].results[step].loss, alone.results[step].loss, 1e-5 * alone.results[step].loss) << step;
    }
    for (const auto& [name, tensor] : alone.state) {
      EXPECT_LT(Gap(together[0].state.at(name), tensor), 1e-5) << ranks << " ranks: " << name;
    }
    for (const Trained& one : together) EXPECT_THAT(Changed(one.state, together[0].state), IsEmpty());
  }
  plan.sync_batch_norm = false;
  const Trained apart = TrainOn(plan, 2, teacher)[0];
  EXPECT_GT(Gap(apart.state.at("bn1.weight"), alone.state.at("bn1.weight")), 1e-4) << "the test shows nothing";
  EXPECT_GT(Gap(apart.state.at("layer3.0.bn1.running_mean"), alone.state.at("layer3.0.bn1.running_mean")), 1e-4);
}

TEST(SyncBatchNormTest, ARankThatWaitsForItsInputHoldsTheForwardPassAndChangesNothing) {
  const JobPlan plan = Plan(2);
  const auto teacher = SmallTeacher(8);
  const Trained expected = TrainOn(plan, 2, teacher)[0];
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, 2, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, number, 2);
    source.SetTeacher(teacher, runner->teacher_taps());
    if (number == 1) source.late_ = 5;
    Train(runner.get(), &source, 0, 2);
    EXPECT_THAT(Changed(expected.state, StateOf(*rank.net)), IsEmpty());
    // And may be stopped meanwhile.
    source.late_ = number == 1 ? 1 << 20 : 0;
    if (number == 0) rank.control.Cancel();
    const StepResult stopped = Take(runner->Step(&source, 2));
    EXPECT_FALSE(stopped.stepped);
    EXPECT_TRUE(stopped.cancel);
    EXPECT_THAT(Changed(expected.state, StateOf(*rank.net)), IsEmpty());
  });
}

TEST(SyncBatchNormTest, ABrokenMapOnOneRankIsSkippedByAllAndLeavesNothingBehind) {
  JobPlan plan = Plan(4);
  plan.accumulate = 2;
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, 2, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, number, 2);  // an input a part
    source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
    Train(runner.get(), &source, 0, 1);
    const auto before = StateOf(*rank.net);
    EXPECT_THAT(before.at("bn1.num_batches_tracked").item<int64_t>(), 2);
    source.poison_ = number == 1;
    const StepResult skipped = Train(runner.get(), &source, 1, 2)[0];
    EXPECT_TRUE(skipped.skipped);
    EXPECT_EQ(skipped.skipped_tap.empty(), number == 0);
    EXPECT_THAT(Changed(before, StateOf(*rank.net)), IsEmpty());
    source.poison_ = false;
    EXPECT_FALSE(Train(runner.get(), &source, 2, 3)[0].skipped);
    EXPECT_THAT(Changed(before, StateOf(*rank.net)), Not(IsEmpty()));
  });
}

// Pictures of a size that the student does not take.
class WrongSize : public SyntheticSource {
 public:
  using SyntheticSource::SyntheticSource;
  StatusOr<StepInput> Next(std::chrono::milliseconds timeout) override {
    auto input = SyntheticSource::Next(timeout);
    if (input.ok()) input->images.h = 6;
    return input;
  }
};

TEST(SyncBatchNormTest, ARankThatFailsInTheForwardPassDoesNotKeepTheOthersWaiting) {
  JobPlan plan = Plan(1);
  plan.stages[0].losses = {CrossEntropy()};
  OnRanks(2, [&](uint32_t number, std::shared_ptr<KvClient> store) {
    Rank rank(plan, number, 2, std::move(store), std::chrono::hours(1));
    auto runner = rank.Runner();
    SyntheticSource right(0, 16, 0, 2);
    WrongSize wrong(0, 16, 1, 2);
    const Status status = runner->Step(number == 0 ? &right : &wrong, 0).status();
    EXPECT_EQ(status.code(), number == 0 ? StatusCode::kAborted : StatusCode::kInvalidArgument) << status;
  });
}

}  // namespace
}  // namespace distill
