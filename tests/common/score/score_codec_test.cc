#include "common/score/score_codec.h"

#include <gtest/gtest.h>

#include "distill/v1/job.pb.h"

namespace distill {
namespace {

TEST(ScoreCodecTest, MetricsKeepTheirOrderAndResultsByClassGoApart) {
  const Score score{
      .metrics = {{"top1", 0.1 + 0.2}, {"top5", 1}, {"a_new_one", 0}},
      .by_class = {.labelled = {3, uint64_t{1} << 63}, .answered = {4, 1}, .right = {3, 1}, .confusion = {3, 0, 1, 1}}};
  v1::Score metrics;
  metrics.add_metrics()->set_name("of before");
  ToProto(score, &metrics);
  v1::ClassResults classes;
  classes.add_labelled(9);
  ToProto(score.by_class, &classes);
  const Score back = FromProto(metrics);
  EXPECT_EQ(back.metrics, score.metrics);
  EXPECT_EQ(back.by_class, ClassResults());
  EXPECT_EQ(FromProto(classes), score.by_class);
  ToProto(Score(), &metrics);
  EXPECT_EQ(FromProto(metrics), Score());
}

TEST(ScoreCodecTest, LengthsThatDoNotFitEachOtherAreNotCounted) {
  const ClassResults good{.labelled = {3, 2}, .answered = {4, 1}, .right = {3, 1}, .confusion = {3, 0, 1, 1}};
  v1::ClassResults proto;
  ToProto(good, &proto);
  proto.add_confusion(1);
  ClassResults want = good;
  want.confusion.clear();
  EXPECT_EQ(FromProto(proto), want);
  ToProto(good, &proto);
  proto.mutable_right()->RemoveLast();
  EXPECT_EQ(FromProto(proto), ClassResults());
  ToProto(good, &proto);
  proto.add_answered(1);
  EXPECT_EQ(FromProto(proto), ClassResults());
}

}  // namespace
}  // namespace distill
