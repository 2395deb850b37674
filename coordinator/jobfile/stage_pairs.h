// Which stages of student and teacher belong together, for stage-by-stage schedules.
//
// Source: papers' common rule, see docs/job.md: a stage ends at the last layer before the resolution changes; stages
// are paired by the size of their output. A student stage without a partner is merged into the next paired one, so that
// every parameter trains exactly once; an unpaired tail trains with the head. Teacher stages without a partner are
// skipped.
#ifndef DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_
#define DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_

#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/jobfile/model_taps.h"

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

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_STAGE_PAIRS_H_
