#include "student_worker/train/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace distill {
namespace {

LrSchedule Make(const SchedulePlan& plan, uint64_t steps) {
  auto schedule = LrSchedule::Create(plan, steps);
  if (!schedule.ok()) throw std::runtime_error(schedule.status().ToString());
  return *schedule;
}

SchedulePlan Plan(const std::string& type, double warmup = 0) {
  SchedulePlan plan;
  plan.type = type;
  plan.warmup = warmup;
  return plan;
}

TEST(LrScheduleTest, ConstantIsOneAfterTheWarmUp) {
  const LrSchedule schedule = Make(Plan("constant", 0.3), 10);  // three warm-up steps
  EXPECT_DOUBLE_EQ(schedule.Factor(0), 0.25);
  EXPECT_DOUBLE_EQ(schedule.Factor(1), 0.5);
  EXPECT_DOUBLE_EQ(schedule.Factor(2), 0.75);
  for (uint64_t step = 3; step < 10; ++step) EXPECT_DOUBLE_EQ(schedule.Factor(step), 1) << "step " << step;
}

TEST(LrScheduleTest, CosineFallsFromOneToJustAboveZero) {
  const LrSchedule schedule = Make(Plan("cosine"), 4);
  EXPECT_DOUBLE_EQ(schedule.Factor(0), 1);
  EXPECT_NEAR(schedule.Factor(1), (1 + std::sqrt(0.5)) / 2, 1e-15);
  EXPECT_NEAR(schedule.Factor(2), 0.5, 1e-15);
  EXPECT_NEAR(schedule.Factor(3), (1 - std::sqrt(0.5)) / 2, 1e-15);
  EXPECT_DOUBLE_EQ(schedule.Factor(99), schedule.Factor(3));
}

TEST(LrScheduleTest, CosineStartsAtItsTopRightAfterTheWarmUp) {
  const LrSchedule schedule = Make(Plan("cosine", 0.2), 10);
  EXPECT_NEAR(schedule.Factor(0), 1.0 / 3, 1e-15);
  EXPECT_NEAR(schedule.Factor(1), 2.0 / 3, 1e-15);
  EXPECT_DOUBLE_EQ(schedule.Factor(2), 1);
  for (uint64_t step = 3; step < 10; ++step)
    EXPECT_LT(schedule.Factor(step), schedule.Factor(step - 1)) << "step " << step;
}

TEST(LrScheduleTest, PolyIsAPowerOfWhatIsLeft) {
  SchedulePlan plan = Plan("poly");
  const LrSchedule schedule = Make(plan, 4);
  EXPECT_DOUBLE_EQ(schedule.Factor(0), 1);
  EXPECT_DOUBLE_EQ(schedule.Factor(1), std::pow(0.75, 0.9));
  EXPECT_DOUBLE_EQ(schedule.Factor(3), std::pow(0.25, 0.9));
  plan.power = 2;
  plan.warmup = 0.2;
  const LrSchedule square = Make(plan, 10);  // two warm-up steps
  EXPECT_DOUBLE_EQ(square.Factor(1), 2.0 / 3);
  EXPECT_DOUBLE_EQ(square.Factor(2), 1);
  EXPECT_DOUBLE_EQ(square.Factor(6), 0.25);
}

TEST(LrScheduleTest, FallsToTheMinimumThatIsGiven) {
  for (const char* type : {"cosine", "poly"}) {
    SchedulePlan plan = Plan(type);
    plan.power = 1;
    plan.min_factor = 0.1;
    const LrSchedule schedule = Make(plan, 1000);
    EXPECT_DOUBLE_EQ(schedule.Factor(0), 1) << type;
    EXPECT_NEAR(schedule.Factor(500), 0.55, 1e-12) << type;
    EXPECT_NEAR(schedule.Factor(999), 0.1, 1e-3) << type;
    EXPECT_GT(schedule.Factor(999), 0.1) << type;
  }
}

// The values are those of torch.optim.lr_scheduler.OneCycleLR (2.11) with the same arguments, cycle_momentum off.
TEST(LrScheduleTest, OneCycleIsTorchs) {
  const LrSchedule schedule = Make(Plan("one_cycle"), 10);
  const std::vector<double> torchs = {0.040000000000000036,
                                      0.52,
                                      1.0,
                                      0.9504846320134737,
                                      0.8117456539497631,
                                      0.6112620219362893,
                                      0.38874197806371075,
                                      0.18825834605023697,
                                      0.049519367986526286,
                                      4e-06};
  for (uint64_t step = 0; step < 10; ++step) EXPECT_NEAR(schedule.Factor(step), torchs[step], 1e-12) << step;
  EXPECT_DOUBLE_EQ(Make(Plan("one_cycle"), 1).Factor(0), 1);
  for (uint64_t step = 0; step < 3; ++step) EXPECT_LE(Make(Plan("one_cycle"), 3).Factor(step), 1) << step;
}

TEST(LrScheduleTest, StepMultipliesByGammaAtEachMilestone) {
  SchedulePlan plan = Plan("step");
  plan.milestones = {0.5, 0.75};
  plan.gamma = 0.1;
  const LrSchedule schedule = Make(plan, 8);
  EXPECT_DOUBLE_EQ(schedule.Factor(3), 1);
  EXPECT_DOUBLE_EQ(schedule.Factor(4), 0.1);
  EXPECT_DOUBLE_EQ(schedule.Factor(5), 0.1);
  EXPECT_NEAR(schedule.Factor(6), 0.01, 1e-15);
}

TEST(LrScheduleTest, OneStepStagesTrainAtTheFullRate) {
  for (const char* type : {"constant", "cosine", "step"})
    EXPECT_DOUBLE_EQ(Make(Plan(type, 0.9), 1).Factor(0), 1) << type;
}

TEST(LrScheduleTest, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(LrSchedule::Create(Plan("cosin"), 10).status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(LrSchedule::Create(Plan("cosin"), 10).status().ToString().find("'cosine'"), std::string::npos);
  EXPECT_FALSE(LrSchedule::Create(Plan("cosine", 1.0), 10).ok());
  EXPECT_FALSE(LrSchedule::Create(Plan("cosine", std::numeric_limits<double>::quiet_NaN()), 10).ok());
  SchedulePlan plan = Plan("step");
  plan.milestones = {0.5, 0.5};
  EXPECT_FALSE(LrSchedule::Create(plan, 10).ok());
  plan.milestones = {0.5};
  plan.gamma = 0;
  EXPECT_FALSE(LrSchedule::Create(plan, 10).ok());
}

// Phases that share one schedule: each has the part of it from `begin` to `end`.
TEST(LrScheduleTest, PartsOfAScheduleAreContinuousOverThePhases) {
  for (const char* type : {"cosine", "constant", "step"}) {
    SchedulePlan plan = Plan(type, 0.1);
    plan.milestones = {0.2, 0.6};
    const std::vector<std::vector<uint64_t>> splits = {{50, 50}, {30, 70}, {33, 33, 34}, {1, 99}, {20, 20, 20, 20, 20}};
    for (const std::vector<uint64_t>& split : splits) {
      const LrSchedule whole = Make(plan, 100);
      uint64_t done = 0;
      for (uint64_t steps : split) {
        SchedulePlan part = plan;
        part.begin = static_cast<double>(done) / 100;
        part.end = static_cast<double>(done + steps) / 100;
        const LrSchedule schedule = Make(part, steps);
        for (uint64_t step = 0; step < steps; ++step) {
          EXPECT_NEAR(schedule.Factor(step), whole.Factor(done + step), 1e-12)
              << type << " phase of " << steps << " from " << done << " step " << step;
        }
        done += steps;
      }
    }
  }
}

TEST(LrScheduleTest, PartsOfOneScheduleMayDivideItUnevenly) {
  // 7 steps in three phases of thirds (2, 2, 3): whatever the rounding, the rate never rises after the warm-up.
  double previous = 2;
  const std::vector<std::pair<double, double>> parts = {{0, 1.0 / 3}, {1.0 / 3, 2.0 / 3}, {2.0 / 3, 1}};
  const std::vector<uint64_t> steps = {2, 2, 3};
  for (size_t k = 0; k < 3; ++k) {
    SchedulePlan plan = Plan("cosine");
    plan.begin = parts[k].first;
    plan.end = parts[k].second;
    const LrSchedule schedule = Make(plan, steps[k]);
    for (uint64_t step = 0; step < steps[k]; ++step) {
      EXPECT_LE(schedule.Factor(step), previous) << k << " " << step;
      EXPECT_GT(schedule.Factor(step), 0);
      previous = schedule.Factor(step);
    }
  }
}

TEST(LrScheduleTest, RefusesPartsThatAreNone) {
  for (const auto& [begin, end] :
       {std::pair{0.5, 0.5}, {0.7, 0.2}, {-0.1, 0.5}, {0.5, 1.1}, {std::numeric_limits<double>::quiet_NaN(), 1.0}}) {
    SchedulePlan plan = Plan("cosine");
    plan.begin = begin;
    plan.end = end;
    EXPECT_EQ(LrSchedule::Create(plan, 10).status().code(), StatusCode::kInvalidArgument) << begin << " " << end;
  }
}

}  // namespace
}  // namespace distill
