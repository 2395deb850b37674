// Lock-step over a group that does as a test tells it to.
#include "student_worker/train/lockstep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <functional>
#include <new>

#include "absl/synchronization/notification.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two ranks, of which the other says the same as this one unless told otherwise.
class FakeGroup : public CollectiveGroup {
 public:
  Status Connect() override { return OkStatus(); }
  uint32_t rank() const override { return 0; }
  uint32_t world_size() const override { return 2; }
  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override {
    ++meetings;
    if (all_reduce) return all_reduce(tensors[0]);
    tensors[0].mul_(2);
    return OkStatus();
  }
  Status Broadcast(std::vector<torch::Tensor>&, uint32_t) override { return OkStatus(); }
  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>&) override {
    return absl::UnimplementedError("no reducer");
  }
  Status Check() override { return check; }
  void Abort() override { aborted = true; }

  std::function<Status(torch::Tensor&)> all_reduce;
  Status check;
  std::atomic<int> meetings{0};
  std::atomic<bool> aborted{false};
};

class LockstepTest : public testing::Test {
 protected:
  FakeGroup group_;
  JobControl control_{{}};
  Lockstep lockstep_{&group_, &control_, torch::kCPU, std::chrono::milliseconds(1)};
};

TEST_F(LockstepTest, RanksLearnTheSame) {
  const auto round = lockstep_.Meet({.failed = true, .waiting = false, .values = {0.5, 3}});
  ASSERT_TRUE(round.ok()) << round.status();
  EXPECT_EQ(round->failed, 2u);
  EXPECT_EQ(round->waiting, 0u);
  EXPECT_THAT(round->sums, ElementsAre(1.0, 6.0));
  EXPECT_FALSE(lockstep_.stopping());
}

// On a GPU the all-reduce of a lost peer is aborted, ends as if it had succeeded, and leaves numbers that are no sums.
TEST_F(LockstepTest, NothingIsDecidedByNumbersOfAnAbortedGroup) {
  group_.check = absl::AbortedError("aborted");
  EXPECT_EQ(lockstep_.Meet({.values = {1}}).status().code(), StatusCode::kAborted);
}

TEST_F(LockstepTest, ASumWithoutAllRanksIsNoticed) {
  group_.all_reduce = [](torch::Tensor&) { return OkStatus(); };  // this rank's own numbers stay
  const auto round = lockstep_.Meet({.values = {1}});
  EXPECT_EQ(round.status().code(), StatusCode::kAborted);
  EXPECT_THAT(std::string(round.status().message()), HasSubstr("a sum over 2 ranks came back with the parts of 1"));
}

TEST_F(LockstepTest, LackOfMemoryInAMeetingIsToldAndEndsTheGroup) {
  group_.all_reduce = [](torch::Tensor&) -> Status { throw std::bad_alloc(); };
  EXPECT_EQ(lockstep_.Meet({}).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(group_.aborted) << "the others would wait for this rank";
}

TEST_F(LockstepTest, ARevocationIsNoFailure) {
  group_.all_reduce = [this](torch::Tensor&) {
    control_.Revoke();
    return absl::AbortedError("aborted");
  };
  EXPECT_EQ(lockstep_.Meet({}).status().code(), StatusCode::kCancelled);
}

// The work goes on while the ranks meet; it must be over, and the process alive, when Together returns.
TEST_F(LockstepTest, WorkIsJoinedWhenAMeetingThrows) {
  absl::Notification met;
  std::atomic<bool> over{false};
  group_.all_reduce = [&](torch::Tensor&) -> Status {
    if (!met.HasBeenNotified()) met.Notify();
    throw std::bad_alloc();
  };
  const Status status = lockstep_.Together("work", [&] {
    met.WaitForNotification();
    over = true;
    return OkStatus();
  });
  EXPECT_TRUE(over);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
}

TEST_F(LockstepTest, AnExceptionOfTheWorkIsItsStatus) {
  EXPECT_EQ(lockstep_.Together("work", []() -> Status { throw std::bad_alloc(); }).code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(lockstep_.Together("work", []() -> Status { throw 1; }).code(), StatusCode::kInternal);
}

TEST_F(LockstepTest, AnotherRanksFailureIsTold) {
  group_.all_reduce = [](torch::Tensor& values) {
    values.mul_(2);
    values[1] += 1;  // the other has failed
    return OkStatus();
  };
  EXPECT_EQ(lockstep_.Together("work", [] { return OkStatus(); }).code(), StatusCode::kAborted);
  EXPECT_TRUE(lockstep_.peer_failed());
}

TEST_F(LockstepTest, AllMeetUntilTheLastIsDone) {
  group_.all_reduce = [this](torch::Tensor& values) {
    values.mul_(2);
    values[2] = group_.meetings < 5 ? 1 : 0;  // the other is at work for four meetings
    return OkStatus();
  };
  EXPECT_TRUE(lockstep_.Together("work", nullptr).ok());
  EXPECT_EQ(group_.meetings, 5);
}

TEST_F(LockstepTest, AllRanksKnowOfACancelThatOneWasTold) {
  EXPECT_FALSE(lockstep_.cancel_asked());
  group_.all_reduce = [](torch::Tensor& values) {
    values.mul_(2);
    values[3] = 1;  // the other was told
    return OkStatus();
  };
  ASSERT_TRUE(lockstep_.Meet({}).ok());
  EXPECT_TRUE(lockstep_.cancel_asked());
  EXPECT_TRUE(lockstep_.stopping());
}

// Loading can take minutes, and the time after SIGTERM is short.
TEST_F(LockstepTest, WorkSeesThatAnotherRankIsToldToStop) {
  group_.all_reduce = [](torch::Tensor& values) {
    values.mul_(2);
    values[4] = 1;  // the other is to exit
    return OkStatus();
  };
  const Status status = lockstep_.Together("work", [this]() -> Status {
    while (!lockstep_.stopping()) std::this_thread::yield();
    return absl::CancelledError("stopped while loading");
  });
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
}

TEST_F(LockstepTest, WorkSeesItsOwnStop) {
  for (void (JobControl::*stop)() : {&JobControl::Revoke, &JobControl::Cancel, &JobControl::Terminate}) {
    JobControl control({});
    const Lockstep lockstep(&group_, &control, torch::kCPU);
    EXPECT_FALSE(lockstep.stopping());
    (control.*stop)();
    EXPECT_TRUE(lockstep.stopping());
  }
}

}  // namespace
}  // namespace distill
