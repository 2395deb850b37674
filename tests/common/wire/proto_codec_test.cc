#include "common/wire/proto_codec.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "distill/v1/features.pb.h"

namespace distill {
namespace {

v1::FeatureResponse Header() {
  v1::FeatureResponse header;
  header.set_request_id(77);
  header.set_tap_index(2);
  for (uint32_t d : {2u, 16u, 8u, 8u}) header.add_shape(d);
  header.set_dtype(v1::WIRE_DTYPE_BF16);
  header.set_total_bytes(uint64_t{1} << 40);
  header.set_last(true);
  header.set_model_digest("abc");
  header.set_compute_seconds(0.25);
  return header;
}

std::string RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

Buffer MakeBuffer(const std::string& bytes) { return Buffer::FromVector({bytes.begin(), bytes.end()}); }
std::string Text(const ScatteredBuffer& scattered) {
  const Buffer buffer = scattered.Joined();
  return {reinterpret_cast<const char*>(buffer.data), buffer.size};
}

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string flat;
  for (const grpc::Slice& slice : slices) flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return flat;
}

// Splits `bytes` at `cuts` (ascending, may repeat: empty slices).
grpc::ByteBuffer Split(const std::string& bytes, const std::vector<size_t>& cuts) {
  std::vector<grpc::Slice> slices;
  size_t start = 0;
  for (size_t cut : cuts) {
    slices.emplace_back(bytes.data() + start, cut - start);
    start = cut;
  }
  slices.emplace_back(bytes.data() + start, bytes.size() - start);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Serialized(const v1::FeatureResponse& message) { return message.SerializeAsString(); }

TEST(ProtoCodecTest, BytesEqualThoseOfGeneratedCode) {
  for (size_t size : {1, 127, 128, 16383, 16384, 3 << 20}) {  // where the length's varint grows
    const std::string payload = RandomBytes(size, 1);
    v1::FeatureResponse whole = Header();
    whole.set_payload(payload);
    EXPECT_EQ(Flatten(EncodeWithPayload(Header(), MakeBuffer(payload))), Serialized(whole)) << size;
  }
  EXPECT_EQ(Flatten(EncodeWithPayload(Header(), Buffer{})), Serialized(Header()));
  EXPECT_EQ(Flatten(EncodeWithPayload(v1::FeatureResponse(), Buffer{})), "");

  v1::FeatureRequest request;
  request.mutable_batch()->set_request_id(5);
  v1::FeatureRequest whole = request;
  whole.set_payload("pixels");
  EXPECT_EQ(Flatten(EncodeWithPayload(request, MakeBuffer("pixels"))), whole.SerializeAsString());
}

TEST(ProtoCodecTest, EncodingReferencesThePayloadUntilGrpcLetsGo) {
  auto owner = std::make_shared<std::string>(RandomBytes(100000, 2));
  Buffer payload{reinterpret_cast<const uint8_t*>(owner->data()), owner->size(), owner};
  std::weak_ptr<std::string> watch = owner;
  const uint8_t* const address = payload.data;
  owner.reset();
  {
    grpc::ByteBuffer message = EncodeWithPayload(Header(), payload);
    payload = Buffer{};
    EXPECT_FALSE(watch.expired());
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(message.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(slices[1].begin(), address);
    message.Clear();
    EXPECT_FALSE(watch.expired());  // `slices` still refer to it
  }
  EXPECT_TRUE(watch.expired());
}

TEST(ProtoCodecTest, BytesWithoutOwnerAreCopied) {
  std::string bytes = RandomBytes(5000, 3);
  const std::string before = bytes;
  grpc::ByteBuffer message =
      EncodeWithPayload(Header(), Buffer{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), nullptr});
  std::fill(bytes.begin(), bytes.end(), 'x');
  v1::FeatureResponse header;
  ScatteredBuffer payload;
  ASSERT_TRUE(DecodeWithPayload(message, &header, &payload).ok());
  EXPECT_EQ(Text(payload), before);
}

TEST(ProtoCodecTest, ContiguousPayloadIsNotCopiedAndOutlivesTheMessage) {
  const std::string bytes = RandomBytes(50000, 4);
  v1::FeatureResponse header;
  ScatteredBuffer payload;
  {
    grpc::ByteBuffer message = EncodeWithPayload(Header(), MakeBuffer(bytes));
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(message.Dump(&slices).ok());
    ASSERT_TRUE(DecodeWithPayload(message, &header, &payload).ok());
    ASSERT_EQ(payload.pieces.size(), 1u);
    EXPECT_EQ(payload.pieces[0].data(), slices[1].begin());
    EXPECT_EQ(payload.Joined().data, slices[1].begin());
  }
  EXPECT_EQ(Text(payload), bytes);
  EXPECT_EQ(Serialized(header), Serialized(Header()));
}

TEST(ProtoCodecTest, EverySliceLayoutDecodesToTheSame) {
  // Below and above the size that a slice stores inside itself (23 bytes).
  for (size_t size : {1, 20, 300}) {
    v1::FeatureResponse whole = Header();
    whole.set_payload(RandomBytes(size, 5));
    const std::string flat = Serialized(whole);
    std::mt19937 random(6);
    for (int round = 0; round < 400; ++round) {
      std::vector<size_t> cuts;
      if (round == 0) {
        for (size_t i = 0; i <= flat.size(); ++i) cuts.push_back(i);  // one byte each
      } else {
        for (uint32_t i = random() % 8; i > 0; --i) cuts.push_back(random() % (flat.size() + 1));
        std::sort(cuts.begin(), cuts.end());
      }
      v1::FeatureResponse header;
      ScatteredBuffer payload;
      const Status status = DecodeWithPayload(Split(flat, cuts), &header, &payload);
      ASSERT_TRUE(status.ok()) << status << " round " << round;
      ASSERT_EQ(Serialized(header), Serialized(Header())) << "round " << round;
      ASSERT_EQ(Text(payload), whole.payload()) << "size " << size << " round " << round;
    }
  }
}

TEST(ProtoCodecTest, APayloadInSeveralSlicesStaysWhereItIs) {
  v1::FeatureResponse whole = Header();
  whole.set_payload(RandomBytes(3000, 9));
  const std::string flat = Serialized(whole);
  const grpc::ByteBuffer message = Split(flat, {flat.size() - 2000, flat.size() - 2000, flat.size() - 500});
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message.Dump(&slices).ok());
  v1::FeatureResponse header;
  ScatteredBuffer payload;
  ASSERT_TRUE(DecodeWithPayload(message, &header, &payload).ok());
  ASSERT_EQ(payload.pieces.size(), 3u);
  EXPECT_EQ(payload.size, 3000u);
  EXPECT_EQ(payload.pieces[0].size(), 1000u);
  EXPECT_EQ(payload.pieces[1].data(), slices[2].begin());
  EXPECT_EQ(payload.pieces[2].data(), slices[3].begin());
  EXPECT_EQ(Text(payload), whole.payload());
}

TEST(ProtoCodecTest, PayloadMayStandAnywhere) {
  v1::FeatureResponse only_payload, only_header = Header();
  only_payload.set_payload("tensor");
  const std::string flat = Serialized(only_payload) + Serialized(only_header);
  for (const grpc::ByteBuffer& message : {Split(flat, {}), Split(flat, {4})}) {
    v1::FeatureResponse header;
    ScatteredBuffer payload;
    ASSERT_TRUE(DecodeWithPayload(message, &header, &payload).ok());
    EXPECT_EQ(Serialized(header), Serialized(Header()));
    EXPECT_EQ(Text(payload), "tensor");
  }
}

TEST(ProtoCodecTest, EmptyPayloadAndEmptyMessageAreFine) {
  v1::FeatureResponse header;
  ScatteredBuffer payload = ScatteredBuffer::From(MakeBuffer("old"));
  ASSERT_TRUE(DecodeWithPayload(Split(std::string("\x7A\x00", 2), {}), &header, &payload).ok());
  EXPECT_EQ(payload.size, 0u);
  EXPECT_EQ(payload.owner, nullptr);
  EXPECT_TRUE(DecodeWithPayload(Split("", {}), &header, &payload).ok());
}

// True when decoding fails as promised: kInvalidArgument and empty outputs.
testing::AssertionResult Refused(const std::string& flat, std::string_view words,
                                 const std::vector<size_t>& cuts = {}) {
  v1::FeatureResponse header = Header();
  ScatteredBuffer payload = ScatteredBuffer::From(MakeBuffer("old"));
  const Status status = DecodeWithPayload(Split(flat, cuts), &header, &payload);
  if (status.code() != StatusCode::kInvalidArgument) return testing::AssertionFailure() << "got " << status;
  if (std::string(status.message()).find(words) == std::string::npos)
    return testing::AssertionFailure() << "message: " << status.message();
  if (header.ByteSizeLong() != 0 || payload.size != 0 || !payload.pieces.empty() || payload.owner != nullptr) {
    return testing::AssertionFailure() << "outputs are not empty";
  }
  return testing::AssertionSuccess();
}

TEST(ProtoCodecTest, TruncationAtEveryByteNeverGivesAWrongPayload) {
  v1::FeatureResponse whole = Header();
  whole.set_payload(RandomBytes(200, 7));
  const std::string flat = Serialized(whole);
  const size_t payload_start = flat.size() - 200 - 3;  // tag and two bytes of length
  for (size_t size = 0; size < flat.size(); ++size) {
    const std::string cut = flat.substr(0, size);
    for (const std::vector<size_t>& cuts : {std::vector<size_t>{}, std::vector<size_t>{size / 2}}) {
      if (size > payload_start) {
        ASSERT_TRUE(Refused(cut, "malformed", cuts)) << "cut at " << size;
        continue;
      }
      // A cut between two fields is a shorter, valid message; generated code decides the same way.
      v1::FeatureResponse expected, header;
      ScatteredBuffer payload;
      const bool valid = expected.ParseFromString(cut);
      const Status status = DecodeWithPayload(Split(cut, cuts), &header, &payload);
      ASSERT_EQ(status.ok(), valid) << "cut at " << size << ": " << status;
      ASSERT_EQ(payload.size, 0u);
      if (valid) {
        ASSERT_EQ(Serialized(header), Serialized(expected));
      }
    }
  }
}

TEST(ProtoCodecTest, MalformedMessagesAreRefusedInWords) {
  google::protobuf::SetLogHandler(nullptr);  // it tells of every string that is not UTF-8
  v1::FeatureResponse one;
  one.set_payload("tensor");
  EXPECT_TRUE(Refused(Serialized(one) + Serialized(one), "second payload"));
  EXPECT_TRUE(Refused(std::string("\x7A\x00\x7A\x00", 4), "second payload"));
  EXPECT_TRUE(Refused("\x78\x05", "wire type 0"));                                             // payload as a number
  EXPECT_TRUE(Refused("\x7A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01x", "is cut to 1 bytes"));  // 2^64 - 1 bytes long
  EXPECT_TRUE(Refused("\x7A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", "bad payload length"));  // more than 64 bits
  EXPECT_TRUE(Refused(std::string("\x00\x00", 2), "bad field number"));
  EXPECT_TRUE(Refused("\x0F\x00", "field 1"));                // wire type 7
  EXPECT_TRUE(Refused("\x84\x01", "field 16"));               // a group ends that never began
  EXPECT_TRUE(Refused(std::string(200, '\x0B'), "field 1"));  // groups 200 deep
  EXPECT_TRUE(Refused("\x42\x01\xFF", "not a valid"));        // digest is not UTF-8

  v1::FeatureResponse header;
  ScatteredBuffer payload;
  EXPECT_EQ(DecodeWithPayload(grpc::ByteBuffer(), &header, &payload).code(), StatusCode::kInvalidArgument);
}

TEST(ProtoCodecTest, UnknownFieldsAreTolerated) {
  // Fields 100..104 of every wire type; the group holds another group.
  std::string unknown;
  unknown += std::string("\xA0\x06\x96\x01", 4);
  unknown += std::string("\xA9\x06") + "12345678";
  unknown += std::string("\xB2\x06\x03") + "abc";
  unknown += std::string("\xBB\x06\x08\x01\x13\x08\x02\x14\xBC\x06");
  unknown += std::string("\xC5\x06") + "1234";
  v1::FeatureResponse expected = Header();
  expected.set_payload("tensor");
  ASSERT_TRUE(v1::FeatureResponse().ParseFromString(unknown));
  const std::string flat = unknown + Serialized(expected) + unknown;
  for (size_t cut = 0; cut <= flat.size(); ++cut) {
    v1::FeatureResponse header;
    ScatteredBuffer payload;
    const Status status = DecodeWithPayload(Split(flat, {cut}), &header, &payload);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Text(payload), "tensor");
    EXPECT_EQ(header.request_id(), 77u);
  }
}

// What generated code refuses we refuse, and what both accept we read alike. We also refuse doubled or mistyped
// payloads and field numbers above 32 bits, which generated code cuts off.
TEST(ProtoCodecTest, RandomDamageNeverCrashesAndAgreesWithGeneratedCode) {
  v1::FeatureResponse whole = Header();
  whole.set_payload(RandomBytes(40, 8));
  const std::string good = Serialized(whole);
  google::protobuf::SetLogHandler(nullptr);
  std::mt19937 random(9);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 100000; ++round) {
    std::string flat;
    if (round % 2 == 0) {
      flat = good;
      for (uint32_t i = random() % 3 + 1; i > 0; --i) flat[random() % flat.size()] = static_cast<char>(random());
      if (round % 4 == 0) flat.resize(random() % (flat.size() + 1));
    } else {
      flat = RandomBytes(random() % 40, random());
    }
    v1::FeatureResponse expected, header;
    ScatteredBuffer payload;
    const bool valid = expected.ParseFromString(flat);
    const Status status = DecodeWithPayload(Split(flat, {random() % (flat.size() + 1)}), &header, &payload);
    if (status.ok()) {
      ASSERT_TRUE(valid) << "round " << round;
      ASSERT_EQ(Text(payload), expected.payload()) << "round " << round;
      expected.clear_payload();
      ASSERT_EQ(Serialized(header), Serialized(expected)) << "round " << round;
      ++accepted;
    } else {
      const std::string message(status.message());
      ASSERT_TRUE(!valid || message.find("payload") != std::string::npos ||
                  message.find("bad field number") != std::string::npos)
          << "round " << round << ": " << status;
      ++refused;
    }
  }
  EXPECT_GT(accepted, 1000);  // both branches were walked
  EXPECT_GT(refused, 1000);
}

// Tensors in a repeated field, as the Open Inference Protocol has them: what protobuf writes is one field after
// another.
TEST(ProtoCodecTest, RepeatedPayloadsAreThoseOfGeneratedCode) {
  const std::vector<std::string> tensors = {RandomBytes(200, 1), "", RandomBytes(3 << 20, 2)};
  std::vector<Buffer> buffers;
  std::string expected = Serialized(Header());
  for (const std::string& tensor : tensors) {
    buffers.push_back(MakeBuffer(tensor));
    v1::FeatureResponse one;
    one.set_payload(tensor);
    expected += tensor.empty() ? std::string("\x7a\x00", 2) : Serialized(one);
  }
  EXPECT_TRUE(Flatten(EncodeWithPayloads(Header(), kPayloadField, buffers)) == expected);
  EXPECT_EQ(Flatten(EncodeWithPayloads(Header(), kPayloadField, {})), Serialized(Header()));
  // Inside another message: a payload of a payload.
  v1::FeatureResponse outer;
  outer.set_payload(expected);
  EXPECT_TRUE(Flatten(EncodeWithPayloads(Header(), kPayloadField, buffers, kPayloadField)) == Serialized(outer));

  v1::FeatureResponse header;
  std::vector<ScatteredBuffer> payloads;
  for (const std::vector<size_t>& cuts : {std::vector<size_t>{}, {1}, {100, 100, 240, 1 << 20}}) {
    const grpc::ByteBuffer message = Split(expected, cuts);
    ASSERT_TRUE(DecodeWithPayloads(message, kPayloadField, {3, 1000}, &header, &payloads).ok());
    EXPECT_EQ(Serialized(header), Serialized(Header()));
    ASSERT_EQ(payloads.size(), 3);
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(Text(payloads[i]) == tensors[i]) << i;
  }
}

TEST(ProtoCodecTest, WhatIsBeyondTheLimitsIsRefused) {
  v1::FeatureResponse header;
  std::vector<ScatteredBuffer> payloads;
  const std::string two("\x7a\x00\x7a\x00", 4);
  EXPECT_TRUE(DecodeWithPayloads(Split(two, {}), kPayloadField, {2, 0}, &header, &payloads).ok());
  const Status more = DecodeWithPayloads(Split(two + two, {}), kPayloadField, {2, 0}, &header, &payloads);
  EXPECT_EQ(more.code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(payloads.empty());
  v1::FeatureResponse large;
  large.set_error(std::string(5000, 'x'));
  const Status long_field =
      DecodeWithPayloads(Split(Serialized(large), {7}), kPayloadField, {2, 5000}, &header, &payloads);
  EXPECT_EQ(long_field.code(), StatusCode::kResourceExhausted) << long_field;
  EXPECT_TRUE(DecodeWithPayloads(Split(Serialized(large), {7}), kPayloadField, {2, 5010}, &header, &payloads).ok());
  // Many small fields.
  std::string small;
  for (int i = 0; i < 1000; ++i) small += std::string("\x08\x01", 2);
  EXPECT_EQ(DecodeWithPayloads(Split(small, {}), kPayloadField, {2, 1999}, &header, &payloads).code(),
            StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace distill
