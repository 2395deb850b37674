#include "student_worker/data/dataset.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/hash/sha256.h"
#include "common/log.h"
#include "student_worker/data/loaded_split.h"
#include "student_worker/data/sampler.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

class MemoryDataset : public Dataset {
 public:
  MemoryDataset(uint32_t channels, uint32_t height, uint32_t width, uint32_t classes, std::vector<uint8_t> pixels,
                std::vector<int64_t> labels, std::vector<uint8_t> label_maps)
      : channels_(channels),
        height_(height),
        width_(width),
        classes_(classes),
        pixels_(std::move(pixels)),
        labels_(std::move(labels)),
        label_maps_(std::move(label_maps)) {}

  uint64_t size() const override { return labels_.size(); }
  uint32_t channels() const override { return channels_; }
  uint32_t height() const override { return height_; }
  uint32_t width() const override { return width_; }
  uint32_t classes() const override { return classes_; }
  void CopyImage(uint64_t index, uint8_t* out) const override {
    std::memcpy(out, pixels_.data() + index * image_bytes(), image_bytes());
  }
  int64_t label(uint64_t index) const override { return labels_[index]; }
  bool has_label_maps() const override { return !label_maps_.empty(); }
  void CopyLabelMap(uint64_t index, uint8_t* out) const override {
    std::memcpy(out, label_maps_.data() + index * label_map_bytes(), label_map_bytes());
  }

 private:
  const uint32_t channels_, height_, width_, classes_;
  const std::vector<uint8_t> pixels_;  // [N, C, H, W]
  const std::vector<int64_t> labels_;
  const std::vector<uint8_t> label_maps_;  // [N, H, W], or empty
};

SubsetFunction FirstOfShuffle(uint64_t seed, uint64_t limit) {
  return [seed, limit](uint32_t size) {
    if (limit == 0 || limit >= size) {
      std::vector<uint32_t> all(size);
      for (uint32_t i = 0; i < size; ++i) all[i] = i;
      return all;
    }
    return SubsetOrder(seed, size, static_cast<uint32_t>(limit));
  };
}

std::string Shape(uint32_t channels, uint32_t height, uint32_t width) {
  return absl::StrCat("[", channels, ", ", height, ", ", width, "]");
}

// See DataSplits.digest.
std::string IndexDigest(const std::vector<std::pair<std::string, const LoadedSplit*>>& splits) {
  Sha256 hash;
  for (const auto& [name, split] : splits) {
    hash.Update(absl::StrCat("split ", name, " ", Shape(split->channels, split->height, split->width), "\n"));
    for (const std::string& class_name : split->class_names) hash.Update(absl::StrCat("class ", class_name, "\n"));
    for (const int64_t label : split->labels) hash.Update(absl::StrCat("image ", label, "\n"));
  }
  return hash.HexDigest();
}

// One more than the largest class that occurs.
uint32_t SmallestClassCount(const LoadedSplit& split) {
  uint32_t count = 0;
  for (const int64_t label : split.labels) count = std::max<uint32_t>(count, label + 1);
  for (const uint8_t id : split.label_maps) {
    if (id != kIgnoredPixel) count = std::max<uint32_t>(count, id + 1);
  }
  return count;
}

}  // namespace

StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path) {
  if (path.find('\0') != std::string::npos) return absl::InvalidArgumentError("the path holds a zero byte");
  std::error_code error;
  const fs::path real_root = fs::canonical(root, error);
  if (error) {
    return absl::NotFoundError(
        absl::StrCat("data root '", root, "': ", error.message(), "; start the student with a data root that exists"));
  }
  const fs::path joined = fs::path(path).is_absolute() ? fs::path(path) : real_root / path;
  const fs::path real = fs::weakly_canonical(joined, error);
  if (error) return absl::NotFoundError(absl::StrCat("'", joined.string(), "': ", error.message()));
  if (std::mismatch(real_root.begin(), real_root.end(), real.begin(), real.end()).first != real_root.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' leads out of the data root '", real_root.string(),
                     "'; give a path inside it or start the student with another data root"));
  }
  if (!fs::exists(real, error)) {
    return absl::NotFoundError(absl::StrCat(
        "'", real.string(), "' does not exist; correct data.path or start the student with another data root"));
  }
  return real.string();
}

StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width,
                                                           uint32_t classes, std::vector<uint8_t> pixels,
                                                           std::vector<int64_t> labels,
                                                           std::vector<uint8_t> label_maps) {
  const uint64_t image_bytes = uint64_t{channels} * height * width;
  if (labels.empty() || image_bytes == 0)
    return absl::InvalidArgumentError("a data set needs at least one image of at least one pixel");
  if (labels.size() > UINT32_MAX || pixels.size() / image_bytes != labels.size() || pixels.size() % image_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(pixels.size(), " bytes of pixels are not ", labels.size(),
                                                   " images of shape ", Shape(channels, height, width)));
  }
  const bool unlabelled = labels[0] == kNoLabel;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (unlabelled ? labels[i] != kNoLabel : labels[i] < 0 || labels[i] >= classes) {
      return absl::InvalidArgumentError(
          absl::StrCat("label ", labels[i], " of image ", i, " is not in [0, ", classes, ")"));
    }
  }
  if (!label_maps.empty()) {
    const uint64_t map_bytes = uint64_t{height} * width;
    if (!unlabelled) return absl::InvalidArgumentError("images have either labels or label maps, not both");
    if (label_maps.size() / map_bytes != labels.size() || label_maps.size() % map_bytes != 0) {
      return absl::InvalidArgumentError(absl::StrCat(label_maps.size(), " bytes of label maps are not ", labels.size(),
                                                     " of ", height, "x", width, " pixels"));
    }
    for (size_t i = 0; i < label_maps.size(); ++i) {
      if (label_maps[i] >= classes && label_maps[i] != kIgnoredPixel) {
        return absl::InvalidArgumentError(absl::StrCat("class id ", int{label_maps[i]}, " in the label map of image ",
                                                       i / map_bytes, " is not in [0, ", classes, ")"));
      }
    }
  }
  return std::make_shared<const MemoryDataset>(channels, height, width, classes, std::move(pixels), std::move(labels),
                                               std::move(label_maps));
}

StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed,
                                 uint32_t num_classes) {
  StatusOr<LoadedSplit> (*reader)(const SplitRequest&) = nullptr;
  if (plan.format == "idx") reader = ReadIdxSplit;
  if (plan.format == "image_folder") reader = ReadImageFolderSplit;
  if (plan.format == "segmentation_folder") reader = ReadSegmentationFolderSplit;
  if (reader == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown data.format '", plan.format, "'; known: idx, image_folder, segmentation_folder"));
  }
  if (plan.shrink == 0) return absl::InvalidArgumentError("data.shrink is 0; need 1 (as they are) or more");
  if (plan.ignore_label > kIgnoredPixel) {
    return absl::InvalidArgumentError(absl::StrCat("data.ignore_label is ", plan.ignore_label,
                                                   ", but label maps hold values of 0 to ", kIgnoredPixel));
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string folder, ResolveBelow(data_root, plan.path));
  SplitRequest request{.root = data_root,
                       .folder = folder,
                       .num_classes = num_classes,
                       .ignore_label = plan.ignore_label,
                       .shrink = plan.shrink};
  const auto read = [&](const std::string& name, SplitKind kind, SubsetFunction subset) -> StatusOr<LoadedSplit> {
    request.name = name;
    request.kind = kind;
    request.subset = std::move(subset);
    auto split = reader(request);
    if (split.ok()) request.max_bytes -= split->pixels.size() + split->label_maps.size();
    return split;
  };
  const bool has_unlabelled = !plan.unlabelled.empty();
  const SplitKind train_kind = has_unlabelled ? SplitKind::kLabelledOrMissing : SplitKind::kLabelled;
  DISTILL_ASSIGN_OR_RETURN(LoadedSplit train, read("train", train_kind, FirstOfShuffle(seed, plan.train_limit)));
  DISTILL_ASSIGN_OR_RETURN(LoadedSplit test, read("test", SplitKind::kLabelled, FirstOfShuffle(0, plan.test_limit)));
  LoadedSplit unlabelled;
  if (has_unlabelled) {
    DISTILL_ASSIGN_OR_RETURN(unlabelled, read(plan.unlabelled, SplitKind::kUnlabelled, FirstOfShuffle(0, 0)));
  }

  if (train.labels.empty()) train.class_names = test.class_names;
  if (train.class_names != test.class_names) {
    return absl::FailedPreconditionError(absl::StrCat("the class folders of train and test in '", folder, "' differ (",
                                                      train.class_names.size(), " and ", test.class_names.size(),
                                                      " classes)"));
  }
  if (num_classes > 0 && train.class_names.size() > num_classes) {
    return absl::InvalidArgumentError(absl::StrCat("'", folder, "' has ", train.class_names.size(),
                                                   " class folders, the student ", num_classes,
                                                   " classes; set num_classes"));
  }
  for (const auto& [name, split] :
       {std::pair<const char*, const LoadedSplit*>{"train", &train}, {"unlabelled", &unlabelled}}) {
    if (split->labels.empty()) continue;
    if (split->channels != test.channels || split->height != test.height || split->width != test.width) {
      return absl::FailedPreconditionError(absl::StrCat(
          name, " images in '", folder, "' have shape ", Shape(split->channels, split->height, split->width),
          ", test images ", Shape(test.channels, test.height, test.width)));
    }
  }
  uint32_t classes = num_classes;
  if (classes == 0) {
    classes = train.class_names.size();
    for (const LoadedSplit* split : {&train, &test}) classes = std::max(classes, SmallestClassCount(*split));
  }
  DataSplits splits;
  splits.digest = IndexDigest({{"train", &train}, {"test", &test}, {"unlabelled", &unlabelled}});
  for (const auto& [split, out] :
       {std::pair{&train, &splits.train}, {&test, &splits.test}, {&unlabelled, &splits.unlabelled}}) {
    if (split->labels.empty()) continue;
    DISTILL_ASSIGN_OR_RETURN(
        *out, MakeMemoryDataset(split->channels, split->height, split->width, classes, std::move(split->pixels),
                                std::move(split->labels), std::move(split->label_maps)));
  }
  LogInfo("data loaded", {{"folder", folder},
                          {"train", splits.train == nullptr ? 0 : splits.train->size()},
                          {"unlabelled", splits.unlabelled == nullptr ? 0 : splits.unlabelled->size()},
                          {"test", splits.test->size()},
                          {"classes", classes}});
  return splits;
}

Status CheckDatasetFits(const Dataset& dataset, const ModelSpec& student) {
  if (dataset.channels() != student.in_channels || dataset.height() != student.image_height ||
      dataset.width() != student.image_width) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data's images have shape ", Shape(dataset.channels(), dataset.height(), dataset.width()),
                     ", the student takes ", Shape(student.in_channels, student.image_height, student.image_width),
                     "; set in_channels and image size of the student to those of the data"));
  }
  if (dataset.classes() > student.num_classes) {
    return absl::InvalidArgumentError(absl::StrCat("the data has ", dataset.classes(), " classes, the student's head ",
                                                   student.num_classes, "; set num_classes"));
  }
  return OkStatus();
}

}  // namespace distill
