#include "student_worker/data/training_images.h"

#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/sampler.h"

namespace distill {
namespace {

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
  int64_t label(uint64_t index) const override { return whole_->label(ids_[index]); }
  bool has_label_maps() const override { return whole_->has_label_maps(); }
  std::string Where(uint64_t index) const override { return whole_->Where(ids_[index]); }
  Status Read(uint64_t index, Picture* out) const override { return whole_->Read(ids_[index], out); }
  Status ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const override {
    return whole_->ReadPart(ids_[index], choose, out, part);
  }

 private:
  const std::shared_ptr<const Dataset> whole_;  // shared by both parts
  const std::vector<uint32_t> ids_;
};

// Two data sets, one after the other.
class JoinedDataset : public Dataset {
 public:
  JoinedDataset(std::shared_ptr<const Dataset> first, std::shared_ptr<const Dataset> second)
      : first_(std::move(first)), second_(std::move(second)), border_(first_->size()) {}
  uint64_t size() const override { return border_ + second_->size(); }
  uint32_t channels() const override { return first_->channels(); }
  uint32_t height() const override { return one_size() ? first_->height() : 0; }
  uint32_t width() const override { return one_size() ? first_->width() : 0; }
  uint32_t classes() const override { return first_->classes(); }
  int64_t label(uint64_t index) const override {
    return index < border_ ? first_->label(index) : second_->label(index - border_);
  }
  // Only when every image has one: images with label maps joined by others are images without.
  bool has_label_maps() const override { return first_->has_label_maps() && second_->has_label_maps(); }
  std::string Where(uint64_t index) const override {
    return index < border_ ? first_->Where(index) : second_->Where(index - border_);
  }
  Status Read(uint64_t index, Picture* out) const override {
    DISTILL_RETURN_IF_ERROR(index < border_ ? first_->Read(index, out) : second_->Read(index - border_, out));
    if (!has_label_maps()) out->label_map.clear();
    return OkStatus();
  }
  Status ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const override {
    DISTILL_RETURN_IF_ERROR(index < border_ ? first_->ReadPart(index, choose, out, part)
                                            : second_->ReadPart(index - border_, choose, out, part));
    out->label_map.clear();
    return OkStatus();
  }

 private:
  bool one_size() const { return first_->height() == second_->height() && first_->width() == second_->width(); }

  const std::shared_ptr<const Dataset> first_, second_;  // shared with the stages that draw from one of them
  const uint64_t border_;
};

}  // namespace

StatusOr<HeldOutSplit> HoldOut(std::shared_ptr<const Dataset> whole, uint64_t count, uint64_t seed) {
  if (count >= whole->size()) {
    return absl::InvalidArgumentError(
        StrCat("data.holdout is ", count, ", but there are only ", whole->size(), " training images; hold out fewer"));
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
    return absl::InvalidArgumentError(StrCat("stage '", stage.name, "' ", text));
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
    return refuse(StrCat("has ", chosen->size(), " training images", stage.unlabelled_ok ? "" : " with labels",
                         ", fewer than a batch of ", batch_size, "; lower batch_size or raise data.train_limit"));
  }
  return chosen;
}

}  // namespace distill
