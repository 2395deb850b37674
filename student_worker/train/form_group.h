// How the ranks of a job's generation find one another and become a group.
//
// Ranks learn of their assignment at different times and may still be unwinding the one before, so they first wait for
// one another, for as long as the generation lasts; only then do they connect, within the time-out of collectives.
// Each says who and where it is in the rendezvous store's key "arrived/<rank>", and says it again in every round of its
// wait: the store lives in the coordinator's memory, and a coordinator that restarts has forgotten who was there.
//
// Before they connect, all ranks look at what all have said and come to the same verdict on their devices: all compute
// on CPUs or all on GPUs (Gloo and NCCL do not meet), and no GPU is used twice (NCCL refuses that, after a while and in
// other words).
#ifndef DISTILL_STUDENT_WORKER_TRAIN_FORM_GROUP_H_
#define DISTILL_STUDENT_WORKER_TRAIN_FORM_GROUP_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/rendezvous/kv_client.h"
#include "common/status.h"
#include "student_worker/train/job_control.h"

namespace distill {

// What a rank says of itself when it arrives.
struct RankIdentity {
  std::string worker_id;
  std::string host;       // address at which the other ranks reach it
  std::string device;     // "cpu", "cuda:1"
  std::string device_id;  // of a GPU, the same to every process that sees it (UUID); "" for "cpu"
};

struct FormGroupOptions {
  uint32_t rank = 0;
  uint32_t world_size = 1;
  RankIdentity self;
  std::chrono::milliseconds collective_timeout{20000};
  // Length of one round of waiting: how soon a stop is obeyed, and a restarted coordinator told again.
  std::chrono::milliseconds round{1000};
  // What the wait is for ("waiting for ranks 1, 3"); called after each round that ended without them, on the caller's
  // thread. `seconds`: since the wait began. May be null.
  std::function<void(const std::string& reason, double seconds)> on_waiting;
};

// Blocks until the group stands. With one rank: at once; `store` may be null then. From the moment on at which it
// connects, `control` has the group's Abort() as its abort function.
// kFailedPrecondition: the devices do not go together and this rank's is an odd one (the message names the ranks,
// workers and devices, and what to do); kCancelled: revoked, cancelled, terminated, the generation is over, or another
// rank's device is the odd one, which reports it; otherwise as CollectiveGroup::Create() and Connect().
StatusOr<std::shared_ptr<CollectiveGroup>> FormGroup(const FormGroupOptions& options,
                                                     const std::shared_ptr<KvClient>& store, JobControl* control);

// The verdict on the devices of all ranks (index = rank), the same on each: the ranks that must leave, in order, and
// why. On a mixture of CPUs and GPUs those that differ from the majority (in a draw: from rank 0); where a GPU is used
// twice, all of its ranks but the lowest.
struct DeviceVerdict {
  std::vector<uint32_t> odd;  // empty: the devices go together
  std::string reason;
};
DeviceVerdict JudgeDevices(const std::vector<RankIdentity>& ranks);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_FORM_GROUP_H_
