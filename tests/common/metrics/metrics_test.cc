#include "common/metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

namespace distill {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MetricsTest, SameNameAndLabelsGiveTheSameHandle) {
  MetricsRegistry registry;
  Counter& a = registry.GetCounter("distill_x_total", "x", {{"model", "m"}});
  Counter& b = registry.GetCounter("distill_x_total", "x", {{"model", "m"}});
  Counter& other = registry.GetCounter("distill_x_total", "x", {{"model", "n"}});
  EXPECT_EQ(&a, &b);
  EXPECT_NE(&a, &other);
  a.Add();
  a.Add(2.5);
  EXPECT_EQ(b.Value(), 3.5);
  EXPECT_EQ(other.Value(), 0);
}

TEST(MetricsTest, SerializedTextHoldsTheValues) {
  MetricsRegistry registry;
  registry.GetCounter("distill_wire_bytes_total", "Bytes sent.", {{"tap", "layer1"}}).Add(12);
  Gauge& gauge = registry.GetGauge("distill_queue_length", "Requests waiting.");
  gauge.Set(5);
  gauge.Add(-2);
  Histogram& seconds = registry.GetHistogram("distill_step_seconds", "Step time.", {0.1, 1});
  seconds.Observe(0.05);
  seconds.Observe(0.5);
  seconds.Observe(7);
  const std::string text = registry.Serialize();
  EXPECT_EQ(gauge.Value(), 3);
  EXPECT_THAT(text, HasSubstr("# HELP distill_wire_bytes_total Bytes sent.\n# TYPE distill_wire_bytes_total counter\n"
                              "distill_wire_bytes_total{tap=\"layer1\"} 12\n"));
  EXPECT_THAT(text, HasSubstr("distill_queue_length 3\n"));
  EXPECT_THAT(text, HasSubstr("distill_step_seconds_bucket{le=\"0.1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("distill_step_seconds_bucket{le=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("distill_step_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("distill_step_seconds_count 3\n"));
}

TEST(MetricsTest, RemovedSeriesDisappearAndStartAnew) {
  MetricsRegistry registry;
  registry.GetGauge("distill_job_loss", "Loss.", {{"job", "a"}}).Set(1);
  registry.GetGauge("distill_job_loss", "Loss.", {{"job", "b"}}).Set(2);
  registry.Remove("distill_job_loss", {{"job", "a"}});
  registry.Remove("distill_job_loss", {{"job", "unknown"}});
  registry.Remove("distill_unknown", {});
  EXPECT_THAT(registry.Serialize(), Not(HasSubstr("job=\"a\"")));
  EXPECT_THAT(registry.Serialize(), HasSubstr("distill_job_loss{job=\"b\"} 2\n"));
  EXPECT_EQ(registry.GetGauge("distill_job_loss", "Loss.", {{"job", "a"}}).Value(), 0);
}

TEST(MetricsTest, CountsFromManyThreadsAddUp) {
  MetricsRegistry registry;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) registry.GetCounter("distill_steps_total", "Steps.").Add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(registry.GetCounter("distill_steps_total", "Steps.").Value(), 8000);
}

TEST(MetricsTest, SecondsBucketsAscendFrom100MicrosecondsTo100Seconds) {
  const std::vector<double> buckets = SecondsBuckets();
  EXPECT_THAT(buckets, testing::WhenSorted(testing::ElementsAreArray(buckets)));
  EXPECT_DOUBLE_EQ(buckets.front(), 1e-4);
  EXPECT_DOUBLE_EQ(buckets.back(), 100);
}

TEST(MetricsDeathTest, OneNameHasOneTypeAndOneHelp) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  MetricsRegistry registry;
  registry.GetGauge("distill_thing", "A thing.");
  EXPECT_DEATH(registry.GetCounter("distill_thing", "A thing."), "distill_thing.*two types");
  EXPECT_DEATH(registry.GetGauge("distill_thing", "Another thing."), "distill_thing.*two help texts");
}

TEST(MetricsTest, PromtoolAcceptsTheText) {
  if (!std::filesystem::exists(DISTILL_PROMTOOL))
    GTEST_SKIP() << "no " DISTILL_PROMTOOL " (scripts/setup.sh puts it there)";
  MetricsRegistry registry;
  registry.GetCounter("distill_wire_bytes_total", "Bytes of payload sent.", {{"tap", "a\"b\\c\nd"}}).Add(1e15);
  registry.GetGauge("distill_teacher_queue_length", "Requests waiting,\nwith a line break.").Set(-0.5);
  registry.GetHistogram("distill_teacher_inference_seconds", "Seconds of forward.", SecondsBuckets(), {{"model", "m"}})
      .Observe(0.2);
  registry.GetGauge("distill_empty_bytes", "A family all of whose series were removed.", {{"job", "a"}});
  registry.Remove("distill_empty_bytes", {{"job", "a"}});
  const std::string path = testing::TempDir() + "metrics_test_" + std::to_string(getpid());
  const auto check = [&](const std::string& text) {
    std::ofstream(path) << text;
    return std::system((DISTILL_PROMTOOL " check metrics < " + path + " >&2").c_str());
  };
  EXPECT_EQ(check(registry.Serialize()), 0) << registry.Serialize();
  EXPECT_NE(check(registry.Serialize() + "not a metric line\n"), 0);  // the check can fail
  std::remove(path.c_str());
}

}  // namespace
}  // namespace distill
