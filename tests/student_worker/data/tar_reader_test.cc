// Archives that no tar program makes of a folder: damaged, joined, forged. What those make is in packed_test.cc.
#include "student_worker/data/tar_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <filesystem>

#include "student_worker/data/dataset.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::EncodePng;
using testing::Gzip;
using ::testing::HasSubstr;
using testing::Image;
using testing::Picture;
using testing::TarEnd;
using testing::TarMember;
using testing::WorstDifference;
using testing::WriteWithFolders;

std::string Png(int index) { return EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(index, 3)); }

// A pax record, "LENGTH KEY=VALUE\n".
std::string Pax(const std::string& key, const std::string& value) {
  const std::string rest = " " + key + "=" + value + "\n";
  size_t length = rest.size() + 1;
  while (std::to_string(length).size() + rest.size() != length) ++length;
  return std::to_string(length) + rest;
}

class ArchiveTest : public testing::DataRootTest {
 protected:
  // The data set whose training split is the archive `bytes`; its test split is sound, with classes a and b.
  StatusOr<DataSplits> Load(const std::string& bytes, const std::string& ending = ".tar") const {
    fs::remove_all(Path("d"));
    WriteWithFolders(Path("d/train" + ending), bytes);
    WriteWithFolders(Path("d/test/a/0.png"), Png(0));
    WriteWithFolders(Path("d/test/b/0.png"), Png(1));
    return Open({.format = "image_folder", .path = "d"});
  }
  std::string Refusal(const std::string& bytes, StatusCode code, const std::string& ending = ".tar") const {
    const auto splits = Load(bytes, ending);
    EXPECT_EQ(splits.status().code(), code) << splits.status();
    return std::string(splits.status().message());
  }
  const std::string plain_ = TarMember("a/0.png", Png(0)) + TarMember("b/0.png", Png(1));
};

TEST_F(ArchiveTest, WhatFollowsTheEndMarkIsNeverLost) {
  const std::string one = plain_ + TarEnd(), two = TarMember("a/1.png", Png(2)) + TarEnd();
  EXPECT_TRUE(Load(one).ok()) << Load(one).status();
  EXPECT_TRUE(Load(one + std::string(10240, '\0')).ok()) << "filled up to a record";
  for (const auto& [bytes, ending] : {std::pair<std::string, std::string>{one + two, ".tar"},
                                      {one + "x", ".tar"},
                                      {plain_ + std::string(512, '\0') + two, ".tar"},  // after half an end mark
                                      {Gzip(one + two), ".tar.gz"},
                                      {Gzip(one) + Gzip(two), ".tar.gz"}}) {
    EXPECT_THAT(Refusal(bytes, StatusCode::kDataLoss, ending),
                HasSubstr("'" + Path("d/train" + ending) +
                          "' goes on after its end mark, as when archives are joined by "
                          "cat; what follows would be lost: join them by tar --concatenate"));
  }
  // Members of one gzip stream may be cut anywhere.
  const std::string gzip = Gzip(one.substr(0, 100)) + Gzip("") + Gzip(one.substr(100));
  EXPECT_TRUE(Load(gzip, ".tar.gz").ok()) << Load(gzip, ".tar.gz").status();
  EXPECT_TRUE(Load(gzip + std::string(1000, '\0'), ".tar.gz").ok());
  EXPECT_THAT(Refusal(gzip + "garbage", StatusCode::kDataLoss, ".tar.gz"),
              HasSubstr("holds bytes behind its gzip data that are none"));
  std::string damaged = Gzip(one) + Gzip(two);
  damaged[Gzip(one).size()] = 0;  // the second member's magic
  EXPECT_THAT(Refusal(damaged, StatusCode::kDataLoss, ".tar.gz"), HasSubstr("bytes behind its gzip data"));
}

TEST_F(ArchiveTest, LinksLeadToMembersOrAreRefusedByName) {
  const auto load = [&](const std::string& link) { return Load(plain_ + link + TarEnd()); };
  for (const std::string& link :
       {TarMember("a/9.png", "", '1', "./b/0.png"), TarMember("a/9.png", "", '2', "../b/0.png"),
        TarMember("a/9.png", "", '2', "./.././b//0.png"),
        TarMember("./a/.x", "", '2', "../b") + TarMember("a/9.png", "", '2', ".x/0.png")}) {
    const auto splits = load(link);
    ASSERT_TRUE(splits.ok()) << splits.status();
    ASSERT_EQ(splits->train->size(), 3);
    EXPECT_EQ(WorstDifference(Image(*splits->train, 1), Picture(1, 3), 3), 0);
  }
  for (const std::string& link :
       {TarMember("a/9.png", "", '1', "b/1.png"), TarMember("a/9.png", "", '1', "../b/0.png"),
        TarMember("a/9.png", "", '1', "a/9.png"), TarMember("a/9.png", "", '2', "b/0.png"),
        TarMember("a/9.png", "", '2', "../../b/0.png"), TarMember("a/9.png", "", '2', "/b/0.png"),
        TarMember("a/9.png", "", '2', "9.png"), TarMember("a/9.png", "", '2', "0.png/x")}) {
    const auto splits = load(link);
    EXPECT_EQ(splits.status().code(), StatusCode::kFailedPrecondition) << splits.status();
    EXPECT_THAT(std::string(splits.status().message()),
                HasSubstr("links to what their archive does not hold: '" + Path("d/train.tar:a/9.png") + "' (to '"));
  }
  // Links in links multiply what they lead to; the walk ends all the same.
  std::string bomb = plain_;
  for (int i = 0; i < 60; ++i) {
    const std::string folder = "a/" + std::to_string(i), next = "../" + std::to_string(i + 1);
    bomb += TarMember(folder + "/x", "", '2', next) + TarMember(folder + "/y", "", '2', next);
  }
  EXPECT_EQ(Load(bomb + TarEnd()).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(ArchiveTest, OfMembersOfOneNameTheLastCounts) {
  const auto splits = Load(plain_ + TarMember("./a/0.png", Png(5)) + TarEnd());
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(WorstDifference(Image(*splits->train, 0), Picture(5, 3), 3), 0);
  EXPECT_THAT(splits->warnings,
              ::testing::ElementsAre("Members that occur more than once in their archive, of which the "
                                     "last is taken: '" +
                                     Path("d/train.tar:a/0.png") + "'."));
}

TEST_F(ArchiveTest, MembersThatCannotBeUnpackedAreRefused) {
  EXPECT_THAT(Refusal(plain_ + TarMember("../c/0.png", Png(0)) + TarEnd(), StatusCode::kDataLoss),
              HasSubstr("names lead out of their archive: '" + Path("d/train.tar:../c/0.png")));
  EXPECT_THAT(Refusal(plain_ + TarMember("a/0.png/1.png", Png(0)) + TarEnd(), StatusCode::kDataLoss),
              HasSubstr("members that lie in what is no folder: '" + Path("d/train.tar:a/0.png/1.png")));
  EXPECT_THAT(Refusal(plain_ + TarMember("a", Png(0)) + TarEnd(), StatusCode::kDataLoss),
              HasSubstr("members that are both a file and a folder: '" + Path("d/train.tar:a'")));
  EXPECT_THAT(Refusal(plain_ + TarMember("a/1.png", "", '6') + TarEnd(), StatusCode::kFailedPrecondition),
              HasSubstr("named like pictures, but no files: '" + Path("d/train.tar:a/1.png")));
  EXPECT_THAT(Refusal(plain_ + TarMember("a/1.png", Png(0), 'M') + TarEnd(), StatusCode::kDataLoss),
              HasSubstr("part of a multi-volume archive"));
  EXPECT_THAT(Refusal(plain_ + TarMember("x", Pax("path", std::string(5000, 'x')), 'x') + TarMember("a/1.png", Png(0)) +
                          TarEnd(),
                      StatusCode::kDataLoss),
              HasSubstr("a name of 5000 bytes"));
}

TEST_F(ArchiveTest, PaxHeadersCountForTheNextMemberOnly) {
  const std::string header =
      TarMember("pax", Pax("comment", "x") + Pax("path", "b/\xC3\xA4.png") + Pax("mtime", "1.5"), 'x');
  auto splits = Load(plain_ + header + TarMember("cut", Png(3)) + TarMember("a/1.png", Png(4)) + TarEnd());
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_EQ(splits->train->size(), 4);
  EXPECT_EQ(splits->train->label(2), 1);
  EXPECT_EQ(WorstDifference(Image(*splits->train, 3), Picture(3, 3), 3), 0);
  for (const std::string bad :
       {"path=x\n", "99 path=x\n", "7 path=\n", "9 path=xx", "x", "8 noequal\n", "12 size=abc\n"}) {
    EXPECT_THAT(
        Refusal(plain_ + TarMember("pax", bad, 'x') + TarMember("a/1.png", Png(4)) + TarEnd(), StatusCode::kDataLoss),
        HasSubstr("is not a tar archive or is damaged (a pax header"))
        << bad;
  }
}

// The maps of sparse members: each of these says something that cannot be.
TEST_F(ArchiveTest, ContradictoryMapsOfSparseMembersAreRefused) {
  const auto sparse = [&](const std::string& records, const std::string& content) {
    return plain_ + TarMember("pax", records, 'x') + TarMember("a/1.png", content) + TarEnd();
  };
  const std::string png = Png(2), size = std::to_string(png.size());
  const auto good = Load(sparse(Pax("GNU.sparse.size", size) + Pax("GNU.sparse.map", "0," + size), png));
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(WorstDifference(Image(*good->train, 1), Picture(2, 3), 3), 0);
  const std::string version =
      Pax("GNU.sparse.major", "1") + Pax("GNU.sparse.minor", "0") + Pax("GNU.sparse.realsize", size);
  std::string map = "1\n0\n" + size + "\n";
  map.resize(512);
  EXPECT_TRUE(Load(sparse(version, map + png)).ok()) << Load(sparse(version, map + png)).status();
  for (const auto& [records, content] :
       {std::pair<std::string, std::string>{Pax("GNU.sparse.size", "9") + Pax("GNU.sparse.map", "0," + size), png},
        {Pax("GNU.sparse.size", size) + Pax("GNU.sparse.map", "0,7"), png},  // less than is stored
        {Pax("GNU.sparse.size", "9999") + Pax("GNU.sparse.map", "5,10,0," + size), png},
        {Pax("GNU.sparse.size", "9999") + Pax("GNU.sparse.map", "0," + size + ",7"), png},
        {Pax("GNU.sparse.size", "9999") + Pax("GNU.sparse.map", "18446744073709551615," + size), png},
        {Pax("GNU.sparse.major", "2") + Pax("GNU.sparse.realsize", size), png},
        {version, "99999999\n" + map + png},
        {version, "1\n0\n"},
        {version, png}}) {
    EXPECT_EQ(Load(sparse(records, content)).status().code(), StatusCode::kDataLoss) << records;
  }
  // A hole of 2^62 bytes behind a picture is not asked memory for.
  const auto huge =
      Load(sparse(Pax("GNU.sparse.size", "4611686018427387904") + Pax("GNU.sparse.map", "0," + size), png));
  EXPECT_EQ(huge.status().code(), StatusCode::kResourceExhausted) << huge.status();
}

// Whatever stands in a header, it ends in a data set or a refusal.
TEST_F(ArchiveTest, NoByteOfAHeaderCrashes) {
  const std::string map = "0,10,20,5";
  const std::string good = plain_ + TarMember("a/9.png", "", '1', "b/0.png") + TarMember("b/9.png", "", '2', "0.png") +
                           TarMember("pax", Pax("GNU.sparse.size", "64") + Pax("GNU.sparse.map", map), 'x') +
                           TarMember("a/x.txt", std::string(15, 'x')) + TarEnd();
  ASSERT_TRUE(Load(good).ok()) << Load(good).status();
  for (size_t i = 0, step = 0; i < good.size(); i += step) {
    const bool numbers_and_links = i % 512 > 100 && i % 512 < 170;
    step = numbers_and_links ? 3 : 37;
    std::string bad = good;
    bad[i] ^= 0x15;
    // With its checksum put right, so that the change is read.
    const size_t header = i / 512 * 512;
    bad.replace(header + 148, 8, "        ");
    unsigned sum = 0;
    for (size_t k = header; k < header + 512; ++k) sum += static_cast<unsigned char>(bad[k]);
    char text[8];
    std::snprintf(text, sizeof(text), "%06o", sum);
    bad.replace(header + 148, 8, std::string(text, 7) + " ");
    (void)Load(bad);
  }
}

}  // namespace
}  // namespace distill
