#include "teacher_server/torch_teacher_engine.h"

#include <pthread.h>
#include <torch/torch.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <span>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/cuda/cuda_environment.h"
#include "common/cuda/cuda_runtime.h"
#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/log.h"
#include "common/safetensors/safetensors.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/wire/copy_count.h"
#include "common/zoo/file_kind.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"
#include "common/zoo/weights_file.h"
#include "common/zoo/zoo_net.h"
#include "teacher_server/batch_queue.h"
#include "teacher_server/merged_compute.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;
// x: float32 (N, C, H, W), normalised -> one tensor per tap.
using ForwardFunction =
    std::function<StatusOr<std::vector<torch::Tensor>>(const torch::Tensor& x, const std::vector<std::string>& taps)>;

// A part of a merged batch may hold at most this many times its own bytes.
constexpr uint64_t kMostPinned = 4;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

torch::ScalarType TorchType(WireDtype dtype) {
  switch (dtype) {
    case WireDtype::kF16:
      return torch::kFloat16;
    case WireDtype::kBf16:
      return torch::kBFloat16;
    case WireDtype::kU8:
      return torch::kUInt8;
    case WireDtype::kF32:
      break;
  }
  return torch::kFloat32;
}

// Values that are encoded at a time: they stay in the second-level cache between one operator and the next.
constexpr int64_t kTile = 1 << 16;

// kChannelsLast where that is how it lies; kRowMajor where both descriptions fit, or neither does.
TensorLayout TensorLayoutOf(const torch::Tensor& tensor) {
  const bool last =
      tensor.dim() == 4 && !tensor.is_contiguous() && tensor.is_contiguous(torch::MemoryFormat::ChannelsLast);
  return last ? TensorLayout::kChannelsLast : TensorLayout::kRowMajor;
}

// to = from less `largest` (N, C, 1, 1), cast. From memory `from` is read once. REQUIRES: equal layouts, on the CPU.
void CopyLessRowMax(const torch::Tensor& from, const torch::Tensor& largest, const torch::Tensor& to) {
  const int64_t n = from.size(0), sample = from.numel() / std::max<int64_t>(n, 1);
  const int64_t samples = std::max<int64_t>(1, kTile / std::max<int64_t>(sample, 1));
  // The outermost axis of a sample in memory.
  const int64_t axis = TensorLayoutOf(from) == TensorLayout::kChannelsLast ? 2 : 1;
  const int64_t part = std::max<int64_t>(1, kTile / std::max<int64_t>(sample / from.size(axis), 1));
  for (int64_t first = 0; first < n; first += samples) {
    const int64_t count = std::min(samples, n - first);
    for (int64_t begin = 0; begin < from.size(axis); begin += part) {
      const auto tile = [&](const torch::Tensor& x) {
        const torch::Tensor rows = x.narrow(0, first, count);
        return x.size(axis) == 1 && from.size(axis) != 1
                   ? rows
                   : rows.narrow(axis, begin, std::min(part, from.size(axis) - begin));
      };
      tile(to).copy_(tile(from) - tile(largest));
    }
  }
}

// What goes on the wire: the tap's tensor [N, C, H, W] or [N, K] on the CPU, its axes in the order they had.
torch::Tensor Encode(torch::Tensor tensor, const TapEncoding& encoding) {
  if (!tensor.is_contiguous() && TensorLayoutOf(tensor) == TensorLayout::kRowMajor) {
    tensor = tensor.contiguous();  // a view with gaps, or axes in another order
    CountFeatureCopy(tensor.nbytes());
  }
  const torch::ScalarType type = TorchType(encoding.dtype);
  if (!encoding.less_row_max && tensor.scalar_type() == type && tensor.is_cpu()) return tensor;
  torch::Tensor encoded;
  if (!encoding.less_row_max || tensor.numel() == 0) {
    encoded = tensor.to(type).to(torch::kCPU);
  } else {
    const torch::Tensor largest = tensor.amax({2, 3}, /*keepdim=*/true);  // (N, C, 1, 1)
    if (tensor.is_cpu()) {
      encoded = torch::empty_like(tensor, tensor.options().dtype(type));
      CopyLessRowMax(tensor, largest, encoded);
    } else {
      encoded = (tensor - largest).to(type).to(torch::kCPU);
    }
  }
  CountFeatureCopy(encoded.nbytes());
  return encoded;
}

// Rows [begin, begin + n) of `tensor`; without a copy, unless they are so few of its rows that they would hold much
// more memory than they are counted for, as long as their client takes to fetch them. REQUIRES: tensor has that many
// rows.
WireTensor Slice(const torch::Tensor& tensor, const TapEncoding& encoding, int64_t begin, int64_t n) {
  WireTensor wire;
  wire.encoding = encoding;
  wire.layout = TensorLayoutOf(tensor);
  for (int64_t axis : tensor.sizes()) wire.shape.push_back(static_cast<uint32_t>(axis));
  wire.shape[0] = static_cast<uint32_t>(n);
  const uint64_t row_bytes = tensor.nbytes() / tensor.size(0);
  const bool few = static_cast<uint64_t>(n) * kMostPinned < static_cast<uint64_t>(tensor.size(0));
  if (few) CountFeatureCopy(n * row_bytes);
  auto owner = std::make_shared<const torch::Tensor>(few ? tensor.narrow(0, begin, n).clone() : tensor);
  const uint64_t offset = few ? 0 : begin * row_bytes;
  wire.bytes = Buffer{static_cast<const uint8_t*>(owner->const_data_ptr()) + offset, n * row_bytes, owner};
  return wire;
}

// A loaded model before it gets its thread.
struct LoadedModel {
  TeacherModel info;
  ForwardFunction forward;
};

StatusOr<std::vector<uint8_t>> ReadWholeFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::NotFoundError(StrCat(path, ": ", std::strerror(errno)));
  const std::streamoff size = in.tellg();
  // A folder opens, and then has no sensible size.
  if (size < 0 || size == std::numeric_limits<std::streamoff>::max())
    return absl::NotFoundError(StrCat(path, ": not a file that can be read"));
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  in.seekg(0);
  if (!in.read(reinterpret_cast<char*>(bytes.data()), size))
    return absl::DataLossError(StrCat(path, ": read failed after ", in.gcount(), " of ", size, " bytes"));
  return bytes;
}

std::string Digest(const ModelSpec& spec, std::string_view file) {
  Sha256 hash;
  hash.Update(CanonicalText(spec));
  hash.Update(file);
  return hash.HexDigest();
}

StatusOr<LoadedModel> LoadZooModel(const ModelFile& file, torch::Device device) {
  DISTILL_RETURN_IF_ERROR(CheckModelFile(file.path, ModelFormat::kWeights));
  DISTILL_ASSIGN_OR_RETURN(std::vector<uint8_t> content, ReadWholeFile(file.path));
  const Buffer bytes = Buffer::FromVector(std::move(content));
  DISTILL_ASSIGN_OR_RETURN(SafetensorsFile weights, ParseSafetensors(bytes, file.path));
  DISTILL_ASSIGN_OR_RETURN(std::optional<ModelSidecar> sidecar, ReadSidecar(file.path));
  const bool described = weights.metadata.count("distill.arch") > 0;
  if (!described && !sidecar) {
    return absl::InvalidArgumentError(StrCat(file.path, ": the file does not say which network it is for; write ",
                                             file.path, ".yaml with arch, num_classes, in_channels, image, mean, std"));
  }
  ModelSpec spec;
  if (described) {
    StatusOr<ModelSpec> parsed = SpecFromMetadata(weights.metadata);
    if (!parsed.ok()) return Annotate(parsed.status(), file.path);
    spec = *std::move(parsed);
  } else {
    spec = sidecar->spec;
  }
  spec.weights.clear();
  DISTILL_RETURN_IF_ERROR(CheckImageSpec(spec, file.path));
  StatusOr<Architecture> architecture = Architecture::Create(spec);
  if (!architecture.ok()) return Annotate(architecture.status(), file.path);
  spec = architecture->spec();  // defaults filled in
  if (described && sidecar) {
    StatusOr<Architecture> other = Architecture::Create(sidecar->spec);
    if (!other.ok()) return Annotate(other.status(), file.path + ".yaml");
    if (CanonicalText(other->spec()) != CanonicalText(spec)) {
      return absl::FailedPreconditionError(
          StrCat(file.path, ".yaml contradicts the description inside ", file.path, "; remove the .yaml file"));
    }
  }
  if (const std::string prefix = StripWrapperPrefix(&weights, *architecture); !prefix.empty()) {
    LogInfo("every tensor's name begins with a wrapper's prefix, which is left out",
            {{"model", file.name}, {"file", file.path}, {"prefix", prefix}});
  }
  // Before the network takes memory: a description may ask for any size.
  if (Status fits = CheckWeightsFit(weights, *architecture); !fits.ok()) return Annotate(fits, file.path);
  StatusOr<std::shared_ptr<ZooNet>> net = ZooNet::Create(spec);
  if (!net.ok()) return Annotate(net.status(), file.path);
  if (Status loaded = LoadWeights(weights, net->get()); !loaded.ok()) return Annotate(loaded, file.path);
  (*net)->eval();
  (*net)->to(device);
  for (torch::Tensor& parameter : (*net)->parameters()) parameter.set_requires_grad(false);

  LoadedModel model;
  const Architecture& arch = (*net)->architecture();
  model.info.served.name = file.name;
  model.info.served.digest = Digest(spec, {reinterpret_cast<const char*>(bytes.data), bytes.size});
  model.info.served.spec = spec;
  model.info.served.parameters = arch.ParameterCount();
  model.info.served.bytes = bytes.size;
  for (const TapInfo& tap : arch.taps()) {
    model.info.taps.push_back({tap.path, std::string(Name(tap.kind)), tap.shape, tap.stage_end});
  }
  model.info.output_shape = arch.FindTap("")->shape;
  model.forward = [net = *net](const torch::Tensor& x, const std::vector<std::string>& taps) {
    return net->Forward(x, taps);
  };
  return model;
}

StatusOr<LoadedModel> LoadTorchScriptModel(const ModelFile& file, torch::Device device) {
  DISTILL_RETURN_IF_ERROR(CheckModelFile(file.path, ModelFormat::kArchive));
  DISTILL_ASSIGN_OR_RETURN(const std::vector<uint8_t> content, ReadWholeFile(file.path));
  DISTILL_ASSIGN_OR_RETURN(const std::optional<ModelSidecar> sidecar, ReadSidecar(file.path));
  if (!sidecar) {
    return absl::InvalidArgumentError(StrCat(file.path, ": an archive does not say which images it takes; write ",
                                             file.path, ".yaml with in_channels, image, mean, std"));
  }
  ModelSpec spec = sidecar->spec;
  DISTILL_RETURN_IF_ERROR(CheckImageSpec(spec, file.path));
  const std::string_view bytes(reinterpret_cast<const char*>(content.data()), content.size());
  DISTILL_ASSIGN_OR_RETURN(
      std::shared_ptr<TorchScriptNet> net,
      TorchScriptNet::Load(file.path, spec, {.device = device.str(), .training = false, .stages = sidecar->stages}));
  DISTILL_RETURN_IF_ERROR(CheckArchiveIsDescribed(*sidecar, file.path, bytes, net->taps()));

  LoadedModel model;
  for (const TapInfo& tap : net->taps()) {
    model.info.taps.push_back({tap.path, std::string(Name(tap.kind)), tap.shape, tap.stage_end});
    if (tap.path.empty()) model.info.output_shape = tap.shape;
  }
  // [K], or [K, H, W] of a network that answers per pixel.
  const std::vector<uint32_t>& output = model.info.output_shape;
  if (output.size() == 1 || IsDense(output)) spec.num_classes = output[0];
  model.info.served.name = file.name;
  model.info.served.digest = Digest(spec, bytes);
  model.info.served.spec = spec;
  model.info.served.parameters = net->ParameterCount();
  model.info.served.bytes = content.size();
  model.info.served.taps = model.info.taps;
  model.forward = [net](const torch::Tensor& x, const std::vector<std::string>& taps) { return net->Forward(x, taps); };
  return model;
}

StatusOr<LoadedModel> Load(const ModelFile& file, torch::Device device) {
  try {
    return IsTorchScriptFile(file.path) ? LoadTorchScriptModel(file, device) : LoadZooModel(file, device);
  } catch (const std::exception& error) {
    return TorchStatus(error, file.path);
  }
}

class TorchTeacherEngine final : public TeacherEngine {
 public:
  TorchTeacherEngine(std::vector<LoadedModel> loaded, torch::Device device, const TorchTeacherOptions& options,
                     MetricsRegistry* metrics)
      : device_(device), threads_(options.threads), on_unusable_(options.on_unusable) {
    for (LoadedModel& model : loaded) {
      const ServedModelInfo& served = model.info.served;
      metrics
          ->GetGauge("distill_teacher_model_info", "Served models; always 1.",
                     {{"model", served.name}, {"digest", served.digest}, {"arch", served.spec.arch}})
          .Set(1);
      workers_.push_back(std::make_unique<Worker>(model, options.max_batch_images, metrics));
      models_.push_back(std::move(model.info));
    }
    for (size_t i = 0; i < workers_.size(); ++i) {
      workers_[i]->thread = std::thread([this, i] { RunWorker(*workers_[i], models_[i].served.name); });
    }
  }
  ~TorchTeacherEngine() override { Stop(); }

  const std::vector<TeacherModel>& models() const override { return models_; }

  void Submit(TeacherRequest request, Callback done) override {
    Worker& worker = *workers_[request.model];
    QueuedRequest item{std::move(request), std::move(done), Clock::now()};
    bool accept;
    {
      absl::MutexLock lock(&mutex_);
      ++outstanding_;
      accept = accepting_;
    }
    if (accept) {
      worker.queue_length.Add(1);
      if (worker.queue.Push(std::move(item))) return;
      worker.queue_length.Add(-1);
    }
    Answer(item, absl::UnavailableError("this teacher is shutting down; send the batch to another one"));
  }

  void Cancel(uint64_t client, uint64_t tag) override { Drop(client, tag); }
  void CancelClient(uint64_t client) override { Drop(client, std::nullopt); }

  uint32_t QueueLength() const override {
    size_t waiting = 0;
    for (const auto& worker : workers_) waiting += worker->queue.size();
    return static_cast<uint32_t>(waiting);
  }

  bool Drain(std::chrono::milliseconds timeout) override {
    absl::MutexLock lock(&mutex_);
    accepting_ = false;
    return AwaitFor(&mutex_,
                    absl::Condition(
                        +[](uint64_t* outstanding) { return *outstanding == 0; }, &outstanding_),
                    absl::FromChrono(timeout));
  }

  void Stop() override {
    {
      absl::MutexLock lock(&mutex_);
      accepting_ = false;
    }
    for (const auto& worker : workers_) {
      worker->queue.Close();
      AnswerCancelled(*worker, worker->queue.Clear(), "this teacher is shutting down");
    }
    for (const auto& worker : workers_) {
      if (worker->thread.joinable()) worker->thread.join();
    }
  }

 private:
  // One model and its thread.
  struct Worker {
    Worker(const LoadedModel& model, uint32_t max_batch_images, MetricsRegistry* metrics)
        : Worker(model, max_batch_images, metrics, {{"model", model.info.served.name}}) {}
    Worker(const LoadedModel& model, uint32_t max_batch_images, MetricsRegistry* metrics, const MetricLabels& label)
        : forward(model.forward),
          spec(model.info.served.spec),
          digest(model.info.served.digest),
          queue(max_batch_images),
          images(metrics->GetCounter("distill_teacher_images_total", "Images run through a model.", label)),
          queue_seconds(metrics->GetHistogram("distill_teacher_queue_seconds", "Time a batch waited for its model.",
                                              SecondsBuckets(), label)),
          inference_seconds(metrics->GetHistogram("distill_teacher_inference_seconds",
                                                  "Time of one forward pass, with normalisation and casts.",
                                                  SecondsBuckets(), label)),
          batch_images(metrics->GetHistogram("distill_teacher_batch_images", "Images per forward pass, after merging.",
                                             {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096}, label)),
          queue_length(metrics->GetGauge("distill_teacher_queue_length", "Batches that wait for a model.", label)) {}

    const ForwardFunction forward;  // called by the thread alone
    const ModelSpec spec;
    const std::string digest;
    BatchQueue queue;
    Counter& images;
    Histogram& queue_seconds;
    Histogram& inference_seconds;
    Histogram& batch_images;
    Gauge& queue_length;
    std::thread thread;  // started by the constructor, joined by Stop()
  };

  void RunWorker(Worker& worker, const std::string& name) {
    pthread_setname_np(pthread_self(), StrCat("tch-", name).substr(0, 15).c_str());
    // OpenMP keeps the number per calling thread, so it is set where the work is started.
    if (threads_ > 0) at::set_num_threads(threads_);
    const c10::DeviceGuard on_device(device_);
    while (true) {
      const std::vector<QueuedRequest> batch = worker.queue.PopBatch();
      if (batch.empty()) return;
      worker.queue_length.Add(-static_cast<double>(batch.size()));
      const Clock::time_point start = Clock::now();
      std::vector<StatusOr<FeatureBatch>> answers = ComputeMerged(
          batch, [&](std::span<const QueuedRequest> part) { return Compute(worker, part); }, ReleaseDeviceMemory);
      const double compute_seconds = Seconds(Clock::now() - start);
      uint64_t images = 0;
      for (const QueuedRequest& item : batch) images += item.request.images.n;
      worker.images.Add(images);
      worker.batch_images.Observe(images);
      worker.inference_seconds.Observe(compute_seconds);
      for (size_t i = 0; i < batch.size(); ++i) {
        const double queue_seconds = Seconds(start - batch[i].since);
        worker.queue_seconds.Observe(queue_seconds);
        if (!answers[i].ok()) {
          const Status& status = answers[i].status();
          LogError("forward pass failed",
                   {{"model", name}, {"images", batch[i].request.images.n}, {"error", status.message()}});
          if (EndsProcess(status) && on_unusable_) on_unusable_(status);
        } else {
          answers[i]->queue_seconds = queue_seconds;
          answers[i]->compute_seconds = compute_seconds;
        }
        Answer(batch[i], std::move(answers[i]));
      }
    }
  }

  // One forward pass for all of `batch`; the answers in the same order.
  StatusOr<std::vector<FeatureBatch>> Compute(const Worker& worker, std::span<const QueuedRequest> batch) {
    try {
      const torch::InferenceMode no_grad;
      std::vector<torch::Tensor> pixels;
      for (const QueuedRequest& item : batch) {
        const ImageBatch& images = item.request.images;
        // from_blob wants a mutable pointer; nothing writes through it.
        pixels.push_back(torch::from_blob(const_cast<uint8_t*>(images.pixels.data),
                                          {images.n, images.c, images.h, images.w}, torch::kUInt8));
      }
      torch::Tensor x = pixels.size() == 1 ? pixels[0] : torch::cat(pixels);
      x = NormalizePixels(x.to(device_), worker.spec, /*channels_last=*/true);

      // Each path once, though it may be asked for in several encodings.
      const std::vector<TapRequest>& taps = *batch[0].request.taps;
      std::vector<std::string> paths;
      for (const TapRequest& tap : taps) {
        if (std::find(paths.begin(), paths.end(), tap.tap) == paths.end()) paths.push_back(tap.tap);
      }
      DISTILL_ASSIGN_OR_RETURN(const std::vector<torch::Tensor> outputs, worker.forward(x, paths));

      std::vector<FeatureBatch> answers(batch.size());
      for (FeatureBatch& answer : answers) answer.model_digest = worker.digest;
      for (const TapRequest& tap : taps) {
        const size_t path = std::find(paths.begin(), paths.end(), tap.tap) - paths.begin();
        const torch::Tensor encoded = Encode(outputs[path], tap.encoding);
        int64_t begin = 0;
        for (size_t i = 0; i < batch.size(); ++i) {
          const int64_t n = batch[i].request.images.n;
          answers[i].taps.push_back(Slice(encoded, tap.encoding, begin, n));
          begin += n;
        }
      }
      return answers;
    } catch (const std::exception& error) {
      return TorchStatus(error, "forward pass");
    }
  }

  void Drop(uint64_t client, std::optional<uint64_t> tag) {
    for (const auto& worker : workers_)
      AnswerCancelled(*worker, worker->queue.Remove(client, tag), "cancelled before it was computed");
  }
  void AnswerCancelled(Worker& worker, const std::vector<QueuedRequest>& items, const char* why) {
    worker.queue_length.Add(-static_cast<double>(items.size()));
    for (const QueuedRequest& item : items) Answer(item, absl::CancelledError(why));
  }
  void Answer(const QueuedRequest& item, StatusOr<FeatureBatch> answer) {
    item.done(std::move(answer));
    absl::MutexLock lock(&mutex_);
    --outstanding_;
  }

  const torch::Device device_;
  const int threads_;
  const std::function<void(const Status&)> on_unusable_;
  std::vector<TeacherModel> models_;              // constant after construction
  std::vector<std::unique_ptr<Worker>> workers_;  // as models_
  absl::Mutex mutex_;
  bool accepting_ ABSL_GUARDED_BY(mutex_) = true;
  uint64_t outstanding_ ABSL_GUARDED_BY(mutex_) = 0;  // submitted, callback not yet back
};

}  // namespace

StatusOr<std::unique_ptr<TeacherEngine>> CreateTorchTeacherEngine(const TorchTeacherOptions& options,
                                                                  MetricsRegistry* metrics) {
  DISTILL_ASSIGN_OR_RETURN(const std::string chosen, ChooseDevice(options.device));
  const torch::Device device(chosen);
  const c10::DeviceGuard on_device(device);
  SetDeviceNumerics();
  // The same pixels give the same bits each time.
  at::globalContext().setDeterministicCuDNN(true);
  std::vector<LoadedModel> loaded;
  std::vector<std::string> left_out;
  for (const ModelFile& file : options.models) {
    const Clock::time_point start = Clock::now();
    StatusOr<LoadedModel> model = Load(file, device);
    if (!model.ok()) {
      const Status why = Annotate(model.status(), StrCat("model '", file.name, "'"));
      if (file.required) return why;
      LogError("model left out", {{"model", file.name}, {"file", file.path}, {"reason", why.message()}});
      left_out.emplace_back(ToStd(why.message()));
      continue;
    }
    loaded.push_back(*std::move(model));
    const ServedModelInfo& served = loaded.back().info.served;
    LogInfo("model loaded", {{"model", served.name},
                             {"arch", served.spec.arch},
                             {"parameters", served.parameters},
                             {"bytes", served.bytes},
                             {"digest", served.digest},
                             {"seconds", Seconds(Clock::now() - start)}});
  }
  if (loaded.empty()) {
    return absl::FailedPreconditionError(
        StrCat("none of the ", options.models.size(), " models can be served: ", absl::StrJoin(left_out, "; ")));
  }
  metrics
      ->GetGauge("distill_teacher_models_left_out",
                 "Model files of the folder that are not served because they cannot be; the log says why.")
      .Set(static_cast<double>(left_out.size() + options.already_left_out));
  return std::make_unique<TorchTeacherEngine>(std::move(loaded), device, options, metrics);
}

StatusOr<std::string> DescribeTeacherDevice(const std::string& device) {
  DISTILL_ASSIGN_OR_RETURN(const std::string chosen, ChooseDevice(device));
  return DescribeDevice(chosen);
}

}  // namespace distill
