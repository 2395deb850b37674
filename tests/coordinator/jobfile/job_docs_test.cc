// docs/job.md against the tables that the reader uses.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/plan/loss_schema.h"
#include "common/plan/transform_schema.h"
#include "coordinator/jobfile/job_keys.h"
#include "coordinator/jobfile/presets.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

std::string Docs() {
  std::ifstream file(std::string(DISTILL_SOURCE_DIR) + "/docs/job.md");
  EXPECT_TRUE(file.good()) << "docs/job.md is missing";
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The part of the document under the heading of a section, up to the next heading.
std::string PartAbout(const std::string& docs, const std::string& section) {
  const std::string heading = section.empty() ? "\n## Top level\n" : "\n## `" + section + "`";
  const size_t start = docs.find(heading);
  if (start == std::string::npos) return "";
  return docs.substr(start, docs.find("\n## ", start + 1) - start);
}

TEST(JobDocsTest, EveryKeyIsDocumentedInItsSection) {
  const std::string docs = Docs();
  for (const JobSection& section : JobSections()) {
    const std::string part = PartAbout(docs, std::string(section.name));
    ASSERT_FALSE(part.empty()) << "docs/job.md has no section '" << section.name << "'";
    for (const std::string_view key : section.keys) {
      EXPECT_NE(part.find("| `" + std::string(key) + "`"), std::string::npos)
          << "section '" << section.name << "' does not list " << key;
    }
  }
}

TEST(JobDocsTest, EveryLossAndKnobIsDocumented) {
  const std::string docs = Docs();
  for (const LossSchema& schema : LossSchemas()) {
    EXPECT_NE(docs.find("| `" + std::string(schema.type) + "`"), std::string::npos) << schema.type;
    for (const KnobSchema& knob : schema.knobs) {
      const std::string row = "| `" + std::string(schema.type) + "` | `" + std::string(knob.name) + "` | " +
                              std::string(knob.default_value) + " |";
      EXPECT_NE(docs.find(row), std::string::npos) << "no row that begins " << row;
    }
  }
}

TEST(JobDocsTest, EveryTransformAndSettingIsDocumented) {
  const std::string docs = Docs();
  for (const TransformSchema& schema : TransformSchemas()) {
    EXPECT_NE(docs.find("| `" + std::string(schema.type) + "` | "), std::string::npos) << schema.type;
    for (const TransformKnob& knob : schema.knobs) {
      const std::string value(knob.default_value.empty() ? "required" : knob.default_value);
      const std::string row =
          "| `" + std::string(schema.type) + "` | `" + std::string(knob.name) + "` | " + value + " |";
      EXPECT_NE(docs.find(row), std::string::npos) << "no row that begins " << row;
    }
  }
}

TEST(JobDocsTest, PresetsAndPoliciesAreDocumented) {
  const std::string docs = Docs();
  for (const std::string& preset : PresetNames()) EXPECT_NE(docs.find("`" + preset + "`"), std::string::npos) << preset;
  for (const std::string& policy : SskdPolicies()) {
    EXPECT_NE(docs.find("`" + policy + "`"), std::string::npos) << policy;
  }
}

// The teachers that the examples name.
FleetView DocumentedFleet() {
  FleetView fleet = Fleet();
  ModelSpec streets{.arch = "fcn_resnet34", .width = 32, .num_classes = 11, .in_channels = 3, .image_height = 90};
  streets.image_width = 120;
  fleet.models.push_back({"streets", "d2d2d2d2d2d2d2d2", streets, 1000, 4000, {}});
  fleet.models.push_back({"camvid", "d3d3d3d3d3d3d3d3", streets, 1000, 4000, {}});
  // Of examples/papers.
  const auto add = [&](const char* name, const char* arch, uint32_t width, uint32_t classes, uint32_t height,
                       uint32_t image_width) {
    ModelSpec spec{.arch = arch, .width = width, .num_classes = classes, .in_channels = 3, .image_height = height};
    spec.image_width = image_width;
    fleet.models.push_back({name, "d4d4d4d4d4d4d4d4", spec, 1000, 4000, {}});
  };
  add("wrn-40-2", "cifar_wrn_40_2", 16, 100, 32, 32);
  add("resnet56", "cifar_resnet56", 16, 100, 32, 32);
  add("resnet110", "cifar_resnet110", 16, 100, 32, 32);
  add("resnet32x4", "cifar_resnet32x4", 32, 100, 32, 32);
  add("vgg13", "cifar_vgg13_bn", 64, 100, 32, 32);
  add("resnet34", "resnet34", 64, 1000, 224, 224);
  add("resnet50", "resnet50", 64, 1000, 224, 224);
  add("cityscapes-pspnet-r101", "pspnet_resnet101", 64, 19, 512, 512);
  add("cityscapes-deeplabv3-r101", "deeplabv3_resnet101", 64, 19, 512, 1024);
  add("ade20k-pspnet-r101", "pspnet_resnet101", 64, 150, 512, 512);
  add("voc-deeplabv3plus-r101", "deeplabv3plus_resnet101_os16", 64, 21, 513, 513);
  add("coco-stuff10k-deeplabv3plus-r101", "deeplabv3plus_resnet101_os16", 64, 182, 513, 513);
  // Of examples/photos.yaml: an archive, with those of its taps that are read.
  add("efficientnet-lite0", "torchscript", 0, 1000, 224, 224);
  fleet.models.back().taps = {{"_blocks.4", "Tensor", {40, 28, 28}, true},
                              {"_blocks.10", "Tensor", {112, 14, 14}, true},
                              {"_blocks.15", "Tensor", {320, 7, 7}, true},
                              {"", "Tensor", {1000}, false}};
  return fleet;
}

// The examples in the document are run through the reader.
TEST(JobDocsTest, ExamplesAreAccepted) {
  const std::string docs = Docs();
  int examples = 0;
  for (size_t at = docs.find("```yaml\n"); at != std::string::npos; at = docs.find("```yaml\n", at + 1)) {
    const size_t start = at + 8;
    const std::string yaml = docs.substr(start, docs.find("```", start) - start);
    const StatusOr<ExpandedJob> job = Expand(yaml, DocumentedFleet());
    EXPECT_TRUE(job.ok()) << yaml << "\n" << job.status();
    ++examples;
  }
  EXPECT_GE(examples, 2);
}

TEST(JobDocsTest, ExampleFilesAreAccepted) {
  int examples = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(std::string(DISTILL_SOURCE_DIR) + "/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    std::ostringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    const StatusOr<ExpandedJob> job = Expand(text.str(), DocumentedFleet());
    EXPECT_TRUE(job.ok()) << entry.path() << "\n" << job.status();
    if (!job.ok()) continue;
    // Maps of 129 positions are not cut evenly, in TaT's code neither.
    EXPECT_THAT(Texts(job->warnings), ::testing::Each(::testing::HasSubstr("patches leave out 257 of 16641")))
        << entry.path();
    ++examples;
  }
  EXPECT_GE(examples, 40);
}

}  // namespace
}  // namespace distill
