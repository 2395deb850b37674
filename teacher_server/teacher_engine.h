// What a teacher server computes, without saying how: the border between the gRPC shell (feature_service.h) and the
// frozen models (torch_teacher_engine.h). Plain types: neither torch nor protobuf is visible here, so each side is
// tested without the other.
//
// Thread-safe. A callback fires exactly once per Submit(), also on error, cancellation and Stop(); it runs on a thread
// of the engine, or on the thread that calls Submit(), Cancel(), CancelClient() or Stop(), never under a lock of the
// engine. It must not block.
#ifndef DISTILL_TEACHER_SERVER_TEACHER_ENGINE_H_
#define DISTILL_TEACHER_SERVER_TEACHER_ENGINE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"

namespace distill {

// A frozen model that is loaded and can be asked.
struct TeacherModel {
  // As registered with the coordinator. spec.in_channels, image_height and image_width are the only image shape it
  // takes.
  ServedModelInfo served;
  // Everything that can be tapped, with shapes [C, H, W] or [K] (without the batch axis).
  std::vector<ServedTap> taps;
  // Shape of the network's output (tap ""): [K], or [K, H, W] of one that answers per pixel; empty when it has none (an
  // archive that returns inner taps only).
  std::vector<uint32_t> output_shape;
};

// One batch of images to run through one model.
struct TeacherRequest {
  size_t model = 0;     // index into models()
  uint64_t client = 0;  // who asks; clients are served by turns, one client's requests in order
  uint64_t tag = 0;     // the client's name for the request, for Cancel()
  // What to return. Shared by the requests of a stream. REQUIRES: not null, not empty, every tap exists, dtype f32, f16
  // or bf16, less_row_max only on taps of shape [C, H, W].
  std::shared_ptr<const std::vector<TapRequest>> taps;
  ImageBatch images;  // REQUIRES: shape as the model's spec says, n >= 1, pixels.size == n*c*h*w
  // Computed alone. Otherwise it may share a forward pass with requests of other clients, which can change the last
  // bits of the result; alone, the same pixels give the same bits every time (same device, same number of threads).
  bool exclusive = false;
};

class TeacherEngine {
 public:
  // The features, or: kCancelled (Cancel, CancelClient, Stop), kUnavailable (draining or stopped: take another
  // teacher), kResourceExhausted (out of memory: send smaller batches), kInternal (the model failed; the message says
  // how).
  using Callback = std::function<void(StatusOr<FeatureBatch>)>;

  virtual ~TeacherEngine() = default;  // Stop()

  // Fixed for the engine's life.
  virtual const std::vector<TeacherModel>& models() const = 0;
  virtual void Submit(TeacherRequest request, Callback done) = 0;
  // Drops the client's request of that tag, or all its requests, if they still wait; what is being computed is finished
  // and delivered as usual.
  virtual void Cancel(uint64_t client, uint64_t tag) = 0;
  virtual void CancelClient(uint64_t client) = 0;
  // Requests that wait for a model, all models together.
  virtual uint32_t QueueLength() const = 0;
  // Refuses new requests (kUnavailable) from now on and waits until the accepted ones are answered, at most `timeout`.
  // True when nothing is left.
  virtual bool Drain(std::chrono::milliseconds timeout) = 0;
  // Drops what waits (kCancelled), finishes what is being computed, joins all threads. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_TEACHER_ENGINE_H_
