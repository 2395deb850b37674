#include "coordinator/core/job_feed.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(JobFeedTest, TellsTheWatchersOfTheJob) {
  JobFeed feed;
  int a = 0, b = 0;
  const uint64_t first = feed.Subscribe("a", [&] { ++a; });
  feed.Subscribe("b", [&] { ++b; });
  feed.Notify("a");
  feed.Notify("nobody");
  EXPECT_EQ(a, 1);
  EXPECT_EQ(b, 0);
  feed.Unsubscribe(first);
  feed.Notify("a");
  EXPECT_EQ(a, 1);
  EXPECT_EQ(feed.watchers(), 1u);
}

TEST(JobFeedTest, ACallbackMayUnsubscribeItself) {
  JobFeed feed;
  uint64_t ticket = 0;
  int calls = 0;
  ticket = feed.Subscribe("a", [&] {
    ++calls;
    feed.Unsubscribe(ticket);
  });
  feed.Notify("a");
  feed.Notify("a");
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace distill
