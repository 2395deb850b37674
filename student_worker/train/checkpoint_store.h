// Checkpoints of one job on disk: written whole or not at all, verified before use, pruned. No torch here.
//
// <root>/stage-<S>-step-<N>/        S: index of the stage, N: steps done in it (the stage's steps: a stage boundary)
//   model.safetensors               the student's parameters and buffers
//   optimizer.safetensors           optimizer state and adapters of stage S; no tensors at a stage boundary
//   state.json                      CheckpointState
//   manifest.json                   {"files": {name: {"bytes": n, "sha256": hex}}}, written last
//
// Writing: everything goes into <root>/.tmp-<generation>, each file and the folder are fsynced, the folder is renamed,
// the root is fsynced. A folder without a manifest, or whose files do not match it, does not exist for the loader.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_CHECKPOINT_STORE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_CHECKPOINT_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "student_worker/train/score.h"

namespace distill {

// Everything that is not a tensor. Sample order, augmentation and learning rate are pure functions of (seed, step): no
// random state and no data cursor beyond the step needs keeping.
struct CheckpointState {
  std::string job_id;
  std::string plan_digest;  // PlanDigest of the job's plan
  uint32_t stage = 0;
  uint64_t step = 0;        // done in this stage
  uint64_t total_step = 0;  // done over all stages
  bool stage_end = false;   // the stage is complete
  uint64_t seed = 0;
  uint32_t world_size = 1;
  uint32_t threads = 1;     // CPU threads of each rank: results repeat bit for bit only at the same number
  uint64_t generation = 0;  // under which it was written
  Score score;              // of the student, the newest
  Score teacher_score;
  double loss = 0;  // of the last step
  bool operator==(const CheckpointState&) const = default;
};

struct Checkpoint {
  CheckpointState state;
  SafetensorsFile model;
  SafetensorsFile optimizer;
};

struct StoredCheckpoint {
  Checkpoint checkpoint;
  std::string path;    // the folder
  std::string digest;  // sha256 of its manifest.json
};

// Thread-compatible. One process writes a job's checkpoints at a time (rank 0 of the newest generation); a writer of an
// older generation that wakes up late uses another temporary folder and cannot damage a finished one.
class CheckpointStore {
 public:
  // Makes the folder. kPermissionDenied, kResourceExhausted, kInvalidArgument (a file is in the way): the message names
  // the path.
  static StatusOr<CheckpointStore> Open(const std::string& root);

  // Writes, then prunes. A checkpoint of the same stage and step is replaced. On success the result's checkpoint is
  // empty (path and digest are set). On error nothing of it is left behind and older checkpoints are untouched.
  // kResourceExhausted: no space left; kPermissionDenied; the message names the path and the remedy.
  StatusOr<StoredCheckpoint> Write(const Checkpoint& checkpoint);

  // The newest one that is complete, undamaged and of this plan. Each folder that was passed over is told in `skipped`
  // (why, in words; may be null). nullopt: none is usable.
  StatusOr<std::optional<StoredCheckpoint>> LoadNewest(const std::string& job_id, const std::string& plan_digest,
                                                       std::vector<std::string>* skipped) const;

  // Reads and verifies one folder. kDataLoss: a file is missing, has another size or digest, or does not parse; names
  // it.
  static StatusOr<StoredCheckpoint> Load(const std::string& path);

  const std::string& root() const { return root_; }

 private:
  explicit CheckpointStore(std::string root) : root_(std::move(root)) {}
  // Keeps the newest two and every stage boundary; leftovers of interrupted writers go too.
  void Prune(uint64_t generation) const;

  std::string root_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_CHECKPOINT_STORE_H_
