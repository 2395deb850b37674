// The Open Inference Protocol (proto/inference/inference.proto) beside the feature stream: the same engine, memory,
// limits and metrics (stream_set.h), and the same port, token and TLS. For clients whose training is not ours.
//
// What a client may rely on, beyond the comments in the .proto:
// * The pixels of a request are the feature stream's: UINT8 [N, C, H, W], normalised by the server. Two requests of the
//   same pixels with `exclusive` get the same bits, and those of the feature stream.
// * A request is held by the memory budget as a batch of the feature stream is: pixels that do not fit are refused with
//   UNAVAILABLE, an answer that does not fit waits before it is computed. Its bytes are counted until the transport has
//   them; who takes less than 10 MB/s while others wait is cut off.
// * A message has at most 2 GiB less a byte, an answer 1 MiB less than that. Tensors in `contents` at most 64 MiB.
// * A request that was cancelled, or whose deadline has passed, is not computed any more.
// * ModelStreamInfer takes kMostAhead requests in, and then reads on with each answer that has gone.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFERENCE_SERVICE_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFERENCE_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <cstddef>
#include <memory>

#include "teacher_server/stream_set.h"

namespace distill {

// Requests of one ModelStreamInfer call that are under way at a time.
inline constexpr size_t kMostAhead = 16;

// For RpcServer::Start, with max_message_bytes = kMaxInferenceMessageBytes. `streams` is not owned: StreamSet says in
// which order all this is destroyed.
std::unique_ptr<grpc::Service> CreateInferenceService(StreamSet* streams);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFERENCE_SERVICE_H_
