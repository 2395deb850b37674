// From the YAML tree to a JobDraft: keys, types and ranges. Nothing here knows networks or the fleet.
#ifndef DISTILL_COORDINATOR_JOBFILE_DRAFT_READER_H_
#define DISTILL_COORDINATOR_JOBFILE_DRAFT_READER_H_

#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/problems.h"
#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

// Reads what can be read; everything wrong goes to `problems`.
JobDraft ReadDraft(const YamlNodePtr& root, Problems* problems);

// The lists of stages and losses (draft_stage_reader.cc). `job` gives the defaults of optimizer and schedule.
std::vector<StageDraft> ReadStages(const YamlNodePtr& list, const JobDraft& job, Problems* problems);

// Parts that occur at the top and in stages (recipe_reader.cc). An absent section leaves `out` as it was.
void ReadOptimizer(const YamlNodePtr& node, const std::string& path, Problems* problems, OptimizerDraft* out);
void ReadSchedule(const YamlNodePtr& node, const std::string& path, Problems* problems, SchedulePlan* out);
class SectionReader;
// The key `select_by` of a section, which needs its `select` or `patience`: already read.
void ReadSelectBy(const SectionReader& section, const std::string& select, uint32_t patience, std::string* out,
                  YamlMark* mark);
// The keys `epochs` and `steps` of a section.
LengthDraft ReadLength(const SectionReader& section);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_DRAFT_READER_H_
