// What data.format segmentation_folder may say of its files and label maps: data.pairs, label_map, reduce_zero_label,
// ignore_label.
#ifndef DISTILL_COORDINATOR_JOBFILE_PAIRS_READER_H_
#define DISTILL_COORDINATOR_JOBFILE_PAIRS_READER_H_

#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/problems.h"
#include "coordinator/jobfile/section_reader.h"

namespace distill {

// Reads them from `data` into job->plan.data. REQUIRES: format, unlabelled and split were read. Stateless; any thread.
void ReadPairs(const SectionReader& data, Problems* problems, JobDraft* job);

// Problems of data.label_map that show when the number of the student's classes is known: classes that it does not
// have, and classes without an id.
void CheckLabelMap(const JobDraft& job, uint32_t num_classes, Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_PAIRS_READER_H_
