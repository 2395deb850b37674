#include "student_worker/data/transforms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/colour.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

std::vector<uint8_t> OneTo(size_t n) {
  std::vector<uint8_t> image(n);
  std::iota(image.begin(), image.end(), 1);
  return image;
}

struct Seen {
  Picture picture;
  VisibleRect visible;
};

Seen See(const std::vector<TransformPlan>& plans, uint64_t seed, uint64_t epoch, uint64_t id, Picture picture) {
  const auto transforms = Transforms::Create(plans, seed);
  EXPECT_TRUE(transforms.ok()) << transforms.status();
  Picture scratch;
  const VisibleRect visible = transforms->Apply(epoch, id, &picture, &scratch);
  return {std::move(picture), visible};
}

TransformPlan PadCrop(double padding) { return {"pad_crop", {{"padding", {padding}}}}; }
const TransformPlan kFlip{"horizontal_flip", {}};

// Noise with some structure: gradients, edges and a pattern of its own in each channel.
Picture Scene(uint32_t channels, uint32_t height, uint32_t width) {
  Picture picture{channels, height, width, {}, {}};
  uint32_t state = 12345;
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t y = 0; y < height; ++y) {
      for (uint32_t x = 0; x < width; ++x) {
        state = state * 1664525 + 1013904223;
        const uint32_t value =
            (x * (c + 1) * 255 / width + y * 128 / height + ((x / 7 + y / 5) % 2) * 60 + (state >> 27));
        picture.pixels.push_back(static_cast<uint8_t>(std::min(value, 255u)));
      }
    }
  }
  return picture;
}

// The golden values of this file were computed by a separate program in Python from the headers' definitions. Shape
// [2, 3, 4], padding 1, then a flip.
TEST(TransformsTest, MatchGoldenValues) {
  const std::vector<std::vector<uint8_t>> golden = {
      {0, 0, 0, 0, 2, 3, 4, 0, 6, 7, 8, 0, 0, 0, 0, 0, 14, 15, 16, 0, 18, 19, 20, 0},
      {0, 5, 6, 7, 0, 9, 10, 11, 0, 0, 0, 0, 0, 17, 18, 19, 0, 21, 22, 23, 0, 0, 0, 0},
      {5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 17, 18, 19, 20, 21, 22, 23, 24, 0, 0, 0, 0},
      {0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 0, 0, 0, 0, 16, 15, 14, 13, 20, 19, 18, 17},  // flipped
      {0, 0, 0, 0, 3, 2, 1, 0, 7, 6, 5, 0, 0, 0, 0, 0, 15, 14, 13, 0, 19, 18, 17, 0},    // flipped
      {0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 13, 14, 15, 16, 17, 18, 19, 20},
  };
  for (uint64_t id = 0; id < golden.size(); ++id) {
    EXPECT_EQ(See({PadCrop(1), kFlip}, 11, 2, id, {2, 3, 4, OneTo(24), {}}).picture.pixels, golden[id]) << id;
  }
}

TEST(TransformsTest, HundredImagesMatchGoldenHash) {
  Picture image{3, 32, 32, std::vector<uint8_t>(3 * 32 * 32), {}};
  for (size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = static_cast<uint8_t>(i * 31 + 7);
  uint64_t hash = 0xCBF29CE484222325ull;
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    for (uint64_t id = 0; id < 50; ++id) {
      for (uint8_t byte : See({PadCrop(4), kFlip}, 3, epoch, id, image).picture.pixels) {
        hash = (hash ^ byte) * 0x100000001B3ull;
      }
    }
  }
  EXPECT_EQ(hash, 0x1EECB128806F64A5ull);
}

TEST(TransformsTest, ResizedCropsMatchGoldenValues) {
  const std::vector<CropRect> golden = {{43, 22, 57, 56}, {1, 15, 97, 121}, {40, 66, 52, 45}, {24, 34, 70, 57}};
  for (uint64_t id = 0; id < golden.size(); ++id) {
    CounterRng rng(CounterRng::Mix(7 + CounterRng::kGamma), RngPurpose::kTransform, 3, id);
    EXPECT_EQ(DrawResizedCrop(&rng, 100, 150, {0.08, 1}, {0.75, 4.0 / 3}), golden[id]) << id;
  }
  // No part of a picture of one row has the ratio: the middle, as near to it as can be.
  CounterRng rng(1, RngPurpose::kTransform);
  EXPECT_EQ(DrawResizedCrop(&rng, 1, 100, {0.5, 1}, {0.75, 4.0 / 3}), (CropRect{0, 49, 1, 1}));
}

// Padding is 0 and OneTo holds no 0: the visible part is what is not 0, and a label map that is the image lies where
// the image does.
TEST(TransformsTest, LabelMapsAndTheVisibleRectMoveWithThePicture) {
  for (const std::vector<TransformPlan>& plans : {std::vector<TransformPlan>{},
                                                  {PadCrop(3), kFlip},
                                                  {PadCrop(2)},
                                                  {kFlip},
                                                  {PadCrop(100), kFlip},
                                                  {{"random_crop", {{"size", {3, 9}}}}},
                                                  {{"center_crop", {{"size", {7}}}}, kFlip}}) {
    for (uint64_t id = 0; id < 200; ++id) {
      const Seen seen = See(plans, 9, 1, id, {1, 4, 6, OneTo(24), OneTo(24)});
      std::vector<uint8_t> expected = seen.picture.pixels;
      std::replace(expected.begin(), expected.end(), uint8_t{0}, kIgnoredPixel);
      ASSERT_EQ(seen.picture.label_map, expected) << "sample " << id;
      for (uint32_t y = 0; y < seen.picture.height; ++y) {
        for (uint32_t x = 0; x < seen.picture.width; ++x) {
          const VisibleRect& rect = seen.visible;
          const bool inside = y >= rect.top && y < rect.bottom && x >= rect.left && x < rect.right;
          ASSERT_EQ(seen.picture.pixels[y * seen.picture.width + x] != 0, inside) << "sample " << id;
        }
      }
    }
  }
}

TEST(TransformsTest, ResizingMovesLabelMapsAndTheVisibleRect) {
  // Left half 40 and class 1, right half 200 and class 2.
  Picture halves{1, 20, 40, std::vector<uint8_t>(800), std::vector<uint8_t>(800)};
  for (int i = 0; i < 800; ++i) {
    halves.pixels[i] = i % 40 < 20 ? 40 : 200;
    halves.label_map[i] = i % 40 < 20 ? 1 : 2;
  }
  for (uint64_t id = 0; id < 50; ++id) {
    const Seen seen =
        See({{"random_scale", {{"scale", {0.5, 2}}}}, {"random_crop", {{"size", {16, 24}}}}, kFlip}, 3, 0, id, halves);
    ASSERT_EQ(seen.picture.height, 16);
    ASSERT_EQ(seen.picture.width, 24);
    for (uint32_t y = 0; y < 16; ++y) {
      for (uint32_t x = 0; x < 24; ++x) {
        const uint8_t label = seen.picture.label_map[y * 24 + x], value = seen.picture.pixels[y * 24 + x];
        const VisibleRect& rect = seen.visible;
        const bool inside = y >= rect.top && y < rect.bottom && x >= rect.left && x < rect.right;
        ASSERT_EQ(label != kIgnoredPixel, inside) << id << ": " << y << ", " << x;
        if (label == 1) {
          ASSERT_LT(value, 125) << id;
        }
        if (label == 2) {
          ASSERT_GT(value, 115) << id;
        }
      }
    }
  }
  // A wide picture in a square one: bars above and below.
  const Seen fitted = See({{"resize", {{"size", {32, 32}}, {"fit", {1}}, {"fill", {7}}}}}, 0, 0, 0, halves);
  EXPECT_EQ(fitted.visible, (VisibleRect{8, 0, 24, 32}));
  EXPECT_EQ(fitted.picture.pixels[0], 7);
  EXPECT_EQ(fitted.picture.label_map[0], kIgnoredPixel);
  EXPECT_EQ(fitted.picture.label_map[8 * 32], 1);
  const Seen short_side = See({{"resize", {{"size", {10}}}}, {"center_crop", {{"size", {10, 12}}}}}, 0, 0, 0, halves);
  EXPECT_EQ(short_side.picture.label_map[5], 1);
  EXPECT_EQ(short_side.picture.label_map[6], 2);
}

TEST(TransformsTest, EachDrawsForItself) {
  for (uint64_t id = 0; id < 50; ++id) {
    const Picture image{1, 4, 6, OneTo(24), {}};
    const Picture plain = See({PadCrop(2)}, 5, 0, id, image).picture;
    std::vector<uint8_t> mirrored = plain.pixels;
    for (int y = 0; y < 4; ++y) std::reverse(mirrored.begin() + y * 6, mirrored.begin() + (y + 1) * 6);
    EXPECT_THAT(See({PadCrop(2), kFlip}, 5, 0, id, image).picture.pixels, ::testing::AnyOf(plain.pixels, mirrored));
    EXPECT_EQ(See({PadCrop(2), {"horizontal_flip", {{"p", {1}}}}}, 5, 0, id, image).picture.pixels, mirrored);
    EXPECT_EQ(See({PadCrop(2), {"horizontal_flip", {{"p", {0}}}}}, 5, 0, id, image).picture.pixels, plain.pixels);
  }
}

TEST(TransformsTest, AllOfThemGiveTheSizeTheyAnnounceFromPicturesOfAnySize) {
  const std::vector<std::vector<TransformPlan>> lists = {
      {{"random_resized_crop", {{"size", {8, 12}}}},
       kFlip,
       {"color_jitter", {{"brightness", {0.4}}, {"contrast", {0.4}}, {"saturation", {0.4}}, {"hue", {0.1}}}},
       {"gray", {{"p", {0.5}}}},
       {"gaussian_blur", {}},
       {"random_erasing", {{"p", {1}}}},
       PadCrop(3)},
      {{"random_scale", {}}, {"random_crop", {{"size", {8, 12}}}}},
      {{"resize", {{"size", {9}}}}, {"center_crop", {{"size", {8, 12}}}}},
      {{"resize", {{"size", {8, 12}}, {"fit", {1}}}}},
      {{"resize", {{"size", {8, 12}}}}}};
  for (const auto& list : lists) {
    const TransformedSize size = Transforms::Create(list, 1)->size();
    EXPECT_TRUE(size.any);
    uint64_t id = 0;
    for (const uint32_t channels : {1u, 3u}) {
      for (const auto& [height, width] : {std::pair{1u, 1u}, {1u, 70u}, {70u, 1u}, {9u, 8u}, {33u, 47u}, {8u, 12u}}) {
        Picture scene = Scene(channels, height, width);
        scene.label_map.assign(scene.plane(), 3);
        const Seen seen = See(list, 1, 2, id, scene);
        EXPECT_EQ(seen.picture.height, size.height);
        EXPECT_EQ(seen.picture.width, size.width);
        EXPECT_EQ(seen.picture.pixels.size(), channels * 8 * 12);
        EXPECT_EQ(seen.picture.label_map.size(), 8 * 12);
        EXPECT_EQ(See(list, 1, 2, id++, scene).picture.pixels, seen.picture.pixels);
      }
    }
  }
}

TEST(TransformsTest, ErasingPaintsARectangleAndLeavesLabels) {
  int erased = 0;
  for (uint64_t id = 0; id < 100; ++id) {
    const Picture image{1, 20, 20, std::vector<uint8_t>(400, 9), std::vector<uint8_t>(400, 2)};
    const Seen seen = See({{"random_erasing", {{"fill", {200}}}}}, 1, 0, id, image);
    EXPECT_EQ(seen.picture.label_map, image.label_map);
    const auto count = std::count(seen.picture.pixels.begin(), seen.picture.pixels.end(), 200);
    erased += count > 0;
    EXPECT_LE(count, 0.4 * 400);
  }
  EXPECT_GT(erased, 30);
  EXPECT_LT(erased, 70);
}

TEST(TransformsTest, WrongPlansAreRefused) {
  EXPECT_THAT(std::string(Transforms::Create({{"blur", {}}}, 0).status().message()), HasSubstr("unknown transform"));
  EXPECT_THAT(std::string(Transforms::Create({{"random_scale", {}}}, 0).status().message()),
              HasSubstr("random_scale leaves pictures of many sizes"));
}

// ---- Against Pillow and torchvision, with the same parameters

// Largest and mean difference of two sets of pixels.
struct Difference {
  int worst = 0;
  double mean = 0;
};
Difference Compare(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  Difference difference;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const int here = std::abs(int{a[i]} - int{b[i]});
    difference.worst = std::max(difference.worst, here);
    difference.mean += here;
  }
  difference.mean /= static_cast<double>(a.size());
  return difference;
}

TEST(TransformsTest, AgreeWithPillowAndTorchvision) {
  if (!std::filesystem::exists(DISTILL_TEST_PYTHON)) GTEST_SKIP() << "no " << DISTILL_TEST_PYTHON;
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / StrCat("distill_transforms_", getpid());
  std::filesystem::create_directories(folder);
  struct Case {
    std::string what;  // as reference_transforms.py reads it
    double mean;       // the largest mean difference, in grey levels
    std::function<Picture(const Picture&)> ours;
  };
  const auto resize = [](CropRect crop, uint32_t height, uint32_t width) {
    return [=](const Picture& in) {
      Picture out;
      ResizeCrop(in, crop, height, width, &out);
      return out;
    };
  };
  const auto change = [](auto function, double by) {
    return [=](const Picture& in) {
      Picture out = in;
      function(by, &out);
      return out;
    };
  };
  const std::vector<Case> cases = {
      {"resize 0 0 61 83 24 40", 0, resize({0, 0, 61, 83}, 24, 40)},
      {"resize 5 11 50 60 24 24", 0, resize({5, 11, 50, 60}, 24, 24)},
      {"resize 7 3 20 30 64 96", 0, resize({7, 3, 20, 30}, 64, 96)},
      {"resize 1 2 40 24 40 60", 0, resize({1, 2, 40, 24}, 40, 60)},
      {"resize 1 2 30 50 10 50", 0, resize({1, 2, 30, 50}, 10, 50)},
      {"nearest 5 11 50 60 24 36", 0, resize({5, 11, 50, 60}, 24, 36)},
      {"nearest 5 11 20 30 64 70", 0, resize({5, 11, 20, 30}, 64, 70)},
      {"brightness 1.37", 0, change(AdjustBrightness, 1.37)},
      {"brightness 0.6", 0, change(AdjustBrightness, 0.6)},
      {"contrast 1.4", 0.05, change(AdjustContrast, 1.4)},
      {"contrast 0.6", 0.05, change(AdjustContrast, 0.6)},
      {"saturation 1.4", 0.05, change(AdjustSaturation, 1.4)},
      {"saturation 0.3", 0.05, change(AdjustSaturation, 0.3)},
      {"hue 0.1", 0.05, change(AdjustHue, 0.1)},
      {"hue -0.37", 0.05, change(AdjustHue, -0.37)},
      {"gray", 0.05,
       [](const Picture& in) {
         Picture out = in;
         MakeGray(&out);
         return out;
       }},
      {"blur 23 1.3", 0.05,
       [](const Picture& in) {
         Picture out = in;
         GaussianBlur(23, 1.3, &out);
         return out;
       }},
      {"blur 5 0.4", 0.05,
       [](const Picture& in) {
         Picture out = in;
         GaussianBlur(5, 0.4, &out);
         return out;
       }},
  };
  Picture scene = Scene(3, 61, 83);
  scene.label_map.resize(scene.plane());
  for (size_t i = 0; i < scene.label_map.size(); ++i) scene.label_map[i] = static_cast<uint8_t>(i * 7 % 251);
  const auto write = [&](const char* name, const std::string& bytes) { std::ofstream(folder / name) << bytes; };
  write("scene.raw", std::string(scene.pixels.begin(), scene.pixels.end()));
  write("labels.raw", std::string(scene.label_map.begin(), scene.label_map.end()));
  std::string list;
  for (const Case& one : cases) StrAppend(&list, one.what, "\n");
  write("cases.txt", list);
  ASSERT_EQ(std::system(StrCat(DISTILL_TEST_PYTHON, " ", DISTILL_SOURCE_DIR,
                               "/tests/student_worker/data/reference_transforms.py ", folder.string(), " 61 83")
                            .c_str()),
            0);
  for (size_t i = 0; i < cases.size(); ++i) {
    std::ifstream file(folder / StrCat(i, ".raw"), std::ios::binary);
    const std::vector<uint8_t> reference{std::istreambuf_iterator<char>(file), {}};
    const Picture ours = cases[i].ours(scene);
    const bool labels = cases[i].what.starts_with("nearest");
    const Difference difference = Compare(labels ? ours.label_map : ours.pixels, reference);
    std::printf("%-28s mean difference %.4f, largest %d\n", cases[i].what.c_str(), difference.mean, difference.worst);
    EXPECT_LE(difference.mean, cases[i].mean) << cases[i].what;
    EXPECT_LE(difference.worst, cases[i].mean == 0 ? 0 : 2) << cases[i].what;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace distill
