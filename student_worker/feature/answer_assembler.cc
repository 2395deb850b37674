#include "student_worker/feature/answer_assembler.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string ShapeText(const std::vector<uint32_t>& shape) { return StrCat("[", absl::StrJoin(shape, ", "), "]"); }

template <typename... Args>
Status Broken(const Args&... args) {
  return absl::DataLossError(StrCat(args...));
}

// product(shape) * element bytes, or nothing when it exceeds `limit` (also by overflow).
bool BoundedByteSize(const std::vector<uint32_t>& shape, WireDtype dtype, uint64_t limit, uint64_t* size) {
  unsigned __int128 product = SizeOf(dtype);
  for (uint32_t side : shape) {
    product *= side;
    if (product > limit) return false;
  }
  *size = static_cast<uint64_t>(product);
  return true;
}

// Whether an element of the (aligned) tensor has all exponent bits set, as NaN and the infinities do. Integer
// arithmetic over whole blocks: it vectorises, and costs a fraction of the copy before it.
template <typename Word>
bool AnyExponentFull(const uint8_t* bytes, size_t size, Word exponent) {
  const Word* const words = reinterpret_cast<const Word*>(bytes);
  const size_t count = size / sizeof(Word);
  constexpr size_t kBlock = 4096;
  for (size_t start = 0; start < count; start += kBlock) {
    Word any = 0;
    for (size_t i = start; i < std::min(start + kBlock, count); ++i)
      any |= static_cast<Word>((words[i] & exponent) == exponent);
    if (any != 0) return true;
  }
  return false;
}

bool HasNotFinite(WireDtype dtype, const uint8_t* bytes, size_t size) {
  switch (dtype) {
    case WireDtype::kF32:
      return AnyExponentFull<uint32_t>(bytes, size, 0x7F800000);
    case WireDtype::kF16:
      return AnyExponentFull<uint16_t>(bytes, size, 0x7C00);
    case WireDtype::kBf16:
      return AnyExponentFull<uint16_t>(bytes, size, 0x7F80);
    case WireDtype::kU8:
      return false;
  }
  return false;
}

}  // namespace

Status AnswerAssembler::StartTensor(const FeatureChunk& chunk) {
  const size_t index = batch_.taps.size();
  const TapRequest& tap = expect_.taps[index];
  if (chunk.dtype != static_cast<uint32_t>(tap.dtype)) {
    return Broken("tap '", tap.tap, "' came with dtype number ", chunk.dtype, ", asked for ",
                  std::string(Name(tap.dtype)));
  }
  if (chunk.shape.size() < 2 || chunk.shape.size() > 4 || chunk.shape[0] != expect_.batch) {
    return Broken("tap '", tap.tap, "' came with shape ", ShapeText(chunk.shape), " for a batch of ", expect_.batch);
  }
  if (!expect_.tap_shapes.empty() &&
      std::vector<uint32_t>(chunk.shape.begin() + 1, chunk.shape.end()) != expect_.tap_shapes[index]) {
    return Broken("tap '", tap.tap, "' came with shape ", ShapeText(chunk.shape), ", expected ",
                  ShapeText(expect_.tap_shapes[index]), " per image");
  }
  uint64_t size = 0;
  if (!BoundedByteSize(chunk.shape, tap.dtype, expect_.max_bytes - total_, &size) || size == 0 ||
      size != chunk.total_bytes) {
    return Broken("tap '", tap.tap, "' of shape ", ShapeText(chunk.shape), " came with a total of ", chunk.total_bytes,
                  " bytes; ", expect_.max_bytes - total_, " bytes were granted for it");
  }
  const std::string& digest = index == 0 ? expect_.digest : batch_.model_digest;
  if ((index > 0 || !digest.empty()) && chunk.model_digest != digest) {
    return absl::FailedPreconditionError(StrCat("the teacher computes with the model of digest '", chunk.model_digest,
                                                "', the job was submitted for '", digest, "'"));
  }
  if (index == 0) batch_.model_digest = chunk.model_digest;
  FillableBuffer memory = allocate_(size);
  if (memory.bytes == nullptr)
    return absl::ResourceExhaustedError(StrCat("no memory for ", size, " bytes of tap '", tap.tap, "'"));
  fill_ = memory.bytes;
  filled_ = 0;
  total_ += size;
  batch_.taps.push_back(WireTensor{chunk.shape, tap.dtype, std::move(memory.buffer)});
  return OkStatus();
}

StatusOr<bool> AnswerAssembler::Add(const FeatureChunk& chunk) {
  if (fill_ == nullptr) {
    if (chunk.tap_index != batch_.taps.size()) {
      return Broken("tap number ", chunk.tap_index, " came when number ", batch_.taps.size(), " was due");
    }
    DISTILL_RETURN_IF_ERROR(StartTensor(chunk));
  }
  const WireTensor& tensor = batch_.taps.back();
  if (chunk.tap_index != batch_.taps.size() - 1 || chunk.offset != filled_ || chunk.payload.size == 0 ||
      chunk.payload.size > tensor.bytes.size - filled_) {
    return Broken("chunk of ", chunk.payload.size, " bytes at offset ", chunk.offset, " of tap number ",
                  chunk.tap_index, "; due is offset ", filled_, " of ", tensor.bytes.size, " in tap number ",
                  batch_.taps.size() - 1);
  }
  if ((!chunk.shape.empty() && chunk.shape != tensor.shape) ||
      (chunk.total_bytes != 0 && chunk.total_bytes != tensor.bytes.size) ||
      (chunk.dtype != 0 && chunk.dtype != static_cast<uint32_t>(tensor.dtype))) {
    return Broken("shape, dtype or total of tap number ", chunk.tap_index, " changed between its chunks");
  }
  std::memcpy(fill_ + filled_, chunk.payload.data, chunk.payload.size);
  filled_ += chunk.payload.size;
  received_ += chunk.payload.size;
  if (filled_ == tensor.bytes.size) {
    fill_ = nullptr;
    if (not_finite_tap_ == nullptr && HasNotFinite(tensor.dtype, tensor.bytes.data, tensor.bytes.size)) {
      not_finite_tap_ = &expect_.taps[batch_.taps.size() - 1].tap;
    }
  }
  const bool complete = fill_ == nullptr && batch_.taps.size() == expect_.taps.size();
  if (chunk.last != complete) {
    return Broken(chunk.last ? "the answer ends before all taps are complete"
                             : "the last chunk is not marked as the last");
  }
  if (complete) {
    batch_.queue_seconds = chunk.queue_seconds;
    batch_.compute_seconds = chunk.compute_seconds;
  }
  return complete;
}

}  // namespace distill
