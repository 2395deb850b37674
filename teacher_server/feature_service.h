// The gRPC shell around a TeacherEngine: FeatureService of proto/distill/v1/features.proto, tensors spliced in and out
// as slices.
//
// What a client may rely on, beyond the comments in the .proto:
// * Every batch gets exactly one end: a response with `last`, or one with `error`. Cancelled ones end with error code
//   CANCELLED (also in the middle of an answer: chunks already sent are then void); a cancel for an unknown or ended
//   request does nothing.
// * Answers come in the order in which they were computed, which need not be the order of the requests. One answer's
//   chunks are not mixed with another's; errors may come between them.
// * Chunks carry at most kChunkBytes of payload. The sum of payload bytes sent never exceeds the credit granted: when
//   less than a chunk's worth is left, a shorter chunk of exactly the remaining credit goes out, and the rest waits for
//   more. Errors need no credit. A client that half-closes keeps getting answers as far as its credit reaches; then the
//   stream ends with FAILED_PRECONDITION, because no more can come.
// * A wrong batch (shape, size, too many unanswered ones) is refused in band and the stream goes on; a wrong message
//   (malformed, no `open` first, a second `open`, a request id that is still unanswered) ends the stream with
//   INVALID_ARGUMENT.
// * Memory has one budget over all streams (memory_budget.h). A batch whose pixels do not fit it gets UNAVAILABLE in
//   band: take another teacher, or come back. One whose answer does not fit waits before it is computed. While others
//   wait, a stream that takes none of its features for `slow_client_timeout` is ended with UNAVAILABLE.
//
// States of the service: loading -> serving -> draining. Loading and draining answer UNAVAILABLE; see Drain().
#ifndef DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_
#define DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <chrono>
#include <cstdint>
#include <memory>

#include "common/metrics/metrics.h"
#include "common/wire/limits.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

// Payload bytes of one FeatureResponse. Large enough that per-message work does not count, small enough that a stream's
// pixels and credits are not stuck behind it.
inline constexpr uint64_t kChunkBytes = 1 << 20;
// Most taps of one stream.
inline constexpr int kMaxTaps = 256;
// Longest model name, digest, client name and tap path, in bytes: they go into logs and messages.
inline constexpr size_t kMaxNameBytes = 256;

// Thread-safe.
class FeatureService {
 public:
  struct Options {
    // Limits of one stream.
    uint32_t max_unanswered = 256;           // batches; one more gets RESOURCE_EXHAUSTED in band
    uint64_t max_waiting_bytes = 256 << 20;  // pixels of unanswered batches; more gets RESOURCE_EXHAUSTED in band
    // Feature bytes being computed or computed and unsent. Batches beyond it wait before they are computed (unless the
    // stream has nothing else under way), so a client that grants no credit does not fill the server's memory.
    uint64_t max_unsent_bytes = 256 << 20;
    uint64_t max_answer_bytes = kMaxAnswerBytes;  // one batch's features; more gets RESOURCE_EXHAUSTED in band
    // Limits of all streams together. Raising the budget lets more clients be ahead of their readers at once.
    uint64_t memory_budget = uint64_t{2} << 30;  // pixels and features, as above
    uint32_t max_streams = 1000;                 // one more gets UNAVAILABLE at once
    // A stream without `open` is ended after this.
    std::chrono::milliseconds open_timeout{30000};
    // See above.
    std::chrono::milliseconds slow_client_timeout{10000};
  };

  // `metrics` outlives the service. Order of destruction: RpcServer, then the engine (or its Stop()), then the service.
  static std::unique_ptr<FeatureService> Create(const Options& options, MetricsRegistry* metrics);
  virtual ~FeatureService() = default;

  // For RpcServer::Start.
  virtual grpc::Service* service() = 0;
  // loading -> serving. The engine outlives all streams. Call once.
  virtual void SetEngine(TeacherEngine* engine) = 0;
  // serving -> draining: new streams and new batches get UNAVAILABLE; a stream whose accepted batches are all answered
  // ends with UNAVAILABLE, which tells its client to take another teacher. Does not wait. Idempotent.
  virtual void Drain() = 0;
  // Waits until no stream is open, at most `timeout`. True when none is.
  virtual bool WaitIdle(std::chrono::milliseconds timeout) = 0;
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_
