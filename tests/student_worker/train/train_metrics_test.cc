#include "student_worker/train/train_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(TrainMetricsTest, ScoresHaveASeriesForEachMetricOfTheNewestJob) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  EXPECT_THAT(registry.Serialize(), Not(HasSubstr("score_ratio")));
  metrics.SetTeacherScore({.metrics = {{kTop1, 0.75}}, .by_class = {}});
  metrics.SetScore({.metrics = {{kTop1, 0.25}, {kTop5, 0.5}}, .by_class = {}});
  metrics.EndJob();
  EXPECT_THAT(registry.Serialize(), AllOf(HasSubstr("distill_student_score_ratio{metric=\"top1\"} 0.25"),
                                          HasSubstr("distill_student_score_ratio{metric=\"top5\"} 0.5"),
                                          HasSubstr("distill_student_teacher_score_ratio{metric=\"top1\"} 0.75")));
  metrics.SetScore({.metrics = {{kMeanIou, 0.125}}, .by_class = {}});  // of a job with another task
  EXPECT_THAT(registry.Serialize(), AllOf(HasSubstr("distill_student_score_ratio{metric=\"mean_iou\"} 0.125"),
                                          Not(HasSubstr("distill_student_score_ratio{metric=\"top"))));
}

}  // namespace
}  // namespace distill
