#include "student_worker/train/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

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

}  // namespace
}  // namespace distill
