// A pool, teachers for it that fail as they are told to, and what came of the requests.
#ifndef DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEACHER_POOL_FIXTURE_H_
#define DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEACHER_POOL_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool.h"
#include "tests/student_worker/feature/test_teacher.h"

namespace distill {

// Shape [2, 3, 4, 4]: an answer of 384 bytes of maps and 24 of logits.
inline constexpr uint64_t kAnswerBytes = 408;

inline ImageBatch Images(uint64_t id) {
  std::vector<uint8_t> pixels(2 * 3 * 4 * 4);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(id * 37 + i * 11);
  return {2, 3, 4, 4, Buffer::FromVector(std::move(pixels))};
}

inline TeacherPool::Options Options() {
  TeacherPool::Options options;
  options.model = testing::kModel;
  options.digest = testing::kDigest;
  options.taps = {{"maps"}, {""}};
  options.tap_shapes = {{3, 4, 4}, {3}};
  options.client = "test";
  options.window_bytes = 1 << 20;
  options.health.min_backoff = std::chrono::milliseconds(5);
  options.health.max_backoff = std::chrono::milliseconds(20);
  options.health.min_set_aside = std::chrono::milliseconds(5);
  options.health.max_set_aside = std::chrono::milliseconds(20);
  return options;
}

inline void ExpectRight(const FeatureBatch& batch, uint64_t id) {
  ASSERT_EQ(batch.taps.size(), 2);
  EXPECT_EQ(batch.model_digest, testing::kDigest);
  for (size_t t = 0; t < 2; ++t) {
    const std::vector<float> expected = testing::ReferenceTap(t == 0 ? "maps" : "", Images(id));
    ASSERT_EQ(batch.taps[t].bytes.size, expected.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(batch.taps[t].bytes.data, expected.data(), batch.taps[t].bytes.size), 0)
        << "id " << id << " tap " << t;
  }
}

// Collects callbacks.
class Results {
 public:
  TeacherPool::Callback For(uint64_t id) {
    return [this, id](StatusOr<FeatureBatch> result) {
      absl::MutexLock lock(&mu_);
      ++calls_[id];
      results_.insert_or_assign(id, std::move(result));
    };
  }
  // At least `count` results within a minute.
  bool Wait(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [&] { return results_.size() >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Minutes(1));
  }
  size_t size() {
    absl::MutexLock lock(&mu_);
    return results_.size();
  }
  bool has(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return results_.contains(id);
  }
  StatusOr<FeatureBatch> Take(uint64_t id) {
    absl::MutexLock lock(&mu_);
    auto it = results_.find(id);
    if (it == results_.end()) return absl::NotFoundError("no result");
    auto result = std::exchange(it->second, absl::NotFoundError("taken"));
    return result;
  }
  int calls(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return calls_[id];
  }

 private:
  absl::Mutex mu_;
  std::map<uint64_t, StatusOr<FeatureBatch>> results_;
  std::map<uint64_t, int> calls_;
};

// Polls a condition that no callback announces; a minute at most.
inline bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 12000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

class TeacherPoolTest : public ::testing::Test {
 protected:
  void MakePool(TeacherPool::Options options = Options()) {
    auto pool = TeacherPool::Create(std::move(options));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  testing::TestTeacher* AddTeacher(testing::TestTeacher::Options options = {}) {
    options.name = StrCat("t", teachers_.size());
    teachers_.push_back(testing::TestTeacher::Start(std::move(options)));
    EXPECT_NE(teachers_.back(), nullptr);
    return teachers_.back().get();
  }
  // Options whose events come to events_.
  TeacherPool::Options Told() {
    TeacherPool::Options options = Options();
    options.metrics = &metrics_;
    options.on_event = [this](EventLevel, const std::string& text) {
      absl::MutexLock lock(&events_mutex_);
      events_.push_back(text);
    };
    return options;
  }
  int CountEvents(const std::string& part) {
    absl::MutexLock lock(&events_mutex_);
    return static_cast<int>(std::count_if(
        events_.begin(), events_.end(), [&](const std::string& text) { return text.find(part) != std::string::npos; }));
  }
  double SetAside(const std::string& reason) {
    return metrics_
        .GetCounter("distill_student_teachers_set_aside_total",
                    "Times that a teacher was set aside for a while, by why.", {{"reason", reason}})
        .Value();
  }
  double SecondsAsked() {
    return metrics_
        .GetCounter("distill_student_feature_seconds_asked_total",
                    "Feature requests that a second teacher was asked too, because the first was late or is tried out.")
        .Value();
  }
  void ListAll() {
    std::vector<TeacherEndpoint> endpoints;
    for (const auto& teacher : teachers_) endpoints.push_back(teacher->endpoint());
    pool_->SetTeachers(std::move(endpoints));
  }
  void FetchRange(uint64_t begin, uint64_t end) {
    for (uint64_t id = begin; id < end; ++id) pool_->Fetch(id, Images(id), results_.For(id));
  }
  void ExpectAllRight(uint64_t count) {
    ASSERT_TRUE(results_.Wait(count)) << results_.size() << " of " << count;
    for (uint64_t id = 0; id < count; ++id) {
      auto result = results_.Take(id);
      ASSERT_TRUE(result.ok()) << "id " << id << ": " << result.status();
      ExpectRight(*result, id);
      EXPECT_EQ(results_.calls(id), 1) << "id " << id;
    }
  }

  MetricsRegistry metrics_;
  absl::Mutex events_mutex_;
  std::vector<std::string> events_;
  Results results_;  // outlives the pool
  std::vector<std::unique_ptr<testing::TestTeacher>> teachers_;
  std::unique_ptr<TeacherPool> pool_;
};

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEACHER_POOL_FIXTURE_H_
