#include "common/zoo/model_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace distill {
namespace {

using ::testing::HasSubstr;

const ModelSpec kSpec = {.arch = "cifar_resnet8",
                         .width = 8,
                         .num_classes = 10,
                         .in_channels = 3,
                         .image_height = 28,
                         .image_width = 30,
                         .mean = {0.286f, 1.0f / 3.0f, 0},
                         .std = {0.353f, 1e-20f, 7}};

TEST(ModelMetadataTest, RoundTripIsExact) {
  const auto metadata = SpecToMetadata(kSpec);
  EXPECT_EQ(metadata.at("distill.image"), "28x30");
  EXPECT_EQ(metadata.at("format"), "pt");
  EXPECT_THAT(metadata.at("distill.mean"), HasSubstr("0.286,"));
  const StatusOr<ModelSpec> spec = SpecFromMetadata(metadata);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(*spec, kSpec);

  ModelSpec bare = kSpec;
  bare.mean.clear();
  bare.std.clear();
  EXPECT_EQ(*SpecFromMetadata(SpecToMetadata(bare)), bare);
}

TEST(ModelMetadataTest, MissingKeysAreNamed) {
  for (const auto& [key, value] : SpecToMetadata(kSpec)) {
    if (key == "format") continue;
    auto metadata = SpecToMetadata(kSpec);
    metadata.erase(key);
    const Status status = SpecFromMetadata(metadata).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  }
}

TEST(ModelMetadataTest, MalformedValuesAreNamed) {
  const std::pair<std::string, std::string> bad[] = {
      {"distill.width", "x8"},      {"distill.width", "-1"},    {"distill.num_classes", "99999999999"},
      {"distill.in_channels", ""},  {"distill.image", "28"},    {"distill.image", "28x"},
      {"distill.image", "28x30x1"}, {"distill.mean", "0.1,"},   {"distill.std", "a"},
      {"distill.std", "1,,1"},      {"distill.mean", "0.1 0.2"}};
  for (const auto& [key, value] : bad) {
    auto metadata = SpecToMetadata(kSpec);
    metadata[key] = value;
    const Status status = SpecFromMetadata(metadata).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << key << "=" << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  }
}

TEST(ModelMetadataTest, CanonicalTextTellsNetworksApartAndIgnoresThePath) {
  const ModelSpec a{.arch = "cifar_resnet20",
                    .width = 16,
                    .num_classes = 10,
                    .in_channels = 1,
                    .image_height = 28,
                    .image_width = 28,
                    .weights = "a.safetensors",
                    .mean = {0.1f},
                    .std = {0.2f}};
  EXPECT_EQ(
      CanonicalText(a),
      "arch=cifar_resnet20\nwidth=16\nnum_classes=10\nin_channels=1\nimage=28x28\nmean=0.100000001\nstd=0.200000003\n");
  ModelSpec b = a;
  b.weights = "b.safetensors";
  EXPECT_EQ(CanonicalText(a), CanonicalText(b));
  b.mean = {std::nextafter(0.1f, 1.0f)};
  EXPECT_NE(CanonicalText(a), CanonicalText(b));
}

}  // namespace
}  // namespace distill
