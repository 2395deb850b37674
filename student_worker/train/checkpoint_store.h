// Checkpoints of one job on disk: written whole or not at all, verified before use, pruned. No torch here.
//
// clang-format off
// <root>/stage-<S>-step-<N>-gen-<G>/  S: index of the stage, N: steps done in it (N == the stage's steps: a stage
//                                     boundary), G: number of the writer that made it, see Claim()
//   model.safetensors                 the student's parameters and buffers
//   optimizer.safetensors             optimizer state and adapters of stage S; no tensors at a stage boundary
//   state.json                        CheckpointState
//   manifest.json                     {"files": {name: {"bytes": n, "sha256": hex}}}, written last
// <root>/generation                   the fence: G of the present writer and a random word of its own
// clang-format on
//
// Writing: everything goes into <root>/.tmp-<G>, each file and the folder are fsynced, the fence is looked at, the
// folder is renamed, the root is fsynced. A folder without a manifest, or whose files do not match it, does not exist
// for the loader.
//
// Two writers at once: rank 0 of an older generation may have been stopped, or cut off from the coordinator, and wake
// up when the next generation has long gone on from a checkpoint of its own. It finds another's word in the fence and
// gets kAborted. Should it have looked a moment before the fence changed, its folder bears another number than those
// of the new writer: it replaces nothing, the new writer's pruning counts its own first, and the loader prefers the
// newer writer's.
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
  // Of `step` and of `total_step`: those in which a teacher's map held NaN or infinity and nothing was learnt.
  uint64_t skipped_steps = 0;
  uint64_t total_skipped_steps = 0;
  uint64_t seed = 0;
  uint32_t world_size = 1;
  uint32_t threads = 1;     // CPU threads of each rank: results repeat bit for bit only at the same number
  uint64_t generation = 0;  // of the job, under which it was written
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

// Thread-compatible. One process writes a job's checkpoints at a time, rank 0 of the newest generation: the last one
// that called Claim(). Reading needs no claim.
class CheckpointStore {
 public:
  // Makes the folder. kPermissionDenied, kResourceExhausted, kNotFound (a file is in the way): the message names the
  // path.
  static StatusOr<CheckpointStore> Open(const std::string& root);

  // Makes this object the writer; whoever was it before gets kAborted from now on. Its number is `generation`, or one
  // more than the last writer's where that is not smaller: a coordinator whose store was restored from a copy counts
  // generations anew. Call it when the coordinator has confirmed the generation. Errors as Write.
  Status Claim(uint64_t generation);

  // kAborted: another process has claimed the folder since. A folder that has vanished is made again, with the fence.
  Status CheckClaim() const;

  // Writes, then prunes. On success the result's checkpoint is empty (path and digest are set). A whole checkpoint of
  // the same stage and step that this writer made before stays, and is the result. On error nothing of it is left
  // behind and older checkpoints are untouched. kAborted: another process has claimed the folder; kResourceExhausted:
  // no space left; kPermissionDenied; kDataLoss: the disk fails; the message names the path and the remedy.
  // REQUIRES: Claim() succeeded.
  StatusOr<StoredCheckpoint> Write(const Checkpoint& checkpoint);

  // The newest one that is complete, undamaged and of this plan: of the newest writer, and of its checkpoints the one
  // of the latest step. Each folder that was passed over is told in `skipped` (why, in words; may be null). nullopt:
  // none is usable.
  StatusOr<std::optional<StoredCheckpoint>> LoadNewest(const std::string& job_id, const std::string& plan_digest,
                                                       std::vector<std::string>* skipped) const;

  // The folder of stage `stage` whose manifest has the sha256 `digest`; nullopt: there is none.
  std::optional<std::string> Find(uint32_t stage, const std::string& digest) const;

  // Reads and verifies one folder. kDataLoss: a file is missing, has another size or digest, or does not parse; names
  // it.
  static StatusOr<StoredCheckpoint> Load(const std::string& path);

  const std::string& root() const { return root_; }

 private:
  explicit CheckpointStore(std::string root) : root_(std::move(root)) {}
  Status WriteFence() const;
  // Keeps the newest two and every stage boundary; leftovers of interrupted writers go too. Those of later writers are
  // not touched.
  void Prune() const;

  std::string root_;
  uint64_t writer_ = 0;  // 0: not claimed
  std::string fence_;    // what this writer put into the fence's file
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_CHECKPOINT_STORE_H_
