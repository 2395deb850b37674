#include "common/wire/proto_codec.h"

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/str_cat.h"
#include "common/wire/limits.h"

namespace distill {
namespace {

// Protobuf wire types.
constexpr uint32_t kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kGroupStart = 3, kGroupEnd = 4, kFixed32 = 5;
constexpr int kDeepestGroup = 100;  // protobuf's own recursion limit

// Reads a message that lies in pieces. Every Read/Skip fails, without going past the end, when bytes are missing.
class SliceCursor {
 public:
  // `most_copied`: what Append() may make of a copy in all.
  SliceCursor(const std::vector<grpc::Slice>& slices, uint64_t most_copied)
      : slices_(slices), most_copied_(most_copied) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
    SkipEmptySlices();
  }
  uint64_t left() const { return left_; }
  // An Append() failed for that alone.
  bool too_much() const { return too_much_; }
  size_t slice_index() const { return index_; }
  size_t slice_offset() const { return offset_; }
  uint64_t left_in_slice() const { return left_ == 0 ? 0 : slices_[index_].size() - offset_; }

  // Appends to `copy` (unless null) what it reads, exactly as it stood.
  bool ReadVarint(uint64_t* value, std::string* copy) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (left_ == 0) return false;
      const uint8_t byte = slices_[index_].begin()[offset_];
      Advance(1);
      if (copy != nullptr) copy->push_back(static_cast<char>(byte));
      if (shift == 63 && (byte & 0x7F) > 1) return false;  // more than 64 bits
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }
  // A number that is only passed on: what does not fit 64 bits is for protobuf to judge (it drops the excess).
  bool AppendVarint(std::string* copy) {
    for (int length = 0; length < 10 && left_ > 0; ++length) {
      const uint8_t byte = slices_[index_].begin()[offset_];
      Advance(1);
      copy->push_back(static_cast<char>(byte));
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }
  // REQUIRES: count <= left().
  void Read(uint64_t count, uint8_t* out) {
    while (count > 0) {
      const uint64_t n = std::min(count, left_in_slice());
      std::memcpy(out, slices_[index_].begin() + offset_, n);
      Advance(n);
      out += n;
      count -= n;
    }
  }
  bool Append(uint64_t count, std::string* copy) {
    if (count > left_) return false;
    too_much_ = count > most_copied_ || copy->size() > most_copied_ - count;
    if (too_much_) return false;
    const size_t old_size = copy->size();
    copy->resize(old_size + count);
    Read(count, reinterpret_cast<uint8_t*>(copy->data()) + old_size);
    return true;
  }
  // REQUIRES: count <= left_in_slice().
  void Advance(uint64_t count) {
    offset_ += count;
    left_ -= count;
    SkipEmptySlices();
  }

 private:
  void SkipEmptySlices() {
    while (index_ < slices_.size() && offset_ == slices_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
  }
  const std::vector<grpc::Slice>& slices_;
  const uint64_t most_copied_;
  size_t index_ = 0, offset_ = 0;
  uint64_t left_ = 0;
  bool too_much_ = false;
};

// Copies the body of one field (its tag is in `copy` already).
bool CopyField(SliceCursor* cursor, uint64_t tag, int depth, std::string* copy) {
  uint64_t value = 0;
  switch (tag & 7) {
    case kVarint:
      return cursor->AppendVarint(copy);
    case kFixed64:
      return cursor->Append(8, copy);
    case kLengthDelimited:
      return cursor->ReadVarint(&value, copy) && cursor->Append(value, copy);
    case kFixed32:
      return cursor->Append(4, copy);
    case kGroupStart:
      if (depth >= kDeepestGroup) return false;
      for (;;) {
        uint64_t inner = 0;
        if (!cursor->ReadVarint(&inner, copy)) return false;
        if ((inner & 7) == kGroupEnd) return inner >> 3 == tag >> 3;
        if (!CopyField(cursor, inner, depth + 1, copy)) return false;
      }
    default:
      return false;  // a group's end without its start, or a reserved wire type
  }
}

Status Malformed(const SliceCursor& cursor, uint64_t total, std::string_view what) {
  return absl::InvalidArgumentError(
      StrCat("malformed message of ", total, " bytes: ", what, " at byte ", total - cursor.left()));
}

Status Decode(const grpc::ByteBuffer& message, int field, const DecodeLimits& limits,
              google::protobuf::MessageLite* header, std::vector<ScatteredBuffer>* payloads) {
  // Held by the payloads: short slices keep their bytes inside the Slice objects themselves.
  const auto held = std::make_shared<std::vector<grpc::Slice>>();
  std::vector<grpc::Slice>& slices = *held;
  if (!message.Valid() || !message.Dump(&slices).ok())
    return absl::InvalidArgumentError("no message, or one that cannot be decompressed");
  SliceCursor cursor(slices, limits.header_bytes);
  const uint64_t total = cursor.left();
  std::string rest;  // every field but the payloads, as it stood
  while (cursor.left() > 0) {
    const size_t field_start = rest.size();
    uint64_t tag = 0;
    if (!cursor.ReadVarint(&tag, &rest)) return Malformed(cursor, total, "bad field tag");
    if (tag >> 3 == 0 || tag > std::numeric_limits<uint32_t>::max())
      return Malformed(cursor, total, "bad field number");
    if (tag >> 3 != static_cast<uint64_t>(field)) {
      const bool copied = CopyField(&cursor, tag, 0, &rest);
      if (cursor.too_much() || rest.size() > limits.header_bytes) {
        return absl::ResourceExhaustedError(StrCat("a message of ", total, " bytes has more than ", limits.header_bytes,
                                                   " bytes beside its raw tensors (field ", field, ")"));
      }
      if (!copied) return Malformed(cursor, total, StrCat("bad or truncated field ", tag >> 3));
      continue;
    }
    rest.resize(field_start);
    if ((tag & 7) != kLengthDelimited) return Malformed(cursor, total, StrCat("payload with wire type ", tag & 7));
    if (payloads->size() == limits.payloads) {
      return Malformed(cursor, total,
                       limits.payloads == 1 ? "second payload" : StrCat("more than ", limits.payloads, " payloads"));
    }
    uint64_t size = 0;
    if (!cursor.ReadVarint(&size, nullptr)) return Malformed(cursor, total, "bad payload length");
    if (size > cursor.left()) {
      return Malformed(cursor, total, StrCat("payload of ", size, " bytes is cut to ", cursor.left(), " bytes"));
    }
    ScatteredBuffer& payload = payloads->emplace_back();
    if (size == 0) continue;
    payload.size = size;
    payload.owner = held;
    while (size > 0) {
      const uint64_t n = std::min(size, cursor.left_in_slice());
      payload.pieces.emplace_back(slices[cursor.slice_index()].begin() + cursor.slice_offset(), n);
      cursor.Advance(n);
      size -= n;
    }
  }
  if (!header->ParseFromString(rest)) {
    return absl::InvalidArgumentError(
        StrCat("malformed message of ", total, " bytes: its fields are not a valid ", header->GetTypeName()));
  }
  return OkStatus();
}

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

// The tag and length of a field of `size` bytes.
void AppendStart(int field, uint64_t size, std::string* out) {
  AppendVarint(static_cast<uint64_t>(field) << 3 | kLengthDelimited, out);
  AppendVarint(size, out);
}

// Refers to the buffer's bytes, which live until gRPC is done; bytes without an owner are copied.
grpc::Slice ToSlice(const Buffer& buffer) {
  if (buffer.owner == nullptr) return grpc::Slice(buffer.data, buffer.size);
  // gRPC's slices are read-only once handed over; the type of its constructor is not.
  return grpc::Slice(
      const_cast<uint8_t*>(buffer.data), buffer.size,
      [](void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); },
      new std::shared_ptr<const void>(buffer.owner));
}

}  // namespace

grpc::ByteBuffer EncodeWithPayload(const google::protobuf::MessageLite& header, const Buffer& payload) {
  std::string front = header.SerializeAsString();
  if (payload.size == 0) {
    grpc::Slice slice(front);
    return grpc::ByteBuffer(&slice, 1);
  }
  AppendStart(kPayloadField, payload.size, &front);
  grpc::Slice slices[2] = {grpc::Slice(front), ToSlice(payload)};
  return grpc::ByteBuffer(slices, 2);
}

grpc::ByteBuffer EncodeWithPayloads(const google::protobuf::MessageLite& header, int field,
                                    const std::vector<Buffer>& payloads, int enclosing_field) {
  std::vector<std::string> fronts;  // before each payload
  std::string front = header.SerializeAsString();
  uint64_t size = 0;
  for (const Buffer& payload : payloads) {
    AppendStart(field, payload.size, &front);
    size += front.size() + payload.size;
    fronts.push_back(std::exchange(front, {}));
  }
  size += front.size();
  std::string outer;
  if (enclosing_field != 0) AppendStart(enclosing_field, size, &outer);
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < payloads.size(); ++i) {
    slices.emplace_back(outer + fronts[i]);
    outer.clear();
    if (payloads[i].size > 0) slices.push_back(ToSlice(payloads[i]));
  }
  if (payloads.empty()) slices.emplace_back(outer + front);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

Status DecodeWithPayload(const grpc::ByteBuffer& message, google::protobuf::MessageLite* header,
                         ScatteredBuffer* payload) {
  std::vector<ScatteredBuffer> payloads;
  const Status status =
      DecodeWithPayloads(message, kPayloadField, {.payloads = 1, .header_bytes = kMaxMessageBytes}, header, &payloads);
  *payload = payloads.empty() ? ScatteredBuffer{} : std::move(payloads[0]);
  return status;
}

Status DecodeWithPayloads(const grpc::ByteBuffer& message, int field, const DecodeLimits& limits,
                          google::protobuf::MessageLite* header, std::vector<ScatteredBuffer>* payloads) {
  payloads->clear();
  Status status = Decode(message, field, limits, header, payloads);
  if (!status.ok()) {
    header->Clear();
    payloads->clear();
  }
  return status;
}

}  // namespace distill
