#include "student_worker/feature/answer_assembler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "common/wire/copy_count.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

FillableBuffer Allocate(uint64_t size) {
  auto bytes = std::make_shared<std::vector<uint8_t>>(size);
  return {Buffer{bytes->data(), size, bytes}, bytes->data()};
}

// One tap of shape [2, 3], 24 bytes, and one of shape [2, 1, 2, 2], bf16, 16 bytes.
AnswerAssembler::Expectation Expect() {
  return {.taps = {{"a", WireDtype::kF32}, {"b", WireDtype::kBf16}},
          .tap_shapes = {{3}, {1, 2, 2}},
          .digest = "d",
          .batch = 2,
          .max_bytes = 40};
}

Buffer Whole(size_t size, uint8_t first = 0) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return Buffer::FromVector(std::move(bytes));
}
ScatteredBuffer Bytes(size_t size, uint8_t first = 0) { return ScatteredBuffer::From(Whole(size, first)); }

FeatureChunk First() {
  return {.tap_index = 0, .shape = {2, 3}, .dtype = 1, .total_bytes = 24, .model_digest = "d", .payload = Bytes(24)};
}
FeatureChunk Second() {
  return {.tap_index = 1,
          .shape = {2, 1, 2, 2},
          .dtype = 3,
          .total_bytes = 16,
          .last = true,
          .model_digest = "d",
          .queue_seconds = 1,
          .compute_seconds = 2,
          .payload = Bytes(16, 100)};
}

TEST(AnswerAssemblerTest, JoinsWholeTensors) {
  AnswerAssembler assembler(Expect(), Allocate);
  auto complete = assembler.Add(First());
  ASSERT_TRUE(complete.ok()) << complete.status();
  EXPECT_FALSE(*complete);
  complete = assembler.Add(Second());
  ASSERT_TRUE(complete.ok()) << complete.status();
  EXPECT_TRUE(*complete);
  const FeatureBatch batch = assembler.Take();
  ASSERT_EQ(batch.taps.size(), 2);
  EXPECT_EQ(batch.taps[0].shape, (std::vector<uint32_t>{2, 3}));
  EXPECT_EQ(batch.taps[1].encoding.dtype, WireDtype::kBf16);
  EXPECT_EQ(std::memcmp(batch.taps[0].bytes.data, Whole(24).data, 24), 0);
  EXPECT_EQ(std::memcmp(batch.taps[1].bytes.data, Whole(16, 100).data, 16), 0);
  EXPECT_EQ(batch.model_digest, "d");
  EXPECT_EQ(batch.queue_seconds, 1);
  EXPECT_EQ(batch.compute_seconds, 2);
}

// Nobody knew how large they would be; with the shapes known the pool refuses the request before it is sent.
TEST(AnswerAssemblerTest, MapsOfUnknownShapeThatDoNotFitAreTheRequestsFaultAndNotTheTeachers) {
  AnswerAssembler::Expectation expect = Expect();
  expect.tap_shapes.clear();
  expect.max_bytes = 30;
  AnswerAssembler assembler(expect, Allocate);
  ASSERT_TRUE(assembler.Add(First()).ok());
  const Status status = assembler.Add(Second()).status();
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tap 'b' of shape [2, 1, 2, 2] takes 16 bytes, of the window of 30 bytes there are 6 left; "
                        "raise the job's prefetch"));
  FeatureChunk lie = Second();
  lie.total_bytes = 1000;
  AnswerAssembler other(expect, Allocate);
  ASSERT_TRUE(other.Add(First()).ok());
  EXPECT_EQ(other.Add(lie).status().code(), StatusCode::kDataLoss) << "a total that is not that of its shape";
}

TEST(AnswerAssemblerTest, JoinsChunksOfAnySize) {
  for (size_t chunk : {1, 5, 7, 23, 24}) {
    AnswerAssembler assembler(Expect(), Allocate);
    const Buffer whole = Whole(24);
    for (size_t offset = 0; offset < 24; offset += chunk) {
      FeatureChunk part = First();
      if (offset > 0)
        part = FeatureChunk{.tap_index = 0, .offset = offset};  // the rest may stand in the first chunk only
      part.payload =
          ScatteredBuffer::From(Buffer{whole.data + offset, std::min<size_t>(chunk, 24 - offset), whole.owner});
      ASSERT_TRUE(assembler.Add(part).ok()) << "chunk size " << chunk << " offset " << offset;
    }
    ASSERT_TRUE(assembler.Add(Second()).value());
    EXPECT_EQ(std::memcmp(assembler.Take().taps[0].bytes.data, whole.data, 24), 0) << "chunk size " << chunk;
  }
}

TEST(AnswerAssemblerTest, GathersPiecesThatEndInsideAnElementAndCopiesEachByteOnce) {
  const Buffer values = Buffer::FromVector([] {
    std::vector<uint8_t> bytes(24);
    const float floats[] = {1, -7.5f, 2, 3, 0, 5};
    std::memcpy(bytes.data(), floats, 24);
    return bytes;
  }());
  for (size_t piece : {1, 3, 5, 11}) {
    FeatureChunk chunk = First();
    chunk.payload = {.size = 24, .owner = values.owner};
    for (size_t at = 0; at < 24; at += piece) {
      chunk.payload.pieces.emplace_back(values.data + at, std::min<size_t>(piece, 24 - at));
    }
    AnswerAssembler assembler(Expect(), Allocate);
    const uint64_t before = FeatureBytesCopied();
    ASSERT_TRUE(assembler.Add(chunk).ok());
    EXPECT_EQ(FeatureBytesCopied() - before, 24);
    ASSERT_TRUE(assembler.Add(Second()).value());
    const FeatureBatch batch = assembler.Take();
    EXPECT_EQ(std::memcmp(batch.taps[0].bytes.data, values.data, 24), 0) << piece;
    EXPECT_EQ(batch.taps[0].largest, 7.5f) << piece;
    EXPECT_EQ(assembler.not_finite_tap(), nullptr);
  }
}

// More than a block, so that copying and looking alternate.
TEST(AnswerAssemblerTest, FindsWhatIsNotFiniteAnywhereInALargeTensor) {
  const uint32_t count = 10007;
  for (uint32_t place : {0u, 4095u, 4096u, 9000u, count - 1}) {
    std::vector<uint8_t> bytes(4 * count);
    const float bad = -std::numeric_limits<float>::infinity();
    std::memcpy(bytes.data() + 4 * place, &bad, 4);
    AnswerAssembler assembler(
        {.taps = {{"a"}}, .tap_shapes = {{count}}, .digest = "d", .batch = 1, .max_bytes = 4 * count}, Allocate);
    FeatureChunk chunk = First();
    chunk.shape = {1, count};
    chunk.total_bytes = 4 * count;
    chunk.last = true;
    chunk.payload = ScatteredBuffer::From(Buffer::FromVector(std::move(bytes)));
    ASSERT_TRUE(assembler.Add(chunk).value());
    ASSERT_NE(assembler.not_finite_tap(), nullptr) << place;
    EXPECT_FALSE(std::isfinite(assembler.Take().taps[0].largest));
  }
}

TEST(AnswerAssemblerTest, TheLayoutIsTheTeachersToSay) {
  AnswerAssembler assembler(Expect(), Allocate);
  ASSERT_TRUE(assembler.Add(First()).ok());
  FeatureChunk map = Second();
  map.layout = 1;
  ASSERT_TRUE(assembler.Add(map).value());
  const FeatureBatch batch = assembler.Take();
  EXPECT_EQ(batch.taps[0].layout, TensorLayout::kRowMajor);
  EXPECT_EQ(batch.taps[1].layout, TensorLayout::kChannelsLast);
}

TEST(AnswerAssemblerTest, UnknownShapesAreTakenWithinTheGrant) {
  auto expect = Expect();
  expect.tap_shapes.clear();
  expect.digest = "";
  AnswerAssembler assembler(expect, Allocate);
  ASSERT_TRUE(assembler.Add(First()).ok());
  EXPECT_TRUE(assembler.Add(Second()).value());
  EXPECT_EQ(assembler.Take().model_digest, "d");
}

TEST(AnswerAssemblerTest, NotANumberIsData) {
  FeatureChunk chunk = First();
  std::vector<uint8_t> bytes(24);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data(), &nan, 4);
  chunk.payload = ScatteredBuffer::From(Buffer::FromVector(std::move(bytes)));
  AnswerAssembler assembler(Expect(), Allocate);
  ASSERT_TRUE(assembler.Add(chunk).ok());
  ASSERT_TRUE(assembler.Add(Second()).ok());
  const FeatureBatch batch = assembler.Take();
  float value = 0;
  std::memcpy(&value, batch.taps[0].bytes.data, 4);
  EXPECT_TRUE(std::isnan(value));
}

struct BadChunk {
  const char* name;
  void (*change)(FeatureChunk*);
  StatusCode code = StatusCode::kDataLoss;
};

TEST(AnswerAssemblerTest, EveryWrongNumberInTheFirstChunkIsAnErrorAndAllocatesNothing) {
  const BadChunk cases[] = {
      {"tap", [](FeatureChunk* c) { c->tap_index = 1; }},
      {"huge tap", [](FeatureChunk* c) { c->tap_index = UINT32_MAX; }},
      {"batch", [](FeatureChunk* c) { c->shape[0] = 3; }},
      {"no shape", [](FeatureChunk* c) { c->shape.clear(); }},
      {"long shape",
       [](FeatureChunk* c) {
         c->shape = {2, 3, 1, 1, 1};
       }},
      {"other features",
       [](FeatureChunk* c) {
         c->shape = {2, 4}, c->total_bytes = 32;
       }},
      {"dtype", [](FeatureChunk* c) { c->dtype = 2; }},
      {"unknown dtype", [](FeatureChunk* c) { c->dtype = 77; }},
      {"unknown layout", [](FeatureChunk* c) { c->layout = 2; }},
      {"layout of a map", [](FeatureChunk* c) { c->layout = 1; }},
      {"small total", [](FeatureChunk* c) { c->total_bytes = 20; }},
      {"large total", [](FeatureChunk* c) { c->total_bytes = UINT64_MAX; }},
      {"digest", [](FeatureChunk* c) { c->model_digest = "e"; }, StatusCode::kFailedPrecondition},
      {"no digest", [](FeatureChunk* c) { c->model_digest = ""; }, StatusCode::kFailedPrecondition},
  };
  for (const BadChunk& bad : cases) {
    FeatureChunk chunk = First();
    bad.change(&chunk);
    bool allocated = false;
    AnswerAssembler assembler(Expect(), [&](uint64_t size) {
      allocated = true;
      return Allocate(size);
    });
    EXPECT_EQ(assembler.Add(chunk).status().code(), bad.code) << bad.name;
    EXPECT_FALSE(allocated) << bad.name;
  }
  // Without known shapes the grant is the only bound.
  auto expect = Expect();
  expect.tap_shapes.clear();
  const std::pair<std::vector<uint32_t>, StatusCode> too_large[] = {{{2, 6}, StatusCode::kOutOfRange},
                                                                    {{2, UINT32_MAX}, StatusCode::kOutOfRange},
                                                                    {{2, 1u << 31, 1u << 31, 4}, StatusCode::kDataLoss},
                                                                    {{2, 0}, StatusCode::kDataLoss}};
  for (const auto& [shape, code] : too_large) {
    FeatureChunk chunk = First();
    chunk.shape = shape;
    chunk.total_bytes = LayoutOf(shape, {}).bytes;
    AnswerAssembler assembler(expect, [](uint64_t size) {
      ADD_FAILURE() << "allocated " << size;
      return Allocate(size);
    });
    EXPECT_EQ(assembler.Add(chunk).status().code(), code);
  }
}

TEST(AnswerAssemblerTest, EveryWrongNumberInALaterChunkIsAnError) {
  const BadChunk cases[] = {
      {"overlap", [](FeatureChunk* c) { c->offset = 11; }},
      {"gap", [](FeatureChunk* c) { c->offset = 13; }},
      {"far", [](FeatureChunk* c) { c->offset = UINT64_MAX; }},
      {"too much", [](FeatureChunk* c) { c->payload = Bytes(13); }},
      {"empty", [](FeatureChunk* c) { c->payload = ScatteredBuffer(); }},
      {"next tap", [](FeatureChunk* c) { c->tap_index = 1; }},
      {"last too early", [](FeatureChunk* c) { c->last = true; }},
      {"other shape",
       [](FeatureChunk* c) {
         c->shape = {2, 4};
       }},
      {"other total", [](FeatureChunk* c) { c->total_bytes = 28; }},
      {"other dtype", [](FeatureChunk* c) { c->dtype = 2; }},
      {"other layout", [](FeatureChunk* c) { c->layout = 1; }},
  };
  for (const BadChunk& bad : cases) {
    AnswerAssembler assembler(Expect(), Allocate);
    FeatureChunk chunk = First();
    chunk.payload = Bytes(12);
    ASSERT_TRUE(assembler.Add(chunk).ok());
    chunk.offset = 12;
    bad.change(&chunk);
    EXPECT_EQ(assembler.Add(chunk).status().code(), StatusCode::kDataLoss) << bad.name;
  }
  AnswerAssembler assembler(Expect(), Allocate);
  ASSERT_TRUE(assembler.Add(First()).ok());
  FeatureChunk unfinished = Second();
  unfinished.last = false;
  EXPECT_THAT(std::string(assembler.Add(unfinished).status().message()), HasSubstr("not marked as the last"));
}

TEST(AnswerAssemblerTest, TapsOfTwoModelsAreRefused) {
  auto expect = Expect();
  expect.digest = "";
  AnswerAssembler assembler(expect, Allocate);
  ASSERT_TRUE(assembler.Add(First()).ok());
  FeatureChunk other = Second();
  other.model_digest = "e";
  EXPECT_EQ(assembler.Add(other).status().code(), StatusCode::kFailedPrecondition);
}

TEST(AnswerAssemblerTest, LackOfMemoryIsAnError) {
  AnswerAssembler assembler(Expect(), [](uint64_t) { return FillableBuffer(); });
  EXPECT_EQ(assembler.Add(First()).status().code(), StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace distill
