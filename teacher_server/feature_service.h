// The gRPC shell around the streams of a TeacherEngine (stream_core.h, which knows no gRPC): FeatureService of
// proto/distill/v1/features.proto, tensors spliced in and out as slices.
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
#include <memory>

#include "common/metrics/metrics.h"
#include "teacher_server/stream_limits.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

// Thread-safe.
class FeatureService {
 public:
  // `metrics` outlives the service. Order of destruction: RpcServer, then the engine (or its Stop()), then the service.
  static std::unique_ptr<FeatureService> Create(const StreamLimits& limits, MetricsRegistry* metrics);
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
