#include "common/shared_memory/memory_ring.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/harness/process.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kRing = kLeastRingBytes;

std::shared_ptr<RingWriter> Writer(uint64_t bytes = kRing) { return RingWriter::Create(bytes).value(); }
OwnedFd Copy(int fd) { return OwnedFd(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }
std::shared_ptr<const RingReader> Reader(const RingWriter& writer) {
  return RingReader::Open(Copy(writer.fd()), writer.bytes()).value();
}
// A memfd of so many bytes with these seals.
OwnedFd Memory(uint64_t bytes, int seals) {
  OwnedFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

TEST(MemoryRingTest, WhatOneSideWritesTheOtherOneReadsRoundAfterRound) {
  const auto writer = Writer();
  const auto reader = Reader(*writer);
  uint8_t next = 0, due = 0;
  std::vector<RingPiece> unread;
  uint64_t moved = 0;
  for (int i = 0; moved < 10 * kRing; ++i) {
    const uint64_t wanted = 1000 + static_cast<uint64_t>(i) * 7919 % 20000;
    while (writer->room() > 0 && unread.size() < 5) {
      const RingPiece piece = writer->Take(std::min(wanted, writer->room()));
      ASSERT_LE(piece.offset + piece.size, kRing);
      std::vector<uint8_t> bytes(piece.size);
      for (uint8_t& byte : bytes) byte = next++;
      writer->Fill(piece, bytes.data());
      unread.push_back(piece);
    }
    ASSERT_FALSE(unread.empty());
    const RingPiece piece = unread.front();
    unread.erase(unread.begin());
    const std::span<const uint8_t> bytes = reader->At(piece).value();
    for (const uint8_t byte : bytes) ASSERT_EQ(byte, due++) << "at " << piece.offset;
    ASSERT_TRUE(writer->Return(piece.size));
    moved += piece.size;
  }
}

TEST(MemoryRingTest, AFullRingHasNoRoomUntilTheOldestBytesAreReturned) {
  const auto writer = Writer();
  EXPECT_EQ(writer->room(), kRing);
  writer->Take(kRing - 100);
  EXPECT_EQ(writer->room(), 100);
  const RingPiece rest = writer->Take(100);
  EXPECT_EQ(rest.offset, kRing - 100);
  EXPECT_EQ(writer->room(), 0);
  EXPECT_TRUE(writer->Return(60));
  EXPECT_EQ(writer->room(), 60);
  EXPECT_EQ(writer->Take(60).offset, 0);
}

TEST(MemoryRingTest, NoMoreIsReturnedThanWasTaken) {
  const auto writer = Writer();
  EXPECT_FALSE(writer->Return(1));
  writer->Take(1000);
  EXPECT_FALSE(writer->Return(1001));
  EXPECT_FALSE(writer->Return(UINT64_MAX));
  EXPECT_EQ(writer->room(), kRing - 1000);
  EXPECT_TRUE(writer->Return(1000));
  EXPECT_FALSE(writer->Return(1));
}

TEST(MemoryRingTest, SizesHaveLimitsAndAreWholePages) {
  for (const uint64_t bytes : {uint64_t{0}, kLeastRingBytes - 1, kMostRingBytes + 1, UINT64_MAX}) {
    EXPECT_EQ(RingWriter::Create(bytes).status().code(), StatusCode::kInvalidArgument) << bytes;
  }
  const auto writer = Writer(kLeastRingBytes + 5);
  EXPECT_EQ(writer->bytes() % static_cast<uint64_t>(sysconf(_SC_PAGESIZE)), 0);
  EXPECT_LE(writer->bytes(), kLeastRingBytes + 5);
}

TEST(MemoryRingTest, APieceThatIsNotInTheRingIsRefused) {
  const auto writer = Writer();
  const auto reader = Reader(*writer);
  const RingPiece bad[] = {{0, 0},          {0, kRing + 1},           {kRing, 1},
                           {kRing - 1, 2},  {kRing + 1, 1},           {UINT64_MAX, 1},
                           {1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}, {8, UINT64_MAX - 7}};
  for (const RingPiece& piece : bad) {
    const auto bytes = reader->At(piece);
    EXPECT_EQ(bytes.status().code(), StatusCode::kDataLoss) << piece.offset << " " << piece.size;
  }
  EXPECT_EQ(reader->At({kRing - 1, 1}).value().size(), 1);
  EXPECT_EQ(reader->At({0, kRing}).value().size(), kRing);
}

TEST(MemoryRingTest, NeitherSideCanChangeTheSizeNorTheReaderTheBytes) {
  const auto writer = Writer();
  const OwnedFd fd = Copy(writer->fd());
  EXPECT_NE(ftruncate(fd.get(), 0), 0);
  EXPECT_NE(ftruncate(fd.get(), 2 * kRing), 0);
  EXPECT_NE(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  // The kernel's seal of 5.1.
  void* const mapped = mmap(nullptr, kRing, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  EXPECT_EQ(mapped, MAP_FAILED);
  EXPECT_LT(pwrite(fd.get(), "x", 1, 0), 0);
}

TEST(MemoryRingTest, TheReaderTakesNothingWhoseSizeCouldChange) {
  const auto message = [](OwnedFd fd, uint64_t bytes) {
    const auto reader = RingReader::Open(std::move(fd), bytes);
    EXPECT_EQ(reader.status().code(), StatusCode::kFailedPrecondition) << reader.status();
    return std::string(reader.status().message());
  };
  EXPECT_THAT(message(Memory(kRing, 0), kRing), HasSubstr("not sealed"));
  EXPECT_THAT(message(Memory(kRing, F_SEAL_GROW), kRing), HasSubstr("not sealed"));
  const int sealed = F_SEAL_GROW | F_SEAL_SHRINK;
  EXPECT_THAT(message(Memory(kRing - 4096, sealed), kRing), HasSubstr("was announced with 65536"));
  EXPECT_THAT(message(Memory(kRing, sealed), 2 * kRing), HasSubstr("was announced with"));
  EXPECT_THAT(message(Memory(0, sealed), 0), HasSubstr("was announced with"));
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const OwnedFd other(ends[1]);
  EXPECT_THAT(message(OwnedFd(ends[0]), kRing), HasSubstr("something else"));
  testing::TempDir folder;
  testing::WriteFile(folder / "file", std::string(kRing, 'x'));
  message(OwnedFd(open((folder / "file").c_str(), O_RDONLY | O_CLOEXEC)), kRing);
  message(OwnedFd(), kRing);
}

TEST(MemoryRingTest, TheMemoryLivesAsLongAsEitherSide) {
  auto writer = Writer();
  const RingPiece piece = writer->Take(5);
  writer->Fill(piece, reinterpret_cast<const uint8_t*>("hello"));
  const auto reader = Reader(*writer);
  writer.reset();
  const auto bytes = reader->At(piece).value();
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "hello");
}

}  // namespace
}  // namespace distill
