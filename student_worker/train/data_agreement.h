// That all ranks of a job have loaded the same data set: with other images, or classes in another order, on one of them
// the job would train without a complaint, and wrongly. And what only some of them found odd about it.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_DATA_AGREEMENT_H_
#define DISTILL_STUDENT_WORKER_TRAIN_DATA_AGREEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/dataset.h"
#include "student_worker/train/lockstep.h"

namespace distill {

// What is compared. The digest decides; the numbers say what differs.
struct DataIndex {
  std::string digest;  // DataSplits.digest
  uint64_t train = 0, test = 0, unlabelled = 0, classes = 0;
  bool operator==(const DataIndex&) const = default;
};
DataIndex IndexOf(const DataSplits& data);

// The verdict on rank `self` of `ranks` (index = rank); the same on each rank, but for who is meant. The ranks whose
// index most ranks have are right; in a draw rank 0 is. OK: all have the same. The worker's fault
// (kFailedPrecondition): this rank differs; the message says from whom and in what. kAborted: others do, which report
// it.
Status JudgeData(const std::vector<DataIndex>& ranks, uint32_t self);

// Exchanges the ranks' indices and judges. All ranks call it together. Errors also as Lockstep::Meet.
Status AgreeOnData(const DataIndex& own, Lockstep* lockstep);

// Those of this rank's warnings that are none of rank 0's, which reports its own: files that lie beside the images here
// and not there, say. Where the data lies (`data_root`) makes no difference. Compared are rank 0's first 32. Empty on
// rank 0. All ranks call it together. Errors as Lockstep::Meet.
StatusOr<std::vector<std::string>> NotSaidByLeader(const std::vector<std::string>& warnings,
                                                   const std::string& data_root, Lockstep* lockstep);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_DATA_AGREEMENT_H_
