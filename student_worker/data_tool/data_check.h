// Looks at a data set before anybody queues a job for it: `distill-data check`.
#ifndef DISTILL_STUDENT_WORKER_DATA_TOOL_DATA_CHECK_H_
#define DISTILL_STUDENT_WORKER_DATA_TOOL_DATA_CHECK_H_

#include <cstdint>
#include <string>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

struct DataCheckOptions {
  DataPlan data;          // format, unlabelled, ignore_label, split ...; `path` below `data_root`
  std::string data_root;  // links may lead anywhere in it
  uint32_t classes = 0;   // of the student that is meant; 0: any
  uint32_t threads = 2;
};

struct DataCheck {
  bool sound = false;  // nothing is wrong; it may be odd
  std::string text;    // for people: sizes, classes, mean and std, all that is odd and all that is wrong
};

// Reads every picture once, by the code that students read with. Sizes may differ, as data.transforms can bring them to
// one. Not OK: it could not be looked at (the folder is missing, out of memory); what is wrong with it is no error.
StatusOr<DataCheck> CheckData(const DataCheckOptions& options);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TOOL_DATA_CHECK_H_
