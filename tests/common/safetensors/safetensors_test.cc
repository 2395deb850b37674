#include "common/safetensors/safetensors.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/str_cat.h"

namespace distill {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / StrCat("safetensors_test_", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  size_t FilesInFolder() const { return std::distance(fs::directory_iterator(folder_), fs::directory_iterator()); }

  fs::path folder_;
};

Buffer Bytes(std::string_view text) { return Buffer::FromVector({text.begin(), text.end()}); }
std::string Text(const Buffer& buffer) { return {reinterpret_cast<const char*>(buffer.data), buffer.size}; }

// A file from a header and data, as a writer would lay it out.
std::string Raw(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string raw(reinterpret_cast<const char*>(&length), 8);
  return raw + header + data;
}
std::string Damage(std::string_view raw) {
  const StatusOr<SafetensorsFile> file = ParseSafetensors(Bytes(raw), "weights.safetensors");
  EXPECT_EQ(file.status().code(), StatusCode::kDataLoss) << raw;
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("weights.safetensors"));
  return std::string(file.status().message());
}
std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

SafetensorsFile Sample() {
  SafetensorsFile file;
  file.metadata = {{"format", "pt"}, {"note", "käse"}};
  file.tensors["byte"] = {"U8", {3}, Bytes("abc")};
  file.tensors["half"] = {"F16", {2, 1}, Bytes("wxyz")};
  file.tensors["weight"] = {"F32", {1, 2}, Bytes("12345678")};
  file.tensors["scalar"] = {"I64", {}, Bytes("8bytes!!")};
  file.tensors["empty"] = {"F32", {0, 5}, Buffer{}};
  return file;
}

TEST_F(SafetensorsTest, RoundTripKeepsTensorsAndMetadata) {
  const SafetensorsFile file = Sample();
  ASSERT_TRUE(WriteSafetensors(Path("a.safetensors"), file).ok());
  EXPECT_EQ(FilesInFolder(), 1u) << "the temp file is gone";
  StatusOr<SafetensorsFile> read = ReadSafetensors(Path("a.safetensors"));
  ASSERT_TRUE(read.ok()) << read.status();
  fs::remove(Path("a.safetensors"));  // the mapping stays
  EXPECT_EQ(read->metadata, file.metadata);
  ASSERT_EQ(read->tensors.size(), file.tensors.size());
  for (const auto& [name, tensor] : file.tensors) {
    EXPECT_EQ(read->tensors[name].dtype, tensor.dtype) << name;
    EXPECT_EQ(read->tensors[name].shape, tensor.shape) << name;
    EXPECT_EQ(Text(read->tensors[name].bytes), Text(tensor.bytes)) << name;
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(read->tensors["weight"].bytes.data) % 4, 0u) << "aligned for its dtype";
}

TEST_F(SafetensorsTest, FileWithoutTensorsIsValid) {
  ASSERT_TRUE(WriteSafetensors(Path("none"), {}).ok());
  StatusOr<SafetensorsFile> read = ReadSafetensors(Path("none"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->tensors.empty());
}

TEST_F(SafetensorsTest, EveryTruncationIsDataLoss) {
  ASSERT_TRUE(WriteSafetensors(Path("a"), Sample()).ok());
  const std::string whole = ReadAll(Path("a"));
  for (size_t size = 0; size < whole.size(); ++size) Damage(std::string_view(whole).substr(0, size));
  EXPECT_TRUE(ParseSafetensors(Bytes(whole), "whole").ok());
  EXPECT_THAT(Damage(whole + "x"), HasSubstr("1 bytes after the last tensor"));
}

TEST_F(SafetensorsTest, TruncatedAndEmptyFilesOnDisk) {
  ASSERT_TRUE(WriteSafetensors(Path("a"), Sample()).ok());
  ASSERT_EQ(::truncate(Path("a").c_str(), 20), 0);
  EXPECT_EQ(ReadSafetensors(Path("a")).status().code(), StatusCode::kDataLoss);
  ASSERT_EQ(::truncate(Path("a").c_str(), 0), 0);
  EXPECT_EQ(ReadSafetensors(Path("a")).status().code(), StatusCode::kDataLoss);
}

TEST(SafetensorsParseTest, HeaderLengthIsNotTrusted) {
  std::string raw(8, '\xff');
  EXPECT_THAT(Damage(raw + "{}"), HasSubstr("header of 18446744073709551615 bytes"));
  const uint64_t big = 99'000'000;  // below the limit, beyond the file
  EXPECT_THAT(Damage(std::string(reinterpret_cast<const char*>(&big), 8) + "{}"), HasSubstr("truncated"));
  EXPECT_THAT(Damage(std::string(8, '\0')), HasSubstr("does not begin with '{'"));
}

TEST(SafetensorsParseTest, OffsetsMustCoverTheDataExactly) {
  const std::string a = R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  EXPECT_TRUE(ParseSafetensors(Bytes(Raw("{" + a + "}   ", "xy")), "ok").ok()) << "spaces may pad the header";
  EXPECT_THAT(Damage(Raw("{" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", "xyz")),
              HasSubstr("overlaps"));
  EXPECT_THAT(Damage(Raw("{" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "xy")),
              HasSubstr("overlaps"));
  EXPECT_THAT(Damage(Raw("{" + a + R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})", "xyzw")),
              HasSubstr("hole of 1 bytes"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", "xy")), HasSubstr("hole"));
  EXPECT_THAT(Damage(Raw("{" + a + "}", "xyz")), HasSubstr("belong to none"));
  EXPECT_THAT(Damage(Raw("{" + a + "}", "x")), HasSubstr("truncated: tensor 'a'"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}})", "xy")),
              HasSubstr("before its begin"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0]}})", "xy")), HasSubstr("needs 2"));
}

TEST(SafetensorsParseTest, ShapesMustFitTheirBytes) {
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "abcd")),
              HasSubstr("needs 8 bytes"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", "")),
              HasSubstr("too many"))
      << "2^64 elements must not wrap to 0";
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})", "")),
              HasSubstr("too large"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", "a")), HasSubstr("negative"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,1]}})", "a")),
              HasSubstr("unknown dtype 'Q7'"));
}

TEST(SafetensorsParseTest, HeaderMustBeWhatTheFormatAllows) {
  const std::string good = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_THAT(Damage(Raw("{\"a\":" + good + ",\"a\":" + good + "}", "x")), HasSubstr("tensor 'a': occurs twice"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x")),
              HasSubstr("twice"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[1]}})", "x")),
              HasSubstr("needs dtype, shape and data_offsets"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"evil":1}})", "x")),
              HasSubstr("'evil'"));
  EXPECT_THAT(Damage(Raw(R"({"a":1})", "")), HasSubstr("tensor 'a'"));
  EXPECT_THAT(Damage(Raw(R"({"a":[1]})", "")), HasSubstr("tensor 'a'"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", "x")), HasSubstr("array"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}})", "x")), HasSubstr("object"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", "x")), HasSubstr("1.5"));
  EXPECT_THAT(Damage(Raw(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", "x")), HasSubstr("number"));
  EXPECT_THAT(Damage(Raw(R"({"__metadata__":{"k":1}})", "")), HasSubstr("number"));
  EXPECT_THAT(Damage(Raw(R"({"__metadata__":{"k":"1","k":"2"}})", "")), HasSubstr("twice"));
  EXPECT_THAT(Damage(Raw(R"({"__metadata__":"text"})", "")), HasSubstr("text"));
  EXPECT_THAT(Damage(Raw("{\"a\xff\":" + good + "}", "x")), HasSubstr("UTF-8"));
  EXPECT_THAT(Damage(Raw("{", "")), HasSubstr("JSON"));
  EXPECT_THAT(Damage(Raw("{} x", "")), HasSubstr("JSON"));
  EXPECT_THAT(Damage(Raw("{\"a\":" + std::string(100000, '['), "")), HasSubstr("unexpected array"))
      << "no deep recursion";
}

TEST_F(SafetensorsTest, MissingFilesAndFoldersSayWhich) {
  const Status missing = ReadSafetensors(Path("nothing.safetensors")).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("nothing.safetensors"));
  EXPECT_EQ(ReadSafetensors(folder_.string()).status().code(), StatusCode::kInvalidArgument);
  const Status folder = WriteFileAtomically(Path("no/such/file"), "x");
  EXPECT_EQ(folder.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(folder.message()), HasSubstr("no/such/file"));
}

TEST_F(SafetensorsTest, APipeIsRefusedAndNotWaitedFor) {
  ASSERT_EQ(::mkfifo(Path("pipe.safetensors").c_str(), 0600), 0);
  const Status refused = ReadSafetensors(Path("pipe.safetensors")).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("not a regular file"));
}

TEST_F(SafetensorsTest, WhatWasReadOutlivesAFileThatIsCutShort) {
  ASSERT_TRUE(WriteSafetensors(Path("a.safetensors"), Sample()).ok());
  const StatusOr<SafetensorsFile> file = ReadSafetensors(Path("a.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(::truncate(Path("a.safetensors").c_str(), 0), 0);  // a mapping would raise SIGBUS
  EXPECT_EQ(Text(file->tensors.at("weight").bytes), "12345678");
}

TEST_F(SafetensorsTest, TensorsThatDoNotFitTheirShapeAreNotWritten) {
  SafetensorsFile file = Sample();
  file.tensors["weight"].shape = {3};
  EXPECT_EQ(WriteSafetensors(Path("bad"), file).code(), StatusCode::kInvalidArgument);
  file = Sample();
  file.metadata["bytes"] = "\xff";
  EXPECT_EQ(WriteSafetensors(Path("bad"), file).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(FilesInFolder(), 0u);
}

TEST_F(SafetensorsTest, WriteFileAtomicallyReplacesTheWholeFile) {
  ASSERT_TRUE(WriteFileAtomically(Path("state.json"), "a longer first version").ok());
  ASSERT_TRUE(WriteFileAtomically(Path("state.json"), "second").ok());
  EXPECT_EQ(ReadAll(Path("state.json")), "second");
}

// A file size limit stands in for a full disk: the kernel refuses the write half-way, as it does with ENOSPC.
TEST_F(SafetensorsTest, FailedWriteKeepsTheOldFileAndLeavesNoTemporary) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = WriteFileAtomically(Path("a"), std::string(1 << 20, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path("a")));
  EXPECT_EQ(ReadAll(Path("a")), "old");
  EXPECT_EQ(FilesInFolder(), 1u);
}

TEST_F(SafetensorsTest, FolderWithoutWritePermissionIsPermissionDenied) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  ASSERT_EQ(::chmod(folder_.c_str(), 0500), 0);
  const Status status = WriteFileAtomically(Path("a"), "x");
  ASSERT_EQ(::chmod(folder_.c_str(), 0700), 0);
  EXPECT_EQ(status.code(), StatusCode::kPermissionDenied) << status;
}

}  // namespace
}  // namespace distill
