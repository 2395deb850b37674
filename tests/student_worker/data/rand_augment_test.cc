#include "student_worker/data/rand_augment.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/transforms.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kHeight = 61, kWidth = 83;

// Smooth, and not the same in any two places.
Picture Scene(uint32_t channels) {
  Picture scene{channels, kHeight, kWidth, {}, {}};
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t y = 0; y < kHeight; ++y) {
      for (uint32_t x = 0; x < kWidth; ++x) {
        scene.pixels.push_back(static_cast<uint8_t>(30 + 50 * c + x + (x * y) / 80 + (y * (c + 2)) % 17));
      }
    }
  }
  return scene;
}

bool IsGeometry(std::string_view op) {
  return op.starts_with("Shear") || op.starts_with("Translate") || op == "Rotate";
}

TEST(RandAugmentTest, AgreesWithTorchvision) {
  if (!fs::exists(DISTILL_TEST_PYTHON)) GTEST_SKIP() << "no " << DISTILL_TEST_PYTHON;
  const fs::path folder = fs::temp_directory_path() / StrCat("distill_augment_", getpid());
  fs::create_directories(folder);
  struct Case {
    std::string_view op;
    double magnitude;
    uint32_t bin, bins;  // bins 0: the operation; else its magnitude
  };
  std::vector<Case> cases;
  std::string list;
  for (const std::string_view op : kAugmentOps) {
    for (const auto& [bin, bins] : {std::pair{0u, 31u}, {9u, 31u}, {30u, 31u}, {3u, 10u}}) {
      const double magnitude = AugmentMagnitude(op, bin, bins, kHeight, kWidth);
      cases.push_back({op, magnitude, bin, bins});
      StrAppend(&list, "magnitude ", op, " ", bin, " ", bins, "\n");
      for (const double sign : {1.0, -1.0}) {
        if (sign < 0 && (op == "Posterize" || op == "Solarize")) continue;
        cases.push_back({op, sign * magnitude, 0, 0});
        StrAppend(&list, "augment ", op, " ", sign * magnitude, " 7\n");
      }
    }
  }
  const Picture scene = Scene(3);
  std::ofstream(folder / "scene.raw", std::ios::binary) << std::string(scene.pixels.begin(), scene.pixels.end());
  std::ofstream(folder / "labels.raw", std::ios::binary) << std::string(scene.plane(), '\0');
  std::ofstream(folder / "cases.txt") << list;
  ASSERT_EQ(std::system(StrCat(DISTILL_TEST_PYTHON, " ", DISTILL_SOURCE_DIR,
                               "/tests/student_worker/data/reference_transforms.py ", folder.string(), " ", kHeight,
                               " ", kWidth)
                            .c_str()),
            0);
  double most_moved = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& one = cases[i];
    std::ifstream file(folder / StrCat(i, ".raw"), std::ios::binary);
    const std::string reference{std::istreambuf_iterator<char>(file), {}};
    if (one.bins > 0) {
      double magnitude = 0;
      ASSERT_EQ(reference.size(), sizeof(magnitude));
      std::memcpy(&magnitude, reference.data(), sizeof(magnitude));
      EXPECT_NEAR(one.magnitude, magnitude, 1e-5 * std::max(1.0, magnitude)) << one.op << " " << one.bin;
      continue;
    }
    Picture ours = scene, scratch;
    // The reference read what was printed.
    ApplyAugment(one.op, std::strtod(StrCat(one.magnitude).c_str(), nullptr), 7, &ours, &scratch);
    ASSERT_EQ(reference.size(), ours.pixels.size()) << one.op;
    uint64_t sum = 0;
    size_t other = 0;
    for (size_t p = 0; p < reference.size(); ++p) {
      const int difference = std::abs(int{ours.pixels[p]} - int{static_cast<uint8_t>(reference[p])});
      sum += static_cast<uint64_t>(difference);
      other += difference > 0 ? 1 : 0;
    }
    const double mean = static_cast<double>(sum) / static_cast<double>(reference.size());
    const double moved = static_cast<double>(other) / static_cast<double>(reference.size());
    if (IsGeometry(one.op)) {
      most_moved = std::max(most_moved, moved);
      EXPECT_LE(moved, 0.005) << one.op << " " << one.magnitude;  // borders between two pixels
    } else {
      EXPECT_LE(mean, one.op == "Color" ? 0.15 : 0.05) << one.op << " " << one.magnitude;  // roundings
    }
  }
  std::printf("at most %.3f %% of the pixels come from a neighbour\n", 100 * most_moved);
  fs::remove_all(folder);
}

TEST(RandAugmentTest, IsAFunctionOfItsDraws) {
  const Picture scene = Scene(3);
  const auto augmented = [&](uint64_t key, uint32_t num_ops) {
    CounterRng rng(key, RngPurpose::kTransform);
    Picture picture = scene, scratch;
    RandAugment(num_ops, 9, 31, 0, &rng, &picture, &scratch);
    EXPECT_EQ(picture.pixels.size(), scene.pixels.size());
    return picture.pixels;
  };
  EXPECT_EQ(augmented(3, 2), augmented(3, 2));
  EXPECT_EQ(augmented(3, 0), scene.pixels);
  int changed = 0;
  for (uint64_t key = 0; key < 50; ++key) changed += augmented(key, 2) != scene.pixels ? 1 : 0;
  EXPECT_GT(changed, 40);
}

TEST(RandAugmentTest, GreyAndTinyPicturesAreAugmentedToo) {
  for (const auto& [height, width] : {std::pair{1u, 1u}, {2u, 5u}, {7u, 3u}}) {
    for (const std::string_view op : kAugmentOps) {
      Picture picture{1, height, width, std::vector<uint8_t>(height * width, 40), {}}, scratch;
      ApplyAugment(op, AugmentMagnitude(op, 30, 31, height, width), 9, &picture, &scratch);
      EXPECT_EQ(picture.pixels.size(), height * width) << op;
    }
  }
}

TEST(RandAugmentTest, IsATransformOfTheList) {
  const auto transforms = Transforms::Create({{"rand_augment", {{"num_ops", {3}}}}}, 4);
  ASSERT_TRUE(transforms.ok()) << transforms.status();
  Picture picture = Scene(3), scratch;
  const VisibleRect visible = transforms->Apply(1, 2, &picture, &scratch);
  EXPECT_EQ(visible, (VisibleRect{0, 0, kHeight, kWidth}));
  EXPECT_NE(picture.pixels, Scene(3).pixels);
  EXPECT_FALSE(Transforms::Create({{"rand_augment", {{"magnitude", {31}}}}}, 4).ok());
}

}  // namespace
}  // namespace distill
