#include "student_worker/data/sample_reader.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/str_cat.h"

namespace distill {

StatusOr<std::shared_ptr<const SampleReader>> SampleReader::Create(Options options) {
  if (options.dataset == nullptr) return absl::InvalidArgumentError("samples are read from a data set; there is none");
  const Dataset& data = *options.dataset;
  const TransformedSize size = options.transforms.size();
  if (!size.any && data.height() == 0) {
    return absl::InvalidArgumentError(
        "the pictures have many sizes, and data.transforms does not bring them to one; add random_resized_crop for "
        "training, resize and center_crop for test images");
  }
  std::shared_ptr<SampleReader> reader(new SampleReader(std::move(options)));
  reader->height_ = size.any ? size.height : data.height();
  reader->width_ = size.any ? size.width : data.width();
  return std::shared_ptr<const SampleReader>(std::move(reader));
}

Status SampleReader::ReadOne(uint64_t id, uint64_t epoch, size_t place, Samples* out) const {
  // Kept from one picture to the next: the allocations of large ones cost more than small ones' transforms.
  thread_local Picture picture, scratch;
  const Dataset& data = dataset();
  uint8_t* const pixels = out->pixels.data() + place * image_bytes();
  uint8_t* const label_map = has_label_maps() ? out->label_maps.data() + place * label_map_bytes() : nullptr;
  // A part is all that is needed where the first transform takes one.
  const Transforms& transforms = options_.transforms;
  const bool takes_part = transforms.takes_part() && !has_label_maps();
  const PartChooser choose = [&](uint32_t height, uint32_t width) {
    return transforms.PartOf(epoch, id, height, width);
  };
  DecodedPart part;
  const auto read = [&](uint64_t index) {
    return takes_part ? data.ReadPart(index, choose, &picture, &part) : data.Read(index, &picture);
  };
  uint64_t source = id;
  Status status = read(source);
  for (uint64_t tried = 1; status.code() == StatusCode::kDataLoss && options_.bad_images != nullptr; ++tried) {
    DISTILL_RETURN_IF_ERROR(options_.bad_images->Note(data.Where(source), status));
    if (options_.rule == BadImageRule::kNoLabel) {
      std::fill(pixels, pixels + image_bytes(), uint8_t{0});
      if (label_map != nullptr) std::fill(label_map, label_map + label_map_bytes(), kIgnoredPixel);
      out->labels[place] = kNoLabel;
      out->visible[place] = {};
      return OkStatus();
    }
    if (tried == size()) break;
    source = (source + 1) % size();
    status = read(source);
  }
  DISTILL_RETURN_IF_ERROR(status);
  out->labels[place] = data.label(source);
  out->visible[place] = takes_part ? transforms.ApplyToPart(epoch, id, part.wanted, part.box, &picture, &scratch)
                                   : transforms.Apply(epoch, id, &picture, &scratch);
  if (picture.height != height_ || picture.width != width_ || picture.channels != channels()) {
    return absl::InternalError(StrCat("'", data.Where(source), "' became a picture of [", picture.channels, ", ",
                                      picture.height, ", ", picture.width, "], not of [", channels(), ", ", height_,
                                      ", ", width_, "]"));
  }
  std::copy(picture.pixels.begin(), picture.pixels.end(), pixels);
  if (label_map != nullptr) std::copy(picture.label_map.begin(), picture.label_map.end(), label_map);
  return OkStatus();
}

StatusOr<Samples> SampleReader::Read(std::span<const uint32_t> ids, uint64_t epoch) const {
  Samples samples;
  samples.pixels.resize(ids.size() * image_bytes());
  samples.labels.resize(ids.size());
  samples.visible.resize(ids.size());
  if (has_label_maps()) samples.label_maps.resize(ids.size() * label_map_bytes());
  if (options_.threads == nullptr) {
    for (size_t i = 0; i < ids.size(); ++i) DISTILL_RETURN_IF_ERROR(ReadOne(ids[i], epoch, i, &samples));
    return samples;
  }
  DISTILL_RETURN_IF_ERROR(
      options_.threads->ForEach(ids.size(), [&](size_t i) { return ReadOne(ids[i], epoch, i, &samples); }));
  return samples;
}

StatusOr<Samples> SampleReader::ReadRange(uint64_t begin, uint64_t n) const {
  std::vector<uint32_t> ids(n);
  std::iota(ids.begin(), ids.end(), static_cast<uint32_t>(begin));
  return Read(ids, 0);
}

StatusOr<SampleReaders> SampleReaders::Create(const JobPlan& plan, const DataSplits& splits) {
  SampleReaders readers;
  DISTILL_ASSIGN_OR_RETURN(readers.training_.transforms, Transforms::Create(plan.data.train_transforms, plan.seed));
  DISTILL_ASSIGN_OR_RETURN(readers.measuring_.transforms, Transforms::Create(plan.data.test_transforms, plan.seed));
  readers.training_.rule = BadImageRule::kNext;
  readers.measuring_.rule = BadImageRule::kNoLabel;
  for (SampleReader::Options* options : {&readers.training_, &readers.measuring_}) {
    options->bad_images = splits.bad_images;
    options->threads = splits.threads;
  }
  return readers;
}

StatusOr<std::shared_ptr<const SampleReader>> SampleReaders::ForTraining(std::shared_ptr<const Dataset> dataset) const {
  SampleReader::Options options = training_;
  options.dataset = std::move(dataset);
  return SampleReader::Create(std::move(options));
}

StatusOr<std::shared_ptr<const SampleReader>> SampleReaders::ForMeasuring(
    std::shared_ptr<const Dataset> dataset) const {
  SampleReader::Options options = measuring_;
  options.dataset = std::move(dataset);
  return SampleReader::Create(std::move(options));
}

}  // namespace distill
