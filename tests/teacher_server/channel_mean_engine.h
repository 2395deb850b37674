// A teacher that can be worked out by hand, to test the feature service without LibTorch: its taps are "mean" (the mean
// of each channel, [C], also the output) and "map" (every pixel, [C, H, W]), in units of pixel value. dtypes f32 and
// bf16 (truncated).
//
// One thread computes batches of a BatchQueue. Made with `held`, it computes nothing before Release(), so that a test
// can look at requests that wait. Thread-safe.
#ifndef DISTILL_TESTS_TEACHER_SERVER_CHANNEL_MEAN_ENGINE_H_
#define DISTILL_TESTS_TEACHER_SERVER_CHANNEL_MEAN_ENGINE_H_

#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "teacher_server/batch_queue.h"
#include "teacher_server/teacher_engine.h"

namespace distill::testing {

class ChannelMeanEngine final : public TeacherEngine {
 public:
  ChannelMeanEngine(uint32_t channels, uint32_t side, bool held = false) : queue_(64), held_(held) {
    TeacherModel model;
    model.served.name = "means";
    model.served.digest = "d1";
    model.served.spec =
        ModelSpec{.arch = "channel_mean", .in_channels = channels, .image_height = side, .image_width = side};
    model.taps = {{"map", "Identity", {channels, side, side}, false}, {"mean", "Mean", {channels}, true}};
    model.served.taps = model.taps;
    model.output_shape = {channels};
    models_.push_back(model);
    thread_ = std::thread([this] { Run(); });
  }
  ~ChannelMeanEngine() override { Stop(); }

  // What the tap of these pixels is, as bytes on the wire.
  static WireTensor Expected(const ImageBatch& images, const TapRequest& tap) {
    const uint32_t plane = images.h * images.w;
    std::vector<float> values;
    for (uint32_t row = 0; row < images.n * images.c; ++row) {
      float sum = 0;
      for (uint32_t i = 0; i < plane; ++i) {
        const float value = images.pixels.data[row * plane + i];
        sum += value;
        if (tap.tap == "map") values.push_back(value);
      }
      if (tap.tap != "map") values.push_back(sum / plane);
    }
    std::vector<uint8_t> bytes;
    for (float value : values) {
      uint8_t raw[4];
      std::memcpy(raw, &value, 4);
      bytes.insert(bytes.end(), tap.encoding.dtype == WireDtype::kBf16 ? raw + 2 : raw, raw + 4);
    }
    WireTensor tensor;
    tensor.shape = tap.tap == "map" ? std::vector<uint32_t>{images.n, images.c, images.h, images.w}
                                    : std::vector<uint32_t>{images.n, images.c};
    tensor.encoding = tap.encoding;
    tensor.bytes = Buffer::FromVector(std::move(bytes));
    return tensor;
  }

  void Release() {
    absl::MutexLock lock(&mutex_);
    held_ = false;
  }
  // Tags of the requests computed so far, in order.
  std::vector<uint64_t> computed() {
    absl::MutexLock lock(&mutex_);
    return computed_;
  }
  void WaitComputed(size_t count) {
    absl::MutexLock lock(&mutex_);
    auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return computed_.size() >= count; };
    mutex_.Await(absl::Condition(&enough));
  }
  bool saw_exclusive() {
    absl::MutexLock lock(&mutex_);
    return saw_exclusive_;
  }

  const std::vector<TeacherModel>& models() const override { return models_; }
  void Submit(TeacherRequest request, Callback done) override {
    QueuedRequest item{std::move(request), std::move(done), std::chrono::steady_clock::now()};
    if (!queue_.Push(std::move(item))) item.done(absl::UnavailableError("stopped"));
  }
  void Cancel(uint64_t client, uint64_t tag) override { Drop(queue_.Remove(client, tag)); }
  void CancelClient(uint64_t client) override { Drop(queue_.Remove(client, std::nullopt)); }
  uint32_t QueueLength() const override { return queue_.size(); }
  bool Drain(std::chrono::milliseconds) override {
    queue_.Close();
    return true;
  }
  void Stop() override {
    queue_.Close();
    Drop(queue_.Clear());
    Release();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run() {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(
            +[](bool* held) { return !*held; }, &held_));
      }
      const std::vector<QueuedRequest> batch = queue_.PopBatch();
      if (batch.empty()) return;
      for (const QueuedRequest& item : batch) {
        FeatureBatch answer;
        answer.model_digest = "d1";
        answer.queue_seconds = 0.25;
        answer.compute_seconds = 0.5;
        for (const TapRequest& tap : *item.request.taps) answer.taps.push_back(Expected(item.request.images, tap));
        {
          absl::MutexLock lock(&mutex_);
          computed_.push_back(item.request.tag);
          saw_exclusive_ |= item.request.exclusive;
        }
        item.done(std::move(answer));
      }
    }
  }
  static void Drop(const std::vector<QueuedRequest>& items) {
    for (const QueuedRequest& item : items) item.done(absl::CancelledError("dropped"));
  }

  std::vector<TeacherModel> models_;
  BatchQueue queue_;
  absl::Mutex mutex_;
  bool held_ ABSL_GUARDED_BY(mutex_);
  bool saw_exclusive_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<uint64_t> computed_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_TEACHER_SERVER_CHANNEL_MEAN_ENGINE_H_
