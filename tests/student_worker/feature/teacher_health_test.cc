#include "student_worker/feature/teacher_health.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A clock that the test turns.
class TeacherHealthTest : public ::testing::Test {
 protected:
  double RestSeconds() const { return std::chrono::duration<double>(health_.resting_until() - now_).count(); }
  static double Seconds(TeacherHealth::Duration time) { return std::chrono::duration<double>(time).count(); }
  void Answer(milliseconds took, int times = 1) {
    for (int i = 0; i < times; ++i) health_.OnAnswer(took);
  }

  TeacherHealth::Time now_{std::chrono::hours(1)};
  TeacherHealth health_{TeacherHealth::Options()};
};

TEST_F(TeacherHealthTest, AnUnreachableTeacherIsCalledAgainWithinTwoSeconds) {
  EXPECT_FALSE(health_.Rests(now_));
  for (double expected : {0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0}) {
    health_.OnAway(now_);
    EXPECT_DOUBLE_EQ(RestSeconds(), expected);
    EXPECT_TRUE(health_.Rests(now_));
    now_ = health_.resting_until();
    EXPECT_FALSE(health_.Rests(now_));
  }
  EXPECT_FALSE(health_.on_trial());
  Answer(milliseconds(10));
  health_.OnAway(now_);
  EXPECT_DOUBLE_EQ(RestSeconds(), 0.1);
}

TEST_F(TeacherHealthTest, EachSilenceAndEachWrongAnswerDoublesTheRestUpToMinutes) {
  const double expected[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300};
  for (size_t i = 0; i < std::size(expected); ++i) {
    if (i % 2 == 0) {
      health_.OnStall(now_);
    } else {
      health_.OnWrong(now_);
    }
    EXPECT_DOUBLE_EQ(RestSeconds(), expected[i]);
    EXPECT_DOUBLE_EQ(Seconds(health_.last_rest()), expected[i]);
    EXPECT_TRUE(health_.on_trial());
    now_ = health_.resting_until();
  }
}

TEST_F(TeacherHealthTest, ARightAnswerEndsTheTrialButTheRecordFadesSlowly) {
  for (int i = 0; i < 4; ++i) health_.OnStall(now_);
  EXPECT_TRUE(health_.OnAnswer(milliseconds(10)));
  EXPECT_FALSE(health_.on_trial());
  EXPECT_FALSE(health_.OnAnswer(milliseconds(10)));
  // One that answers now and then rests longer each time all the same.
  now_ += std::chrono::hours(1);
  health_.OnStall(now_);
  EXPECT_DOUBLE_EQ(RestSeconds(), 16);
  now_ += std::chrono::hours(1);
  Answer(milliseconds(10), 32);
  health_.OnStall(now_);
  EXPECT_DOUBLE_EQ(RestSeconds(), 4);  // five strikes, halved
  now_ += std::chrono::hours(1);
  Answer(milliseconds(10), 320);
  health_.OnStall(now_);
  EXPECT_DOUBLE_EQ(RestSeconds(), 1);
}

TEST_F(TeacherHealthTest, BeingAwayDoesNotShortenARest) {
  for (int i = 0; i < 5; ++i) health_.OnStall(now_);
  health_.OnAway(now_);
  EXPECT_DOUBLE_EQ(RestSeconds(), 16);
}

TEST_F(TeacherHealthTest, PatienceGrowsWithTheTimeThatAnswersTake) {
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 30);
  Answer(milliseconds(20), 100);
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 30);
  Answer(seconds(40));
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 160);
  Answer(milliseconds(20), 100);  // long ago
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 30);
  Answer(seconds(400));
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 600);
}

TEST_F(TeacherHealthTest, PatienceDoublesWithEachSilenceUntilAnAnswerComes) {
  for (double expected : {60.0, 120.0, 240.0, 480.0, 600.0, 600.0}) {
    health_.OnStall(now_);
    EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), expected);
  }
  Answer(seconds(100));
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(0)), 400);
}

TEST_F(TeacherHealthTest, LargeAnswersMayTakeTheirTimeOnTheWire) {
  EXPECT_DOUBLE_EQ(Seconds(health_.StallTimeout(64 << 20)), 30 + 64);
  Answer(milliseconds(10));
  EXPECT_DOUBLE_EQ(Seconds(health_.LateAfter(64 << 20, std::nullopt)), 1 + 64);
}

TEST_F(TeacherHealthTest, LateIsFourTimesTheUsual) {
  // Nothing known of anybody: a third of the patience; else the others' usual time, with a floor.
  EXPECT_DOUBLE_EQ(Seconds(health_.LateAfter(0, std::nullopt)), 10);
  EXPECT_DOUBLE_EQ(Seconds(health_.LateAfter(0, milliseconds(20))), 1);
  EXPECT_DOUBLE_EQ(Seconds(health_.LateAfter(0, seconds(2))), 8);
  // Its own, once it has answered: slower than the others is no fault.
  Answer(seconds(3), 3);
  EXPECT_DOUBLE_EQ(Seconds(health_.LateAfter(0, milliseconds(20))), 12);
  // Never later than it is dropped.
  Answer(seconds(20), 50);
  EXPECT_LE(health_.LateAfter(0, std::nullopt), health_.StallTimeout(0));
}

TEST_F(TeacherHealthTest, UnwantedAnswersTeachItsTimeButEndNoTrial) {
  health_.OnStall(now_);
  health_.OnAlive(seconds(5));
  EXPECT_TRUE(health_.on_trial());
  EXPECT_DOUBLE_EQ(Seconds(*health_.usual()), 5);
}

}  // namespace
}  // namespace distill
