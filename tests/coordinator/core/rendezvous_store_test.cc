// Scopes and their generations; the key-value semantics are in the KvSuite, over real gRPC
// (tests/coordinator/services).
#include "coordinator/core/rendezvous_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "tests/harness/wall_clock.h"

namespace distill {
namespace {

using testing::HasSubstr;

using Scope = RendezvousStore::Scope;

class RendezvousStoreTest : public testing::Test {
 protected:
  void SetUp() override { RendezvousStore::Run(store_.Open("j", 1, {})); }
  // Waits for keys "k" in generation 1; the answer comes into `answer_`.
  uint64_t Wait(absl::Duration timeout = absl::Seconds(60)) {
    return store_.WaitFor(kOne, {"k"}, timeout, [this](StatusOr<std::string> value) {
      answer_ = std::move(value);
      answered_.Notify();
    });
  }
  static inline const Scope kOne{"j", 1}, kTwo{"j", 2};
  RendezvousStore store_;
  StatusOr<std::string> answer_ = std::string();
  absl::Notification answered_;
};

TEST_F(RendezvousStoreTest, OnlyThePresentGenerationIsServed) {
  EXPECT_TRUE(store_.Set(kOne, "k", "v").ok());
  EXPECT_EQ(store_.Set(kTwo, "k", "v").code(), StatusCode::kAborted);
  EXPECT_EQ(store_.Get({"other", 1}, "k").status().code(), StatusCode::kAborted);
  RendezvousStore::Run(store_.Open("j", 2, {}));
  const Status old = store_.Get(kOne, "k").status();
  EXPECT_EQ(old.code(), StatusCode::kAborted);
  EXPECT_THAT(std::string(old.message()), HasSubstr("is at generation 2, not 1"));
  EXPECT_EQ(store_.Get(kTwo, "k").status().code(), StatusCode::kNotFound) << "the older generation's keys must be gone";
}

TEST_F(RendezvousStoreTest, OpeningTheSameOrAnOlderGenerationChangesNothing) {
  RendezvousStore::Run(store_.Open("j", 2, {}));
  ASSERT_TRUE(store_.Set(kTwo, "k", "v").ok());
  RendezvousStore::Run(store_.Open("j", 2, {}));
  RendezvousStore::Run(store_.Open("j", 1, {}));
  EXPECT_EQ(store_.Get(kTwo, "k").value(), "v");
}

TEST_F(RendezvousStoreTest, AClosedScopeCanBeOpenedForANewerGeneration) {
  ASSERT_TRUE(store_.Set(kOne, "k", "v").ok());
  RendezvousStore::Run(store_.Close("j"));
  EXPECT_EQ(store_.Set(kOne, "k", "v").code(), StatusCode::kAborted);
  RendezvousStore::Run(store_.Open("j", 2, {}));  // a user has resumed the job
  EXPECT_EQ(store_.Get(kTwo, "k").status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(store_.Set(kTwo, "k", "v").ok());
}

TEST_F(RendezvousStoreTest, OnlyMembersAreServed) {
  RendezvousStore::Run(store_.Open("j", 2, {{"s0", "a"}, {"s1", "b"}}));
  EXPECT_TRUE(store_.Set({"j", 2, {"s0", "a"}}, "k", "v").ok());
  EXPECT_EQ(store_.Get({"j", 2, {"s1", "b"}}, "k").value(), "v");
  for (const RankMember& other : {RankMember{"s0", "another process"}, RankMember{"s2", "a"}, RankMember{}}) {
    const Status status = store_.Set({"j", 2, other}, "k", "x");
    EXPECT_EQ(status.code(), StatusCode::kAborted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("holds no rank of job j"));
  }
}

// The wait wants all its keys at one time, in whatever order they come and go.
TEST_F(RendezvousStoreTest, AWaitForManyKeysEndsWhenAllAreThere) {
  store_.WaitFor(kOne, {"a", "b", "a"}, absl::Seconds(60), [this](StatusOr<std::string> value) {
    answer_ = std::move(value);
    answered_.Notify();
  });
  ASSERT_TRUE(store_.Set(kOne, "a", "1").ok());
  ASSERT_TRUE(store_.Set(kOne, "a", "2").ok());
  ASSERT_TRUE(store_.Delete(kOne, "a").value());
  ASSERT_TRUE(store_.Set(kOne, "b", "3").ok());
  EXPECT_FALSE(answered_.HasBeenNotified());
  ASSERT_EQ(store_.Add(kOne, "a", 7).value(), 7);
  ASSERT_TRUE(answered_.HasBeenNotified());
  EXPECT_EQ(answer_.value(), "7");
}

TEST_F(RendezvousStoreTest, AWaitIsAnsweredOnceByTheKey) {
  EXPECT_NE(Wait(), 0u);
  ASSERT_TRUE(store_.Set(kOne, "k", "v").ok());
  answered_.WaitForNotification();
  EXPECT_EQ(answer_.value(), "v");
  ASSERT_TRUE(store_.Set(kOne, "k", "w").ok());  // a second answer would stop the test: Notify() twice is fatal
}

TEST_F(RendezvousStoreTest, APresentKeyIsAnsweredAtOnce) {
  ASSERT_TRUE(store_.Set(kOne, "k", "v").ok());
  EXPECT_EQ(Wait(), 0u);
  EXPECT_TRUE(answered_.HasBeenNotified());
}

TEST_F(RendezvousStoreTest, AWaitRunsOut) {
  Wait(absl::Milliseconds(1));
  answered_.WaitForNotification();
  EXPECT_EQ(answer_.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(answer_.status().message()), HasSubstr("'k'"));
}

TEST_F(RendezvousStoreTest, AWallClockThatIsSetForwardEndsNoWait) {
  Wait();
  const WallClockAhead ahead(std::chrono::hours(1));
  absl::Notification looked;
  store_.WaitFor(kOne, {"other"}, absl::ZeroDuration(), [&](StatusOr<std::string>) { looked.Notify(); });
  looked.WaitForNotification();
  EXPECT_FALSE(answered_.HasBeenNotified());
}

TEST_F(RendezvousStoreTest, AWallClockThatIsSetBackDelaysNoWait) {
  const WallClockAhead ahead(std::chrono::hours(1));  // of what the kernel waits for
  Wait(absl::Milliseconds(1));
  answered_.WaitForNotification();
  EXPECT_EQ(answer_.status().code(), StatusCode::kDeadlineExceeded);
}

TEST_F(RendezvousStoreTest, ANewGenerationEndsTheWaitsOfTheOld) {
  Wait();
  RendezvousStore::Run(store_.Open("j", 2, {}));
  ASSERT_TRUE(answered_.HasBeenNotified());
  EXPECT_EQ(answer_.status().code(), StatusCode::kAborted);
}

TEST_F(RendezvousStoreTest, TheJobsEndEndsItsWaits) {
  Wait();
  RendezvousStore::Run(store_.Close("j"));
  ASSERT_TRUE(answered_.HasBeenNotified());
  EXPECT_EQ(answer_.status().code(), StatusCode::kAborted);
}

TEST_F(RendezvousStoreTest, AWaitCanBeCancelledOnce) {
  const uint64_t ticket = Wait();
  store_.CancelWait(ticket);
  ASSERT_TRUE(answered_.HasBeenNotified());
  EXPECT_EQ(answer_.status().code(), StatusCode::kCancelled);
  store_.CancelWait(ticket);
}

TEST_F(RendezvousStoreTest, WaitsAreBounded) {
  for (size_t i = 0; i < RendezvousStore::kMaxWaits; ++i) {
    ASSERT_NE(store_.WaitFor(kOne, {"never"}, absl::Seconds(60), [](StatusOr<std::string>) {}), 0u);
  }
  EXPECT_EQ(Wait(), 0u);
  EXPECT_EQ(answer_.status().code(), StatusCode::kResourceExhausted);
}

TEST(RendezvousStoreEndTest, TheEndAnswersWaits) {
  Status status;
  {
    RendezvousStore store;
    RendezvousStore::Run(store.Open("j", 1, {}));
    store.WaitFor({"j", 1}, {"k"}, absl::Seconds(60), [&](StatusOr<std::string> value) { status = value.status(); });
  }
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace distill
