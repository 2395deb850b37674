#include "common/zoo/weights_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/str_cat.h"
#include "tests/harness/process.h"

namespace distill {
namespace {

using ::distill::testing::TempDir;
using ::distill::testing::WriteFile;
using ::testing::AllOf;
using ::testing::HasSubstr;

Architecture Net(uint32_t width = 4) {
  return *Architecture::Create(Architecture::WithDefaults({.arch = "cifar_resnet8", .width = width, .num_classes = 3}));
}

// Zeros for every entry, each name behind `prefix`.
SafetensorsFile Weights(const Architecture& arch, const std::string& prefix = "") {
  SafetensorsFile file;
  for (const StateEntry& entry : arch.StateDict()) {
    size_t bytes = entry.is_integer ? 8 : 4;
    for (int64_t side : entry.shape) bytes *= static_cast<size_t>(side);
    file.tensors[prefix + entry.name] = {entry.is_integer ? "I64" : "F32", entry.shape,
                                         Buffer::FromVector(std::vector<uint8_t>(bytes))};
  }
  return file;
}

std::string Message(const Status& status) { return std::string(status.message()); }

TEST(WeightsFileTest, APrefixThatEveryNameCarriesIsTakenOff) {
  const Architecture arch = Net();
  TempDir dir;
  for (const std::string prefix : {"module.", "_orig_mod.", "model.", "net.", "_orig_mod.module.", "a.b.c."}) {
    ASSERT_TRUE(WriteSafetensors(dir / "w.safetensors", Weights(arch, prefix)).ok());
    const StatusOr<SafetensorsFile> file = ReadWeightsFile(dir / "w.safetensors", arch);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(CheckWeightsFit(*file, arch).ok()) << prefix << ": " << CheckWeightsFit(*file, arch);
    SafetensorsFile again = Weights(arch, prefix);
    EXPECT_EQ(StripWrapperPrefix(&again, arch), prefix);
  }
  SafetensorsFile plain = Weights(arch);
  EXPECT_EQ(StripWrapperPrefix(&plain, arch), "");
  EXPECT_TRUE(CheckWeightsFit(plain, arch).ok());
}

// A checkpoint of more than the network: what fits is not guessed at, but said.
TEST(WeightsFileTest, APrefixThatSomeNamesCarryIsNamedWithTheRemedy) {
  const Architecture arch = Net();
  SafetensorsFile file = Weights(arch, "model.");
  const size_t right = file.tensors.size();
  file.tensors["criterion.weight"] = file.tensors["model.fc.bias"];
  EXPECT_EQ(StripWrapperPrefix(&file, arch), "");
  const Status status = CheckWeightsFit(file, arch);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), AllOf(HasSubstr(StrCat(right, " of the ", right + 1, " names begin with 'model.'")),
                                     HasSubstr("k.removeprefix('model.')")));
}

TEST(WeightsFileTest, OtherMisfitsAreCountedBySortWithTheFirst) {
  const Architecture arch = Net();
  SafetensorsFile file = Weights(arch);
  file.tensors.erase("fc.bias");
  file.tensors["fc.weight"].shape = {3, 5};
  file.tensors["conv1.weight"].dtype = "U8";
  file.tensors["zz"] = file.tensors["bn1.bias"];
  EXPECT_THAT(Message(CheckWeightsFit(file, arch)),
              AllOf(HasSubstr("1 missing (first: fc.bias)"), HasSubstr("1 unexpected (first: zz)"),
                    HasSubstr("fc.weight is [3, 5], needs [3, 16]"), HasSubstr("conv1.weight is U8"),
                    HasSubstr("check arch, width, classes and channels")));
  file = Weights(arch);
  std::erase_if(file.tensors, [](const auto& named) { return named.first.ends_with("num_batches_tracked"); });
  EXPECT_TRUE(CheckWeightsFit(file, arch).ok());
  file.tensors["backbone.conv1.weight"] = file.tensors["conv1.weight"];
  EXPECT_THAT(Message(CheckWeightsFit(file, arch)), HasSubstr("take the prefix 'backbone.'"));
}

// Hundreds of billions of parameters against a file of kilobytes: an answer, and no memory.
TEST(WeightsFileTest, ADescriptionFarLargerThanTheFileIsRefusedFromNamesAndShapesAlone) {
  const Architecture huge =
      *Architecture::Create(Architecture::WithDefaults({.arch = "resnet152", .width = 4096, .num_classes = 1000000}));
  const Status status = CheckWeightsFit(Weights(Net()), huge);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("conv1.weight is [4, 3, 3, 3], needs [4096, 3, 7, 7]"));
}

TEST(WeightsFileTest, AnotherKindOfFileIsCalledWhatItIs) {
  TempDir dir;
  WriteFile(dir / "w.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n");
  EXPECT_THAT(Message(ReadWeightsFile(dir / "w.safetensors", Net()).status()),
              AllOf(HasSubstr("w.safetensors"), HasSubstr("git lfs pull")));
  WriteFile(dir / "w.safetensors", "\x80\x02}.");
  EXPECT_THAT(Message(ReadWeightsFile(dir / "w.safetensors", Net()).status()), HasSubstr("a Python pickle"));
}

}  // namespace
}  // namespace distill
