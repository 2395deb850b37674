// The two calls of the Open Inference Protocol that carry tensors, as gRPC's reactors. They read and write messages as
// bytes: infer_task.h knows what is in them.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_CALLS_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_CALLS_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "teacher_server/inference_v2/infer_statistics.h"
#include "teacher_server/stream_set.h"

namespace distill {

// ModelInfer. `request` is emptied; `response` is gRPC's until the call is over. The reactor deletes itself.
grpc::ServerUnaryReactor* StartModelInfer(StreamSet* streams, InferStatistics* statistics,
                                          grpc::CallbackServerContext* context, grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response);
// ModelStreamInfer. The reactor deletes itself.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartModelStreamInfer(
    StreamSet* streams, InferStatistics* statistics, grpc::CallbackServerContext* context);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_CALLS_H_
