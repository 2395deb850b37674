// The TeacherEngine that runs models with LibTorch. torch itself is seen by the .cc alone.
//
// One thread per model, "tch-<model>", takes batches from the model's BatchQueue and runs only as much of the network
// as the taps need. Reduction happens here, at the source: features are cast to the dtype that was asked for, after the
// row maximum was taken off where that was asked for. Tensors leave as Buffers that refer to torch's own storage: no
// copy. The parts of a merged batch share one storage, which lives until the last part is sent; a part that is less
// than a quarter of it is copied, so that a slow client does not hold the others' features.
//
// Features are delivered as computed: not-a-number and infinities are not looked for, and f16 saturates to infinity
// above 65504.
#ifndef DISTILL_TEACHER_SERVER_TORCH_TEACHER_ENGINE_H_
#define DISTILL_TEACHER_SERVER_TORCH_TEACHER_ENGINE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics/metrics.h"
#include "common/status.h"
#include "common/zoo/model_file.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

struct TorchTeacherOptions {
  std::vector<ModelFile> models;
  // Files that were found and left out before (CollectModelFiles); they count in distill_teacher_models_left_out.
  size_t already_left_out = 0;
  // As ChooseDevice() (common/cuda/cuda_runtime.h) takes it.
  std::string device = "auto";
  // CPU threads of each model's arithmetic; 0: one per core. Results on the CPU repeat bit for bit at one number of
  // threads.
  int threads = 0;
  // Largest merged batch, in images. Larger ones use the device better and cost memory and waiting time.
  uint32_t max_batch_images = 256;
  // Called, on the thread of a model, when the GPU's context is lost: every later batch would fail too. What is being
  // computed is not answered then; clients that lose the connection ask another teacher. Null: batches fail one by one.
  std::function<void(const Status& why)> on_unusable;
};

// Loads all models (eval mode) and starts their threads. A model that is not `required` and cannot be loaded is left
// out: an error in the log says why. `metrics` outlives the engine.
// Errors name the file: kNotFound missing; kDataLoss damaged; kFailedPrecondition another kind of file, weights and
// architecture that do not fit together, an archive whose answers are not the images', no such device, or no model
// left; kInvalidArgument the description of the model is missing or wrong.
StatusOr<std::unique_ptr<TeacherEngine>> CreateTorchTeacherEngine(const TorchTeacherOptions& options,
                                                                  MetricsRegistry* metrics);
// What `device` means on this machine: "cpu" or "cuda:0 NVIDIA H200". Errors as ChooseDevice().
StatusOr<std::string> DescribeTeacherDevice(const std::string& device);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_TORCH_TEACHER_ENGINE_H_
