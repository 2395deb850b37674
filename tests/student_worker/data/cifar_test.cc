// CIFAR's binary files, as they are published: in a folder, below it, and in their archives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/str_cat.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Image;
using testing::TarEnd;
using testing::TarMember;
using testing::WriteWithFolders;

constexpr size_t kPixels = 3 * 32 * 32;

class CifarTest : public testing::DataRootTest {
 protected:
  // Image `index` of a set has the values index, index + 1, ...
  static std::vector<uint8_t> Pixels(int index) {
    std::vector<uint8_t> pixels(kPixels);
    for (size_t i = 0; i < kPixels; ++i) pixels[i] = static_cast<uint8_t>(index + i);
    return pixels;
  }
  static std::string Record(const std::string& labels, int index) {
    const std::vector<uint8_t> pixels = Pixels(index);
    return labels + std::string(pixels.begin(), pixels.end());
  }
  // Two images a file, in order; of labels 0, 1, 2 ...
  static std::string Ten(int first) {
    std::string bytes;
    for (int i = first; i < first + 2; ++i) bytes += Record(std::string(1, static_cast<char>(i % 10)), i);
    return bytes;
  }
  static std::string Hundred(int first) {
    std::string bytes;
    for (int i = first; i < first + 3; ++i) bytes += Record({7, static_cast<char>(33 * i)}, i);
    return bytes;
  }
  static std::vector<std::pair<std::string, std::string>> TenFiles() {
    std::vector<std::pair<std::string, std::string>> files = {{"test_batch.bin", Ten(40)}, {"readme.html", "hello"}};
    for (int i = 1; i <= 5; ++i) files.emplace_back(StrCat("data_batch_", i, ".bin"), Ten(2 * i - 2));
    return files;
  }
  void WriteTen(const std::string& folder) {
    for (const auto& [name, content] : TenFiles()) WriteWithFolders(Path(folder + "/" + name), content);
  }
  static DataPlan Plan(const std::string& path) { return {.format = "cifar", .path = path}; }
  std::string Wrong(const DataPlan& plan, uint32_t classes = 0) { return std::string(Error(plan, classes).message()); }

  static void ExpectTen(const StatusOr<DataSplits>& data) {
    ASSERT_TRUE(data.ok()) << data.status();
    ASSERT_EQ(data->train->size(), 10);
    ASSERT_EQ(data->test->size(), 2);
    EXPECT_EQ(data->train->channels(), 3);
    EXPECT_EQ(data->train->height(), 32);
    EXPECT_EQ(data->train->width(), 32);
    for (int i = 0; i < 10; ++i) {
      EXPECT_EQ(data->train->label(i), i);
      EXPECT_EQ(Image(*data->train, i), Pixels(i)) << "of the files in the order of their numbers";
    }
    EXPECT_EQ(Image(*data->test, 1), Pixels(41));
  }
};

TEST_F(CifarTest, FilesAreFoundAsTheyArePublished) {
  WriteTen("plain");
  ExpectTen(Open(Plan("plain")));
  WriteTen("below/cifar-10-batches-bin");
  ExpectTen(Open(Plan("below")));
  std::string tar = TarMember("cifar-10-batches-bin/", "", '5');
  for (const auto& [name, content] : TenFiles()) tar += TarMember("cifar-10-batches-bin/" + name, content);
  tar += TarEnd();
  WriteWithFolders(Path("packed/cifar-10-binary.tar.gz"), testing::Gzip(tar));
  ExpectTen(Open(Plan("packed")));
  ExpectTen(Open(Plan("packed/cifar-10-binary.tar.gz")));
  WriteWithFolders(Path("other.tar"), tar);
  ExpectTen(Open(Plan("other.tar")));
  EXPECT_EQ(Open(Plan("plain"))->digest, Open(Plan("other.tar"))->digest);
}

TEST_F(CifarTest, FineLabelsCountOfCifar100) {
  WriteWithFolders(Path("d/train.bin"), Hundred(0));
  WriteWithFolders(Path("d/test.bin"), Hundred(0));
  const auto data = Open(Plan("d"));
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 3);
  EXPECT_EQ(data->train->label(2), 66);
  EXPECT_EQ(Image(*data->train, 2), Pixels(2));
}

TEST_F(CifarTest, LimitsChooseAsOfOtherFormats) {
  WriteTen("d");
  DataPlan plan = Plan("d");
  plan.train_limit = 4;
  const auto data = Open(plan);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Image(*data->train, i), Pixels(static_cast<int>(data->train->label(i))));
  }
}

TEST_F(CifarTest, WhatIsWrongIsToldWithItsFile) {
  WriteTen("d");
  const auto with = [&](const std::string& name, const std::string& content) {
    WriteWithFolders(Path("d/" + name), content);
    const std::string wrong = Wrong(Plan("d"));
    WriteTen("d");
    return wrong;
  };
  EXPECT_THAT(with("data_batch_3.bin", ""), HasSubstr("data_batch_3.bin' has 0 bytes, which are no records of 3073"));
  EXPECT_THAT(with("data_batch_3.bin", Ten(0).substr(1)), HasSubstr("has 6145 bytes"));
  EXPECT_THAT(with("test_batch.bin", Record("\xC8", 0)),
              AllOf(HasSubstr("image 0 in '"), HasSubstr("has label 200, but CIFAR-10 has the classes 0 to 9")));
  std::filesystem::remove(Path("d/data_batch_2.bin"));
  EXPECT_THAT(Wrong(Plan("d")), HasSubstr("data_batch_2.bin' is missing, of the 5 files of CIFAR-10's train images"));
  WriteTen("d");
  EXPECT_THAT(Wrong(Plan("d"), 5), HasSubstr("has 10 classes, the student 5; set num_classes: 10"));
  WriteWithFolders(Path("d/train.bin"), Hundred(0));
  EXPECT_THAT(Wrong(Plan("d")), HasSubstr("holds files of CIFAR-10 and of CIFAR-100"));

  WriteWithFolders(Path("python/data_batch_1"), "pickled");
  EXPECT_THAT(Wrong(Plan("python")), HasSubstr("but the version for Python, which is not read; fetch the binary"));
  WriteWithFolders(Path("two/cifar-10-binary.tar.gz"), "x");
  WriteWithFolders(Path("two/cifar-100-binary/train.bin"), "x");
  EXPECT_THAT(Wrong(Plan("two")), HasSubstr("let data.path name one of the two"));
  WriteWithFolders(Path("empty/x.txt"), "x");
  EXPECT_EQ(Error(Plan("empty")).code(), StatusCode::kNotFound);
  std::string tar;
  for (const auto& [name, content] : TenFiles()) tar += TarMember(name, content);
  const std::string packed = testing::Gzip(tar + TarEnd());
  WriteWithFolders(Path("cut.tar.gz"), packed.substr(0, packed.size() / 2));
  EXPECT_EQ(Error(Plan("cut.tar.gz")).code(), StatusCode::kDataLoss);

  DataPlan plan = Plan("d");
  plan.shrink = 2;
  EXPECT_THAT(Wrong(plan), HasSubstr("images of data.format cifar stay as they are"));
  plan = Plan("d");
  plan.split = SplitPlan{.test = 0.5};
  EXPECT_THAT(Wrong(plan), HasSubstr("its test images are files of their own"));
}

}  // namespace
}  // namespace distill
