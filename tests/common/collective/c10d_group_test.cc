// The group over a backend that fails as a test tells it to: what NCCL does on a GPU, without one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "common/collective/collective_backend.h"

namespace distill {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DoneWork : public c10d::Work {
 public:
  bool wait(std::chrono::milliseconds) override { return true; }
};

// All operations "succeed" at once and leave the tensors as they are, as an operation does that was aborted on a GPU.
class HollowC10d : public c10d::Backend {
 public:
  HollowC10d() : c10d::Backend(0, 2) {}
  const std::string getBackendName() const override { return "hollow"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>&, const c10d::AllreduceOptions&) override {
    if (during) during();
    return c10::make_intrusive<DoneWork>();
  }
  std::function<void()> during;
};

class FakeBackend : public CollectiveBackend {
 public:
  c10::DeviceType device() const override { return c10::DeviceType::CPU; }
  c10d::ProcessGroup::BackendType type() const override { return c10d::ProcessGroup::BackendType::CUSTOM; }
  void Connect() override {
    if (connect) connect();
  }
  void Abort() override {
    if (!aborted.HasBeenNotified()) aborted.Notify();
  }
  Status Check() override { return check; }
  c10::intrusive_ptr<c10d::Backend> c10d() override { return hollow; }

  c10::intrusive_ptr<HollowC10d> hollow = c10::make_intrusive<HollowC10d>();
  std::function<void()> connect;
  Status check;
  absl::Notification aborted;
};

class C10dGroupTest : public testing::Test {
 protected:
  // Rank 0 of 2; the other has just come.
  std::unique_ptr<CollectiveGroup> Make(std::chrono::milliseconds timeout,
                                        std::chrono::milliseconds abort_grace = std::chrono::minutes(30)) {
    const std::shared_ptr<KvClient> client = MakeLocalKvClient();
    EXPECT_TRUE(client->Set("connecting/1", "there").ok());
    const CollectiveGroup::Options options = {.rank = 0, .world_size = 2, .timeout = timeout};
    return MakeC10dGroup(options, c10::make_intrusive<CoordinatorStore>(client, timeout), backend_, abort_grace);
  }
  static constexpr std::chrono::minutes kNever{30};
  std::shared_ptr<FakeBackend> backend_ = std::make_shared<FakeBackend>();
  std::vector<torch::Tensor> tensors_ = {torch::ones({4})};
};

TEST_F(C10dGroupTest, AbortEndsAConnectThatWaitsForALostRank) {
  absl::Notification connecting;
  backend_->connect = [&] {
    connecting.Notify();
    backend_->aborted.WaitForNotification();
    throw std::runtime_error("aborted");
  };
  const auto group = Make(kNever);
  std::thread heartbeat([&] {
    connecting.WaitForNotification();
    group->Abort();
  });
  EXPECT_EQ(group->Connect().code(), StatusCode::kAborted);
  heartbeat.join();
}

TEST_F(C10dGroupTest, ConnectingHasALimit) {
  backend_->connect = [&] { backend_->aborted.WaitForNotification(); };  // as if by an abort it had succeeded
  const auto group = Make(std::chrono::milliseconds(20));
  const Status status = group->Connect();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("rank 0 of 2"), HasSubstr("not connected within 20 ms")));
  EXPECT_EQ(group->AllReduceSum(tensors_).code(), StatusCode::kAborted) << "and stays so";
}

TEST_F(C10dGroupTest, AConnectThatHangsInSpiteOfAllIsGivenUp) {
  auto release = std::make_shared<absl::Notification>();
  auto left = std::make_shared<absl::Notification>();
  backend_->connect = [release, left] {
    release->WaitForNotification();
    left->Notify();
  };
  auto group = Make(std::chrono::milliseconds(20), std::chrono::milliseconds(20));
  const Status status = group->Connect();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("this process cannot form a group any more"));
  group.reset();  // while its thread is still in there
  release->Notify();
  left->WaitForNotification();
}

TEST_F(C10dGroupTest, AnAbortedGroupDoesNotConnect) {
  backend_->connect = [] { ADD_FAILURE() << "connected"; };
  const auto group = Make(kNever);
  group->Abort();
  EXPECT_EQ(group->Connect().code(), StatusCode::kAborted);
}

TEST_F(C10dGroupTest, AResultThatCameWithAnAbortIsNone) {
  const auto group = Make(kNever);
  ASSERT_TRUE(group->Connect().ok());
  backend_->hollow->during = [&] { group->Abort(); };
  EXPECT_EQ(group->AllReduceSum(tensors_).code(), StatusCode::kAborted);
}

TEST_F(C10dGroupTest, WhatTheLibraryHasSeenIsToldAndEndsTheGroup) {
  const auto group = Make(kNever);
  ASSERT_TRUE(group->Connect().ok());
  EXPECT_TRUE(group->Check().ok());
  backend_->check = absl::AbortedError("an operation of NCCL did not end within its time-out");
  EXPECT_TRUE(group->AllReduceSum(tensors_).ok()) << "enqueued: nothing is known yet";
  const Status status = group->Check();
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("time-out"));
  EXPECT_TRUE(backend_->aborted.HasBeenNotified()) << "the other ranks do not wait for this one";
  EXPECT_EQ(group->AllReduceSum(tensors_).code(), StatusCode::kAborted);
}

// While ranks are missing nobody has a connection yet that could break.
TEST(CollectiveGroupTest, AbortEndsTheWaitForMissingRanks) {
  const auto group =
      *CollectiveGroup::Create({.rank = 0, .world_size = 2, .timeout = std::chrono::minutes(30)}, MakeLocalKvClient());
  std::thread heartbeat([&] { group->Abort(); });
  EXPECT_EQ(group->Connect().code(), StatusCode::kAborted);
  heartbeat.join();
}

// Gloo has no abort while it connects, but reads the others' addresses from the store.
TEST(CollectiveGroupTest, AbortEndsGloosConnect) {
  const std::shared_ptr<KvClient> client = MakeLocalKvClient();
  ASSERT_TRUE(client->Set("connecting/1", "127.0.0.1").ok());  // and then nothing more
  const auto group =
      *CollectiveGroup::Create({.rank = 0, .world_size = 2, .timeout = std::chrono::minutes(30)}, client);
  std::thread heartbeat([&] {
    while (*client->Count() < 3) std::this_thread::yield();  // both arrivals and an address: it connects
    group->Abort();
  });
  EXPECT_EQ(group->Connect().code(), StatusCode::kAborted);
  heartbeat.join();
}

}  // namespace
}  // namespace distill
