// Which keys a job file may hold, section by section: one table for the reader and for the test that checks
// docs/job.md.
//
// The knobs of losses come on top; they stand in common/plan/loss_schema.h.
#ifndef DISTILL_COORDINATOR_JOBFILE_JOB_KEYS_H_
#define DISTILL_COORDINATOR_JOBFILE_JOB_KEYS_H_

#include <span>
#include <string_view>

namespace distill {

using KeyList = std::span<const std::string_view>;

struct JobSection {
  std::string_view name;  // as in docs/job.md: "", "student", "stages[]", "stages[].losses[]", ...
  KeyList keys;
};

// All sections, outermost first.
std::span<const JobSection> JobSections();
// REQUIRES: a section of that name exists.
KeyList JobSectionKeys(std::string_view name);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_JOB_KEYS_H_
