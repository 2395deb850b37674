// The names under which the Open Inference Protocol sees a model: versions, the input, outputs.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_SERVED_MODEL_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_SERVED_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

// The one version of every model.
inline constexpr char kModelVersion[] = "1";
// The one input: UINT8 pixels [N, C, H, W].
inline constexpr char kInputName[] = "images";

struct ModelOutput {
  std::string name;
  std::string tap;              // "": the network's output
  std::vector<uint32_t> shape;  // without the batch axis
};

// Index into `models`. kNotFound: none of that name, or not in that version ("" for any); the message names what there
// is.
StatusOr<size_t> FindServedModel(const std::vector<TeacherModel>& models, const std::string& name,
                                 const std::string& version);
// "a, b, c and 20 more, which ModelMetadata lists": as much as a status may carry (gRPC has 8 KiB for all of it).
std::string NamesText(const std::vector<std::string>& names);
// The network's own output first, if it has one, as "output" ("network_output" where a tap has that path); then every
// tap under its path.
std::vector<ModelOutput> OutputsOf(const TeacherModel& model);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_SERVED_MODEL_H_
