// A job's files in the work folder, by the rules that hold on top of CheckpointStore: from where a generation goes on,
// what becomes of a write that fails, when a stage counts as committed.
//
// A write that fails (disk full, network disk away) never loses the job:
//   inside a stage          training goes on. An event when the trouble begins and one when it is over, and a metric at
//                           each failure; the older checkpoints stay as they are.
//   at the end of a stage,  tried again, at growing intervals, for JobEnvironment::write_patience; an event says so.
//   Then and for the results     the rank fails with that error, which is its worker's fault: the job goes on
//   elsewhere. before a stop           tried again for a few seconds; then the job stops without it.
//
// Rank 0 alone reads and writes; the other ranks call the same methods and wait in lock-step.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_JOB_CHECKPOINTS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_JOB_CHECKPOINTS_H_

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "student_worker/train/best_weights.h"
#include "student_worker/train/checkpoint_store.h"
#include "student_worker/train/job_context.h"
#include "student_worker/train/stage_runner.h"

namespace distill {

// Owned by the training thread. Methods return kCancelled when the generation is over (a newer one has taken the
// folder, or the coordinator said so) or was revoked, kAborted when a peer failed or is lost.
class JobCheckpoints {
 public:
  // `job` is not owned and outlives this.
  explicit JobCheckpoints(JobContext* job) : job_(job) {}

  // Makes the folder. Rank 0 alone.
  Status Open();
  // Finds the newest usable checkpoint, tells the coordinator from where the job really goes on (which then drops
  // stages that it takes for committed and that are lost), takes the folder over, and gives all ranks the position and
  // the net. Commits again what the coordinator does not know.
  Status Resume();
  // Of the stage that was resumed inside: its optimizer's state and its best weights, once. Rank 0 alone.
  Status LoadInto(StageRunner* runner, BestWeights* best);

  // At job->position, inside its stage; of `best` nothing is written when it is null.
  Status WriteInStage(StageRunner* runner, const BestWeights* best);
  // Likewise, before the ranks stop: `why` begins the event's text ("cancelled").
  Status WriteAtStop(StageRunner* runner, const BestWeights* best, const std::string& why);
  // The stage at job->position is complete.
  Status WriteStageEnd();
  // Tells the coordinator that `stage` is complete, with the newest checkpoint.
  Status Commit(uint32_t stage, double seconds);

  // Exports the student and its result.json, and tells the coordinator that the job is done.
  Status Export();

 private:
  // Calls `write` until it succeeds, says that this generation is over, or `patience` is over. `what` begins the
  // event's text. An exception (memory) is a failure like others. Rank 0 alone.
  Status Persist(const std::string& what, std::chrono::milliseconds patience, const std::function<Status()>& write);
  Status LoadNewest(std::optional<StoredCheckpoint>* newest);
  // Whether the checkpoint that was committed last is still there; an event if not.
  void CheckCommitted(const std::optional<StoredCheckpoint>& newest);
  Checkpoint Snapshot(StageRunner* runner, const BestWeights* best) const;
  // `*error`: why nothing was written, though the job goes on; on rank 0.
  Status Write(StageRunner* runner, const BestWeights* best, std::chrono::milliseconds patience, bool needed,
               Status* error);

  JobContext* const job_;
  std::optional<CheckpointStore> store_;  // rank 0
  SafetensorsFile resumed_optimizer_;     // rank 0, until LoadInto()
  std::string last_path_, last_digest_;   // rank 0: the newest checkpoint
  bool failing_ = false;                  // rank 0: the last one inside a stage was not written
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_JOB_CHECKPOINTS_H_
