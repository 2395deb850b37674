// Segmentation folders: pictures as in image folders, and a PNG of class ids for each.
#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/file_dataset.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/picture_headers.h"
#include "student_worker/data/segmentation_index.h"
#include "student_worker/data/split_request.h"

namespace distill {
namespace {

std::string Stem(const ImageFile& file) { return file.name.substr(0, file.name.rfind('.')); }

// Images and label files must pair one to one: a label file without an image mostly means that images were lost on the
// way, and training on fewer than were meant would go unnoticed. Leaves the pairs, in the order of their names, and
// refuses the others.
void Pair(const std::string& label_source, DataReport* report, std::vector<ImageFile>* images,
          std::vector<ImageFile>* labels) {
  std::map<std::string, ImageFile*> by_stem;
  for (ImageFile& file : *labels) {
    if (!file.folder.empty()) continue;  // refused when it was listed
    if (!absl::AsciiStrToLower(file.name).ends_with(".png")) {
      report->Refuse(
          {"JPEG and WebP files, which change values", "label maps must be PNG files", StatusCode::kFailedPrecondition},
          file.where);
      continue;
    }
    const auto [at, added] = by_stem.emplace(Stem(file), &file);
    if (!added) {
      report->Refuse({"two label maps of one image", "remove one of the two", StatusCode::kFailedPrecondition},
                     file.where, StrCat("and '", at->second->name, "'"));
    }
  }
  std::map<std::string, const ImageFile*> seen;
  std::vector<ImageFile> paired_images, paired_labels;
  for (ImageFile& image : *images) {
    if (!image.folder.empty()) continue;
    const auto [first, added] = seen.emplace(Stem(image), &image);
    if (!added) {
      report->Refuse({"images that have one label map together", "rename one of them, and its label map",
                      StatusCode::kFailedPrecondition},
                     image.where, StrCat("and '", first->second->name, "'"));
      continue;
    }
    const auto label = by_stem.find(first->first);
    if (label == by_stem.end()) {
      report->Refuse({StrCat("images without a label map in '", label_source, "'"),
                      "add it, or move the images to a folder that data.unlabelled names", StatusCode::kNotFound},
                     image.where, StrCat("needs '", first->first, ".png'"));
      continue;
    }
    paired_images.push_back(image);  // a copy: `seen` points to it
    paired_labels.push_back(std::move(*label->second));
    by_stem.erase(label);
  }
  for (const auto& [stem, file] : by_stem) {
    report->Refuse({"label maps without an image", "add their images, or remove them", StatusCode::kFailedPrecondition},
                   file->where);
  }
  *images = std::move(paired_images);
  *labels = std::move(paired_labels);
}

}  // namespace

void CheckLabelsSayMore(const SplitRequest& request, const std::string& source,
                        const std::array<uint64_t, 256>& pixels) {
  const auto ids = pixels.end() - 1;  // the last counts pixels without a label
  const uint64_t labelled = std::accumulate(pixels.begin(), ids, uint64_t{0}), ignored = *ids;
  const std::string& ignore = request.label_ids.no_label();
  if (labelled == 0 && ignored > 0) {
    request.report->Refuse(absl::FailedPreconditionError(StrCat(
        "no pixel of the label maps in '", source, "' has a label, all have ", ignore, "; correct it or the files")));
    return;
  }
  const auto only = std::find_if(pixels.begin(), ids, [](uint64_t count) { return count > 0; });
  if (request.name != "train" || request.want.classes < 2 || only == ids || *only != labelled) return;
  std::string text = StrCat("all labelled pixels of the label maps in '", source, "' have class ",
                            only - pixels.begin(), ", but the student has ", request.want.classes, " classes");
  if (ignored > 0) {
    const uint64_t percent = std::max<uint64_t>(1, ignored * 100 / (ignored + labelled));
    StrAppend(&text, "; the other ", percent, " % of the pixels have ", ignore,
              " and count as pixels without a label: if they are a class, as in masks of 0 and 255, ",
              request.label_ids.renumbers() ? "correct how data.label_map or data.reduce_zero_label numbers them"
                                            : "store its id in the files instead");
    if (!request.label_ids.renumbers() && request.label_ids.ignore_label() < request.want.classes) {
      StrAppend(&text, ", or set data.ignore_label to a value that does not occur");
    }
  } else {
    StrAppend(&text, "; correct the files, or raise data.train_limit if it leaves too few");
  }
  request.report->Refuse(absl::FailedPreconditionError(text));
}

StatusOr<SplitIndex> ReadSegmentationFolderSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  const bool may_be_missing = request.kind == SplitKind::kLabelledOrMissing;
  SplitIndex split;
  const std::string images_folder = request.folder + "/images", labels_folder = request.folder + "/labels";
  std::string name = request.name;
  const auto find = [&](const std::string& folder) {
    return FindImageSource(request.root, folder, name, request.listing_report);
  };
  DISTILL_ASSIGN_OR_RETURN(std::string source, find(images_folder));
  if (labelled && name == "test" && source.empty()) {
    name = "val";
    DISTILL_ASSIGN_OR_RETURN(source, find(images_folder));
  }
  std::string label_source;
  if (labelled) {
    DISTILL_ASSIGN_OR_RETURN(label_source, find(labels_folder));
  }
  for (const char* const own : {"test", "val"}) {
    if (request.part != SplitPart::kTest) break;
    DISTILL_ASSIGN_OR_RETURN(const std::string test, FindImageSource(request.root, images_folder, own, request.report));
    RefuseOwnTestImages(request, test);
  }
  if (source.empty() && label_source.empty() && may_be_missing) return split;
  if (source.empty()) {
    const std::string or_val = request.name == "test" && labelled ? " (or 'val')" : "";
    return absl::NotFoundError(StrCat("no '", request.name, "'", or_val, " in '", images_folder,
                                      "', as a folder, .tar or .tar.gz; put the images there or correct ",
                                      labelled ? "data.path" : "data.unlabelled",
                                      " (data.format is segmentation_folder)"));
  }
  const auto list = [&](const std::string& from) -> StatusOr<std::vector<ImageFile>> {
    DISTILL_ASSIGN_OR_RETURN(ImageListing listing, ListImages(request.root, from, name,
                                                              labelled ? ImageLayout::kFlat : ImageLayout::kAnywhere,
                                                              kMaxHeldBytes, request.listing_report));
    return std::move(listing.files);
  };
  DISTILL_ASSIGN_OR_RETURN(std::vector<ImageFile> images, list(source));
  std::vector<ImageFile> labels;
  if (!label_source.empty()) {
    DISTILL_ASSIGN_OR_RETURN(labels, list(label_source));
  }
  if (images.empty() && labels.empty() && may_be_missing) return split;
  if (images.empty()) {
    return absl::NotFoundError(StrCat("no JPEG, PNG or WebP image in '", source, "'; it needs NAME.jpg or .png"));
  }
  if (labelled && label_source.empty()) {
    return absl::NotFoundError(StrCat("no '", name, "' in '", labels_folder,
                                      "', as a folder, .tar or .tar.gz, for the ", images.size(), " images in '",
                                      source, "'; put their label maps there, NAME.png for NAME.jpg"));
  }
  if (labelled) Pair(label_source, request.listing_report, &images, &labels);
  if (images.empty()) return split;  // none is paired: the report says so

  SegmentationFiles files{.source = source,
                          .label_source = label_source,
                          .source_prefix = source,
                          .label_prefix = label_source,
                          .names = {},
                          .images = std::move(images),
                          .labels = std::move(labels)};
  for (const ImageFile& image : files.images) files.names.push_back(StrCat(image.folder, "/", image.name));
  return MakeSegmentationIndex(request, std::move(files));
}

StatusOr<SplitIndex> MakeSegmentationIndex(const SplitRequest& request, SegmentationFiles files) {
  const bool labelled = !files.labels.empty();
  SplitIndex split;
  const std::vector<uint32_t> part = PartOf(request, files.names, std::vector<int64_t>(files.names.size(), kNoLabel));
  if (part.empty()) {
    return absl::FailedPreconditionError(
        StrCat("data.split leaves no image of '", files.source, "'; it needs two or more"));
  }
  split.found = part.size();
  IndexDigest digest;
  for (const uint32_t i : part) {
    digest.Add(files.names[i], kNoLabel, files.images[i].size, labelled ? files.labels[i].size : 0);
  }
  split.digest = digest.Hex();
  std::vector<ImageFile> chosen, chosen_labels;
  for (const uint32_t index : request.subset(part.size())) {
    chosen.push_back(std::move(files.images[part[index]]));
    if (labelled) chosen_labels.push_back(std::move(files.labels[part[index]]));
  }
  files.images.clear();
  files.labels.clear();
  split.labels.assign(chosen.size(), kNoLabel);
  PictureHeaders headers = ReadHeaders(request, files.source, labelled, chosen);
  if (!headers.wanted) return split;
  for (size_t i = 0; labelled && i < chosen.size(); ++i) {
    if (chosen_labels[i].refused) headers.sound[i] = false;
  }
  split.channels = headers.channels;
  split.height = headers.height / request.shrink;
  split.width = headers.width / request.shrink;
  split.label_source = files.label_source;
  split.files = std::make_shared<FileDataset>(FileDataset::Options{.source = files.source_prefix,
                                                                   .label_source = labelled ? files.label_prefix : "",
                                                                   .files = std::move(chosen),
                                                                   .label_files = std::move(chosen_labels),
                                                                   .sound = std::move(headers.sound),
                                                                   .labels = split.labels,
                                                                   .channels = headers.channels,
                                                                   .height = headers.height,
                                                                   .width = headers.width,
                                                                   .pixels = headers.pixels,
                                                                   .shrink = request.shrink,
                                                                   .label_ids = request.label_ids,
                                                                   .classes = request.want.classes});
  return split;
}

}  // namespace distill
