// From drafted stages to the plan's stages: globs expanded, taps looked up, shapes checked, adapters chosen, lengths in
// steps.
#ifndef DISTILL_COORDINATOR_JOBFILE_STAGE_BUILDER_H_
#define DISTILL_COORDINATOR_JOBFILE_STAGE_BUILDER_H_

#include <optional>
#include <vector>

#include "common/zoo/architecture.h"
#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/model_taps.h"
#include "coordinator/jobfile/problems.h"

namespace distill {

// What stages are checked against.
struct StageContext {
  const Architecture* student = nullptr;  // not owned
  // Null: the teacher is unknown (a problem was reported, or the job has none); teacher-side checks are skipped.
  const ModelTaps* teacher = nullptr;
  bool has_teacher = false;  // the job names a teacher
};

// Which training images a length in epochs counts.
enum class EpochImages { kLabelled, kAll };

// Optimizer steps of a length: given, or epochs times the whole batches of those images (rounded; at least 1 when above
// 0). Adds a problem and returns nothing when their number is needed and not given.
std::optional<uint64_t> StepsOf(const LengthDraft& length, const JobDraft& job, EpochImages images, Problems* problems);

// All problems are added; the result is complete only when there were none.
std::vector<StagePlan> BuildStages(const JobDraft& job, const StageContext& context, Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_STAGE_BUILDER_H_
