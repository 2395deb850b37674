#include "student_worker/train/data_agreement.h"

#include "student_worker/train/failure_class.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::HasSubstr;

DataIndex Index(char digit, uint64_t train, uint64_t classes = 3) {
  return {.digest = std::string(64, digit), .train = train, .test = 30, .unlabelled = 0, .classes = classes};
}

TEST(JudgeDataTest, TheFewAreWrongAndLearnInWhat) {
  const std::vector<DataIndex> ranks = {Index('a', 60), Index('b', 54, 2), Index('a', 60)};
  EXPECT_EQ(JudgeData(ranks, 0).code(), StatusCode::kAborted);
  EXPECT_THAT(JudgeData(ranks, 2).ToString(), HasSubstr("rank 1 loaded another data set"));
  const Status own = JudgeData(ranks, 1);
  EXPECT_EQ(ClassOf(own), FailureKind::kWorker) << own;
  EXPECT_THAT(own.ToString(), HasSubstr("not that of ranks 0, 2: 54 training images instead of 60, 2 classes instead "
                                        "of 3"));
}

TEST(JudgeDataTest, EqualCountsWithAnotherDigestAreToldApart) {
  const std::vector<DataIndex> ranks = {Index('a', 60), Index('b', 60)};
  EXPECT_EQ(JudgeData(ranks, 0).code(), StatusCode::kAborted);  // in a draw rank 0 is right
  EXPECT_THAT(JudgeData(ranks, 1).ToString(), HasSubstr("other names, labels, sizes or another order"));
}

TEST(JudgeDataTest, EqualIndicesAreFine) {
  EXPECT_TRUE(JudgeData({Index('a', 60), Index('a', 60)}, 1).ok());
  EXPECT_TRUE(JudgeData({Index('a', 60)}, 0).ok());
}

// Each digit of the digest counts.
TEST(AgreeOnDataTest, RanksComeToOneVerdict) {
  for (size_t differs : {0u, 11u, 12u, 63u}) {
    std::vector<Status> verdicts(3);
    std::vector<char> peer_failed(3);
    OnRanks(3, [&](uint32_t rank, std::shared_ptr<KvClient> store) {
      Rank self(SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 1)}), rank, 3, std::move(store));
      DataIndex index = Index('f', 60);
      if (rank == 2) index.digest[differs] = '0';
      verdicts[rank] = AgreeOnData(index, self.lockstep.get());
      peer_failed[rank] = self.lockstep->peer_failed();
    });
    EXPECT_EQ(verdicts[0].code(), StatusCode::kAborted) << verdicts[0];
    EXPECT_EQ(verdicts[1].code(), StatusCode::kAborted) << verdicts[1];
    EXPECT_EQ(verdicts[2].code(), StatusCode::kFailedPrecondition) << differs << ": " << verdicts[2];
    EXPECT_EQ(peer_failed, (std::vector<char>{1, 1, 0}));
  }
}

TEST(AgreeOnDataTest, WhatOnlyOtherRanksFoundOddIsToldByThem) {
  std::vector<std::vector<std::string>> told(3);
  OnRanks(3, [&](uint32_t rank, std::shared_ptr<KvClient> store) {
    Rank self(SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 1)}), rank, 3, std::move(store));
    const std::string root = "/data-" + std::to_string(rank);
    std::vector<std::string> warnings = {"Litter: '" + root + "/a.png'.", "Stray bytes: '" + root + "/b.jpg'."};
    if (rank == 1) warnings.push_back("Litter: '" + root + "/._c.png'.");
    if (rank == 2) warnings.clear();
    told[rank] = NotSaidByLeader(warnings, root, self.lockstep.get()).value();
  });
  EXPECT_THAT(told[0], testing::IsEmpty());
  EXPECT_THAT(told[1], testing::ElementsAre("Litter: '/data-1/._c.png'."));
  EXPECT_THAT(told[2], testing::IsEmpty());
}

}  // namespace
}  // namespace distill
