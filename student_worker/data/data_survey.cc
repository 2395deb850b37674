#include "student_worker/data/data_survey.h"

#include <algorithm>
#include <cmath>

namespace distill {

std::vector<double> SplitSurvey::Mean() const {
  std::vector<double> mean;
  for (const uint64_t sum : sums) mean.push_back(static_cast<double>(sum) / static_cast<double>(pixels) / 255);
  return mean;
}

std::vector<double> SplitSurvey::Std() const {
  const std::vector<double> mean = Mean();
  std::vector<double> deviation;
  for (size_t c = 0; c < mean.size(); ++c) {
    const double square = static_cast<double>(square_sums[c]) / static_cast<double>(pixels) / 255 / 255;
    deviation.push_back(std::sqrt(std::max(0.0, square - mean[c] * mean[c])));
  }
  return deviation;
}

void DataSurvey::Add(const std::string& split, int64_t label, const Picture& picture) {
  std::vector<uint64_t> sums(picture.channels), square_sums(picture.channels);
  std::array<uint64_t, 256> ids = {};
  for (uint32_t c = 0; c < picture.channels; ++c) {
    std::array<uint64_t, 256> counts = {};
    const uint8_t* const plane = picture.pixels.data() + c * picture.plane();
    for (uint64_t i = 0; i < picture.plane(); ++i) ++counts[plane[i]];
    for (uint64_t value = 0; value < counts.size(); ++value) {
      sums[c] += value * counts[value];
      square_sums[c] += value * value * counts[value];
    }
  }
  for (const uint8_t id : picture.label_map) ++ids[id];
  absl::MutexLock lock(&mutex_);
  SplitSurvey& to = splits_[split];
  ++to.images;
  ++to.sizes[{picture.height, picture.width}];
  ++to.images_of_class[label];
  to.pixels += picture.plane();
  to.sums.resize(picture.channels);
  to.square_sums.resize(picture.channels);
  for (uint32_t c = 0; c < picture.channels; ++c) {
    to.sums[c] += sums[c];
    to.square_sums[c] += square_sums[c];
  }
  for (size_t id = 0; id < ids.size(); ++id) to.pixels_of_class[id] += ids[id];
}

void DataSurvey::SetClassNames(const std::string& split, std::vector<std::string> names) {
  absl::MutexLock lock(&mutex_);
  const auto found = splits_.find(split);
  if (found != splits_.end()) found->second.class_names = std::move(names);
}

void DataSurvey::SetReport(std::vector<std::string> mistakes, std::vector<std::string> warnings) {
  absl::MutexLock lock(&mutex_);
  mistakes_ = std::move(mistakes);
  warnings_ = std::move(warnings);
}

std::map<std::string, SplitSurvey> DataSurvey::splits() const {
  absl::MutexLock lock(&mutex_);
  return splits_;
}

std::vector<std::string> DataSurvey::mistakes() const {
  absl::MutexLock lock(&mutex_);
  return mistakes_;
}

std::vector<std::string> DataSurvey::warnings() const {
  absl::MutexLock lock(&mutex_);
  return warnings_;
}

}  // namespace distill
