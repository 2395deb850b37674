// What every KvClient promises, as a parameterised suite. A test program includes this once and adds
//   INSTANTIATE_TEST_SUITE_P(MyStore, KvSuite, testing::Values(KvSuiteParam{"MyStore", [] { return
//   std::make_unique<MyHarness>(); }}));
#ifndef DISTILL_TESTS_COMMON_RENDEZVOUS_KV_SUITE_H_
#define DISTILL_TESTS_COMMON_RENDEZVOUS_KV_SUITE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "common/rendezvous/kv_client.h"

namespace distill {

// One empty store, made anew for each test.
class KvHarness {
 public:
  virtual ~KvHarness() = default;
  // A client of the store: one per rank.
  virtual std::shared_ptr<KvClient> Client() = 0;
};

struct KvSuiteParam {
  std::string name;
  std::function<std::unique_ptr<KvHarness>()> make;
};
inline void PrintTo(const KvSuiteParam& param, std::ostream* out) { *out << param.name; }

class KvSuite : public testing::TestWithParam<KvSuiteParam> {
 protected:
  void SetUp() override {
    harness_ = GetParam().make();
    first_ = harness_->Client();
    second_ = harness_->Client();
  }
  static constexpr std::chrono::milliseconds kNow{0}, kShort{50}, kLong{30000};

  std::unique_ptr<KvHarness> harness_;
  std::shared_ptr<KvClient> first_, second_;
};

TEST_P(KvSuite, WhatOneSetsTheOtherGets) {
  const std::string binary("\x00\xFF\n\x80", 4);
  ASSERT_TRUE(first_->Set("key", binary).ok());
  EXPECT_EQ(second_->Get("key", kNow).value(), binary);
  ASSERT_TRUE(second_->Set("key", "").ok());
  EXPECT_EQ(first_->Get("key", kNow).value(), "");
  EXPECT_EQ(first_->Count().value(), 1);
}

TEST_P(KvSuite, GetOfAnAbsentKeyRunsIntoItsDeadline) {
  for (std::chrono::milliseconds timeout : {kNow, kShort}) {
    const Status status = first_->Get("absent", timeout).status();
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("absent"));
  }
}

TEST_P(KvSuite, GetAndWaitAreWokenByASet) {
  auto get = std::async(std::launch::async, [&] { return first_->Get("a", kLong); });
  auto wait = std::async(std::launch::async, [&] { return first_->Wait({"a", "b"}, kLong); });
  ASSERT_TRUE(second_->Set("a", "1").ok());
  EXPECT_EQ(get.get().value(), "1");
  EXPECT_EQ(wait.wait_for(kShort), std::future_status::timeout) << "woken before all keys were there";
  ASSERT_TRUE(second_->Add("b", 1).ok());
  const Status status = wait.get();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(KvSuite, WaitForPresentKeysReturnsAtOnceAndForMissingOnesExpires) {
  ASSERT_TRUE(first_->Set("a", "1").ok());
  EXPECT_TRUE(first_->Wait({"a"}, kNow).ok());
  EXPECT_EQ(first_->Wait({"a", "b"}, kShort).code(), StatusCode::kDeadlineExceeded);
}

TEST_P(KvSuite, AddCountsInDecimalFromZero) {
  EXPECT_EQ(first_->Add("n", 5).value(), 5);
  EXPECT_EQ(second_->Add("n", -7).value(), -2);
  EXPECT_EQ(first_->Get("n", kNow).value(), "-2");
  ASSERT_TRUE(first_->Set("n", "41").ok());
  EXPECT_EQ(first_->Add("n", 1).value(), 42);
  EXPECT_EQ(first_->Add("n", 0).value(), 42);
  ASSERT_TRUE(first_->Set("text", "4x").ok());
  EXPECT_EQ(first_->Add("text", 1).status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(first_->Set("n", "9223372036854775807").ok());
  EXPECT_EQ(first_->Add("n", 1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(first_->Get("n", kNow).value(), "9223372036854775807");
}

TEST_P(KvSuite, AddsOfManyThreadsAllCount) {
  std::vector<std::future<void>> threads;
  for (int t = 0; t < 4; ++t) {
    threads.push_back(std::async(std::launch::async, [&, t] {
      for (int i = 0; i < 50; ++i) ASSERT_TRUE((t % 2 == 0 ? first_ : second_)->Add("n", 1).ok());
    }));
  }
  for (std::future<void>& thread : threads) thread.get();
  EXPECT_EQ(first_->Get("n", kNow).value(), "200");
}

TEST_P(KvSuite, CompareSetChangesOnlyWhatItExpected) {
  EXPECT_EQ(first_->CompareSet("k", "old", "new").value(), "");  // absent, and something was expected
  EXPECT_FALSE(first_->Check({"k"}).value());
  EXPECT_EQ(first_->CompareSet("k", "", "one").value(), "one");
  EXPECT_EQ(second_->CompareSet("k", "", "two").value(), "one");
  EXPECT_EQ(second_->CompareSet("k", "one", "two").value(), "two");
  EXPECT_EQ(first_->Get("k", kNow).value(), "two");
}

TEST_P(KvSuite, CheckAndDelete) {
  ASSERT_TRUE(first_->Set("a", "1").ok());
  ASSERT_TRUE(first_->Set("b", "1").ok());
  EXPECT_TRUE(second_->Check({"a", "b"}).value());
  EXPECT_FALSE(second_->Check({"a", "c"}).value());
  EXPECT_TRUE(second_->Delete("a").value());
  EXPECT_FALSE(second_->Delete("a").value());
  EXPECT_FALSE(first_->Check({"a", "b"}).value());
  EXPECT_EQ(first_->Count().value(), 1);
}

TEST_P(KvSuite, LimitsAreInclusiveAndNamed) {
  const std::string longest_key(kKvMaxKeyBytes, 'k'), longest_value(kKvMaxValueBytes, 'v');
  EXPECT_TRUE(first_->Set(longest_key, longest_value).ok());
  EXPECT_EQ(first_->Get(longest_key, kNow).value(), longest_value);
  for (const Status& status :
       {first_->Set("", "x"), first_->Set(longest_key + "k", "x"), first_->Set("k", longest_value + "v"),
        first_->Set("\xFF", "x"), first_->CompareSet("k", "", longest_value + "v").status(),
        first_->Get("", kNow).status(), first_->Add("", 1).status(), first_->Delete("").status(),
        first_->Check({}).status(), first_->Wait({}, kNow), first_->Wait({"a", ""}, kNow)}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  }
  EXPECT_EQ(first_->Count().value(), 1);
}

TEST_P(KvSuite, AFullScopeRefusesMoreUntilSomethingIsDeleted) {
  const std::string value(kKvMaxValueBytes, 'v');
  int stored = 0;
  Status status;
  while (stored < 100 && (status = first_->Set(std::to_string(stored), value)).ok()) ++stored;
  EXPECT_EQ(stored, 63);  // 64 MiB less the keys
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(first_->Set("0", value).ok());  // a replacement takes no more
  ASSERT_TRUE(first_->Delete("0").value());
  EXPECT_TRUE(first_->Set("again", value).ok());
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_RENDEZVOUS_KV_SUITE_H_
