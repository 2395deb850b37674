// Ranks are threads that share a store; the groups that form are real ones over loopback.
#include "student_worker/train/form_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A coordinator's store as clients see it: it can restart, which forgets everything, and be away. Thread-safe.
class RestartingStore : public KvClient {
 public:
  void Restart() {
    absl::MutexLock lock(&mutex_);
    keys_ = MakeLocalKvClient();
  }
  void SetAway(bool away) { away_ = away; }
  // What every call answers from now on.
  void End(const Status& status) {
    absl::MutexLock lock(&mutex_);
    ended_ = status;
  }

  Status Set(const std::string& key, const std::string& value) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Set(key, value);
  }
  StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Get(key, timeout);
  }
  StatusOr<int64_t> Add(const std::string& key, int64_t amount) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Add(key, amount);
  }
  StatusOr<std::string> CompareSet(const std::string& key, const std::string& expected,
                                   const std::string& desired) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->CompareSet(key, expected, desired);
  }
  StatusOr<bool> Check(const std::vector<std::string>& names) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Check(names);
  }
  Status Wait(const std::vector<std::string>& names, std::chrono::milliseconds timeout) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Wait(names, timeout);
  }
  StatusOr<bool> Delete(const std::string& key) override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Delete(key);
  }
  StatusOr<int64_t> Count() override {
    DISTILL_ASSIGN_OR_RETURN(const auto keys, Keys());
    return keys->Count();
  }

 private:
  StatusOr<std::shared_ptr<KvClient>> Keys() {
    if (away_) return absl::UnavailableError("connection refused");
    absl::MutexLock lock(&mutex_);
    if (!ended_.ok()) return ended_;
    return keys_;
  }

  std::atomic<bool> away_{false};
  absl::Mutex mutex_;
  std::shared_ptr<KvClient> keys_ ABSL_GUARDED_BY(mutex_) = MakeLocalKvClient();
  Status ended_ ABSL_GUARDED_BY(mutex_);
};

class FormGroupTest : public testing::Test {
 protected:
  FormGroupOptions Options(uint32_t rank, uint32_t world_size = 2) {
    FormGroupOptions options;
    options.rank = rank;
    options.world_size = world_size;
    options.self = {.worker_id = "s" + std::to_string(rank), .host = "127.0.0.1", .device = "cpu", .device_id = ""};
    options.round = std::chrono::milliseconds(10);
    return options;
  }
  // Forms the group as `options` say on a thread of its own; the threads are joined at the end of the test.
  void Start(const FormGroupOptions& options, StatusOr<std::shared_ptr<CollectiveGroup>>* group,
             JobControl* control = nullptr) {
    if (control == nullptr) {
      controls_.push_back(std::make_unique<JobControl>(std::vector<TeacherEndpoint>()));
      control = controls_.back().get();
    }
    threads_.emplace_back([this, options, group, control] { *group = FormGroup(options, store_, control); });
  }
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  void TearDown() override { Join(); }

  std::shared_ptr<RestartingStore> store_ = std::make_shared<RestartingStore>();
  std::vector<std::unique_ptr<JobControl>> controls_;
  std::vector<std::thread> threads_;
};

TEST_F(FormGroupTest, ARestartedCoordinatorIsToldAgainWhoIsThere) {
  StatusOr<std::shared_ptr<CollectiveGroup>> first, second;
  absl::Notification waits;
  FormGroupOptions options = Options(0);
  options.on_waiting = [&](const std::string& reason, double) {
    if (reason == "waiting for rank 1" && !waits.HasBeenNotified()) waits.Notify();
  };
  Start(options, &first);
  waits.WaitForNotification();
  store_->Restart();
  Start(Options(1), &second);
  Join();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
}

TEST_F(FormGroupTest, ACoordinatorThatIsAwayIsWaitedFor) {
  StatusOr<std::shared_ptr<CollectiveGroup>> first, second;
  absl::Notification waits;
  store_->SetAway(true);
  FormGroupOptions options = Options(0);
  options.on_waiting = [&](const std::string& reason, double) {
    if (waits.HasBeenNotified()) return;
    EXPECT_EQ(reason, "waiting for the coordinator");
    waits.Notify();
  };
  Start(options, &first);
  waits.WaitForNotification();
  store_->SetAway(false);
  Start(Options(1), &second);
  Join();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
}

TEST_F(FormGroupTest, TheReasonNamesAllRanksThatAreMissing) {
  StatusOr<std::shared_ptr<CollectiveGroup>> group;
  JobControl control({});
  FormGroupOptions options = Options(1, 4);
  std::string seen;
  options.on_waiting = [&](const std::string& reason, double seconds) {
    seen = reason;
    EXPECT_GE(seconds, 0);
    control.Revoke();
  };
  Start(options, &group, &control);
  Join();
  EXPECT_EQ(seen, "waiting for ranks 0, 2, 3");
}

TEST_F(FormGroupTest, AStopIsObeyedWhileRanksAreMissingOrTheCoordinatorIsAway) {
  for (const bool away : {false, true}) {
    store_->SetAway(away);
    for (void (JobControl::*stop)() : {&JobControl::Revoke, &JobControl::Cancel, &JobControl::Terminate}) {
      StatusOr<std::shared_ptr<CollectiveGroup>> group;
      JobControl control({});
      FormGroupOptions options = Options(0);
      options.on_waiting = [&](const std::string&, double) { (control.*stop)(); };
      Start(options, &group, &control);
      Join();
      EXPECT_EQ(group.status().code(), StatusCode::kCancelled) << group.status();
    }
  }
}

TEST_F(FormGroupTest, AnEndedGenerationIsNoFailure) {
  store_->End(absl::AbortedError("generation 3 is over"));
  StatusOr<std::shared_ptr<CollectiveGroup>> group;
  Start(Options(0), &group);
  Join();
  EXPECT_EQ(group.status().code(), StatusCode::kCancelled);
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("generation 3 is over"));
}

TEST_F(FormGroupTest, RevokingBreaksTheFormedGroup) {
  StatusOr<std::shared_ptr<CollectiveGroup>> first, second;
  JobControl control({});
  Start(Options(0), &first, &control);
  Start(Options(1), &second);
  Join();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  control.Revoke();
  std::vector<torch::Tensor> tensors = {torch::ones({1})};
  EXPECT_EQ((*first)->AllReduceSum(tensors).code(), StatusCode::kAborted);
}

TEST_F(FormGroupTest, OneRankNeedsNoStore) {
  JobControl control({});
  const auto group = FormGroup(Options(0, 1), nullptr, &control);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->world_size(), 1u);
}

TEST_F(FormGroupTest, TwoRanksOnOneGpuAreRefusedAndTheSecondSaysSo) {
  StatusOr<std::shared_ptr<CollectiveGroup>> first, second;
  FormGroupOptions options = Options(0);
  options.self.device = "cuda:0";
  options.self.device_id = "GPU-1";
  Start(options, &first);
  options = Options(1);
  options.self.device = "cuda:3";  // another index in another process, the same GPU
  options.self.device_id = "GPU-1";
  Start(options, &second);
  Join();
  EXPECT_EQ(first.status().code(), StatusCode::kCancelled) << first.status();
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition) << second.status();
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr("rank 0 (s0 at 127.0.0.1)"), HasSubstr("rank 1 (s1 at 127.0.0.1)"), HasSubstr("GPU-1"),
                    HasSubstr("--device cuda:N")));
}

TEST_F(FormGroupTest, AMixtureOfDevicesIsRefusedAndTheOddRankSaysSo) {
  StatusOr<std::shared_ptr<CollectiveGroup>> first, second;
  FormGroupOptions options = Options(0);
  options.self.device = "cuda:0";
  options.self.device_id = "GPU-1";
  Start(options, &first);
  Start(Options(1), &second);
  Join();
  EXPECT_EQ(first.status().code(), StatusCode::kCancelled) << first.status();
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition) << second.status();
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr("rank 0 (s0 at 127.0.0.1) on cuda:0"), HasSubstr("rank 1 (s1 at 127.0.0.1) on cpu"),
                    HasSubstr("`device: cpu`")));
}

TEST(JudgeDevicesTest, TheMajorityStaysAndEachGpuHasOneRank) {
  const RankIdentity cpu = {.worker_id = "c", .host = "h", .device = "cpu", .device_id = ""};
  const auto gpu = [](const std::string& id) {
    return RankIdentity{.worker_id = "g" + id, .host = "h", .device = "cuda:0", .device_id = id};
  };
  EXPECT_THAT(JudgeDevices({cpu, cpu, cpu}).odd, IsEmpty());
  EXPECT_THAT(JudgeDevices({gpu("a"), gpu("b")}).odd, IsEmpty());
  EXPECT_THAT(JudgeDevices({cpu, gpu("a"), gpu("b")}).odd, ElementsAre(0u));
  EXPECT_THAT(JudgeDevices({gpu("a"), cpu, cpu}).odd, ElementsAre(0u));
  EXPECT_THAT(JudgeDevices({cpu, gpu("a")}).odd, ElementsAre(1u));
  EXPECT_THAT(JudgeDevices({gpu("a"), gpu("b"), gpu("a"), gpu("a")}).odd, ElementsAre(2u, 3u));
}

}  // namespace
}  // namespace distill
