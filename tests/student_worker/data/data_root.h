// What tests of data sets share: a data root in a temporary folder, and pictures to put there.
#ifndef DISTILL_TESTS_STUDENT_WORKER_DATA_DATA_ROOT_H_
#define DISTILL_TESTS_STUDENT_WORKER_DATA_DATA_ROOT_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "student_worker/data/dataset.h"

namespace distill::testing {

inline std::vector<uint8_t> Image(const Dataset& data, uint64_t index) {
  distill::Picture picture;
  EXPECT_TRUE(data.Read(index, &picture).ok());
  return picture.pixels;
}

inline std::vector<uint8_t> LabelMap(const Dataset& data, uint64_t index) {
  distill::Picture picture;
  EXPECT_TRUE(data.Read(index, &picture).ok());
  return picture.label_map;
}

// Smooth 8x8 pictures, [H, W, C]: JPEG keeps them within a few grey levels.
inline std::vector<uint8_t> Picture(int index, int channels) {
  std::vector<uint8_t> pixels;
  for (int y = 0; y < 8; ++y) {
    for (int x = 0; x < 8; ++x) {
      for (int c = 0; c < channels; ++c) pixels.push_back(static_cast<uint8_t>(20 * index + 4 * y + 2 * x + 30 * c));
    }
  }
  return pixels;
}

// Largest difference of an image [C, H, W] and one [H, W, C].
inline int WorstDifference(const std::vector<uint8_t>& chw, const std::vector<uint8_t>& hwc, int channels) {
  int worst = 0;
  const int plane = static_cast<int>(chw.size()) / channels;
  for (int i = 0; i < plane; ++i) {
    for (int c = 0; c < channels; ++c)
      worst = std::max(worst, std::abs(int{chw[c * plane + i]} - int{hwc[i * channels + c]}));
  }
  return worst;
}

// A data root of its own for each test, removed afterwards.
class DataRootTest : public ::testing::Test {
 protected:
  DataRootTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = info->name();  // of a parameterised test: with a slash
    std::replace(name.begin(), name.end(), '/', '_');
    base_ = std::filesystem::temp_directory_path() / ("distill_data_" + name + "_" + std::to_string(getpid()));
    std::filesystem::remove_all(base_);
    std::filesystem::create_directories(base_ / "root");
    root_ = (base_ / "root").string();
  }
  ~DataRootTest() override { std::filesystem::remove_all(base_); }

  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  StatusOr<DataSplits> Open(const DataPlan& plan, uint64_t seed = 1, uint32_t classes = 0) const {
    return OpenDataset(plan, root_, seed, {.classes = classes});
  }
  Status Error(const DataPlan& plan, uint32_t classes = 0) const { return Open(plan, 1, classes).status(); }

  std::filesystem::path base_;  // holds the root; what lies beside it is out of bounds
  std::string root_;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_STUDENT_WORKER_DATA_DATA_ROOT_H_
