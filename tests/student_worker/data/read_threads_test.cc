#include "student_worker/data/read_threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <new>
#include <set>

#include "common/str_cat.h"

namespace distill {
namespace {

TEST(ReadThreadsTest, EveryIndexRunsOnceForEachOfManyCallers) {
  for (const uint32_t count : {0u, 1u, 2u, 5u}) {
    ReadThreads threads(count);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&] {
        for (int round = 0; round < 50; ++round) {
          std::vector<std::atomic<int>> seen(37);
          EXPECT_TRUE(threads.ForEach(seen.size(), [&](size_t i) { return ++seen[i], OkStatus(); }).ok());
          for (const auto& times : seen) EXPECT_EQ(times, 1);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_TRUE(threads.ForEach(0, [](size_t) { return absl::InternalError("never"); }).ok());
  }
}

TEST(ReadThreadsTest, TheErrorOfTheSmallestIndexComesBackAndEndsTheLoop) {
  ReadThreads threads(3);
  std::atomic<int> ran = 0;
  const Status status = threads.ForEach(1'000'000, [&](size_t i) -> Status {
    ++ran;
    return i >= 3 ? absl::DataLossError(StrCat("index ", i)) : OkStatus();
  });
  EXPECT_EQ(status.message(), "index 3");
  EXPECT_LT(ran, 1000);
  EXPECT_EQ(threads.ForEach(5, [](size_t) -> Status { throw std::bad_alloc(); }).code(),
            StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace distill
