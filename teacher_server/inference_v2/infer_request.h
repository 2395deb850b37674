// A ModelInferRequest, checked against the models that are served, as what a stream (stream_core.h) is told.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_REQUEST_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/wire/buffer.h"
#include "common/wire/scattered_buffer.h"
#include "teacher_server/stream_open.h"
#include "teacher_server/teacher_engine.h"

namespace inference {
class ModelInferRequest;
}

namespace distill {

struct InferRequest {
  std::string id;    // the client's own
  size_t model = 0;  // index into the models
  // One tap of each output, in their order; `client` is not set.
  StreamOpen open;
  std::vector<std::string> outputs;  // names, as asked for
  std::vector<uint32_t> shape;       // N, C, H, W
  Buffer pixels;                     // as many bytes as the shape says
  // The pixels came in `contents`, and so do the outputs go.
  bool typed = false;
};

// A pure function. `raw`: the request's raw_input_contents, which `proto` does not hold. Everything but the limits of
// memory, and the digest, is checked here. kNotFound: no such model or version. kInvalidArgument: the request
// contradicts the model or itself, or asks for what a teacher has not; the message says what, and what there is.
StatusOr<InferRequest> ReadInferRequest(const inference::ModelInferRequest& proto,
                                        const std::vector<ScatteredBuffer>& raw,
                                        const std::vector<TeacherModel>& models);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_REQUEST_H_
