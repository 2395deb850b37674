// What jobs of this worker can train beside the networks of the zoo: the TorchScript archives of its model folder.
//
// Each is loaded once when the worker starts, looked at, and described to the coordinator, which checks jobs against
// the description. A job loads its archive anew, so that it starts from the weights in the file whatever ran before.
//
// Headers of torch stay in the .cc, but for the net that MakeStudentNet returns.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STUDENT_ARCHIVES_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STUDENT_ARCHIVES_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

class StudentNet;

// Immutable after LoadStudentArchives; any thread may read.
struct StudentArchives {
  // By name: where the file lies.
  std::map<std::string, std::string> paths;
  // As they are registered: with taps, what each depends on, and state. Sorted by name.
  std::vector<ServedModelInfo> descriptions;
  // Why the other files of the folder cannot be trained, one text for each.
  std::vector<std::string> left_out;
};

// Loads and describes the archives of `folder`. One that cannot be trained is left out; it does not stop the others.
// kNotFound: no such folder.
StatusOr<StudentArchives> LoadStudentArchives(const std::string& folder);

// The net that the plan trains, on the CPU: of the zoo, without weights, or the archive with those it was saved with.
// `archives` may be null. kInvalidArgument as Architecture::Create. Errors of archives are the worker's: kNotFound, it
// has none of that name; kFailedPrecondition, the file is another one than that the job was submitted with.
StatusOr<std::shared_ptr<StudentNet>> MakeStudentNet(const JobPlan& plan, const StudentArchives* archives);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STUDENT_ARCHIVES_H_
