#include "common/wire/proto_codec.h"

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/str_cat.h"

namespace distill {
namespace {

// Protobuf wire types.
constexpr uint32_t kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kGroupStart = 3, kGroupEnd = 4, kFixed32 = 5;
constexpr int kDeepestGroup = 100;  // protobuf's own recursion limit

// Reads a message that lies in pieces. Every Read/Skip fails, without going past the end, when bytes are missing.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
    SkipEmptySlices();
  }
  uint64_t left() const { return left_; }
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
  size_t index_ = 0, offset_ = 0;
  uint64_t left_ = 0;
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

Status Decode(const grpc::ByteBuffer& message, google::protobuf::MessageLite* header, ScatteredBuffer* payload) {
  // Held by the payload: short slices keep their bytes inside the Slice objects themselves.
  const auto held = std::make_shared<std::vector<grpc::Slice>>();
  std::vector<grpc::Slice>& slices = *held;
  if (!message.Valid() || !message.Dump(&slices).ok())
    return absl::InvalidArgumentError("no message, or one that cannot be decompressed");
  SliceCursor cursor(slices);
  const uint64_t total = cursor.left();
  std::string rest;  // every field but the payload, as it stood
  bool seen = false;
  while (cursor.left() > 0) {
    const size_t field_start = rest.size();
    uint64_t tag = 0;
    if (!cursor.ReadVarint(&tag, &rest)) return Malformed(cursor, total, "bad field tag");
    if (tag >> 3 == 0 || tag > std::numeric_limits<uint32_t>::max())
      return Malformed(cursor, total, "bad field number");
    if (tag >> 3 != kPayloadField) {
      if (!CopyField(&cursor, tag, 0, &rest))
        return Malformed(cursor, total, StrCat("bad or truncated field ", tag >> 3));
      continue;
    }
    rest.resize(field_start);
    if ((tag & 7) != kLengthDelimited) return Malformed(cursor, total, StrCat("payload with wire type ", tag & 7));
    if (seen) return Malformed(cursor, total, "second payload");
    seen = true;
    uint64_t size = 0;
    if (!cursor.ReadVarint(&size, nullptr)) return Malformed(cursor, total, "bad payload length");
    if (size > cursor.left()) {
      return Malformed(cursor, total, StrCat("payload of ", size, " bytes is cut to ", cursor.left(), " bytes"));
    }
    if (size == 0) continue;
    payload->size = size;
    payload->owner = held;
    while (size > 0) {
      const uint64_t n = std::min(size, cursor.left_in_slice());
      payload->pieces.emplace_back(slices[cursor.slice_index()].begin() + cursor.slice_offset(), n);
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

}  // namespace

grpc::ByteBuffer EncodeWithPayload(const google::protobuf::MessageLite& header, const Buffer& payload) {
  std::string front = header.SerializeAsString();
  if (payload.size == 0) {
    grpc::Slice slice(front);
    return grpc::ByteBuffer(&slice, 1);
  }
  AppendVarint(kPayloadField << 3 | kLengthDelimited, &front);
  AppendVarint(payload.size, &front);
  // gRPC's slices are read-only once handed over; the type of its constructor is not.
  void* const bytes = const_cast<uint8_t*>(payload.data);
  grpc::Slice slices[2] = {
      grpc::Slice(front),
      payload.owner == nullptr
          ? grpc::Slice(payload.data, payload.size)
          : grpc::Slice(
                bytes, payload.size, [](void* owner) { delete static_cast<std::shared_ptr<const void>*>(owner); },
                new std::shared_ptr<const void>(payload.owner))};
  return grpc::ByteBuffer(slices, 2);
}

Status DecodeWithPayload(const grpc::ByteBuffer& message, google::protobuf::MessageLite* header,
                         ScatteredBuffer* payload) {
  *payload = ScatteredBuffer{};
  Status status = Decode(message, header, payload);
  if (!status.ok()) {
    header->Clear();
    *payload = ScatteredBuffer{};
  }
  return status;
}

}  // namespace distill
