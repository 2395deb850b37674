// Segmentation folders: pictures as in image folders, and a PNG of class ids for each.
#include <algorithm>
#include <atomic>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/image_stack.h"
#include "student_worker/data/loaded_split.h"
#include "student_worker/data/parallel_for.h"
#include "student_worker/data/shrink.h"

namespace distill {
namespace {

std::string Stem(const ImageFile& file) { return file.name.substr(0, file.name.rfind('.')); }

Status CheckInNoFolder(const ImageFile& file, const char* what, const std::string& split) {
  if (file.folder.empty()) return OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("'", file.where,
                                                    "' lies in a folder of its own; a segmentation folder keeps all ",
                                                    what, " of a split together, in ", what, "/", split));
}

// The label file of each image, in the images' order. Images and label files must pair one to one: a label file without
// an image mostly means that images were lost on the way, and training on fewer than were meant would go unnoticed.
StatusOr<std::vector<ImageFile>> PairWithImages(const std::vector<ImageFile>& images, std::vector<ImageFile> labels,
                                                const std::string& split, const std::string& label_source) {
  std::map<std::string, ImageFile*> by_stem;
  for (ImageFile& file : labels) {
    DISTILL_RETURN_IF_ERROR(CheckInNoFolder(file, "labels", split));
    if (!absl::EndsWith(absl::AsciiStrToLower(file.name), ".png")) {
      return absl::FailedPreconditionError(
          absl::StrCat("'", file.where, "' is a JPEG file, which changes values; label maps must be PNG files"));
    }
    const auto [at, added] = by_stem.emplace(Stem(file), &file);
    if (!added) {
      return absl::FailedPreconditionError(
          absl::StrCat("'", at->second->where, "' and '", file.where, "' are labels of one image; remove one of them"));
    }
  }
  std::vector<ImageFile> paired;
  std::map<std::string, const ImageFile*> seen;
  const ImageFile* without = nullptr;
  size_t count_without = 0;
  for (const ImageFile& image : images) {
    DISTILL_RETURN_IF_ERROR(CheckInNoFolder(image, "images", split));
    const auto [first, added] = seen.emplace(Stem(image), &image);
    if (!added) {
      return absl::FailedPreconditionError(absl::StrCat("'", first->second->where, "' and '", image.where,
                                                        "' have the same label map; rename one of them"));
    }
    const auto label = by_stem.find(first->first);
    if (label == by_stem.end()) {
      if (count_without++ == 0) without = &image;
      continue;
    }
    paired.push_back(std::move(*label->second));
    by_stem.erase(label);
  }
  if (without != nullptr) {
    return absl::NotFoundError(absl::StrCat("images without a label map: ", count_without, " of ", images.size(),
                                            ", the first is '", without->where, "', which needs '", Stem(*without),
                                            ".png' in '", label_source,
                                            "'; add it, or move the image to a folder that data.unlabelled names"));
  }
  if (!by_stem.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("label maps without an image: ", by_stem.size(),
                                                      ", the first is '", by_stem.begin()->second->where,
                                                      "'; add its image or remove it"));
  }
  return paired;
}

// Class ids of the file's size [H, W]: checks them, and makes the ignored ones kIgnoredPixel.
Status NormaliseIds(const SplitRequest& request, const std::string& where, uint32_t width, std::vector<uint8_t>* ids) {
  const uint32_t limit =
      request.num_classes == 0 ? kIgnoredPixel : std::min<uint32_t>(request.num_classes, kIgnoredPixel);
  for (size_t i = 0; i < ids->size(); ++i) {
    uint8_t& id = (*ids)[i];
    if (id == request.ignore_label) {
      id = kIgnoredPixel;
    } else if (id >= limit) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", where, "': the pixel in row ", i / width, ", column ", i % width, " (from 0) has class id ", int{id},
          ", but the ", limit, " classes have ids 0 to ", limit - 1, " and data.ignore_label is ", request.ignore_label,
          "; set data.ignore_label: ", int{id}, " if it means no label, else raise num_classes or correct the file"));
    }
  }
  return OkStatus();
}

// Reads the label maps into `out`, [N, H / shrink, W / shrink].
Status LoadLabelMaps(const SplitRequest& request, const ImageInfo& full, const std::string& source,
                     std::vector<ImageFile> files, uint8_t* out) {
  const uint64_t full_bytes = uint64_t{full.height} * full.width;
  const uint64_t map_bytes = full_bytes / request.shrink / request.shrink;
  std::atomic<bool> any_label = false;
  DISTILL_RETURN_IF_ERROR(ParallelFor(files.size(), [&](size_t i) -> Status {
    ImageFile& file = files[i];
    DISTILL_RETURN_IF_ERROR(ReadImageFile(&file));
    std::vector<uint8_t> ids(full_bytes);
    const Status status = DecodeClassIds(file.bytes, full.height, full.width, ids.data());
    if (!status.ok()) return Annotate(status, absl::StrCat("'", file.where, "'"));
    file.bytes = std::string();
    DISTILL_RETURN_IF_ERROR(NormaliseIds(request, file.where, full.width, &ids));
    uint8_t* const map = out + i * map_bytes;
    ShrinkLabelMap(full.height, full.width, request.shrink, ids.data(), map);
    if (std::any_of(map, map + map_bytes, [](uint8_t id) { return id != kIgnoredPixel; })) any_label = true;
    return OkStatus();
  }));
  if (!any_label) {
    return absl::FailedPreconditionError(absl::StrCat("no pixel of the label maps in '", source,
                                                      "' has a label, all have the value of data.ignore_label (",
                                                      request.ignore_label, "); correct it or the files"));
  }
  return OkStatus();
}

}  // namespace

StatusOr<LoadedSplit> ReadSegmentationFolderSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  LoadedSplit split;
  const std::string images_folder = request.folder + "/images", labels_folder = request.folder + "/labels";
  std::string name = request.name;
  DISTILL_ASSIGN_OR_RETURN(std::string source, FindImageSource(request.root, images_folder, name));
  if (labelled && name == "test" && source.empty()) {
    name = "val";
    DISTILL_ASSIGN_OR_RETURN(source, FindImageSource(request.root, images_folder, name));
  }
  std::string label_source;
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(label_source, FindImageSource(request.root, labels_folder, name));
  }
  if (source.empty() && label_source.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (source.empty()) {
    const std::string or_val = request.name == "test" && labelled ? " (or 'val')" : "";
    return absl::NotFoundError(absl::StrCat("no '", request.name, "'", or_val, " in '", images_folder,
                                            "', as a folder, .tar or .tar.gz; put the images there or correct ",
                                            labelled ? "data.path" : "data.unlabelled",
                                            " (data.format is segmentation_folder)"));
  }
  DISTILL_ASSIGN_OR_RETURN(std::vector<ImageFile> images,
                           GatherImageFiles(request.root, source, name, 0, request.max_bytes));
  std::vector<ImageFile> labels;
  if (!label_source.empty()) {
    DISTILL_ASSIGN_OR_RETURN(labels, GatherImageFiles(request.root, label_source, name, 0, request.max_bytes));
  }
  if (images.empty() && labels.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (images.empty()) {
    return absl::NotFoundError(absl::StrCat("no JPEG or PNG image in '", source, "'; it needs NAME.jpg or .png"));
  }
  if (labelled && label_source.empty()) {
    return absl::NotFoundError(absl::StrCat("no '", name, "' in '", labels_folder,
                                            "', as a folder, .tar or .tar.gz, for the ", images.size(), " images in '",
                                            source, "'; put their label maps there, NAME.png for NAME.jpg"));
  }
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(labels, PairWithImages(images, std::move(labels), name, label_source));
  }

  std::vector<ImageFile> chosen, chosen_labels;
  for (uint32_t index : request.subset(images.size())) {
    chosen.push_back(std::move(images[index]));
    if (labelled) chosen_labels.push_back(std::move(labels[index]));
  }
  images.clear();
  labels.clear();
  split.labels.assign(chosen.size(), kNoLabel);
  DISTILL_ASSIGN_OR_RETURN(const ImageInfo full, ReadImageFiles(request, source, &chosen));
  split.channels = full.channels;
  split.height = full.height / request.shrink;
  split.width = full.width / request.shrink;
  const uint64_t plane = uint64_t{split.height} * split.width;
  DISTILL_RETURN_IF_ERROR(
      CheckSplitBytes(request, source, (split.channels + (labelled ? 1 : 0)) * plane * chosen.size()));
  split.pixels.resize(split.channels * plane * chosen.size());
  if (labelled) split.label_maps.resize(plane * chosen.size());
  DISTILL_RETURN_IF_ERROR(DecodeImageFiles(full, request.shrink, &chosen, split.pixels.data()));
  if (labelled) {
    DISTILL_RETURN_IF_ERROR(
        LoadLabelMaps(request, full, label_source, std::move(chosen_labels), split.label_maps.data()));
  }
  return split;
}

}  // namespace distill
