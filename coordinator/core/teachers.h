// Which teachers a job may use, and what each teacher should be doing. Pure functions.
#ifndef DISTILL_COORDINATOR_CORE_TEACHERS_H_
#define DISTILL_COORDINATOR_CORE_TEACHERS_H_

#include <string>
#include <vector>

#include "coordinator/core/cluster_state.h"

namespace distill {

struct TeacherNeed {
  bool now = false;    // the current stage reads a teacher (or its accuracy is measured before the first stage)
  bool later = false;  // a stage after it does
};
TeacherNeed NeedOf(const ActiveJob& job);

// Live teachers that serve the job's model, by id.
struct TeacherMatch {
  std::vector<const Worker*> usable;      // same weights, not draining
  std::vector<const Worker*> mismatched;  // same name, other weights than the job was submitted with: never used
};
TeacherMatch MatchTeachers(double now, double lease, const ClusterState& state, const ActiveJob& job);

// What students of the job connect to; empty once no remaining stage reads a teacher.
std::vector<TeacherEndpoint> EndpointsFor(double now, double lease, const ClusterState& state, const ActiveJob& job);
// What a teacher serves now: the running jobs whose current stage reads it, with the taps read. Empty: released.
std::vector<TeacherJob> JobsOf(const Worker& teacher, const ClusterState& state);

// "waiting for a teacher: none that is alive serves 'm' (digest 0123...) ..." with mismatched ones named.
std::string DescribeMissingTeacher(const ActiveJob& job, const TeacherMatch& match);
// "teacher t1 serves 'm' with digest ..., the job was submitted with ...: not used"
std::string DescribeMismatch(const ActiveJob& job, const Worker& teacher);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_TEACHERS_H_
