#include "common/zoo/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/harness/process.h"

namespace distill {
namespace {

using ::distill::testing::TempDir;
using ::distill::testing::WriteFile;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const Status& status) { return std::string(status.message()); }

TEST(ModelFileTest, FlagsComeFirstThenTheFolderSortedByName) {
  TempDir dir;
  WriteFile(dir / "b.safetensors", "");
  WriteFile(dir / "a.pt", "");
  WriteFile(dir / "notes.txt", "");
  StatusOr<ModelFiles> found = CollectModelFiles({"z=/somewhere/x=y.safetensors"}, dir.path());
  ASSERT_TRUE(found.ok()) << found.status();
  const std::vector<ModelFile>& files = found->files;
  ASSERT_EQ(files.size(), 3);
  EXPECT_EQ(files[0].name, "z");
  EXPECT_EQ(files[0].path, "/somewhere/x=y.safetensors");
  EXPECT_TRUE(files[0].required);
  EXPECT_EQ(files[1].name, "a");
  EXPECT_EQ(files[2].name, "b");
  EXPECT_FALSE(files[2].required);
  EXPECT_THAT(found->left_out, ::testing::IsEmpty());
}

// What lies in a folder by accident stops nobody; each such file is named.
TEST(ModelFileTest, FilesOfTheFolderThatCannotBeServedAreLeftOutByName) {
  TempDir dir;
  WriteFile(dir / "good.safetensors", "");
  WriteFile(dir / "._good.safetensors", "");  // litter: not worth a word
  WriteFile(dir / ".hidden.pt", "");
  WriteFile(dir / "half.safetensors.part", "");
  WriteFile(dir / "my model=1.safetensors", "");
  WriteFile(dir / "twice.safetensors", "");
  WriteFile(dir / "twice.pt", "");
  WriteFile(dir / "z.pt", "");
  std::filesystem::create_directory(dir / "folder.pt");
  std::filesystem::create_symlink("nowhere", dir / "dangling.safetensors");
  const StatusOr<ModelFiles> found = CollectModelFiles({"z=/elsewhere.pt"}, dir.path());
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->files.size(), 2);
  EXPECT_EQ(found->files[1].path, dir / "good.safetensors");
  EXPECT_THAT(found->left_out,
              ::testing::ElementsAre(HasSubstr("dangling.safetensors: "), HasSubstr("folder.pt: not a regular file"),
                                     HasSubstr("'my model=1' (for "), HasSubstr("twice.pt: two files"),
                                     HasSubstr("twice.safetensors: two files"),
                                     HasSubstr("z.pt: --model names another file 'z', /elsewhere.pt")));
}

TEST(ModelFileTest, WrongFlagsAreRefusedWithTheReason) {
  TempDir dir;
  const struct {
    std::vector<std::string> flags;
    std::string folder;
    StatusCode code;
    std::string text;
  } kCases[] = {
      {{}, "", StatusCode::kInvalidArgument, "nothing to serve"},
      {{"teacher.safetensors"}, "", StatusCode::kInvalidArgument, "must be NAME=FILE"},
      {{"a="}, "", StatusCode::kInvalidArgument, "must be NAME=FILE"},
      {{"=x.pt"}, "", StatusCode::kInvalidArgument, "not a model name"},
      {{"a/b=x.pt"}, "", StatusCode::kInvalidArgument, "'a/b'"},
      {{"a=x.pt", "a=y.pt"}, "", StatusCode::kInvalidArgument, "two models are named 'a'"},
      {{}, dir.path(), StatusCode::kInvalidArgument, "no *.safetensors or *.pt"},
      {{}, dir / "gone", StatusCode::kNotFound, "gone"},
  };
  for (const auto& c : kCases) {
    StatusOr<ModelFiles> files = CollectModelFiles(c.flags, c.folder);
    EXPECT_EQ(files.status().code(), c.code) << c.text;
    EXPECT_THAT(Message(files.status()), HasSubstr(c.text));
  }
}

TEST(ModelFileTest, SidecarGivesTheSpec) {
  TempDir dir;
  EXPECT_FALSE(ReadSidecar(dir / "none.safetensors").value().has_value());
  WriteFile(dir / "r.safetensors.yaml",
            "arch: resnet50\nnum_classes: 1000\nin_channels: 3\nimage: 224x192\nmean: [0.485, 0.456, 0.406]\nstd: "
            "[0.229, 0.224, 0.225]\n");
  StatusOr<std::optional<ModelSidecar>> spec = ReadSidecar(dir / "r.safetensors");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ((*spec)->spec, (ModelSpec{.arch = "resnet50",
                                      .num_classes = 1000,
                                      .in_channels = 3,
                                      .image_height = 224,
                                      .image_width = 192,
                                      .mean = {0.485f, 0.456f, 0.406f},
                                      .std = {0.229f, 0.224f, 0.225f}}));
  EXPECT_TRUE(CheckImageSpec((*spec)->spec, "r").ok());
  // As the documentation shows it, and as job files write sizes.
  WriteFile(dir / "r.safetensors.yaml",
            "{arch: resnet50, num_classes: 1000, in_channels: 3, image: [224, 192], mean: [0.485, 0.456, 0.406], std: "
            "[0.229, 0.224, 0.225]}\n");
  const StatusOr<std::optional<ModelSidecar>> listed = ReadSidecar(dir / "r.safetensors");
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ((*listed)->spec, (*spec)->spec);
  // Separators without content are no second document.
  for (const std::string text : {"---\n", "---\n---\n"}) {
    for (const std::string end : {"---\n", "...\n", "---\n# nothing\n", "...\n---\n", ""}) {
      WriteFile(dir / "s.safetensors.yaml", text + "arch: resnet50\nnum_classes: 3\n" + end);
      const StatusOr<std::optional<ModelSidecar>> separated = ReadSidecar(dir / "s.safetensors");
      ASSERT_TRUE(separated.ok()) << text << end << separated.status();
      EXPECT_EQ((*separated)->spec.num_classes, 3);
    }
  }
  WriteFile(dir / "t.pt.yaml", "in_channels: 1\nimage: 28x28\n");
  EXPECT_EQ((*ReadSidecar(dir / "t.pt"))->spec.arch, "torchscript");
}

TEST(ModelFileTest, WrongSidecarsAreRefusedWithFileKeyAndNearestName) {
  TempDir dir;
  const struct {
    std::string yaml, text;
  } kCases[] = {
      {"archh: resnet50\n", "did you mean 'arch'"},
      {"arch: resnet50\nnum_classes: many\n", "num_classes: 'many'"},
      {"arch: resnet50\nin_channels: 0\n", "in_channels: '0'"},
      {"arch: resnet50\nimage: 224\n", "HEIGHTxWIDTH"},
      {"arch: resnet50\nimage: 99999x2\n", "image height"},
      {"arch: resnet50\nimage: [224]\n", "nor [HEIGHT, WIDTH]"},
      {"arch: resnet50\nimage: [224, [1], 224]\n", "nor [HEIGHT, WIDTH]"},
      {"arch: resnet50\nimage: [224, wide]\n", "image width: 'wide'"},
      {"arch: resnet50\nmean: 0.5\n", "mean: must be a list"},
      {"arch: resnet50\nstd: [.nan]\n", "std: must be a list"},
      {"arch: resnet50\narch: resnet18\n", "given twice"},
      {"num_classes: 10\n", "arch: must name"},
      {"arch: resnet50\nstages: [layer1]\n", "belongs to the description of an archive"},
      {"- 1\n", "must be a mapping"},
      {"arch: [\n", "not valid YAML"},
      {"arch: resnet50\n---\nwidth: 3\n", "line 3: a second YAML document begins here"},
      {"arch: resnet50\n---\nhello\n", "a second YAML document"},
      {"arch: resnet50\n...\njunk: 1\n", "second YAML document"},
      {std::string(1000, '['), "m.safetensors.yaml"},
      {std::string(65537, '#'), "has 65537 bytes"},
  };
  for (const auto& c : kCases) {
    WriteFile(dir / "m.safetensors.yaml", c.yaml);
    StatusOr<std::optional<ModelSidecar>> spec = ReadSidecar(dir / "m.safetensors");
    EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument) << c.yaml;
    EXPECT_THAT(Message(spec.status()), AllOf(HasSubstr("m.safetensors.yaml"), HasSubstr(c.text)));
  }
}

TEST(ModelFileTest, AnArchivesSidecarNamesStagesTapsAndTheFileItIsFor) {
  TempDir dir;
  WriteFile(dir / "t.pt.yaml",
            "in_channels: 1\nimage: 28x28\nstages: [\"layer1\", features.3]\ntaps:\n  layer1: [8, 14, 14]  # stride 2\n"
            "digest: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n");
  const StatusOr<std::optional<ModelSidecar>> read = ReadSidecar(dir / "t.pt");
  ASSERT_TRUE(read.ok()) << read.status();
  const ModelSidecar& sidecar = **read;
  EXPECT_EQ(sidecar.stages, (std::vector<std::string>{"layer1", "features.3"}));
  const std::vector<TapInfo> taps = {{.path = "layer1", .kind = ModuleKind::kOpaque, .shape = {8, 14, 14}}};
  EXPECT_TRUE(CheckArchiveIsDescribed(sidecar, "t.pt", "abc", taps).ok());
  EXPECT_THAT(Message(CheckArchiveIsDescribed(sidecar, "t.pt", "abcd", taps)),
              HasSubstr("t.pt.yaml describes another archive: its digest is ba7816bf8f01"));
  EXPECT_THAT(Message(CheckArchiveIsDescribed(sidecar, "t.pt", "abc", {})), HasSubstr("has none of that name"));
  EXPECT_THAT(Message(CheckArchiveIsDescribed(sidecar, "t.pt", "abc",
                                              {{.path = "layer1", .kind = ModuleKind::kOpaque, .shape = {8, 7, 7}}})),
              HasSubstr("as [8, 14, 14], the archive gives [8, 7, 7]"));
  for (const auto& [yaml, text] : {std::pair("stages: layer1\n", "stages: must be a list of taps"),
                                   std::pair("taps: [layer1]\n", "taps: must be a mapping"),
                                   std::pair("taps: {layer1: [0]}\n", "'0' is not a whole number")}) {
    WriteFile(dir / "t.pt.yaml", yaml);
    EXPECT_THAT(Message(ReadSidecar(dir / "t.pt").status()), HasSubstr(text));
  }
}

TEST(ModelFileTest, AStudentsFolderMayBeEmptyAndItsWeightsAreNoArchives) {
  TempDir dir;
  EXPECT_TRUE(CollectArchives(dir.path()).value().files.empty());
  WriteFile(dir / "w.safetensors", "");
  WriteFile(dir / "net.pt", "");
  WriteFile(dir / "bad name.pt", "");
  const StatusOr<ModelFiles> found = CollectArchives(dir.path());
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->files.size(), 1u);
  EXPECT_EQ(found->files[0].name, "net");
  EXPECT_EQ(found->left_out.size(), 1u);
  EXPECT_EQ(CollectArchives(dir / "none").status().code(), StatusCode::kNotFound);
}

TEST(ModelFileTest, ImageSpecMustBeComplete) {
  const ModelSpec good{.in_channels = 1, .image_height = 28, .image_width = 28, .mean = {0.3f}, .std = {0.4f}};
  EXPECT_TRUE(CheckImageSpec(good, "f").ok());
  ModelSpec spec = good;
  spec.image_width = 0;
  EXPECT_THAT(Message(CheckImageSpec(spec, "f")), HasSubstr("HEIGHTxWIDTH"));
  spec = good;
  spec.mean = {1, 2};
  EXPECT_THAT(Message(CheckImageSpec(spec, "f")), HasSubstr("mean has 2 entries for 1 channels"));
  spec = good;
  spec.std = {0};
  EXPECT_THAT(Message(CheckImageSpec(spec, "f")), HasSubstr("std"));
}

}  // namespace
}  // namespace distill
