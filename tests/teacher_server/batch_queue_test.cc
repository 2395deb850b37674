#include "teacher_server/batch_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Taps = std::shared_ptr<const std::vector<TapRequest>>;
Taps MakeTaps(const std::string& path) {
  return std::make_shared<const std::vector<TapRequest>>(std::vector<TapRequest>{{path, WireDtype::kF32, false}});
}

QueuedRequest Item(uint64_t client, uint64_t tag, uint32_t images, Taps taps = MakeTaps("layer1"),
                   bool exclusive = false, uint32_t side = 8) {
  QueuedRequest item;
  item.request.client = client;
  item.request.tag = tag;
  item.request.taps = std::move(taps);
  item.request.images = ImageBatch{images, 3, side, side, Buffer{}};
  item.request.exclusive = exclusive;
  return item;
}

std::vector<uint64_t> Tags(const std::vector<QueuedRequest>& batch) {
  std::vector<uint64_t> tags;
  for (const QueuedRequest& item : batch) tags.push_back(item.request.tag);
  return tags;
}

TEST(BatchQueueTest, RequestsOfSeveralClientsRunTogetherUpToTheLimit) {
  BatchQueue queue(32);
  for (uint64_t client = 1; client <= 5; ++client) ASSERT_TRUE(queue.Push(Item(client, client, 8)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(5));
  EXPECT_EQ(queue.size(), 0);
}

TEST(BatchQueueTest, AClientWithManyRequestsDoesNotPushTheOthersOut) {
  BatchQueue queue(4);
  for (uint64_t tag = 10; tag < 16; ++tag) ASSERT_TRUE(queue.Push(Item(1, tag, 1)));
  ASSERT_TRUE(queue.Push(Item(2, 20, 1)));
  ASSERT_TRUE(queue.Push(Item(3, 30, 1)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(10, 20, 30, 11));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(12, 13, 14, 15));
}

TEST(BatchQueueTest, ClientsLeadByTurns) {
  BatchQueue queue(1);
  for (uint64_t tag = 10; tag < 13; ++tag) ASSERT_TRUE(queue.Push(Item(1, tag, 1)));
  for (uint64_t tag = 20; tag < 22; ++tag) ASSERT_TRUE(queue.Push(Item(2, tag, 1)));
  std::vector<uint64_t> order;
  while (queue.size() > 0) order.push_back(queue.PopBatch().front().request.tag);
  EXPECT_THAT(order, ElementsAre(10, 20, 11, 21, 12));
}

TEST(BatchQueueTest, OtherTapsOtherShapesAndExclusiveOnesDoNotJoin) {
  BatchQueue queue(64);
  ASSERT_TRUE(queue.Push(Item(1, 1, 1)));
  ASSERT_TRUE(queue.Push(Item(2, 2, 1, MakeTaps("layer2"))));
  ASSERT_TRUE(queue.Push(Item(3, 3, 1, MakeTaps("layer1"), /*exclusive=*/true)));
  ASSERT_TRUE(queue.Push(Item(4, 4, 1, MakeTaps("layer1"), false, /*side=*/16)));
  ASSERT_TRUE(queue.Push(Item(5, 5, 1)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1, 5));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(2));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(3));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(4));
}

TEST(BatchQueueTest, AnExclusiveRequestRunsAlone) {
  BatchQueue queue(64);
  ASSERT_TRUE(queue.Push(Item(1, 1, 1, MakeTaps("layer1"), /*exclusive=*/true)));
  ASSERT_TRUE(queue.Push(Item(2, 2, 1)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(2));
}

TEST(BatchQueueTest, OneClientsRequestsKeepTheirOrder) {
  BatchQueue queue(64);
  // The second of client 2 would fit the leader, but its first does not.
  ASSERT_TRUE(queue.Push(Item(1, 1, 1)));
  ASSERT_TRUE(queue.Push(Item(2, 20, 1, MakeTaps("layer2"))));
  ASSERT_TRUE(queue.Push(Item(2, 21, 1)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(20));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(21));
}

TEST(BatchQueueTest, ARequestAboveTheLimitRunsAloneAndUnsplit) {
  BatchQueue queue(4);
  ASSERT_TRUE(queue.Push(Item(1, 1, 100)));
  ASSERT_TRUE(queue.Push(Item(2, 2, 1)));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(2));
}

TEST(BatchQueueTest, RemoveTakesOutOneTagOrAWholeClient) {
  BatchQueue queue(64);
  for (uint64_t tag = 10; tag < 13; ++tag) ASSERT_TRUE(queue.Push(Item(1, tag, 1)));
  ASSERT_TRUE(queue.Push(Item(2, 11, 1)));
  EXPECT_THAT(Tags(queue.Remove(1, 11)), ElementsAre(11));
  EXPECT_THAT(Tags(queue.Remove(1, 99)), IsEmpty());
  EXPECT_THAT(Tags(queue.Remove(7, std::nullopt)), IsEmpty());
  EXPECT_THAT(Tags(queue.Remove(1, std::nullopt)), ElementsAre(10, 12));
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(11));
  ASSERT_TRUE(queue.Push(Item(1, 13, 1)));  // a client may come back
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(13));
}

TEST(BatchQueueTest, AClosedQueueRefusesNewRequestsAndHandsOutTheRest) {
  BatchQueue queue(64);
  ASSERT_TRUE(queue.Push(Item(1, 1, 1)));
  queue.Close();
  QueuedRequest late = Item(1, 2, 5);
  EXPECT_FALSE(queue.Push(std::move(late)));
  EXPECT_EQ(late.request.tag, 2);  // unchanged, so that its callback can still be called
  EXPECT_THAT(Tags(queue.PopBatch()), ElementsAre(1));
  EXPECT_THAT(Tags(queue.PopBatch()), IsEmpty());
}

TEST(BatchQueueTest, CloseWakesAWaitingThread) {
  BatchQueue queue(64);
  std::thread waiting([&] { EXPECT_THAT(Tags(queue.PopBatch()), IsEmpty()); });
  queue.Close();
  waiting.join();
}

}  // namespace
}  // namespace distill
