#include "student_worker/data/dataset.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "student_worker/data/loaded_split.h"
#include "student_worker/data/sampler.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

class MemoryDataset : public Dataset {
 public:
  MemoryDataset(uint32_t channels, uint32_t height, uint32_t width, uint32_t classes, std::vector<uint8_t> pixels,
                std::vector<int64_t> labels)
      : channels_(channels), height_(height), width_(width), classes_(classes), pixels_(std::move(pixels)), labels_(std::move(labels)) {}

  uint64_t size() const override { return labels_.size(); }
  uint32_t channels() const override { return channels_; }
  uint32_t height() const override { return height_; }
  uint32_t width() const override { return width_; }
  uint32_t classes() const override { return classes_; }
  void CopyImage(uint64_t index, uint8_t* out) const override {
    std::memcpy(out, pixels_.data() + index * image_bytes(), image_bytes());
  }
  int64_t label(uint64_t index) const override { return labels_[index]; }

 private:
  const uint32_t channels_, height_, width_, classes_;
  const std::vector<uint8_t> pixels_;  // [N, C, H, W]
  const std::vector<int64_t> labels_;
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

// Some of another data set's images.
class DatasetPart : public Dataset {
 public:
  DatasetPart(std::shared_ptr<const Dataset> whole, std::vector<uint32_t> ids)
      : whole_(std::move(whole)), ids_(std::move(ids)) {}
  uint64_t size() const override { return ids_.size(); }
  uint32_t channels() const override { return whole_->channels(); }
  uint32_t height() const override { return whole_->height(); }
  uint32_t width() const override { return whole_->width(); }
  uint32_t classes() const override { return whole_->classes(); }
  void CopyImage(uint64_t index, uint8_t* out) const override { whole_->CopyImage(ids_[index], out); }
  int64_t label(uint64_t index) const override { return whole_->label(ids_[index]); }

 private:
  const std::shared_ptr<const Dataset> whole_;  // shared by both parts
  const std::vector<uint32_t> ids_;
};

// Two data sets of one shape, one after the other.
class JoinedDataset : public Dataset {
 public:
  JoinedDataset(std::shared_ptr<const Dataset> first, std::shared_ptr<const Dataset> second)
      : first_(std::move(first)), second_(std::move(second)), border_(first_->size()) {}
  uint64_t size() const override { return border_ + second_->size(); }
  uint32_t channels() const override { return first_->channels(); }
  uint32_t height() const override { return first_->height(); }
  uint32_t width() const override { return first_->width(); }
  uint32_t classes() const override { return first_->classes(); }
  void CopyImage(uint64_t index, uint8_t* out) const override {
    index < border_ ? first_->CopyImage(index, out) : second_->CopyImage(index - border_, out);
  }
  int64_t label(uint64_t index) const override {
    return index < border_ ? first_->label(index) : second_->label(index - border_);
  }

 private:
  const std::shared_ptr<const Dataset> first_, second_;  // shared with the stages that draw from one of them
  const uint64_t border_;
};

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
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' leads out of the data root '", real_root.string(),
                                                   "'; give a path inside it or start the student with another data root"));
  }
  if (!fs::exists(real, error)) {
    return absl::NotFoundError(
        absl::StrCat("'", real.string(), "' does not exist; correct data.path or start the student with another data root"));
  }
  return real.string();
}

StatusOr<std::shared_ptr<const Dataset>> MakeMemoryDataset(uint32_t channels, uint32_t height, uint32_t width, uint32_t classes,
                                                           std::vector<uint8_t> pixels, std::vector<int64_t> labels) {
  const uint64_t image_bytes = uint64_t{channels} * height * width;
  if (labels.empty() || image_bytes == 0) return absl::InvalidArgumentError("a data set needs at least one image of at least one pixel");
  if (labels.size() > UINT32_MAX || pixels.size() / image_bytes != labels.size() || pixels.size() % image_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(pixels.size(), " bytes of pixels are not ", labels.size(), " images of shape ",
                                                   Shape(channels, height, width)));
  }
  const bool unlabelled = labels[0] == kNoLabel;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (unlabelled ? labels[i] != kNoLabel : labels[i] < 0 || labels[i] >= classes) {
      return absl::InvalidArgumentError(absl::StrCat("label ", labels[i], " of image ", i, " is not in [0, ", classes, ")"));
    }
  }
  return std::make_shared<const MemoryDataset>(channels, height, width, classes, std::move(pixels), std::move(labels));
}

StatusOr<HeldOutSplit> HoldOut(std::shared_ptr<const Dataset> whole, uint64_t count, uint64_t seed) {
  if (count >= whole->size()) {
    return absl::InvalidArgumentError(absl::StrCat("data.holdout is ", count, ", but there are only ", whole->size(),
                                                   " training images; hold out fewer"));
  }
  std::vector<bool> held(whole->size(), false);
  for (const uint32_t id : SubsetOrder(seed, whole->size(), count)) held[id] = true;
  std::vector<uint32_t> train, held_out;
  for (uint32_t id = 0; id < held.size(); ++id) (held[id] ? held_out : train).push_back(id);
  return HeldOutSplit{std::make_shared<const DatasetPart>(whole, std::move(train)),
                      std::make_shared<const DatasetPart>(whole, std::move(held_out))};
}

StatusOr<TrainingImages> PrepareTrainingImages(const DataSplits& splits, uint64_t holdout, uint64_t seed) {
  TrainingImages images;
  images.labelled = splits.train;
  std::shared_ptr<const Dataset> unlabelled = splits.unlabelled;
  if (holdout > 0) {
    std::shared_ptr<const Dataset>* const from = images.labelled != nullptr ? &images.labelled : &unlabelled;
    DISTILL_ASSIGN_OR_RETURN(HeldOutSplit parts, HoldOut(*from, holdout, seed));
    *from = std::move(parts.train);
    images.held_out = std::move(parts.held_out);
  }
  if (images.labelled == nullptr) {
    images.all = std::move(unlabelled);
  } else if (unlabelled == nullptr) {
    images.all = images.labelled;
  } else {
    images.all = std::make_shared<const JoinedDataset>(images.labelled, std::move(unlabelled));
  }
  return images;
}

StatusOr<std::shared_ptr<const Dataset>> ImagesOfStage(const TrainingImages& images, const StagePlan& stage,
                                                       uint32_t batch_size) {
  const auto refuse = [&](const std::string& text) {
    return absl::InvalidArgumentError(absl::StrCat("stage '", stage.name, "' ", text));
  };
  if (stage.unlabelled_ok && stage.uses_labels) return refuse("reads labels and may not use images without them");
  if (stage.steps == 0) return images.all;
  if (!stage.unlabelled_ok && images.labelled == nullptr) {
    return refuse(stage.uses_labels
                      ? "reads labels, but no training image has one; add images with labels to the training data, or "
                        "leave the stage out"
                      : "may use images with labels only, but no training image has one; allow it the others: "
                        "unlabelled_ok: true");
  }
  std::shared_ptr<const Dataset> chosen = stage.unlabelled_ok ? images.all : images.labelled;
  if (chosen->size() < batch_size) {
    return refuse(absl::StrCat("has ", chosen->size(), " training images", stage.unlabelled_ok ? "" : " with labels",
                               ", fewer than a batch of ", batch_size, "; lower batch_size or raise data.train_limit"));
  }
  return chosen;
}

StatusOr<DataSplits> OpenDataset(const DataPlan& plan, const std::string& data_root, uint64_t seed, uint32_t num_classes) {
  if (plan.format != "idx" && plan.format != "image_folder") {
    return absl::InvalidArgumentError(absl::StrCat("unknown data.format '", plan.format, "'; known: idx, image_folder"));
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string folder, ResolveBelow(data_root, plan.path));
  const SubsetFunction train_subset = FirstOfShuffle(seed, plan.train_limit);
  const SubsetFunction test_subset = FirstOfShuffle(0, plan.test_limit);
  const SubsetFunction everything = FirstOfShuffle(0, 0);
  const bool has_unlabelled = !plan.unlabelled.empty();
  const SplitKind train_kind = has_unlabelled ? SplitKind::kLabelledOrMissing : SplitKind::kLabelled;
  LoadedSplit train, test, unlabelled;
  if (plan.format == "idx") {
    DISTILL_ASSIGN_OR_RETURN(train, ReadIdxSplit(data_root, folder, "train", train_kind, train_subset, num_classes));
    DISTILL_ASSIGN_OR_RETURN(test,
                             ReadIdxSplit(data_root, folder, "t10k", SplitKind::kLabelled, test_subset, num_classes));
    if (has_unlabelled) {
      DISTILL_ASSIGN_OR_RETURN(unlabelled, ReadIdxSplit(data_root, folder, plan.unlabelled, SplitKind::kUnlabelled,
                                                        everything, num_classes));
    }
  } else {
    DISTILL_ASSIGN_OR_RETURN(train, ReadImageFolderSplit(data_root, folder, "train", train_kind, train_subset));
    DISTILL_ASSIGN_OR_RETURN(test, ReadImageFolderSplit(data_root, folder, "test", SplitKind::kLabelled, test_subset));
    if (has_unlabelled) {
      DISTILL_ASSIGN_OR_RETURN(
          unlabelled, ReadImageFolderSplit(data_root, folder, plan.unlabelled, SplitKind::kUnlabelled, everything));
    }
    if (train.labels.empty()) train.class_names = test.class_names;
    if (train.class_names != test.class_names) {
      return absl::FailedPreconditionError(absl::StrCat("the class folders of train and test in '", folder, "' differ (",
                                                        train.class_names.size(), " and ", test.class_names.size(), " classes)"));
    }
    if (num_classes > 0 && train.class_names.size() > num_classes) {
      return absl::InvalidArgumentError(absl::StrCat("'", folder, "' has ", train.class_names.size(), " class folders, the student ",
                                                     num_classes, " classes; set num_classes"));
    }
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
  if (train.pixels.size() + test.pixels.size() + unlabelled.pixels.size() > kMaxDatasetBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the images in '", folder, "' take over ", kMaxDatasetBytes, " bytes; use data.train_limit"));
  }
  uint32_t classes = num_classes;
  if (classes == 0) {
    classes = train.class_names.size();
    for (const LoadedSplit* split : {&train, &test}) {
      for (int64_t label : split->labels) classes = std::max<uint32_t>(classes, label + 1);
    }
  }
  DataSplits splits;
  for (const auto& [split, out] :
       {std::pair{&train, &splits.train}, {&test, &splits.test}, {&unlabelled, &splits.unlabelled}}) {
    if (split->labels.empty()) continue;
    DISTILL_ASSIGN_OR_RETURN(*out, MakeMemoryDataset(split->channels, split->height, split->width, classes,
                                                     std::move(split->pixels), std::move(split->labels)));
  }
  LogInfo("data loaded", {{"folder", folder},
                          {"train", splits.train == nullptr ? 0 : splits.train->size()},
                          {"unlabelled", splits.unlabelled == nullptr ? 0 : splits.unlabelled->size()},
                          {"test", splits.test->size()},
                          {"classes", classes}});
  return splits;
}

Status CheckDatasetFits(const Dataset& dataset, const ModelSpec& student) {
  if (dataset.channels() != student.in_channels || dataset.height() != student.image_height || dataset.width() != student.image_width) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data's images have shape ", Shape(dataset.channels(), dataset.height(), dataset.width()), ", the student takes ",
                     Shape(student.in_channels, student.image_height, student.image_width),
                     "; set in_channels and image size of the student to those of the data"));
  }
  if (dataset.classes() > student.num_classes) {
    return absl::InvalidArgumentError(absl::StrCat("the data has ", dataset.classes(), " classes, the student's head ",
                                                   student.num_classes, "; set num_classes"));
  }
  return OkStatus();
}

}  // namespace distill
