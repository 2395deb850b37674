#include "common/hash/sha256.h"

#include <gtest/gtest.h>

#include <fstream>

namespace distill {
namespace {

// From FIPS 180-2, appendix B.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillionA[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256Test, MatchesThePublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
  EXPECT_EQ(Sha256Hex(std::string(1000000, 'a')), kMillionA);
}

TEST(Sha256Test, PiecesGiveTheDigestOfTheWhole) {
  Sha256 sha;
  sha.Update("a");
  sha.Update("");
  sha.Update("bc");
  EXPECT_EQ(sha.HexDigest(), kAbc);
}

TEST(Sha256Test, FileIsHashedInBlocks) {
  for (size_t size :
       {size_t{0}, size_t{1}, size_t{1} << 20, (size_t{5} << 19) + 3}) {  // 0, below, exactly and above a block
    const std::string content(size, 'q');
    const std::string path = testing::TempDir() + "sha256_test_" + std::to_string(size);
    std::ofstream(path, std::ios::binary) << content;
    const StatusOr<std::string> digest = Sha256File(path);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(*digest, Sha256Hex(content)) << size;
    std::remove(path.c_str());
  }
}

TEST(Sha256Test, MissingFileAndFolderAreErrorsThatNameThePath) {
  const std::string missing = testing::TempDir() + "sha256_no_such_file";
  const Status status = Sha256File(missing).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find(missing), std::string::npos) << status;
  EXPECT_EQ(Sha256File(testing::TempDir()).status().code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace distill
