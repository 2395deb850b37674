// The student's side of the feature stream: sends image batches to whichever of the job's teachers has the least to do,
// and hands back verified feature maps. Teachers may come, die, stall, lag or lie; the caller notices nothing but time.
//
// One thread ("teacher-pool") owns all state; gRPC's threads only post events to it. A teacher moves through
//   idle -> dialing -> open -> idle (rests as teacher_health.h says) -> ...
// as long as it is listed. While open it is one StreamFeatures call. When the call ends, breaks the protocol, or an
// answer takes too long as a whole (a trickle of bytes does not count), it is dropped and its unanswered requests go to
// another teacher, or wait for one.
//
// Late. A teacher that owes an answer for much longer than usual gets no more work, and another one is asked for the
// same batch; the first answer counts, the other one is cancelled. Where the window has no room for two answers, the
// batch is taken away from the late one instead.
//
// Wrong. An error, or maps with numbers that are none, is one teacher's word: another one is asked. Only when every
// teacher that can be reached has said so does the request fail, and tells who said what; maps are then delivered as
// they are (they are the model's, not a teacher's fault). Who was contradicted by a right answer, or answered with an
// error, is set aside for a while.
//
// Window: bytes of answers that teachers may still send plus bytes received and not yet released never exceed
// `window_bytes`, over all teachers together. Credit is granted request by request, in the order of Fetch(), for
// exactly the bytes the answer will have; only the very first request of a pool that does not know its tap shapes is
// granted the whole window (its answer teaches the shapes). Received bytes are released when the last copy of a
// tensor's Buffer::owner goes away.
//
// Shared memory. A teacher on the same host may offer a ring of it (common/shared_memory/memory_ring.h), from which the
// bytes of answers are then copied; messages, credit and ends of streams stay on the connection. Where it cannot be
// had, the bytes come over the connection too. The ring is at most a quarter of the window, and no part of it.
//
// Seen. What people should know goes to `on_event`: by which way the features of a teacher on this host come, a teacher
// that is set aside and why, one that is trusted again, features that have not come for `notice_after` and whom they
// are waited for, and when they come again. All else is in the log.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_H_
#define DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/metrics/metrics.h"
#include "common/rpc/rpc_options.h"
#include "common/shared_memory/shared_memory_options.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/feature/teacher_health.h"

namespace distill {

// Thread-safe.
class TeacherPool {
 public:
  struct Options {
    // Served model, and the digest its answers must carry ("" for any).
    std::string model;
    std::string digest;
    // What each answer holds, in this order. At least one.
    std::vector<TapRequest> taps;
    // Shape of each tap without the batch axis ([C, H, W] or [K]); empty list: learned from the first answer.
    std::vector<std::vector<uint32_t>> tap_shapes;
    // Ask teachers to compute each batch alone (bit-identical results whatever the company).
    bool exclusive_batches = false;
    RpcSecurity security;
    SharedMemoryOptions shared_memory;
    // For the teachers' logs: job id and worker id.
    std::string client;
    // See above. An answer that alone exceeds it fails with kResourceExhausted, by the job's fault. Raising it costs
    // memory, and hides more latency.
    uint64_t window_bytes = 64ull << 20;
    // When a teacher counts as late, silent, forgiven.
    TeacherHealth::Options health;
    // Time for a connection to be established before the next attempt.
    std::chrono::milliseconds dial_timeout{5000};
    // Time without any answer, though some are owed, after which people are told.
    std::chrono::milliseconds notice_after{30000};
    // Called on the pool's thread: must be quick, must not call the pool. Empty: the log alone is told.
    std::function<void(EventLevel level, const std::string& text)> on_event;
    MetricsRegistry* metrics = nullptr;  // not owned, outlives the pool; null: none
  };

  // Called once per Fetch, on the pool's thread: must be quick, must not block, may call Fetch and Cancel, must not
  // destroy the pool. Errors: those that every teacher gave, in one text that says who said what: kInvalidArgument,
  // kNotFound, kFailedPrecondition: they refuse (bad tap, unknown model, other digest), or this request is malformed;
  // kDataLoss: they keep breaking the protocol; kInternal, kResourceExhausted: they cannot compute it (three tries
  // each), or their reasons differ; kOutOfRange: where the shapes were not known their answers turned out larger than
  // the window. Also kResourceExhausted, marked FailureKind::kJob: the answer is larger than the window;
  // kDeadlineExceeded: none of three answers came, and their size is not known; kCancelled: Cancel or destruction.
  using Callback = std::function<void(StatusOr<FeatureBatch>)>;

  // kInvalidArgument: no taps, tap_shapes of another length, zero window.
  static StatusOr<std::unique_ptr<TeacherPool>> Create(Options options);
  // Unanswered requests get kCancelled. Batches handed out stay valid.
  ~TeacherPool();
  TeacherPool(const TeacherPool&) = delete;
  TeacherPool& operator=(const TeacherPool&) = delete;

  // The teachers that may be used from now on. Connections to addresses that stay listed are kept, those to others
  // dropped (their unanswered requests move). Endpoints of another model are ignored; those of another digest refuse
  // every request.
  void SetTeachers(std::vector<TeacherEndpoint> teachers);

  // Asks for the features of `images`; `id` (the step) is for messages. All batches of a pool have the same C, H, W.
  // The pixels are referenced, not copied, until the callback. Returns a ticket for Cancel.
  uint64_t Fetch(uint64_t id, ImageBatch images, Callback callback);
  // The callback gets kCancelled soon, unless it was already called; unknown tickets are ignored.
  void Cancel(uint64_t ticket);

  // Teachers with an open stream.
  size_t connected() const;
  // Bytes granted and not yet received plus bytes received and not yet released. At most window_bytes.
  uint64_t window_used() const;

 private:
  class Core;
  explicit TeacherPool(std::shared_ptr<Core> core);
  // Shared with the buffers handed out, which report their release to it and may outlive the pool.
  std::shared_ptr<Core> core_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_H_
