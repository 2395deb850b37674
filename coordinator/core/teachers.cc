#include "coordinator/core/teachers.h"

#include <algorithm>

#include "common/str_cat.h"

namespace distill {
namespace {

// The model the worker serves under the reference's name, or null.
const ServedModelInfo* FindModel(const Worker& worker, const TeacherRef& ref) {
  for (const ServedModelInfo& model : worker.models) {
    if (model.name == ref.model) return &model;
  }
  return nullptr;
}

std::string ShortDigest(const std::string& digest) { return digest.empty() ? "none" : digest.substr(0, 12); }

}  // namespace

TeacherNeed NeedOf(const ActiveJob& job) {
  TeacherNeed need;
  if (job.plan->teachers.empty()) return need;
  for (size_t i = job.current_stage(); i < job.plan->stages.size(); ++i) {
    const bool reads = job.plan->stages[i].needs_teacher || (i == 0 && job.plan->evaluate_teacher);
    (i == job.current_stage() ? need.now : need.later) |= reads;
  }
  return need;
}

TeacherMatch MatchTeachers(double now, double lease, const ClusterState& state, const ActiveJob& job) {
  TeacherMatch match;
  for (const auto& [id, worker] : state.workers) {
    if (worker.kind != WorkerKind::kTeacher || !IsAlive(now, lease, worker)) continue;
    for (const TeacherRef& ref : job.plan->teachers) {
      const ServedModelInfo* model = FindModel(worker, ref);
      if (model == nullptr) continue;
      if (model->digest != ref.digest) {
        match.mismatched.push_back(&worker);
      } else if (!worker.draining) {
        match.usable.push_back(&worker);
      }
    }
  }
  return match;
}

std::vector<TeacherEndpoint> EndpointsFor(double now, double lease, const ClusterState& state, const ActiveJob& job) {
  std::vector<TeacherEndpoint> endpoints;
  const TeacherNeed need = NeedOf(job);
  if (!need.now && !need.later) return endpoints;
  const TeacherRef& ref = job.plan->teachers.front();
  for (const Worker* worker : MatchTeachers(now, lease, state, job).usable) {
    endpoints.push_back({worker->id, worker->address, ref.model, ref.digest});
  }
  return endpoints;
}

std::vector<TeacherJob> JobsOf(const Worker& teacher, const ClusterState& state) {
  std::vector<TeacherJob> jobs;
  for (const ActiveJob& job : state.jobs) {
    if (job.status.state != JobState::kRunning || !NeedOf(job).now) continue;
    const TeacherRef& ref = job.plan->teachers.front();
    const ServedModelInfo* model = FindModel(teacher, ref);
    if (model == nullptr || model->digest != ref.digest) continue;
    TeacherJob work{job.id, ref.model, {}};
    const auto add = [&](const std::string& tap) {
      if (std::find(work.taps.begin(), work.taps.end(), tap) == work.taps.end()) work.taps.push_back(tap);
    };
    const StagePlan& stage = job.plan->stages[job.current_stage()];
    for (const LossPlan& loss : stage.losses) {
      if (loss.needs_teacher && loss.weight != 0) add(loss.teacher_tap);
    }
    if (!stage.teacher_input.empty()) add(stage.teacher_input);
    if (job.current_stage() == 0 && job.plan->evaluate_teacher) add("");
    jobs.push_back(std::move(work));
  }
  return jobs;
}

std::string DescribeMismatch(const ActiveJob& job, const Worker& teacher) {
  const TeacherRef& ref = job.plan->teachers.front();
  const ServedModelInfo* model = FindModel(teacher, ref);
  return StrCat("teacher ", teacher.id, " serves '", ref.model, "' with digest ",
                ShortDigest(model == nullptr ? "" : model->digest), ", the job was submitted with ",
                ShortDigest(ref.digest), ": not used");
}

std::string DescribeMissingTeacher(const ActiveJob& job, const TeacherMatch& match) {
  const TeacherRef& ref = job.plan->teachers.front();
  std::string text = StrCat("waiting for a teacher: none that is alive serves '", ref.model, "' (digest ",
                            ShortDigest(ref.digest), "); start one: distill-teacher --model ", ref.model, "=FILE");
  for (const Worker* worker : match.mismatched) StrAppend(&text, "; ", DescribeMismatch(job, *worker));
  return text;
}

}  // namespace distill
