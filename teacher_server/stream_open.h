// The first message of a stream: what a client wants of all its batches, found among the models that are served.
#ifndef DISTILL_TEACHER_SERVER_STREAM_OPEN_H_
#define DISTILL_TEACHER_SERVER_STREAM_OPEN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

// Mirrors v1.OpenStream; nothing in it is checked.
struct StreamOpen {
  struct Tap {
    std::string path;  // "" for the network's output
    int dtype = 0;     // number of a WireDtype
    bool less_row_max = false;
  };
  std::string model;
  std::string digest;  // "" for any
  std::string client;  // for logs
  std::vector<Tap> taps;
  bool exclusive_batches = false;
  uint64_t credit_bytes = 0;
  // A wish for shared memory: the client's kernel and its most bytes; "" or 0: none.
  std::string boot_id;
  uint64_t shared_memory_bytes = 0;
};

struct OpenedModel {
  size_t model = 0;  // index into the models
  std::shared_ptr<const std::vector<TapRequest>> taps;
  uint64_t image_answer_bytes = 0;  // of all taps, for one image
};

// A pure function. kNotFound: no such model. kFailedPrecondition: it has another digest. kInvalidArgument: a name that
// is too long, no taps or too many, one that the model has not, a dtype or a row maximum that cannot be had of it.
StatusOr<OpenedModel> FindModel(const StreamOpen& open, const std::vector<TeacherModel>& models);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_STREAM_OPEN_H_
