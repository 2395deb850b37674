#include "student_worker/data/image_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::EncodeJpeg;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Picture;
using testing::WriteWithFolders;

std::vector<std::string> Parsed(const std::string& text, bool csv, bool labelled = true) {
  const auto images = ParseImageList(text, csv, labelled, "l");
  if (!images.ok()) return {std::string(images.status().message())};
  std::vector<std::string> lines;
  for (const ListedImage& image : *images) lines.push_back(StrCat(image.line, " ", image.path, "=", image.class_name));
  return lines;
}

TEST(ImageListTest, LinesOfEveryKindAreRead) {
  EXPECT_THAT(Parsed("a.jpg\tcat\nb c,d.jpg\tdog\n", false), ElementsAre("1 a.jpg=cat", "2 b c,d.jpg=dog"));
  EXPECT_THAT(Parsed("\xEF\xBB\xBFpath\tlabel\r\na.jpg\tcat\r\n\r\nb.jpg\tdog", false),
              ElementsAre("2 a.jpg=cat", "4 b.jpg=dog"));
  EXPECT_THAT(Parsed("file,class\n\"a,\"\"b\"\".jpg\",\"big cat\"\nb.jpg,1\n", true),
              ElementsAre("2 a,\"b\".jpg=big cat", "3 b.jpg=1"));
  EXPECT_THAT(Parsed("a.jpg\nb.jpg\tcat\n", false, false), ElementsAre("1 a.jpg=", "2 b.jpg="));
  EXPECT_THAT(Parsed("", false), IsEmpty());
}

TEST(ImageListTest, WrongLinesAreNamed) {
  EXPECT_THAT(Parsed("a.jpg\tcat\nb.jpg cat\n", false),
              ElementsAre("line 2 of 'l' has 1 column; it needs a path and a class, separated by a tab"));
  EXPECT_THAT(Parsed("a.jpg,cat,3\n", true), ElementsAre(HasSubstr("has 3 columns")));
  EXPECT_THAT(Parsed("\tcat\n", false), ElementsAre("line 1 of 'l' has no path"));
  EXPECT_THAT(Parsed("a.jpg\t\n", false), ElementsAre("line 1 of 'l' has no class"));
  EXPECT_THAT(Parsed("\"a.jpg,cat\n", true), ElementsAre(HasSubstr("a quote that is not closed")));
  EXPECT_THAT(Parsed("\"a\"b.jpg,cat\n", true), ElementsAre(HasSubstr("or something beside it")));
  EXPECT_THAT(Parsed(std::string("a\0b\tc\n", 6), false), ElementsAre(HasSubstr("it is no text file")));
  EXPECT_THAT(Parsed("a\t1\nb\t1\na\t1\n", false),
              ElementsAre("'l' has 'a' in line 1 and in line 3; it would count twice: remove one"));
  EXPECT_THAT(Parsed("a\t1\na\t2\n", false), ElementsAre(HasSubstr("as '1' and as '2'; remove one")));
}

TEST(ImageListTest, ClassesAreNumbersOrNames) {
  std::vector<std::string> names;
  const auto labels = [&](const std::vector<std::string>& classes) {
    std::vector<ListedImage> images;
    for (const std::string& name : classes) images.push_back({StrCat(images.size()), name, images.size() + 1});
    const auto made = ClassesOfList(images, "l", &names);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.value_or(std::vector<int64_t>());
  };
  EXPECT_THAT(labels({"3", "0", "12"}), ElementsAre(3, 0, 12));
  EXPECT_THAT(names, IsEmpty());
  EXPECT_THAT(labels({"dog", "cat", "dog", "Zebra"}), ElementsAre(2, 1, 2, 0));
  EXPECT_THAT(names, ElementsAre("Zebra", "cat", "dog"));
  EXPECT_THAT(labels({"007", "-1"}), ElementsAre(1, 0)) << "names that look like numbers";
  const auto mixed = ClassesOfList({{"a", "1", 1}, {"b", "cat", 2}}, "l", &names);
  EXPECT_THAT(std::string(mixed.status().message()),
              HasSubstr("partly numbers (line 1: 1) and partly names (line 2: cat)"));
  EXPECT_FALSE(ClassesOfList({{"a", "99999999", 1}}, "l", &names).ok());
}

class ImageListDataTest : public testing::DataRootTest {
 protected:
  void WritePictures() {
    for (int i = 0; i < 6; ++i)
      WriteWithFolders(Path(StrCat("d/pictures/", i, ".jpg")), EncodeJpeg(8, 8, 3, Picture(i, 3)));
  }
  static DataPlan Plan() { return {.format = "image_list", .path = "d"}; }
  std::string Wrong(uint32_t classes = 0) { return std::string(Error(Plan(), classes).message()); }
};

TEST_F(ImageListDataTest, PicturesComeInTheOrderOfTheList) {
  WritePictures();
  WriteWithFolders(Path("d/train.tsv"),
                   StrCat("pictures/3.jpg\tcat\n", Path("d/pictures/0.jpg"), "\tdog\npictures/1.jpg\tcat\n"));
  WriteWithFolders(Path("d/test.csv"), "path,class\npictures/2.jpg,dog\npictures/4.jpg,cat\n");
  WriteWithFolders(Path("d/more.tsv"), "pictures/5.jpg\n");
  DataPlan plan = Plan();
  plan.unlabelled = "more";
  const auto data = Open(plan, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 3);
  EXPECT_EQ(data->train->label(0), 0);
  EXPECT_EQ(data->train->label(1), 1);
  EXPECT_EQ(data->test->label(0), 1);
  EXPECT_EQ(data->unlabelled->label(0), kNoLabel);
  EXPECT_LE(testing::WorstDifference(testing::Image(*data->train, 0), Picture(3, 3), 3), 6);
  EXPECT_LE(testing::WorstDifference(testing::Image(*data->unlabelled, 0), Picture(5, 3), 3), 6);
  EXPECT_EQ(data->warnings.size(), 0);
}

TEST_F(ImageListDataTest, WhatIsWrongIsToldTogether) {
  WritePictures();
  WriteWithFolders(base_ / "outside.jpg", EncodeJpeg(8, 8, 3, Picture(0, 3)));
  fs::create_symlink(base_ / "outside.jpg", Path("d/pictures/link.jpg"));
  fs::create_symlink("nowhere", Path("d/pictures/broken.jpg"));
  fs::create_directories(Path("d/pictures/folder.jpg"));
  WriteWithFolders(Path("d/train.tsv"),
                   StrCat("pictures/0.jpg\ta\npictures/none.jpg\ta\n../../outside.jpg\tb\npictures/link.jpg\tb\n"
                          "pictures/broken.jpg\ta\npictures/folder.jpg\tb\n"));
  WriteWithFolders(Path("d/test.tsv"), "pictures/1.jpg\ta\npictures/2.jpg\tb\n");
  EXPECT_THAT(Wrong(),
              AllOf(HasSubstr("5 mistakes in the data"), HasSubstr("do not exist: '"), HasSubstr("none.jpg' (line 2)"),
                    HasSubstr("outside.jpg' (line 3)"), HasSubstr("link.jpg' (line 4)"),
                    HasSubstr("broken.jpg' (line 5)"), HasSubstr("that are no files: '")));
}

TEST_F(ImageListDataTest, ListsThatDoNotFitAreRefused) {
  WritePictures();
  EXPECT_THAT(Wrong(), HasSubstr("'train.tsv' or 'train.csv' in"));
  WriteWithFolders(Path("d/train.tsv"), "pictures/0.jpg\t0\npictures/1.jpg\t4\n");
  WriteWithFolders(Path("d/test.tsv"), "");
  EXPECT_THAT(Wrong(), HasSubstr("test.tsv' lists no image"));
  WriteWithFolders(Path("d/test.tsv"), "pictures/2.jpg\t0\n");
  EXPECT_THAT(Wrong(3), HasSubstr("has class 4, which is not below the student's 3 classes"));
  EXPECT_TRUE(Open(Plan(), 1, 5).ok());
  WriteWithFolders(Path("d/train.csv"), "pictures/0.jpg,0\n");
  const auto data = Open(Plan(), 1, 5);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->warnings, ElementsAre(HasSubstr("train.csv' beside it.")));
  fs::remove(Path("d/train.csv"));
  WriteWithFolders(Path("d/train.tsv"), "pictures/0.jpg\tcat\npictures/1.jpg\tdog\n");
  WriteWithFolders(Path("d/test.tsv"), "pictures/2.jpg\tcat\n");
  EXPECT_THAT(Wrong(2), HasSubstr("the classes of train and test in '"));
}

}  // namespace
}  // namespace distill
