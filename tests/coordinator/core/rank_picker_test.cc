#include "coordinator/core/rank_picker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/core/cluster_fixture.h"

namespace distill {
namespace {

using testing::ElementsAre;

std::vector<std::string> Pick(const std::vector<std::string>& previous, const std::vector<std::string>& candidates,
                              size_t count) {
  std::vector<RankMember> members;
  for (const std::string& id : previous) members.push_back({id, "old"});
  std::vector<Worker> workers;
  for (const std::string& id : candidates) workers.push_back(MakeStudent(id));
  std::vector<const Worker*> pointers;
  for (const Worker& worker : workers) pointers.push_back(&worker);
  std::vector<std::string> out;
  for (const RankMember& member : PickRanks(members, pointers, count)) out.push_back(member.worker_id);
  return out;
}

TEST(RankPickerTest, NumbersSortAsNumbers) {
  EXPECT_TRUE(NaturalLess("student-2", "student-10"));
  EXPECT_FALSE(NaturalLess("student-10", "student-2"));
  EXPECT_TRUE(NaturalLess("a", "b"));
  EXPECT_TRUE(NaturalLess("a", "a1"));
  EXPECT_TRUE(NaturalLess("s1a", "s1b"));
  EXPECT_TRUE(NaturalLess("s99999999999999999999998", "s99999999999999999999999"));
  EXPECT_FALSE(NaturalLess("x", "x"));
  EXPECT_TRUE(NaturalLess("s-01", "s-1") != NaturalLess("s-1", "s-01"));  // a strict order
}

TEST(RankPickerTest, FirstGroupInNaturalOrder) {
  EXPECT_THAT(Pick({}, {"s10", "s2", "s1"}, 2), ElementsAre("s1", "s2"));
}

TEST(RankPickerTest, FormerRanksAreKept) {
  EXPECT_THAT(Pick({"s2", "s1"}, {"s1", "s2"}, 2), ElementsAre("s2", "s1"));
  EXPECT_THAT(Pick({"s2", "gone", "s1"}, {"s0", "s1", "s2"}, 3), ElementsAre("s2", "s0", "s1"));
  EXPECT_THAT(Pick({"gone", "lost"}, {"s1", "s0"}, 2), ElementsAre("s0", "s1"));
}

TEST(RankPickerTest, TheNewIncarnationIsRecorded) {
  const Worker worker = MakeStudent("s0");
  EXPECT_EQ(PickRanks({{"s0", "old"}}, {&worker}, 1)[0].incarnation, "s0-inc");
}

}  // namespace
}  // namespace distill
