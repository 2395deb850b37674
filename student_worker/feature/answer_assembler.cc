#include "student_worker/feature/answer_assembler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/copy_count.h"

namespace distill {
namespace {

template <typename... Args>
Status Broken(const Args&... args) {
  return absl::DataLossError(StrCat(args...));
}

// Copied and looked at in one go: half of a first-level cache.
constexpr size_t kBlock = 16 << 10;

}  // namespace

Status AnswerAssembler::StartTensor(const FeatureChunk& chunk) {
  const size_t index = batch_.taps.size();
  const TapRequest& tap = expect_.taps[index];
  const WireDtype dtype = tap.encoding.dtype;
  if (chunk.dtype != static_cast<uint32_t>(dtype)) {
    return Broken("tap '", tap.tap, "' came with dtype number ", chunk.dtype, ", asked for ", std::string(Name(dtype)));
  }
  if (chunk.shape.size() < 2 || chunk.shape.size() > 4 || chunk.shape[0] != expect_.batch) {
    return Broken("tap '", tap.tap, "' came with shape ", ShapeText(chunk.shape), " for a batch of ", expect_.batch);
  }
  if (!expect_.tap_shapes.empty() &&
      std::vector<uint32_t>(chunk.shape.begin() + 1, chunk.shape.end()) != expect_.tap_shapes[index]) {
    return Broken("tap '", tap.tap, "' came with shape ", ShapeText(chunk.shape), ", expected ",
                  ShapeText(expect_.tap_shapes[index]), " per image");
  }
  const bool last = chunk.layout == static_cast<uint32_t>(TensorLayout::kChannelsLast);
  if (chunk.layout > static_cast<uint32_t>(TensorLayout::kChannelsLast) || (last && chunk.shape.size() != 4)) {
    return Broken("tap '", tap.tap, "' of shape ", ShapeText(chunk.shape), " came with layout number ", chunk.layout);
  }
  const uint64_t size = LayoutOf(chunk.shape, tap.encoding).bytes;
  const uint64_t left = expect_.max_bytes - total_;
  const bool consistent = size != 0 && size != UINT64_MAX && size == chunk.total_bytes;
  if (consistent && size > left && expect_.tap_shapes.empty()) {
    return absl::OutOfRangeError(StrCat("tap '", tap.tap, "' of shape ", ShapeText(chunk.shape), " takes ", size,
                                        " bytes, of the window of ", expect_.max_bytes, " bytes there are ", left,
                                        " left; raise the job's prefetch or lower its batch_size"));
  }
  if (!consistent || size > left) {
    return Broken("tap '", tap.tap, "' of shape ", ShapeText(chunk.shape), " came with a total of ", chunk.total_bytes,
                  " bytes; ", left, " bytes were granted for it");
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
  filled_ = looked_at_ = 0;
  largest_ = LargestValue(dtype);
  total_ += size;
  batch_.taps.push_back(WireTensor{.shape = chunk.shape,
                                   .encoding = tap.encoding,
                                   .layout = static_cast<TensorLayout>(chunk.layout),
                                   .bytes = std::move(memory.buffer)});
  return OkStatus();
}

void AnswerAssembler::Fill(std::span<const uint8_t> piece) {
  const size_t element = SizeOf(batch_.taps.back().encoding.dtype);
  CountFeatureCopy(piece.size());
  received_ += piece.size();
  while (!piece.empty()) {
    const size_t n = std::min(piece.size(), kBlock);
    std::memcpy(fill_ + filled_, piece.data(), n);
    piece = piece.subspan(n);
    filled_ += n;
    // A piece may end inside an element.
    const uint64_t whole = filled_ / element * element;
    largest_.Add(fill_ + looked_at_, whole - looked_at_);
    looked_at_ = whole;
  }
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
      (chunk.dtype != 0 && chunk.dtype != static_cast<uint32_t>(tensor.encoding.dtype)) ||
      (chunk.layout != 0 && chunk.layout != static_cast<uint32_t>(tensor.layout))) {
    return Broken("shape, dtype, layout or total of tap number ", chunk.tap_index, " changed between its chunks");
  }
  for (std::span<const uint8_t> piece : chunk.payload.pieces) Fill(piece);
  if (filled_ == tensor.bytes.size) {
    fill_ = nullptr;
    batch_.taps.back().largest = largest_.value();
    if (not_finite_tap_ == nullptr && !std::isfinite(tensor.largest)) {
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
