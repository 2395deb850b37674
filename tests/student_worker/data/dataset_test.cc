#include "student_worker/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <atomic>
#include <filesystem>

#include "student_worker/data/sampler.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::EncodeJpeg;
using testing::EncodePng;
using testing::Gzip;
using ::testing::HasSubstr;
using testing::Idx;
using testing::Image;
using testing::Picture;
using testing::TarEnd;
using testing::TarMember;
using testing::WorstDifference;
using testing::WriteWithFolders;

constexpr uint32_t kImages = 0x803, kLabels = 0x801;

class DatasetTest : public testing::DataRootTest {
 protected:
  // 6 training and 3 test images of 2x3 pixels; image i is filled with 10 * i (test: 10 * i + 1), label i % 3.
  void WriteIdx(const std::string& folder, bool gzip = false) const {
    auto write = [&](const std::string& name, const std::string& bytes) {
      WriteWithFolders(Path(folder + "/" + name + (gzip ? ".gz" : "")), gzip ? Gzip(bytes) : bytes);
    };
    write("train-images-idx3-ubyte", Idx(kImages, {6, 2, 3}, Pixels(6, 0)));
    write("train-labels-idx1-ubyte", Idx(kLabels, {6}, std::string("\0\1\2\0\1\2", 6)));
    write("t10k-images-idx3-ubyte", Idx(kImages, {3, 2, 3}, Pixels(3, 1)));
    write("t10k-labels-idx1-ubyte", Idx(kLabels, {3}, std::string("\0\1\2", 3)));
  }
  static std::string Pixels(int count, int offset) {
    std::string pixels;
    for (int i = 0; i < count; ++i) pixels += std::string(6, static_cast<char>(10 * i + offset));
    return pixels;
  }
};

TEST_F(DatasetTest, ReadsPlainAndGzippedIdx) {
  WriteIdx("plain");
  WriteIdx("packed", true);
  for (const char* folder : {"plain", "packed"}) {
    auto splits = Open({.format = "idx", .path = folder});
    ASSERT_TRUE(splits.ok()) << splits.status();
    const Dataset& train = *splits->train;
    EXPECT_EQ(train.size(), 6);
    EXPECT_EQ(train.channels(), 1);
    EXPECT_EQ(train.height(), 2);
    EXPECT_EQ(train.width(), 3);
    EXPECT_EQ(train.classes(), 3);
    EXPECT_EQ(Image(train, 4), std::vector<uint8_t>(6, 40));
    EXPECT_EQ(train.label(4), 1);
    EXPECT_EQ(splits->test->size(), 3);
    EXPECT_EQ(Image(*splits->test, 2), std::vector<uint8_t>(6, 21));
  }
}

TEST_F(DatasetTest, LimitKeepsTheFirstOfAShuffleKeyedBySeed) {
  WriteIdx("d");
  auto splits = Open({.format = "idx", .path = "d", .train_limit = 4, .test_limit = 2}, 77);
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_EQ(splits->train->size(), 4);
  const std::vector<uint32_t> order = SubsetOrder(77, 6, 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Image(*splits->train, i)[0], 10 * order[i]) << "image " << i;
    EXPECT_EQ(splits->train->label(i), order[i] % 3) << "image " << i;
  }
  ASSERT_EQ(splits->test->size(), 2);
  EXPECT_EQ(Image(*splits->test, 0)[0], 10 * SubsetOrder(0, 3, 2)[0] + 1);
  splits = Open({.format = "idx", .path = "d", .train_limit = 100}, 77);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->size(), 6);
}

TEST_F(DatasetTest, TheDigestIsThatOfTheIndexAndOfNoPlace) {
  WriteIdx("a");
  WriteIdx("b");
  const auto digest = [&](const char* folder) { return Open({.format = "idx", .path = folder}).value().digest; };
  EXPECT_EQ(digest("a").size(), 64);
  EXPECT_EQ(digest("a"), digest("b"));
  WriteWithFolders(Path("b/train-labels-idx1-ubyte"), Idx(kLabels, {6}, std::string("\0\1\2\0\2\1", 6)));
  EXPECT_NE(digest("a"), digest("b"));
}

TEST_F(DatasetTest, MissingFolderAndFileNameThePathAndTheRemedy) {
  Status status = Error({.format = "idx", .path = "nowhere"});
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nowhere' does not exist; correct data.path"));
  WriteIdx("d");
  fs::remove(Path("d/t10k-labels-idx1-ubyte"));
  status = Error({.format = "idx", .path = "d"});
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no file 't10k-labels-idx1-ubyte'"));
  status = OpenDataset({.format = "idx", .path = "d"}, root_ + "/no-root", 1).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("data root"));
  EXPECT_EQ(Error({.format = "csv", .path = "d"}).code(), StatusCode::kInvalidArgument);
}

TEST_F(DatasetTest, PathMayNotLeaveTheRoot) {
  WriteIdx("d");
  WriteWithFolders((base_ / "outside/train-images-idx3-ubyte").string(), "secret");
  fs::create_directory_symlink(base_ / "outside", Path("link"));
  fs::create_directory_symlink(Path("d"), Path("inside_link"));
  fs::create_directories(base_ / "root_sibling");
  for (const std::string& path :
       {std::string("../outside"), std::string("d/../../outside"), std::string("link"), std::string("/etc"),
        (base_ / "root_sibling").string(), std::string("../root_sibling"), std::string("d/\0x", 4)}) {
    EXPECT_EQ(Error({.format = "idx", .path = path}).code(), StatusCode::kInvalidArgument) << path;
  }
  for (const std::string& path :
       {std::string("d"), std::string("x/../d"), std::string("inside_link"), Path("d"), std::string("d/")}) {
    EXPECT_TRUE(Open({.format = "idx", .path = path}).ok()) << path << ": " << Error({.format = "idx", .path = path});
  }
  // A file that links out of the root is refused, too.
  fs::remove(Path("d/train-images-idx3-ubyte"));
  fs::create_symlink(base_ / "outside/train-images-idx3-ubyte", Path("d/train-images-idx3-ubyte"));
  EXPECT_EQ(Error({.format = "idx", .path = "d"}).code(), StatusCode::kInvalidArgument);
}

TEST_F(DatasetTest, DamagedIdxIsRefused) {
  struct Case {
    const char* file;
    std::string bytes;
    StatusCode code;
    const char* message;
  };
  const std::string good = Idx(kImages, {6, 2, 3}, Pixels(6, 0));
  const std::string packed = Gzip(good + "");
  std::string flipped = packed;
  flipped[flipped.size() - 6] ^= 1;  // the stored checksum
  const Case cases[] = {
      {"train-images-idx3-ubyte", Idx(0x802, {6, 2, 3}, Pixels(6, 0)), StatusCode::kDataLoss,
       "magic number 0x00000802"},
      {"train-images-idx3-ubyte", good.substr(0, good.size() - 1), StatusCode::kDataLoss, "truncated"},
      {"train-images-idx3-ubyte", good.substr(0, 10), StatusCode::kDataLoss, "the IDX header"},
      {"train-images-idx3-ubyte", "", StatusCode::kDataLoss, "the IDX header"},
      {"train-images-idx3-ubyte", good + "x", StatusCode::kDataLoss, "goes on after"},
      {"train-images-idx3-ubyte", Idx(kImages, {0, 2, 3}, ""), StatusCode::kDataLoss, "no entries"},
      {"train-images-idx3-ubyte", Idx(kImages, {6, 0, 3}, ""), StatusCode::kDataLoss, "side of 0"},
      {"train-images-idx3-ubyte", Idx(kImages, {6, 16384, 16384}, "x"), StatusCode::kDataLoss, "header announces"},
      {"train-images-idx3-ubyte", Idx(kImages, {5, 2, 3}, Pixels(5, 0)), StatusCode::kFailedPrecondition,
       "do not belong together"},
      {"train-labels-idx1-ubyte", Idx(kImages, {6}, "abcdef"), StatusCode::kDataLoss, "need 0x00000801"},
      {"train-images-idx3-ubyte.gz", packed.substr(0, packed.size() - 12), StatusCode::kDataLoss,
       "damaged or truncated"},
      {"train-images-idx3-ubyte.gz", packed.substr(0, packed.size() - 4), StatusCode::kDataLoss,
       "damaged or truncated"},
      {"train-images-idx3-ubyte.gz", flipped, StatusCode::kDataLoss, "damaged or truncated"},
      {"train-images-idx3-ubyte.gz", good, StatusCode::kDataLoss, "not gzip data"},
      {"t10k-images-idx3-ubyte", Idx(kImages, {3, 3, 3}, std::string(27, 'x')), StatusCode::kFailedPrecondition,
       "test images [1, 3, 3]"},
  };
  for (const Case& c : cases) {
    fs::remove_all(Path("d"));
    WriteIdx("d");
    if (std::string(c.file).ends_with(".gz")) fs::remove(Path("d/train-images-idx3-ubyte"));
    WriteWithFolders(Path(std::string("d/") + c.file), c.bytes);
    const Status status = Error({.format = "idx", .path = "d"});
    EXPECT_EQ(status.code(), c.code) << c.message << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST_F(DatasetTest, AHeaderThatAnnouncesTerabytesIsRefusedBeforeMemoryIsAskedFor) {
  WriteIdx("d");
  WriteWithFolders(Path("d/train-images-idx3-ubyte"), Idx(kImages, {400000, 16384, 16384}, "x"));
  WriteWithFolders(Path("d/train-labels-idx1-ubyte"), Idx(kLabels, {400000}, std::string(400000, '\0')));
  const Status status = Error({.format = "idx", .path = "d"});
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("over the limit"));
}

TEST_F(DatasetTest, LabelBeyondTheStudentsClassesIsRefused) {
  WriteIdx("d");
  EXPECT_TRUE(Open({.format = "idx", .path = "d"}, 1, 3).ok());
  const Status status = Error({.format = "idx", .path = "d"}, 2);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("abel 2 of image 2"));
  auto splits = Open({.format = "idx", .path = "d"}, 1, 10);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->classes(), 10);
}

TEST_F(DatasetTest, ImagesThatTheStudentDoesNotTakeAreRefused) {
  WriteIdx("d");
  const auto open = [&](const ModelSpec& student) {
    JobPlan plan;
    plan.student = student;
    return std::string(OpenDataset({.format = "idx", .path = "d"}, root_, 1, WantedBy(plan)).status().message());
  };
  const ModelSpec student{.num_classes = 3, .in_channels = 1, .image_height = 2, .image_width = 3};
  EXPECT_EQ(open(student), "");
  ModelSpec other = student;
  other.in_channels = 3;
  EXPECT_THAT(open(other), HasSubstr("have 1 channel (grey), the student takes 3; set student.in_channels: 1"));
  other = student;
  other.image_width = 2;
  other.image_height = 3;
  EXPECT_THAT(open(other), HasSubstr("have [2, 3] pixels (height, width), the student takes [3, 2]; set student.image: "
                                     "[2, 3]"));
  other = student;
  other.num_classes = 2;
  EXPECT_THAT(open(other), HasSubstr("abel 2 of image 2"));
}

// What the plan says of the data was used to compute the lengths of its stages.
TEST_F(DatasetTest, OtherNumbersOfImagesThanThePlanSaysAreRefused) {
  WriteIdx("d");
  WriteWithFolders(Path("d/more-images-idx3-ubyte"), Idx(kImages, {2, 2, 3}, Pixels(2, 5)));
  DataPlan plan{.format = "idx", .path = "d", .unlabelled = "more", .train_size = 6, .unlabelled_size = 2};
  EXPECT_TRUE(Open(plan).ok()) << Error(plan);
  plan.train_size = 5;
  plan.unlabelled_size = 3;
  const Status status = Error(plan);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("ata.train_size is 5, but '" + Path("d") + "' has 6 such images"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("ata.unlabelled_size is 3, but '" + Path("d") + "' has 2 such"));
  plan.unlabelled_size.reset();
  for (const auto& [limit, fits] : {std::pair{4, true}, {5, true}, {6, false}, {0, false}}) {
    plan.train_limit = limit;
    EXPECT_EQ(Error(plan).ok(), fits) << "a limit of " << limit;
  }
  plan.train_limit = 0;
  plan.train_size = 0;
  EXPECT_FALSE(Error(plan).ok());
  fs::remove(Path("d/train-images-idx3-ubyte"));
  fs::remove(Path("d/train-labels-idx1-ubyte"));
  EXPECT_TRUE(Error(plan).ok()) << Error(plan);
}

TEST_F(DatasetTest, LoadingEndsWhenNobodyWantsTheDataAnyMore) {
  WriteIdx("d");
  for (int i = 0; i < 40; ++i) {
    WriteWithFolders(Path("f/train/ant/" + std::to_string(i) + ".png"),
                     EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3)));
  }
  fs::copy(Path("f/train"), Path("f/test"), fs::copy_options::recursive);
  const auto open = [&](const DataPlan& plan, int wanted_for, int* asked) {
    std::atomic<int> count = 0;  // asked on the threads that decode, too
    const auto result = OpenDataset(plan, root_, 1, {}, {}, [&] { return ++count > wanted_for; });
    *asked = count;
    return result.status();
  };
  for (const DataPlan& plan :
       {DataPlan{.format = "idx", .path = "d"}, DataPlan{.format = "image_folder", .path = "f"}}) {
    int all = 0, asked = 0;
    ASSERT_TRUE(open(plan, 1 << 20, &all).ok());
    ASSERT_GE(all, 5) << "that would be rather seldom";
    for (const int wanted_for : {0, 1, all / 3, all / 2, all - 1}) {
      const Status status = open(plan, wanted_for, &asked);
      EXPECT_EQ(status.code(), StatusCode::kCancelled) << plan.format << " after " << wanted_for << ": " << status;
      EXPECT_LE(asked, wanted_for + 8) << plan.format;  // each place on the way out, and both threads
    }
  }
}

TEST_F(DatasetTest, ClassesThatNeverOccurAreWarnedOf) {
  WriteIdx("d");
  EXPECT_TRUE(Open({.format = "idx", .path = "d"}, 1, 3)->warnings.empty());
  EXPECT_THAT(Open({.format = "idx", .path = "d"}, 1, 5)->warnings,
              ::testing::ElementsAre(
                  "No label of train has class 3, 4, though num_classes is 5: the student cannot learn it.",
                  "No label of test has class 3, 4, though num_classes is 5: how well the student knows it is not "
                  "measured."));
  for (const char* file : {"f/train/ant/0.png", "f/train/Bee/0.png", "f/train/bee/0.png"}) {
    WriteWithFolders(Path(file), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3)));
  }
  fs::copy(Path("f/train"), Path("f/test"), fs::copy_options::recursive);
  EXPECT_THAT(Open({.format = "image_folder", .path = "f"}, 1, 5)->warnings,
              ::testing::ElementsAre("num_classes is 5, but '" + Path("f") +
                                         "' has 3 class folders: no image has a class "
                                         "from 3 on.",
                                     "The class folders 'Bee' and 'bee' in '" + Path("f") +
                                         "' differ in capitals only, and are two classes."));
}

TEST_F(DatasetTest, ClassFoldersThatDifferBetweenTheSplitsAreNamed) {
  const std::string png = EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3));
  for (const char* file : {"train/ant/0.png", "train/bee/0.png", "test/ant/0.png", "test/cat/0.png"}) {
    WriteWithFolders(Path(std::string("d/") + file), png);
  }
  const Status status = Error({.format = "image_folder", .path = "d"});
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("differ; only in train: 'bee'; only in test: 'cat'"));
}

// The digest is over the index before a limit.
TEST_F(DatasetTest, TheDigestTellsFoldersApart) {
  const std::string png = EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3));
  const auto digest = [&](const std::vector<std::string>& files, const std::string& content, uint64_t limit = 0) {
    fs::remove_all(Path("d"));
    for (const std::string& file : files) WriteWithFolders(Path("d/train/" + file), png + content);
    fs::copy(Path("d/train"), Path("d/test"), fs::copy_options::recursive);
    return Open({.format = "image_folder", .path = "d", .train_limit = limit}).value().digest;
  };
  const std::string whole = digest({"a/0.png", "a/1.png", "b/0.png"}, "");
  EXPECT_EQ(digest({"a/0.png", "a/1.png", "b/0.png"}, "", 2), whole);
  EXPECT_NE(digest({"a/0.png", "b/0.png"}, ""), whole) << "an image less";
  EXPECT_NE(digest({"a/0.png", "a/1.png", "b/1.png"}, ""), whole) << "another name";
  EXPECT_NE(digest({"a/0.png", "a/1.png", "x/0.png"}, ""), whole) << "another class";
  EXPECT_NE(digest({"a/0.png", "a/1.png", "b/0.png"}, "more"), whole) << "other sizes";
}

TEST_F(DatasetTest, ImageFolderAndArchivesGiveTheSameImages) {
  // Classes "ant" and "bee"; written in an order that is not the alphabetical one.
  std::string members;
  const std::pair<const char*, int> files[] = {{"bee/b.jpg", 3}, {"ant/z.png", 1}, {"bee/a.JPEG", 2}, {"ant/a.jpg", 0}};
  for (const auto& [name, index] : files) {
    const bool png = std::string(name).ends_with(".png");
    const std::string bytes =
        png ? EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(index, 3)) : EncodeJpeg(8, 8, 3, Picture(index, 3));
    for (const char* split : {"train", "test"})
      WriteWithFolders(Path(std::string("folder/") + split + "/" + name), bytes);
    members += TarMember(std::string("./") + name, bytes);
  }
  for (const char* split : {"train", "test"})
    WriteWithFolders(Path(std::string("folder/") + split + "/ant/readme.txt"), "not an image");
  members = TarMember("ant/", "", '5') + TarMember("notes.txt", "hello") + members;
  WriteWithFolders(Path("tar/train.tar"), members + TarEnd());
  WriteWithFolders(Path("tar/test.tar"), members + TarEnd());
  WriteWithFolders(Path("tgz/train.tar.gz"), Gzip(members + TarEnd()));
  WriteWithFolders(Path("tgz/test.tar.gz"), Gzip(members + TarEnd()));

  for (const char* folder : {"folder", "tar", "tgz"}) {
    auto splits = Open({.format = "image_folder", .path = folder}, 1, 2);
    ASSERT_TRUE(splits.ok()) << folder << ": " << splits.status();
    const Dataset& train = *splits->train;
    ASSERT_EQ(train.size(), 4);
    EXPECT_EQ(train.channels(), 3);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(train.label(i), i / 2);
      EXPECT_LE(WorstDifference(Image(train, i), Picture(i, 3), 3), i == 1 ? 0 : 4) << folder << " image " << i;
    }
    auto limited = Open({.format = "image_folder", .path = folder, .train_limit = 2}, 5);
    ASSERT_TRUE(limited.ok()) << limited.status();
    ASSERT_EQ(limited->train->size(), 2);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(Image(*limited->train, i), Image(train, SubsetOrder(5, 4, 2)[i]));
    EXPECT_EQ(limited->train->classes(), 2);
  }
}

TEST_F(DatasetTest, GreyFilesInAColourSetGetThreeChannelsAndGreySetsStayGrey) {
  for (const char* split : {"train", "test"}) {
    const std::string base = std::string("/") + split + "/a/";
    WriteWithFolders(Path("mixed" + base + "0.jpg"), EncodeJpeg(8, 8, 1, Picture(0, 1)));
    WriteWithFolders(Path("mixed" + base + "1.png"), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(1, 3)));
    WriteWithFolders(Path("grey" + base + "0.jpg"), EncodeJpeg(8, 8, 1, Picture(0, 1)));
    WriteWithFolders(Path("grey" + base + "1.png"), EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, Picture(1, 1)));
  }
  auto mixed = Open({.format = "image_folder", .path = "mixed"});
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(mixed->train->channels(), 3);
  const std::vector<uint8_t> pixels = Image(*mixed->train, 0);
  for (int i = 0; i < 64; ++i) {
    ASSERT_EQ(pixels[i], pixels[64 + i]);
    ASSERT_EQ(pixels[i], pixels[128 + i]);
  }
  auto grey = Open({.format = "image_folder", .path = "grey"});
  ASSERT_TRUE(grey.ok()) << grey.status();
  EXPECT_EQ(grey->train->channels(), 1);
  EXPECT_EQ(Image(*grey->train, 1), Picture(1, 1));
}

TEST_F(DatasetTest, BadImageFoldersAreRefused) {
  const std::string jpeg = EncodeJpeg(8, 8, 3, Picture(0, 3));
  auto make = [&](const std::string& bytes, const std::string& name = "b.jpg") {
    fs::remove_all(Path("d"));
    for (const char* split : {"train", "test"}) {
      WriteWithFolders(Path(std::string("d/") + split + "/x/a.jpg"), jpeg);
      WriteWithFolders(Path(std::string("d/") + split + "/x/" + name), bytes);
    }
    return Error({.format = "image_folder", .path = "d"});
  };
  EXPECT_TRUE(make(jpeg).ok()) << make(jpeg);
  Status status = make(jpeg.substr(0, jpeg.size() / 2));
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/d/train/x/b.jpg"));
  EXPECT_EQ(make("not an image").code(), StatusCode::kDataLoss);
  EXPECT_EQ(make("").code(), StatusCode::kDataLoss);
  status = make(EncodeJpeg(8, 4, 3, Picture(0, 3)));
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("[8, 4]"));
  const std::string png = EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3));
  EXPECT_EQ(make(png.substr(0, png.size() - 20), "b.png").code(), StatusCode::kDataLoss);

  EXPECT_TRUE(make(jpeg).ok());
  WriteWithFolders(Path("d/test/y/a.jpg"), jpeg);
  EXPECT_EQ(Error({.format = "image_folder", .path = "d"}).code(),
            StatusCode::kFailedPrecondition);  // class only in test
  WriteWithFolders(Path("d/train/y/a.jpg"), jpeg);
  EXPECT_TRUE(Error({.format = "image_folder", .path = "d"}).ok());
  EXPECT_THAT(std::string(Error({.format = "image_folder", .path = "d"}, 1).message()), HasSubstr("2 class folders"));
  WriteWithFolders((base_ / "outside/secret.jpg").string(), jpeg);
  fs::create_symlink(base_ / "outside/secret.jpg", Path("d/train/y/b.jpg"));
  EXPECT_EQ(Error({.format = "image_folder", .path = "d"}).code(), StatusCode::kInvalidArgument);
  fs::remove_all(Path("d/train"));
  EXPECT_THAT(std::string(Error({.format = "image_folder", .path = "d"}).message()),
              HasSubstr("no 'train/', 'train.tar'"));
  fs::create_directories(Path("d/train"));
  EXPECT_EQ(Error({.format = "image_folder", .path = "d"}).code(), StatusCode::kNotFound);
}

TEST_F(DatasetTest, BadArchivesAreRefused) {
  const std::string member = TarMember("x/a.jpg", EncodeJpeg(8, 8, 3, Picture(0, 3)));
  auto make = [&](const std::string& bytes, const char* ending = ".tar") {
    fs::remove_all(Path("d"));
    for (const char* split : {"train", "test"}) WriteWithFolders(Path(std::string("d/") + split + ending), bytes);
    return Error({.format = "image_folder", .path = "d"});
  };
  EXPECT_TRUE(make(member + TarEnd()).ok()) << make(member + TarEnd());
  EXPECT_EQ(make(member).code(), StatusCode::kDataLoss);  // cut between two members
  EXPECT_EQ(make(member.substr(0, 700)).code(), StatusCode::kDataLoss);
  EXPECT_EQ(make("").code(), StatusCode::kDataLoss);
  std::string damaged = member + TarEnd();
  damaged[3] ^= 1;
  EXPECT_THAT(std::string(make(damaged).message()), HasSubstr("bad header checksum"));
  const std::string packed = Gzip(member + TarEnd());
  EXPECT_EQ(make(packed.substr(0, packed.size() - 4), ".tar.gz").code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(make(TarMember("deep/x/a.jpg", "x") + TarEnd()).message()),
              HasSubstr("ictures deeper than CLASS/NAME"));
  EXPECT_TRUE(make(TarMember("train/x/a.jpg", EncodeJpeg(8, 8, 3, Picture(0, 3))) + TarEnd()).code() !=
              StatusCode::kOk);  // in test.tar
  // Long names: GNU and pax.
  const std::string name = "x/" + std::string(150, 'n') + ".jpg";
  const std::string jpeg = EncodeJpeg(8, 8, 3, Picture(0, 3));
  const std::string record = " path=" + name + "\n";
  const std::string pax = std::to_string(record.size() + 3) + record;
  for (const std::string& long_name : {TarMember("././@LongLink", name + '\0', 'L'), TarMember("pax", pax, 'x')}) {
    EXPECT_TRUE(make(long_name + TarMember("cut-off", jpeg) + TarEnd()).ok())
        << make(long_name + TarMember("cut-off", jpeg) + TarEnd());
  }
}

// ---- Smaller images (the arithmetic is in shrink_test.cc)

TEST_F(DatasetTest, ImagesOfFoldersAreMadeSmallerAtLoading) {
  for (const char* split : {"train", "test"}) {
    const std::string base = std::string("d/") + split;
    WriteWithFolders(Path(base + "/a/0.png"), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3)));
    WriteWithFolders(Path(base + "/b/1.png"), EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, Picture(1, 1)));
  }
  const auto splits = Open({.format = "image_folder", .path = "d", .shrink = 4}, 1, 2);
  ASSERT_TRUE(splits.ok()) << splits.status();
  const Dataset& train = *splits->train;
  EXPECT_EQ(train.channels(), 3);
  EXPECT_EQ(train.height(), 2);
  EXPECT_EQ(train.width(), 2);
  // Picture() is linear: the mean of rows 0 to 3 and columns 0 to 3 is its value at 1.5, 1.5: 4 * 1.5 + 2 * 1.5 = 9.
  EXPECT_EQ(Image(train, 0), (std::vector<uint8_t>{9, 17, 25, 33, 39, 47, 55, 63, 69, 77, 85, 93}));
  EXPECT_EQ(Image(train, 1), (std::vector<uint8_t>{29, 37, 45, 53, 29, 37, 45, 53, 29, 37, 45, 53}));
  EXPECT_EQ(train.label(1), 1);
  EXPECT_EQ(Image(*splits->test, 0), Image(train, 0));
}

TEST_F(DatasetTest, AFactorThatDoesNotDivideTheSidesIsRefused) {
  for (const char* split : {"train", "test"}) {
    WriteWithFolders(Path(std::string("d/") + split + "/a/0.png"),
                     EncodePng(6, 8, PNG_COLOR_TYPE_GRAY, 8, std::vector<uint8_t>(48)));
  }
  for (const uint32_t factor : {3u, 4u, 5u, 16u}) {
    const Status status = Error({.format = "image_folder", .path = "d", .shrink = factor});
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << factor;
    EXPECT_THAT(std::string(status.message()), HasSubstr("train' have [6, 8] pixels (height, width), and data.shrink " +
                                                         std::to_string(factor) + " does not divide both sides"));
  }
  EXPECT_TRUE(Open({.format = "image_folder", .path = "d", .shrink = 2}).ok());
  EXPECT_EQ(Error({.format = "image_folder", .path = "d", .shrink = 0}).code(), StatusCode::kInvalidArgument);
}

TEST_F(DatasetTest, IdxImagesAreNotMadeSmaller) {
  WriteIdx("d");
  const Status status = Error({.format = "idx", .path = "d", .shrink = 2});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("data.shrink is 2, but images of data.format idx"));
}

TEST_F(DatasetTest, AnEnormousFileIsRefusedUnread) {
  for (const char* split : {"train", "test"}) {
    WriteWithFolders(Path(std::string("d/") + split + "/a/0.png"),
                     EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(0, 3)));
  }
  fs::resize_file(Path("d/train/a/0.png"), (256 << 20) + 1);  // a hole: takes no room
  const Status status = Error({.format = "image_folder", .path = "d"});
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("over the limit of 268435456 bytes for one picture: '" +
                                                       Path("d/train/a/0.png") + "' (268435457 bytes)"));
}

// ---- Images without labels

// `root`/d with labelled images 0 to 3 in two classes and images 4 to 6 without a label, as files or as archives.
class UnlabelledTest : public DatasetTest {
 protected:
  static std::string Png(int index) { return EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(index, 3)); }
  void Write(const std::string& ending) const {
    const std::vector<std::pair<std::string, int>> labelled = {
        {"ant/a.png", 0}, {"ant/b.png", 1}, {"bee/a.png", 2}, {"bee/b.png", 3}};
    const std::vector<std::pair<std::string, int>> others = {{"x.png", 4}, {"y.png", 5}, {"sub/z.png", 6}};
    for (const auto& [split, files] :
         {std::pair<std::string, decltype(labelled)>{"train", labelled}, {"test", labelled}, {"more", others}}) {
      std::string members;
      for (const auto& [name, index] : files) {
        if (ending.empty()) WriteWithFolders(Path("d/" + split + "/" + name), Png(index));
        members += TarMember("./" + name, Png(index));
      }
      if (ending == ".tar") WriteWithFolders(Path("d/" + split + ending), members + TarEnd());
      if (ending == ".tar.gz") WriteWithFolders(Path("d/" + split + ending), Gzip(members + TarEnd()));
    }
  }
  const DataPlan plan_{.format = "image_folder", .path = "d", .unlabelled = "more"};
};

TEST_F(UnlabelledTest, FoldersAndArchivesGiveTheSameImagesInOneOrder) {
  for (const std::string ending : {"", ".tar", ".tar.gz"}) {
    fs::remove_all(Path("d"));
    Write(ending);
    auto splits = Open(plan_, 1, 2);
    ASSERT_TRUE(splits.ok()) << ending << ": " << splits.status();
    EXPECT_EQ(splits->train->size(), 4);
    ASSERT_EQ(splits->unlabelled->size(), 3);
    for (uint64_t i = 0; i < 3; ++i) {
      EXPECT_EQ(splits->unlabelled->label(i), kNoLabel);
      EXPECT_EQ(WorstDifference(Image(*splits->unlabelled, i), Picture(4 + static_cast<int>(i), 3), 3), 0)
          << ending << " " << i;
    }
    EXPECT_EQ(splits->unlabelled->classes(), 2);
    // train_limit is about images with labels.
    DataPlan limited = plan_;
    limited.train_limit = 2;
    splits = Open(limited, 1, 2);
    ASSERT_TRUE(splits.ok()) << splits.status();
    EXPECT_EQ(splits->train->size(), 2);
    EXPECT_EQ(splits->unlabelled->size(), 3);
  }
}

TEST_F(UnlabelledTest, IdxImagesNeedNoLabelFile) {
  WriteIdx("d");
  WriteWithFolders(Path("d/more-images-idx3-ubyte.gz"), Gzip(Idx(kImages, {2, 2, 3}, Pixels(2, 5))));
  auto splits = Open({.format = "idx", .path = "d", .unlabelled = "more"}, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->size(), 6);
  ASSERT_EQ(splits->unlabelled->size(), 2);
  EXPECT_EQ(Image(*splits->unlabelled, 1), std::vector<uint8_t>(6, 15));
  EXPECT_EQ(splits->unlabelled->label(1), kNoLabel);
  EXPECT_THAT(std::string(Error({.format = "idx", .path = "d", .unlabelled = "none"}).message()),
              HasSubstr("no file 'none-images-idx3-ubyte'"));
  EXPECT_THAT(std::string(Error({.format = "idx", .path = "d", .unlabelled = "none"}).message()),
              HasSubstr("correct data.unlabelled"));
  WriteWithFolders(Path("d/more-images-idx3-ubyte.gz"), Gzip(Idx(kImages, {1, 3, 3}, std::string(9, 'x'))));
  EXPECT_THAT(std::string(Error({.format = "idx", .path = "d", .unlabelled = "more"}).message()),
              HasSubstr("unlabelled images"));
  // Labels without images are no missing split.
  WriteWithFolders(Path("d/more-images-idx3-ubyte.gz"), Gzip(Idx(kImages, {2, 2, 3}, Pixels(2, 5))));
  fs::remove(Path("d/train-images-idx3-ubyte"));
  EXPECT_EQ(Error({.format = "idx", .path = "d", .unlabelled = "more"}).code(), StatusCode::kNotFound);
  fs::remove(Path("d/train-labels-idx1-ubyte"));
  splits = Open({.format = "idx", .path = "d", .unlabelled = "more"}, 1, 3);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train, nullptr);
}

TEST_F(UnlabelledTest, WithoutATrainingSplitAllImagesAreWithoutLabels) {
  Write("");
  fs::remove_all(Path("d/train"));
  auto splits = Open(plan_, 1, 2);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train, nullptr);
  EXPECT_EQ(splits->unlabelled->size(), 3);
  fs::create_directories(Path("d/train/empty"));
  EXPECT_TRUE(Open(plan_, 1, 2).ok());
  DataPlan plan = plan_;
  plan.unlabelled.clear();
  EXPECT_EQ(Error(plan).code(), StatusCode::kNotFound);
}

TEST_F(UnlabelledTest, ImagesOutsideClassFoldersAreRefusedWithTheRemedy) {
  Write("");
  WriteWithFolders(Path("d/train/lost.png"), Png(0));
  Status status = Error(plan_);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pictures in no class folder: '" + Path("d/train/lost.png")));
  EXPECT_THAT(std::string(status.message()), HasSubstr("data.unlabelled"));
  fs::remove_all(Path("d"));
  Write(".tar");
  WriteWithFolders(Path("d/train.tar"), TarMember("lost.png", Png(0)) + TarMember("ant/a.png", Png(1)) + TarEnd());
  EXPECT_THAT(std::string(Error(plan_).message()),
              HasSubstr("ictures in no class folder: '" + Path("d/train.tar:lost.png")));
  EXPECT_THAT(std::string(Error({.format = "image_folder", .path = "d", .unlabelled = "none"}).message()),
              HasSubstr("ictures in no class folder"));
  Write(".tar");
  EXPECT_THAT(std::string(Error({.format = "image_folder", .path = "d", .unlabelled = "none"}).message()),
              HasSubstr("correct data.unlabelled"));
  WriteWithFolders((base_ / "outside/secret.png").string(), Png(0));
  Write("");
  fs::remove(Path("d/train.tar"));
  fs::create_symlink(base_ / "outside/secret.png", Path("d/more/s.png"));
  EXPECT_EQ(Error(plan_).code(), StatusCode::kInvalidArgument);
}

TEST(MemoryDatasetTest, RefusesContradictions) {
  EXPECT_TRUE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {0, 1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3}, {0, 1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {0, 2}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {0, -1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, 0}).ok());  // all or none
  EXPECT_TRUE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, -1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {}, {}).ok());
  // With label maps.
  EXPECT_TRUE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, -1}, {0, 1, kIgnoredPixel, 1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {0, 1}, {0, 1, 0, 1}).ok());  // labels and label maps
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, -1}, {0, 1}).ok());
  EXPECT_FALSE(MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, -1}, {0, 1, 0, 1, 0}).ok());
  const Status status = MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {-1, -1}, {0, 1, 0, 2}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("class id 2 in the label map of image 1 is not in [0, 2)"));
}

TEST(MemoryDatasetTest, GivesTheLabelMapOfEachImage) {
  const auto plain = MakeMemoryDataset(1, 1, 2, 2, {1, 2, 3, 4}, {0, 1}).value();
  EXPECT_FALSE(plain->has_label_maps());
  const auto data = MakeMemoryDataset(3, 1, 2, 2, std::vector<uint8_t>(12), {-1, -1}, {0, 1, kIgnoredPixel, 1}).value();
  ASSERT_TRUE(data->has_label_maps());
  EXPECT_EQ(testing::LabelMap(*data, 0), (std::vector<uint8_t>{0, 1}));
  EXPECT_EQ(testing::LabelMap(*data, 1), (std::vector<uint8_t>{kIgnoredPixel, 1}));
}

// The real images of Debian's package dataset-fashion-mnist.
TEST(FashionMnistTest, LoadsWhenInstalled) {
  const std::string root = "/usr/share/datasets";
  if (!fs::exists(root + "/fashion-mnist")) GTEST_SKIP() << "package dataset-fashion-mnist is not installed";
  auto splits = OpenDataset({.format = "idx", .path = "fashion-mnist"}, root, 1, {.classes = 10});
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->size(), 60000);
  EXPECT_EQ(splits->test->size(), 10000);
  EXPECT_EQ(splits->train->height(), 28);
  std::vector<int> count(10);
  for (uint64_t i = 0; i < 60000; ++i) ++count[splits->train->label(i)];
  EXPECT_EQ(count, std::vector<int>(10, 6000));
  EXPECT_EQ(splits->train->label(0), 9);  // an ankle boot, as the data set's page shows
}

}  // namespace
}  // namespace distill
