// Small clusters for tests of decisions: who is alive, what runs. Time is a number.
#ifndef DISTILL_TESTS_COORDINATOR_CORE_CLUSTER_FIXTURE_H_
#define DISTILL_TESTS_COORDINATOR_CORE_CLUSTER_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "coordinator/core/cluster_state.h"

namespace distill {

inline constexpr double kLease = 5;
// The coordinator started long before this, so that no grace holds.
inline constexpr double kNow = 1000;

inline JobPlan MakePlan(uint32_t students, bool with_teacher = false) {
  JobPlan plan;
  plan.students = students;
  plan.evaluate_teacher = false;
  plan.stages.resize(3);
  for (int k = 0; k < 3; ++k) plan.stages[k].name = "stage-" + std::to_string(k);
  if (!with_teacher) return plan;
  plan.teachers.push_back({"fashion", "digest-1", {}});
  for (int k = 0; k < 2; ++k) {  // the last stage needs none
    plan.stages[k].needs_teacher = true;
    LossPlan loss;
    loss.needs_teacher = true;
    loss.teacher_tap = "layer" + std::to_string(k + 1);
    plan.stages[k].losses.push_back(loss);
  }
  return plan;
}

inline Worker MakeStudent(const std::string& id, double last_seen = kNow) {
  Worker worker;
  worker.id = id;
  worker.incarnation = id + "-inc";
  worker.kind = WorkerKind::kStudent;
  worker.last_seen = last_seen;
  return worker;
}

inline Worker MakeTeacher(const std::string& id, const std::string& digest = "digest-1", double last_seen = kNow) {
  Worker worker;
  worker.id = id;
  worker.incarnation = id + "-inc";
  worker.kind = WorkerKind::kTeacher;
  worker.address = id + ":1";
  worker.last_seen = last_seen;
  worker.models.push_back({"fashion", digest, {}, 0, 0, {}});
  return worker;
}

inline ActiveJob MakeQueued(const std::string& id, const JobPlan& plan) {
  ActiveJob job;
  job.id = id;
  job.name = id;
  job.plan = std::make_shared<const JobPlan>(plan);
  job.status.generation = 1;
  job.status.reason = "submitted";
  return job;
}

// Runs in generation 1 on students that say so too.
inline ActiveJob MakeRunning(const std::string& id, const JobPlan& plan, const std::vector<std::string>& students) {
  ActiveJob job = MakeQueued(id, plan);
  job.status.state = JobState::kRunning;
  job.progress_at = kNow;
  for (const std::string& student : students) job.status.ranks.push_back({student, student + "-inc"});
  return job;
}

inline void Add(ClusterState* state, Worker worker) { state->workers[worker.id] = std::move(worker); }

// A student at work on a job since long.
inline Worker Working(const std::string& id, const std::string& job, uint64_t generation = 1) {
  Worker worker = MakeStudent(id);
  worker.job_id = job;
  worker.generation = generation;
  return worker;
}

}  // namespace distill

#endif  // DISTILL_TESTS_COORDINATOR_CORE_CLUSTER_FIXTURE_H_
