// A small network with reproducible weights, made without torch (but for the archive).
#ifndef DISTILL_TESTS_TEACHER_SERVER_MODEL_FIXTURE_H_
#define DISTILL_TESTS_TEACHER_SERVER_MODEL_FIXTURE_H_

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/zoo/architecture.h"
#include "common/zoo/model_metadata.h"

namespace distill::testing {

inline ModelSpec TestSpec(const std::string& arch = "cifar_resnet8") {
  return ModelSpec{.arch = arch,
                   .width = 8,
                   .num_classes = 10,
                   .in_channels = 3,
                   .image_height = 16,
                   .image_width = 16,
                   .mean = {0.5f, 0.4f, 0.3f},
                   .std = {0.2f, 0.25f, 0.3f}};
}

// Numbers of about the size that training leaves: weights uniform in +-1/sqrt(fan in), batch-norm scales and variances
// around 1.
inline SafetensorsFile TestWeights(const ModelSpec& spec, uint64_t seed) {
  SafetensorsFile file;
  file.metadata = SpecToMetadata(spec);
  uint64_t state = seed;
  auto uniform = [&] {  // in [-1, 1)
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(state >> 40) / (1 << 23) - 1.0f;
  };
  for (const StateEntry& entry : Architecture::Create(spec).value().StateDict()) {
    int64_t count = 1;
    for (int64_t axis : entry.shape) count *= axis;
    SafeTensor tensor;
    tensor.shape = entry.shape;
    tensor.dtype = entry.is_integer ? "I64" : "F32";
    if (entry.is_integer) {
      tensor.bytes = Buffer::FromVector(std::vector<uint8_t>(8 * count));
    } else {
      const bool around_one =
          entry.shape.size() == 1 && (entry.name.ends_with("weight") || entry.name.ends_with("running_var"));
      const float scale = entry.shape.size() > 1 ? 1 / std::sqrt(static_cast<float>(count / entry.shape[0])) : 0.3f;
      std::vector<uint8_t> bytes(4 * count);
      for (int64_t i = 0; i < count; ++i) {
        const float value = (around_one ? 1.0f : 0.0f) + scale * uniform();
        std::memcpy(bytes.data() + 4 * i, &value, 4);
      }
      tensor.bytes = Buffer::FromVector(std::move(bytes));
    }
    file.tensors[entry.name] = std::move(tensor);
  }
  return file;
}

// The network in the weights file as a TorchScript archive with these taps.
Status WriteTestArchive(const std::string& weights_file, const std::string& archive,
                        const std::vector<std::string>& taps);
// An archive with this forward method, in TorchScript's language; `archive`.yaml beside it describes TestSpec() images.
void WriteProgram(const std::string& forward, const std::string& archive);

}  // namespace distill::testing

#endif  // DISTILL_TESTS_TEACHER_SERVER_MODEL_FIXTURE_H_
