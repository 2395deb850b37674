// Puts the chunks of one answer together and checks every number in them: nothing a teacher sends is trusted.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_ANSWER_ASSEMBLER_H_
#define DISTILL_STUDENT_WORKER_FEATURE_ANSWER_ASSEMBLER_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "common/wire/largest_value.h"
#include "common/wire/scattered_buffer.h"

namespace distill {

// distill.v1.FeatureResponse as plain data.
struct FeatureChunk {
  uint64_t request_id = 0;
  uint32_t tap_index = 0;
  std::vector<uint32_t> shape;
  uint32_t dtype = 0;   // number of a WireDtype, unchecked
  uint32_t layout = 0;  // number of a TensorLayout, unchecked
  uint64_t total_bytes = 0;
  uint64_t offset = 0;
  bool last = false;
  std::string model_digest;
  std::string error;
  uint32_t error_code = 0;
  double queue_seconds = 0;
  double compute_seconds = 0;
  ScatteredBuffer payload;
};

// A fresh block of `size` bytes as a Buffer, and the pointer through which it is filled before it is shared.
struct FillableBuffer {
  Buffer buffer;
  uint8_t* bytes = nullptr;
};

// For one request. Every byte is copied once, from where the transport received it to where the losses read it, and
// looked at while it is in the cache: LargestValue finds NaN and infinities. Thread-compatible.
class AnswerAssembler {
 public:
  struct Expectation {
    std::vector<TapRequest> taps;
    std::vector<std::vector<uint32_t>> tap_shapes;  // without the batch axis; empty: unknown
    std::string digest;                             // "": any, the same for all taps
    uint32_t batch = 0;                             // N
    uint64_t max_bytes = 0;                         // of the whole answer
  };
  // Makes the memory of a tensor (null bytes: there is none); called at most once a tap, for at most max_bytes
  // together.
  using Allocate = std::function<FillableBuffer(uint64_t size)>;

  AnswerAssembler(Expectation expectation, Allocate allocate)
      : expect_(std::move(expectation)), allocate_(std::move(allocate)) {}

  // True when the answer is complete. Tensors come tap by tap in the order asked for, their chunks in order and without
  // gaps; shape, dtype, layout and total stand in the first chunk of a tensor, and agree with it where later chunks
  // repeat them. `chunk.error` is not looked at. kFailedPrecondition: another model's digest. kDataLoss: the chunk
  // breaks the protocol. kOutOfRange: it keeps to the protocol, but does not fit into `max_bytes`, of which the teacher
  // knew nothing. kResourceExhausted: out of memory. No call after an error.
  StatusOr<bool> Add(const FeatureChunk& chunk);
  // Payload bytes taken so far.
  uint64_t received() const { return received_; }
  // The first complete tap that holds a number that is none (NaN or an infinity); null when there is none so far.
  const std::string* not_finite_tap() const { return not_finite_tap_; }
  // REQUIRES: Add() returned true; once.
  FeatureBatch Take() { return std::move(batch_); }

 private:
  Status StartTensor(const FeatureChunk& chunk);
  // REQUIRES: there is room for it.
  void Fill(std::span<const uint8_t> piece);

  const Expectation expect_;
  const Allocate allocate_;
  FeatureBatch batch_;       // its last tensor is the one being filled
  uint8_t* fill_ = nullptr;  // of the last tensor; null: the next chunk starts a tensor
  uint64_t filled_ = 0;      // bytes of the last tensor
  uint64_t looked_at_ = 0;   // of them, whole elements
  LargestValue largest_{WireDtype::kF32};
  uint64_t total_ = 0;  // bytes of all tensors started
  uint64_t received_ = 0;
  const std::string* not_finite_tap_ = nullptr;  // into expect_
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_ANSWER_ASSEMBLER_H_
