// Answers of the Open Inference Protocol as they go onto the wire.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_RESPONSE_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_RESPONSE_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>
#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"

namespace distill {

// What of a request its answer repeats.
struct InferHeader {
  std::string id;
  std::string model;
  std::vector<std::string> outputs;
  bool typed = false;     // outputs in `contents`, which copies them. REQUIRES: then they are f32
  bool streamed = false;  // a ModelStreamInferResponse; else a ModelInferResponse
};

// The bytes that protobuf would write. Tensors that go raw are referred to, not copied, unless they lie channels last:
// the protocol knows one order, that of the shape. REQUIRES: one tap an output, no
// more than kMaxInferenceMessageBytes in all.
grpc::ByteBuffer EncodeInferResponse(const InferHeader& header, const FeatureBatch& answer);
// A ModelStreamInferResponse that says why the request of that id failed: "NOT_FOUND: ...".
grpc::ByteBuffer EncodeInferError(const std::string& id, const Status& status);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_RESPONSE_H_
