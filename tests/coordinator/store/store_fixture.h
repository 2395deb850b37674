// Jobs and folders for tests of the job store.
#ifndef DISTILL_TESTS_COORDINATOR_STORE_STORE_FIXTURE_H_
#define DISTILL_TESTS_COORDINATOR_STORE_STORE_FIXTURE_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "coordinator/store/job_store.h"

namespace distill {

// A new empty folder, removed at the end.
class TempDir {
 public:
  TempDir() {
    std::string pattern = testing::TempDir() + "distill_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, ignored);
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline JobRecord MakeJob(const std::string& id, const std::string& name = "job") {
  JobRecord job;
  job.id = id;
  job.name = name;
  job.submitted_time = 1000.5;
  job.plan.name = name;
  job.plan.students = 2;
  job.plan.stages.resize(2);
  job.plan.stages[0].name = "one";
  job.plan.stages[1].name = "two";
  job.plan.teachers.push_back({"fashion", "d1", {}});
  job.yaml = "name: job\n";
  job.file_name = "job.yaml";
  job.overrides = {"seed=3", "name=job"};
  job.status.generation = 1;
  job.status.reason = "submitted";
  return job;
}

inline EventRecord MakeEvent(const std::string& text) {
  EventRecord event;
  event.time = 5;
  event.source = "coordinator";
  event.text = text;
  return event;
}

inline JobChange EventsOf(const std::string& job_id, std::vector<EventRecord> events) {
  JobChange change;
  change.job_id = job_id;
  change.events = std::move(events);
  return change;
}

}  // namespace distill

#endif  // DISTILL_TESTS_COORDINATOR_STORE_STORE_FIXTURE_H_
