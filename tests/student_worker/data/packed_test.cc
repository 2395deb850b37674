// A folder and an archive of it are the same data set: every tree is read from the disk and from the archives that the
// program tar makes of it, in all its formats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "absl/strings/str_replace.h"
#include "student_worker/data/dataset.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::EncodeJpeg;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::Image;
using testing::LabelMap;
using testing::Picture;
using testing::WriteWithFolders;

std::string Png(int index) { return EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(index, 3)); }

// What a tree adds to the training and to the test split, and what must be said of both together. In alphabetical order
// those of "test" come first.
struct Tree {
  const char* name;
  std::function<void(const std::string& split)> add;  // to a split that has a/0.png, a/1.png and b/0.png
  std::vector<const char*> refused = {};              // texts in the refusal; none: it is accepted,
  uint64_t images = 3;                                // with so many images
  std::vector<const char*> warned = {};               // texts in its warnings, in their order; there are no others
};

const Tree kTrees[] = {
    {"Plain", [](const std::string&) {}},
    {"OddNames",
     [](const std::string& split) {
       WriteWithFolders(split + "/a/" + std::string(95, 'x') + ".png", Png(2));
       WriteWithFolders(split + "/b/pictures of \xC3\xA4 'b'.0.PNG", Png(3));
       WriteWithFolders(split + "/b/1.jpe", EncodeJpeg(8, 8, 3, Picture(4, 3)));
       WriteWithFolders(split + "/b/2.JFIF", EncodeJpeg(8, 8, 3, Picture(5, 3)));
       WriteWithFolders(split + "/b/notes.txt", "no picture");
     },
     {},
     7},
    {"HardLinks",
     [](const std::string& split) {
       fs::create_hard_link(split + "/a/0.png", split + "/b/9.png");
       fs::create_hard_link(split + "/a/0.png", split + "/a/9.png");
     },
     {},
     5},
    {"SymbolicLinks",
     [](const std::string& split) {
       fs::create_symlink("0.png", split + "/a/7.png");
       fs::create_symlink("../b/0.png", split + "/a/8.png");
       fs::create_symlink("7.png", split + "/a/9.png");  // to a link
       WriteWithFolders(split + "/b/store.bin", Png(5));
       fs::create_symlink("store.bin", split + "/b/9.png");  // to what is not named like a picture
     },
     {},
     7,
     {"Pictures that are not read, because of their names or formats: '/b/store.bin' (PNG)"}},
    {"AClassThatIsALink", [](const std::string& split) { fs::create_directory_symlink("a", split + "/c"); }, {}, 5},
    {"LinksBack",
     [](const std::string& split) {
       fs::create_directory_symlink(".", split + "/a/self");
       fs::create_directory_symlink("..", split + "/b/up");
     },
     {},
     3,
     {"Links back to a folder that holds them, left out: '/a/self' (to '.'), '/b/up' (to '..')"}},
    {"HolesInFiles",
     [](const std::string& split) {
       fs::resize_file(split + "/a/0.png", 300000);  // zeros behind a picture are none of its pixels
       fs::resize_file(split + "/b/0.png", 70000);
       // A hole in the middle: between two chunks of zeros that no decoder reads.
       WriteWithFolders(split + "/b/1.png", Png(6));
       fs::resize_file(split + "/b/1.png", 100000);
       FILE* file = std::fopen((split + "/b/1.png").c_str(), "r+");
       std::fseek(file, 0, SEEK_END);
       std::fputs("end", file);
       std::fclose(file);
     },
     {},
     4},
    {"Litter",
     [](const std::string& split) {
       const std::string apple("\0\x05\x16\x07\0\2\0\0Mac OS X        ", 24);
       for (const char* name : {"/a/._0.png", "/._a", "/__MACOSX/a/._0.png", "/b/.hidden.jpg"}) {
         WriteWithFolders(split + name, apple);
       }
       WriteWithFolders(split + "/.ipynb_checkpoints/0-checkpoint.png", Png(7));
       WriteWithFolders(split + "/a/.ipynb_checkpoints/0-checkpoint.png", Png(7));
       WriteWithFolders(split + "/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", Png(7));
       for (const char* name : {"/.DS_Store", "/a/.DS_Store", "/a/Thumbs.db", "/desktop.ini", "/lost+found/x"}) {
         WriteWithFolders(split + name, "x");
       }
       fs::create_symlink("/nowhere", split + "/a/.#0.png");  // an editor's lock
     },
     {},
     3,
     {"Left out as litter of a desktop or an editor, though named like pictures: "
      "'/.ipynb_checkpoints/0-checkpoint.png', '/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg', '/__MACOSX/a/._0.png', "
      "'/a/._0.png', '/a/.ipynb_checkpoints/0-checkpoint.png' and 7 more."}},
    {"PicturesOfOtherKinds",
     [](const std::string& split) {
       WriteWithFolders(split + "/a/5.avif", std::string("\0\0\0\x1c"
                                                         "ftypavif",
                                                         12));
       WriteWithFolders(split + "/a/6.bmp", "BM" + std::string(60, '\0'));
       WriteWithFolders(split + "/a/7", Png(1));
       WriteWithFolders(split + "/b/8.tif", std::string("II*\0\x08\0\0\0", 8));
     },
     {},
     3,
     {"Pictures that are not read, because of their names or formats: '/a/5.avif' (AVIF), '/a/6.bmp' (BMP), '/a/7' "
      "(PNG), '/b/8.tif' (TIFF"}},
    {"DeeperPictures",
     [](const std::string& split) {
       WriteWithFolders(split + "/a/more/5.png", Png(1));
       WriteWithFolders(split + "/c/x/y/6.png", Png(1));
     },
     {"pictures deeper than CLASS/NAME: '/a/more/5.png', '/c/x/y/6.png', '", "; move them into their class folders"}},
    {"AnEmptyClass",
     [](const std::string& split) { fs::create_directories(split + "/c"); },
     {"class folders without a JPEG, PNG or WebP picture: '/c', '/c'; put their pictures there; or, if there is no "
      "such "
      "class"}},
    {"AClassOfOtherPictures",
     [](const std::string& split) { WriteWithFolders(split + "/c/0.gif", "GIF89a"); },
     {"class folders without a JPEG, PNG or WebP picture: '/c'", "'/c/0.gif' (GIF)"}},
    {"PicturesInNoClass",
     [](const std::string& split) { WriteWithFolders(split + "/lost.png", Png(1)); },
     {"pictures in no class folder: '/lost.png', '/lost.png'; move them into one", "data.unlabelled"}},
    {"LinksToNothing",
     [](const std::string& split) {
       fs::create_symlink("../.git/annex/objects/x", split + "/a/5.png");
       fs::create_symlink("itself.png", split + "/b/itself.png");
       fs::create_symlink("gone", split + "/c");
       fs::create_symlink("gone", split + "/b/gone.txt");  // whatever it was, it was no picture
     },
     {"'/a/5.png' (to '../.git/annex/objects/x'), '/b/itself.png' (to 'itself.png'), '/c' (to 'gone'), '"}},
    {"LinksOut",
     [](const std::string& split) { fs::create_symlink("/etc/passwd", split + "/a/5.png"); },
     {"'/a/5.png' (to '/etc/passwd'), '/a/5.png' (to '/etc/passwd'); "}},
    {"EverythingAtOnce",
     [](const std::string& split) {
       WriteWithFolders(split + "/a/more/5.png", Png(1));
       WriteWithFolders(split + "/a/6.png", "");
       WriteWithFolders(split + "/a/7.png", "<!DOCTYPE html><html>403</html>");
       WriteWithFolders(split + "/a/8.png", Png(2).substr(0, Png(2).size() - 20));
       WriteWithFolders(split + "/lost.png", Png(1));
       fs::create_directories(split + "/c");
       fs::create_symlink("gone", split + "/b/5.png");
     },
     {"14 mistakes in the data.", "'/a/more/5.png'", "Empty: '/a/6.png'", "HTML", "'/a/7.png'", "'/a/8.png' (",
      "'/lost.png'", "'/c'", "'/b/5.png' (to 'gone')"}},
};

struct Packing {
  const char* name;
  const char*
      command;  // for sh: $1 the folder that holds the split, $2 the split's name, $3 the archive without ending
};

const Packing kPackings[] = {
    {"Gnu", "tar -C $1/$2 --format=gnu -cf $3.tar ."},
    {"OldGnuSparse", "tar -C $1/$2 --format=oldgnu --sparse -cf $3.tar ."},
    {"Ustar", "tar -C $1/$2 --format=ustar -cf $3.tar ."},
    {"Pax", "tar -C $1/$2 --format=posix -cf $3.tar ."},
    {"PaxSparse00", "tar -C $1/$2 --format=posix --sparse --sparse-version=0.0 -cf $3.tar ."},
    {"PaxSparse01", "tar -C $1/$2 --format=posix --sparse --sparse-version=0.1 -cf $3.tar ."},
    {"PaxSparse10", "tar -C $1/$2 --format=posix --sparse --sparse-version=1.0 -cf $3.tar ."},
    {"FromBeside", "tar -C $1 -czf $3.tar.gz $2"},
    {"TwoGzipMembers",
     "tar -C $1/$2 -cf $3.t . && { head -c 3000 $3.t | gzip; tail -c +3001 $3.t | gzip; } > $3.tar.gz"},
};

bool Pack(const Packing& packing, const std::string& parent, const std::string& split, const std::string& archive) {
  fs::create_directories(fs::path(archive).parent_path());
  const std::string command =
      std::string("set -- '") + parent + "' '" + split + "' '" + archive + "'; " + packing.command;
  return std::system(command.c_str()) == 0;
}

// With every place in a folder or an archive of it cut down to the place in its split.
std::string Places(std::string text, const std::string& root) {
  return absl::StrReplaceAll(text, {{root + "/f/train", ""},
                                    {root + "/f/test", ""},
                                    {root + "/p/train.tar.gz:", "/"},
                                    {root + "/p/test.tar.gz:", "/"},
                                    {root + "/p/train.tar:", "/"},
                                    {root + "/p/test.tar:", "/"},
                                    {root + "/p/train.tar.gz:train/", "/"},
                                    {root + "/p/test.tar.gz:test/", "/"}});
}

class PackedTest : public testing::DataRootTest, public ::testing::WithParamInterface<Tree> {
 protected:
  void WriteFolder() const {
    for (const char* split : {"train", "test"}) {
      const std::string folder = Path(std::string("f/") + split);
      WriteWithFolders(folder + "/a/0.png", Png(0));
      WriteWithFolders(folder + "/a/1.png", Png(1));
      WriteWithFolders(folder + "/b/0.png", Png(2));
      GetParam().add(folder);
    }
  }
  void Expect(const StatusOr<DataSplits>& splits, const std::string& how) const {
    const Tree& tree = GetParam();
    if (!tree.refused.empty()) {
      ASSERT_FALSE(splits.ok()) << how;
      for (const char* text : tree.refused) {
        EXPECT_THAT(Places(std::string(splits.status().message()), root_), HasSubstr(text)) << how;
      }
      return;
    }
    ASSERT_TRUE(splits.ok()) << how << ": " << splits.status();
    EXPECT_EQ(splits->train->size(), tree.images) << how;
    ASSERT_EQ(splits->warnings.size(), tree.warned.size()) << how << ": " << ::testing::PrintToString(splits->warnings);
    for (size_t i = 0; i < tree.warned.size(); ++i) {
      EXPECT_THAT(Places(splits->warnings[i], root_), HasSubstr(tree.warned[i])) << how;
    }
  }
};

TEST_P(PackedTest, AFolderAndItsArchivesAreOneDataSet) {
  WriteFolder();
  const DataPlan plan{.format = "image_folder", .path = "f"};
  const auto folder = Open(plan);
  Expect(folder, "folder");
  for (const Packing& packing : kPackings) {
    fs::remove_all(Path("p"));
    for (const char* split : {"train", "test"}) {
      ASSERT_TRUE(Pack(packing, Path("f"), split, Path(std::string("p/") + split))) << packing.name;
    }
    const auto packed = Open({.format = "image_folder", .path = "p"});
    Expect(packed, packing.name);
    if (!folder.ok() || !packed.ok()) continue;
    EXPECT_EQ(packed->digest, folder->digest) << packing.name;
    ASSERT_EQ(packed->train->size(), folder->train->size()) << packing.name;
    for (uint64_t i = 0; i < folder->train->size(); ++i) {
      EXPECT_EQ(packed->train->label(i), folder->train->label(i)) << packing.name << " image " << i;
      EXPECT_EQ(Image(*packed->train, i), Image(*folder->train, i)) << packing.name << " image " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Trees, PackedTest, ::testing::ValuesIn(kTrees),
                         [](const auto& tree) { return std::string(tree.param.name); });

// The same for segmentation folders, whose images and label maps are packed one by one.
class PackedSegmentationTest : public testing::DataRootTest {};

TEST_F(PackedSegmentationTest, AFolderAndItsArchivesAreOneDataSet) {
  for (const char* split : {"train", "test"}) {
    const std::string images = Path(std::string("f/images/") + split), labels = Path(std::string("f/labels/") + split);
    for (const int i : {0, 1, 2, 3}) {
      const std::string name = "/" + std::to_string(i) + ".png";
      WriteWithFolders(images + name, Png(i));
      if (i > 1) continue;
      WriteWithFolders(labels + name,
                       EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 1, std::vector<uint8_t>(8, i == 0 ? 0x0F : 0xAA)));
    }
    fs::create_hard_link(labels + "/0.png", labels + "/2.png");
    fs::create_symlink("1.png", labels + "/3.png");
    for (const std::string& folder : {images, labels}) {
      WriteWithFolders(folder + "/._0.png", "x");
      WriteWithFolders(folder + "/.ipynb_checkpoints/1-checkpoint.png", Png(5));
      WriteWithFolders(folder + "/classes.txt", "road, sky");
    }
  }
  const auto folder = Open({.format = "segmentation_folder", .path = "f"}, 1, 2);
  ASSERT_TRUE(folder.ok()) << folder.status();
  ASSERT_EQ(folder->warnings.size(), 1);
  EXPECT_THAT(folder->warnings[0], HasSubstr("Left out as litter"));
  for (const Packing& packing : kPackings) {
    fs::remove_all(Path("p"));
    for (const char* split : {"train", "test"}) {
      for (const char* kind : {"images", "labels"}) {
        const std::string place = std::string(kind) + "/" + split;
        ASSERT_TRUE(Pack(packing, Path(std::string("f/") + kind), split, Path("p/" + place))) << packing.name;
      }
    }
    const auto packed = Open({.format = "segmentation_folder", .path = "p"}, 1, 2);
    ASSERT_TRUE(packed.ok()) << packing.name << ": " << packed.status();
    EXPECT_EQ(packed->digest, folder->digest) << packing.name;
    ASSERT_EQ(packed->train->size(), 4) << packing.name;
    EXPECT_EQ(packed->warnings.size(), 1) << packing.name;
    for (uint64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(Image(*packed->train, i), Image(*folder->train, i)) << packing.name << " image " << i;
      EXPECT_EQ(LabelMap(*packed->train, i), LabelMap(*folder->train, i)) << packing.name << " image " << i;
    }
  }
}

}  // namespace
}  // namespace distill
