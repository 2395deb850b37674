#include "common/zoo/file_kind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/harness/process.h"

namespace distill {
namespace {

using ::distill::testing::TempDir;
using ::distill::testing::WriteFile;
using ::testing::HasSubstr;
using std::string_literals::operator""s;

// A ZIP of empty entries with these names, as far as the reader looks.
std::string Zip(const std::vector<std::string>& names) {
  std::string zip = "PK\3\4"s + std::string(60, 'x');
  for (const std::string& name : names) {
    std::string entry = "PK\1\2"s + std::string(42, '\0');
    entry[28] = static_cast<char>(name.size());
    zip += entry + name;
  }
  return zip + "PK\5\6"s + std::string(18, '\0');
}

TEST(FileKindTest, EachKindIsToldByItsBytesWithItsRemedy) {
  const std::string safetensors = "\x10\0\0\0\0\0\0\0{\"a\":{}}       "s;
  const struct {
    std::string bytes;
    FileKind kind;
    std::string as_weights, as_archive;  // part of the text; "": taken
  } kCases[] = {
      {"", FileKind::kEmpty, "an empty file", "download it again"},
      {safetensors, FileKind::kSafetensors, "",
       "this is a safetensors file, not a TorchScript archive; name it *.safeten"},
      {Zip({"net/data.pkl", "net/code/x.py", "net/constants.pkl"}), FileKind::kTorchScript, "name it *.pt", ""},
      {Zip({"net/data.pkl", "net/data/0", "net/version"}), FileKind::kTorchSave, "safetensors.torch.save_file",
       "torch.jit.script"},
      {Zip({"exported/archive_format", "exported/models/model.json"}), FileKind::kTorchExport, "torch.export",
       "torch.export"},
      {Zip({"serialized_exported_program.json"}), FileKind::kTorchExport, "torch.export", "torch.export"},
      {Zip({"word/document.xml"}), FileKind::kZip, "a ZIP archive, but not", "a ZIP archive, but not"},
      {"PK\3\4"s + std::string(200, 'x'), FileKind::kZipCutOff, "its end is missing", "its end is missing"},
      {"\x80\x02\x8a\nl\xfc\x9c"
       "F\xf9 j\xa8P\x19."s,
       FileKind::kPickle, "before PyTorch 1.6", "no pickle is read here"},
      {"\x80\x04\x95"s, FileKind::kPickle, "a Python pickle", "a Python pickle"},
      {"\x08\x08\x12\x07pytorch"s, FileKind::kOnnx, "an ONNX model", "an ONNX model"},
      {"\x89HDF\r\n\x1a\n"s, FileKind::kHdf5, "Keras", "Keras"},
      {"\x93NUMPY\1\0"s, FileKind::kNumpy, "a NumPy array", "a NumPy array"},
      {"\x1f\x8b\x08"s, FileKind::kGzip, "unpack it first", "unpack it first"},
      {std::string(257, 'a') + "ustar" + std::string(100, ' '), FileKind::kTar, "a tar archive", "a tar archive"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", FileKind::kLfsPointer, "git lfs pull",
       "git lfs pull"},
      {"\n <!DOCTYPE html><html>403", FileKind::kHtml, "a web page", "a web page"},
      {"<html>403</html>", FileKind::kHtml, "a web page", "a web page"},
      {"this is no archive", FileKind::kUnknown, "", ""},
      {"PK", FileKind::kUnknown, "", ""},
      {"PK\1\2"s, FileKind::kUnknown, "", ""},
  };
  TempDir dir;
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.bytes.substr(0, 20));
    EXPECT_EQ(KindOfBytes(std::string_view(c.bytes).substr(0, 512), c.bytes), c.kind);
    WriteFile(dir / "file", c.bytes);
    for (const auto& [format, text] :
         {std::pair(ModelFormat::kWeights, c.as_weights), std::pair(ModelFormat::kArchive, c.as_archive)}) {
      const Status status = CheckModelFile(dir / "file", format);
      EXPECT_EQ(status.ok(), text.empty()) << status;
      if (text.empty()) continue;
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
      EXPECT_THAT(std::string(status.message()), HasSubstr(dir / "file"));
    }
  }
}

// A name that claims to be longer than the file must not be read past its end.
TEST(FileKindTest, ADirectoryCutAnywhereIsNoTrouble) {
  const std::string zip = Zip({"net/data.pkl", "net/constants.pkl"});
  for (size_t size = 4; size < zip.size(); ++size) {
    const std::string cut = zip.substr(0, size);
    KindOfBytes(cut, cut);
  }
}

TEST(FileKindTest, WhatIsNoFileIsNamed) {
  TempDir dir;
  EXPECT_EQ(CheckModelFile(dir / "gone", ModelFormat::kWeights).code(), StatusCode::kNotFound);
  EXPECT_EQ(CheckModelFile(dir.path(), ModelFormat::kWeights).code(), StatusCode::kInvalidArgument);
  // A pipe that nobody writes to does not hold the reader.
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(CheckModelFile(dir / "pipe", ModelFormat::kWeights).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
