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
// * A client of this host that says so in `open` may get an offer of shared memory as the first message. Nothing is put
//   there before it has said that it is mapped, and nothing that it has not returned is overwritten. After it
//   half-closes, payloads come in messages again.
// * A wrong batch (shape, size, too many unanswered ones) is refused in band and the stream goes on; a wrong message
//   (malformed, no `open` first, a second `open`, a request id that is still unanswered, words about shared memory that
//   was not offered or more bytes of it than there are) ends the stream with INVALID_ARGUMENT.
// * Memory has one budget over all streams (memory_budget.h). A batch whose pixels do not fit it gets UNAVAILABLE in
//   band: take another teacher, or come back. One whose answer does not fit waits before it is computed. While others
//   wait, a stream that takes none of its features for `slow_client_timeout` is ended with UNAVAILABLE.
#ifndef DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_
#define DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "teacher_server/stream_set.h"

namespace distill {

// For RpcServer::Start. While the set loads or drains, streams get UNAVAILABLE. `streams` is not owned: StreamSet says
// in which order all this is destroyed.
std::unique_ptr<grpc::Service> CreateFeatureService(StreamSet* streams);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_FEATURE_SERVICE_H_
