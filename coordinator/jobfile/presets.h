// Presets: named recipes that write the stages of a job. They are expanded once, at submit time; the stages are what is
// stored.
//
//   scratch            one stage, cross-entropy on labels, no teacher: the baseline.
//   kd                 one stage, (1 - w) cross-entropy + w soft targets [Hinton et al. 2015].
//   cwd                one stage, cross-entropy + channel-wise distillation at all paired stage ends [Shu et al. 2021],
//                      + optional kd.
//   channel_transform  one stage, cross-entropy + channel-wise transformation at the last pair of stage ends
//                      [Liu et al. 2023], + optional kd.
//   tat                one stage, cross-entropy + target-aware transformer at the last pair [Lin et al. 2022], +
//                      optional kd.
//   sskd               stage by stage [Gao et al. 2018]: backbone phases with a feature loss and no label, then the
//                      head alone with cross-entropy and no teacher. Policies say what trains in backbone phase k:
//                        freeze_previous  stage k alone, loss of pair k
//                        cumulative_last  stages 1..k, loss of pair k
//                        cumulative_sum   stages 1..k, losses of pairs 1..k
//                        joint            all stages at once, losses of all pairs: one phase with the budget of all
//                        blockwise        stage k alone, loss of pair k, the stage's input being the teacher's map of
//                                         pair k-1
//                      An optional stage `finetune` trains everything with cross-entropy at a small rate; it is not
//                      part of the method.
#ifndef DISTILL_COORDINATOR_JOBFILE_PRESETS_H_
#define DISTILL_COORDINATOR_JOBFILE_PRESETS_H_

#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/stage_pairs.h"

namespace distill {

std::vector<std::string> PresetNames();
std::vector<std::string> SskdPolicies();
// Whether the preset reads a teacher, and whether it needs stage pairs.
bool PresetNeedsTeacher(const std::string& preset);
bool PresetNeedsPairs(const std::string& preset);

// Lengths in optimizer steps.
struct PresetSteps {
  uint64_t total = 0;     // the budget, over images with labels
  uint64_t backbone = 0;  // the budget, over all images: differs from `total` when it counts epochs and the backbone
                          // phases of sskd draw from images without labels
  uint64_t finetune = 0;  // 0 for none
};

// Shares of the budget: one for each pair and one for the head. phase_shares, or what the phases say, or equal.
// REQUIRES: job.preset is sskd.
std::vector<double> SskdShares(const JobDraft& job, const StagePairs& pairs);

// The preset's stages. `pairs` is read only when PresetNeedsPairs. REQUIRES: job.preset is one of PresetNames(); for
// sskd SskdShares are one per pair and one for the head, not all 0.
std::vector<StageDraft> ExpandPreset(const JobDraft& job, const StagePairs& pairs, const PresetSteps& steps);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_PRESETS_H_
