// Segmentation sets whose files lie as data.pairs says, and ids that data.label_map or reduce_zero_label renumbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/label_ids.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::EncodeJpeg;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::LabelMap;
using testing::Picture;
using testing::WriteWithFolders;

// An 8x8 map in which id a and id b alternate.
std::string Ids(int a, int b) {
  std::vector<uint8_t> ids(64);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint8_t>(i % 2 == 0 ? a : b);
  return EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, ids);
}

class SegmentationPairsTest : public testing::DataRootTest {
 protected:
  // A tree such as Cityscapes': two cities for training, one to test on, and files of other kinds beside the label
  // maps.
  void WriteCities() const {
    for (const auto& [split, city, count] :
         {std::tuple<std::string, std::string, int>{"train", "aachen", 2}, {"train", "bochum", 1}, {"val", "ulm", 1}}) {
      for (int i = 0; i < count; ++i) {
        const std::string name = StrCat(split, "/", city, "/", city, "_", i);
        WriteWithFolders(Path("c/leftImg8bit/" + name + "_leftImg8bit.png"),
                         EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(i, 3)));
        WriteWithFolders(Path("c/gtFine/" + name + "_gtFine_labelIds.png"), Ids(7, city == "bochum" ? 3 : 11));
        WriteWithFolders(Path("c/gtFine/" + name + "_gtFine_color.png"), Ids(0, 1));
        WriteWithFolders(Path("c/gtFine/" + name + "_gtFine_polygons.json"), "{}");
      }
    }
  }
  static SplitFiles Cities(const std::string& split) {
    return {.images = "leftImg8bit/" + split + "/*/*_leftImg8bit.png",
            .labels = "gtFine/" + split + "/*/*_gtFine_labelIds.png"};
  }
  DataPlan CityPlan() const {
    return {.format = "segmentation_folder",
            .path = "c",
            .train_files = Cities("train"),
            .test_files = Cities("val"),
            .label_map = {{7, 0}, {11, 1}}};
  }
  std::string Message(const DataPlan& plan, StatusCode code, uint32_t classes = 2) const {
    const Status status = Error(plan, classes);
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }
};

TEST_F(SegmentationPairsTest, TreesOfCitiesAreReadAsTheyAre) {
  WriteCities();
  const auto data = Open(CityPlan(), 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 3);
  ASSERT_EQ(data->test->size(), 1);
  EXPECT_THAT(data->train->Where(2), HasSubstr("leftImg8bit/train/bochum/bochum_0_leftImg8bit.png"));
  const std::vector<uint8_t> aachen = LabelMap(*data->train, 0), bochum = LabelMap(*data->train, 2);
  EXPECT_EQ(aachen[0], 0);
  EXPECT_EQ(aachen[1], 1);
  EXPECT_EQ(bochum[0], 0);
  EXPECT_EQ(bochum[1], kIgnoredPixel) << "an id that is not named has no label";
  EXPECT_TRUE(data->warnings.empty()) << data->warnings[0];
  // Ranks whose trees differ would train on different data.
  fs::remove(Path("c/leftImg8bit/train/bochum/bochum_0_leftImg8bit.png"));
  fs::remove(Path("c/gtFine/train/bochum/bochum_0_gtFine_labelIds.png"));
  const auto fewer = Open(CityPlan(), 1, 2);
  ASSERT_TRUE(fewer.ok()) << fewer.status();
  EXPECT_NE(fewer->digest, data->digest);
}

TEST_F(SegmentationPairsTest, PartnersThatAreMissingAreNamedAndCounted) {
  WriteCities();
  fs::remove(Path("c/gtFine/train/aachen/aachen_1_gtFine_labelIds.png"));
  fs::remove(Path("c/leftImg8bit/train/bochum/bochum_0_leftImg8bit.png"));
  const std::string message = Message(CityPlan(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(message, HasSubstr("mages without a label map, as data.pairs.train.labels names it: '" +
                                 Path("c/leftImg8bit/train/aachen/aachen_1_leftImg8bit.png") +
                                 "' (needs 'gtFine/train/aachen/aachen_1_gtFine_labelIds.png')"));
  EXPECT_THAT(message, HasSubstr("abel maps without an image, as data.pairs.train.images names it: '" +
                                 Path("c/gtFine/train/bochum/bochum_0_gtFine_labelIds.png")));
  DataPlan plan = CityPlan();
  plan.train_files->images = "leftimg8bit/train/*/*_leftImg8bit.png";
  EXPECT_THAT(Message(plan, StatusCode::kNotFound),
              AllOf(HasSubstr("no file in '" + Path("c") + "' matches data.pairs.train.images"),
                    HasSubstr("there is no '" + Path("c") + "/leftimg8bit'")));
}

TEST_F(SegmentationPairsTest, AListSaysWhichFilesBelongToASplit) {
  for (const std::string name : {"2007_1", "2007_2", "2007_3", "2007_4"}) {
    WriteWithFolders(Path("v/JPEGImages/" + name + ".jpg"), EncodeJpeg(8, 8, 3, Picture(1, 3)));
    if (name != "2007_4") WriteWithFolders(Path("v/SegmentationClass/" + name + ".png"), Ids(0, 1));
  }
  WriteWithFolders(Path("v/ImageSets/train.txt"), "2007_3\r\n\n2007_1 \r\n");
  WriteWithFolders(Path("v/ImageSets/val.txt"), "2007_2\n");
  const SplitFiles pairs{.images = "JPEGImages/*.jpg", .labels = "SegmentationClass/*.png"};
  DataPlan plan{.format = "segmentation_folder", .path = "v", .train_files = pairs, .test_files = pairs};
  plan.train_files->list = "ImageSets/train.txt";
  plan.test_files->list = "ImageSets/val.txt";
  const auto data = Open(plan, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 2);
  EXPECT_THAT(data->train->Where(0), HasSubstr("2007_3.jpg")) << "in the order of the list";
  EXPECT_THAT(data->test->Where(0), HasSubstr("2007_2.jpg"));

  WriteWithFolders(Path("v/ImageSets/train.txt"), "2007_3\n2007_4\n2007_9\n");
  const std::string message = Message(plan, StatusCode::kNotFound);
  EXPECT_THAT(message,
              HasSubstr("isted pictures that do not exist: '" + Path("v/JPEGImages/2007_9.jpg") + "' (line 3"));
  EXPECT_THAT(message, HasSubstr("abel maps of listed pictures that do not exist: '" +
                                 Path("v/SegmentationClass/2007_4.png") + "' (line 2 of 'ImageSets/train.txt')"));
  WriteWithFolders(Path("v/ImageSets/train.txt"), "2007_3\n2007_3\n");
  EXPECT_THAT(Message(plan, StatusCode::kFailedPrecondition),
              HasSubstr("in line 1 and in line 2; it would count twice"));
  WriteWithFolders(Path("v/ImageSets/train.txt"), "JPEGImages/2007_3.jpg\n");
  EXPECT_THAT(Message(plan, StatusCode::kDataLoss),
              HasSubstr("line 1 of '" + Path("v/ImageSets/train.txt") + "' has 2 parts between '/'"));
  WriteWithFolders(Path("v/ImageSets/train.txt"), "..\n");
  EXPECT_THAT(Message(plan, StatusCode::kDataLoss), HasSubstr("has the part '..'"));
  WriteWithFolders(Path("v/ImageSets/train.txt"), "\n");
  EXPECT_THAT(Message(plan, StatusCode::kNotFound), HasSubstr("lists no image"));
  plan.train_files->list = "ImageSets/none.txt";
  EXPECT_THAT(Message(plan, StatusCode::kNotFound), HasSubstr("which data.pairs.train.list names"));
  plan.train_files->list = "../../x.txt";
  EXPECT_THAT(Message(plan, StatusCode::kInvalidArgument), HasSubstr("leads out of the data root"));
}

TEST_F(SegmentationPairsTest, ReducedZeroMeansNoLabel) {
  std::vector<uint8_t> ids(64, 3);
  ids[0] = 0;
  ids[1] = 1;
  ids[2] = 255;
  for (const std::string split : {"training", "validation"}) {
    WriteWithFolders(Path("a/images/" + split + "/x.jpg"), EncodeJpeg(8, 8, 3, Picture(1, 3)));
    WriteWithFolders(Path("a/annotations/" + split + "/x.png"), EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, ids));
  }
  DataPlan plan{.format = "segmentation_folder",
                .path = "a",
                .train_files = SplitFiles{.images = "images/training/*.jpg", .labels = "annotations/training/*.png"},
                .test_files = SplitFiles{.images = "images/validation/*.jpg", .labels = "annotations/validation/*.png"},
                .reduce_zero_label = true};
  const auto data = Open(plan, 1, 3);
  ASSERT_TRUE(data.ok()) << data.status();
  const std::vector<uint8_t> map = LabelMap(*data->train, 0);
  EXPECT_EQ(map[0], kIgnoredPixel);
  EXPECT_EQ(map[1], 0);
  EXPECT_EQ(map[2], kIgnoredPixel);
  EXPECT_EQ(map[3], 2);
  EXPECT_THAT(Message(plan, StatusCode::kInvalidArgument, 2),
              AllOf(HasSubstr("makes them of ids 1 to 2"), HasSubstr("id 3 in row 0, column 3 from 0")));
}

TEST_F(SegmentationPairsTest, SplitAndUnlabelledImagesArePatternsToo) {
  WriteCities();
  WriteWithFolders(Path("c/leftImg8bit/train_extra/x/x_leftImg8bit.png"),
                   EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(5, 3)));
  DataPlan plan = CityPlan();
  plan.unlabelled = "leftImg8bit/train_extra/*/*_leftImg8bit.png";
  auto data = Open(plan, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->unlabelled->size(), 1);
  plan.test_files.reset();
  plan.split = SplitPlan{.test = 0.3, .by = "image"};
  data = Open(plan, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->train->size(), 2);
  EXPECT_EQ(data->test->size(), 1);
  plan.split.reset();
  EXPECT_THAT(Message(plan, StatusCode::kInvalidArgument), HasSubstr("data.pairs names training and test images"));
}

TEST_F(SegmentationPairsTest, LitterLinksAndOddFilesAreTold) {
  WriteCities();
  const std::string folder = "c/leftImg8bit/train/aachen/";
  WriteWithFolders(Path(folder + "._aachen_0_leftImg8bit.png"), "x");
  WriteWithFolders(Path(folder + "aachen_7.png"), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(5, 3)));
  WriteWithFolders(Path("c/leftImg8bit/train/notes.txt"), "x");
  auto data = Open(CityPlan(), 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->warnings,
              ::testing::UnorderedElementsAre(
                  HasSubstr("._aachen_0_leftImg8bit.png"),
                  AllOf(HasSubstr("ictures beside those of data.pairs.train.images"), HasSubstr("aachen_7.png"))));
  fs::create_symlink("/etc/passwd", Path(folder + "z_leftImg8bit.png"));
  EXPECT_THAT(Message(CityPlan(), StatusCode::kNotFound), HasSubstr("A link that leads out of the data root"));
  fs::remove(Path(folder + "z_leftImg8bit.png"));
  fs::create_symlink("nowhere", Path("c/leftImg8bit/train/city"));
  EXPECT_THAT(Message(CityPlan(), StatusCode::kFailedPrecondition), HasSubstr("inks to what does not exist"));
  fs::remove(Path("c/leftImg8bit/train/city"));
  fs::create_directories(Path(folder + "z_leftImg8bit.png"));
  EXPECT_THAT(Message(CityPlan(), StatusCode::kFailedPrecondition), HasSubstr("amed like pictures, but no files"));
}

TEST_F(SegmentationPairsTest, LabelMapsThatSayNothingAreRefused) {
  WriteCities();
  DataPlan plan = CityPlan();
  plan.label_map = {{20, 0}, {21, 1}};
  EXPECT_THAT(Message(plan, StatusCode::kFailedPrecondition),
              AllOf(HasSubstr("no pixel of the label maps"), HasSubstr("a value that data.label_map does not name")));
  plan.label_map = {{7, 0}, {20, 1}};
  EXPECT_THAT(Message(plan, StatusCode::kFailedPrecondition), HasSubstr("correct how data.label_map"));
  plan.label_map = {{7, 2}};
  EXPECT_THAT(Message(plan, StatusCode::kInvalidArgument), HasSubstr("data.label_map: id 7 has class 2"));
}

TEST(LabelIdsTest, ValuesAreClassesUnlessTheJobSaysOtherwise) {
  auto ids = LabelIds::Create({.ignore_label = 11}, 11);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->ClassOf(10), 10);
  EXPECT_EQ(ids->ClassOf(11), LabelIds::kNone);
  EXPECT_EQ(ids->ClassOf(255), 255) << "beyond any student's classes";
  EXPECT_FALSE(ids->renumbers());
  ids = LabelIds::Create({.ignore_label = 0, .reduce_zero_label = true}, 0);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->ClassOf(0), LabelIds::kNone);
  EXPECT_EQ(ids->ClassOf(255), 254);
  EXPECT_FALSE(LabelIds::Create({.ignore_label = 256}, 2).ok());
  EXPECT_FALSE(LabelIds::Create({.label_map = {{1, 0}}, .reduce_zero_label = true}, 2).ok());
  EXPECT_FALSE(LabelIds::Create({.label_map = {{256, 0}}}, 2).ok());
  EXPECT_FALSE(LabelIds::Create({.label_map = {{1, 255}}}, 0).ok());
}

}  // namespace
}  // namespace distill
