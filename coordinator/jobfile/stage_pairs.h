// Which stages of student and teacher belong together, for stage-by-stage schedules.
//
// Source: papers' common rule, see docs/job.md: a stage ends at the last layer before the resolution changes; stages
// are paired by the size of their output, and of several of one size the last ones, as many as both networks have. A
// student stage without a partner is merged into the next paired one, so that every parameter trains exactly once; an
// unpaired tail trains with the head. Teacher stages without a partner are skipped.
#ifndef DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_
#define DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_

#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/model_taps.h"
#include "coordinator/jobfile/problems.h"

namespace distill {

struct StagePair {
  std::string student_tap;           // end of the student's stage
  std::string teacher_tap;           // end of the teacher's
  std::vector<std::string> modules;  // student modules that train for this pair, merged stages included
};

struct StagePairs {
  std::vector<StagePair> pairs;           // in execution order, never empty
  std::vector<std::string> head_modules;  // the unpaired tail, then the head
};

// kInvalidArgument: no student stage has the size of a teacher stage; the message lists both.
StatusOr<StagePairs> PairStages(const Architecture& student, const ModelTaps& teacher);

// The pairs that the user named (sskd.stages). The student may be cut after any top-level module and any block of a
// stage; what lies between two cuts trains for the later one, what comes after the last with the head, so that here too
// every parameter trains exactly once. Whether the maps can be compared is the loss's business. Nothing when a problem
// was added: a tap that does not exist or is no cut, pairs out of order, two pairs at one place.
// REQUIRES: `given` is not empty.
std::optional<StagePairs> PairGivenStages(const Architecture& student, const ModelTaps& teacher,
                                          const std::vector<SskdStageDraft>& given, Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_
