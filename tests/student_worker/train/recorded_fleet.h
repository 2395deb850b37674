// The coordinator's side of a job, recorded.
#ifndef DISTILL_TESTS_STUDENT_WORKER_TRAIN_RECORDED_FLEET_H_
#define DISTILL_TESTS_STUDENT_WORKER_TRAIN_RECORDED_FLEET_H_

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"

namespace distill {

// What a rank told the coordinator, in order; always acknowledged. `on_progress` runs on the training thread.
class RecordedFleet : public FleetClient {
 public:
  void SetCurrent(const std::string& job_id, uint64_t) override {
    absl::MutexLock lock(&mutex_);
    current_ = job_id;
  }
  void SetModels(std::vector<ServedModelInfo>) override {}
  void ReportProgress(const JobProgress& progress) override {
    if (on_progress) on_progress(progress);
    absl::MutexLock lock(&mutex_);
    progress_.push_back(progress);
  }
  void ReportEvent(const std::string&, EventLevel, EventType, const std::string& text) override {
    absl::MutexLock lock(&mutex_);
    events_.push_back(text);
  }
  WorkerIdentity identity() const override { return {"worker", "1", 1}; }
  Status ReportResume(const std::string&, uint64_t, uint32_t stage, uint64_t step, const std::string& digest) override {
    absl::MutexLock lock(&mutex_);
    resumes_.push_back({stage, step, digest});
    known_stages = std::min(known_stages, stage);
    return resume_status;
  }
  Status CommitStage(const std::string&, uint64_t, const JobStageResult& result) override {
    absl::MutexLock lock(&mutex_);
    if (forgets_before == result.stage) {
      forgets_before = 0;
      known_stages = 0;
    }
    if (result.stage > known_stages) {
      return absl::FailedPreconditionError("an earlier stage is not committed yet");
    }
    if (result.stage == known_stages && commit_status.ok()) ++known_stages;
    commits_.push_back(result);
    return commit_status;
  }
  Status FinishJob(const std::string&, uint64_t, const JobArtifacts& artifacts) override {
    absl::MutexLock lock(&mutex_);
    finished_.push_back(artifacts);
    return OkStatus();
  }
  Status ReportFailure(const std::string&, uint64_t, FailureKind, const std::string& message) override {
    absl::MutexLock lock(&mutex_);
    failures_.push_back(message);
    return OkStatus();
  }
  void Drain() override {}
  void Stop() override {}

  struct Resumed {
    uint32_t stage;
    uint64_t step;
    std::string digest;
  };

  std::function<void(const JobProgress&)> on_progress;
  Status resume_status;         // what ReportResume answers; set before the job starts
  Status commit_status;         // what CommitStage answers; set before the job starts
  uint32_t known_stages = 0;    // committed in earlier generations; set before the job starts
  uint32_t forgets_before = 0;  // all commits are forgotten when this stage's comes: a store restored from a copy

  std::vector<JobProgress> progress() const { return Copy(progress_); }
  std::vector<std::string> events() const { return Copy(events_); }
  std::vector<JobStageResult> commits() const { return Copy(commits_); }
  std::vector<JobArtifacts> finished() const { return Copy(finished_); }
  std::vector<std::string> failures() const { return Copy(failures_); }
  std::vector<Resumed> resumes() const { return Copy(resumes_); }
  // Waits until the worker is idle again after `jobs` jobs were finished or failed.
  void AwaitIdle(size_t jobs) const {
    absl::MutexLock lock(&mutex_);
    auto idle = [&] { return current_.empty() && finished_.size() + failures_.size() >= jobs; };
    mutex_.Await(absl::Condition(&idle));
  }

 private:
  template <typename T>
  T Copy(const T& value) const {
    absl::MutexLock lock(&mutex_);
    return value;
  }
  mutable absl::Mutex mutex_;
  std::string current_;
  std::vector<JobProgress> progress_;
  std::vector<std::string> events_;
  std::vector<JobStageResult> commits_;
  std::vector<JobArtifacts> finished_;
  std::vector<std::string> failures_;
  std::vector<Resumed> resumes_;
};

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_TRAIN_RECORDED_FLEET_H_
