// Image folders and tar archives of them.
#include <algorithm>

#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/file_dataset.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/picture_headers.h"
#include "student_worker/data/split_request.h"

namespace distill {

StatusOr<SplitIndex> ReadImageFolderSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  SplitIndex split;
  DISTILL_ASSIGN_OR_RETURN(const std::string source,
                           FindImageSource(request.root, request.folder, request.name, request.report));
  if (source.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (source.empty()) {
    return absl::NotFoundError(StrCat("no '", request.name, "/', '", request.name, ".tar' or '", request.name,
                                      ".tar.gz' in '", request.folder, "'; put the images there or correct ",
                                      labelled ? "data.path" : "data.unlabelled", " (data.format is image_folder)"));
  }
  DISTILL_ASSIGN_OR_RETURN(
      ImageListing listing,
      ListImages(request.root, source, request.name, labelled ? ImageLayout::kClassFolders : ImageLayout::kAnywhere,
                 kMaxHeldBytes, request.report));
  if (listing.files.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (listing.files.empty()) {
    return absl::NotFoundError(
        StrCat("no JPEG or PNG image in '", source, "'; it needs ", labelled ? "CLASS/" : "", "NAME.jpg or .png"));
  }
  split.class_names = std::move(listing.class_folders);
  split.found = listing.files.size();
  std::vector<int64_t> labels;
  IndexDigest digest;
  for (const ImageFile& file : listing.files) {
    const auto name = std::lower_bound(split.class_names.begin(), split.class_names.end(), file.folder);
    labels.push_back(labelled ? name - split.class_names.begin() : kNoLabel);
    digest.Add(StrCat(file.folder, "/", file.name), labels.back(), file.size, 0);
  }
  split.digest = digest.Hex();
  std::vector<ImageFile> chosen;
  for (const uint32_t index : request.subset(listing.files.size())) {
    chosen.push_back(std::move(listing.files[index]));
    split.labels.push_back(labels[index]);
  }
  listing.files.clear();  // and the contents of those that were not chosen
  PictureHeaders headers = ReadHeaders(request, source, /*label_maps=*/false, chosen);
  if (!headers.wanted) return split;
  split.channels = headers.channels;
  split.height = headers.height / request.shrink;
  split.width = headers.width / request.shrink;
  split.files = std::make_shared<FileDataset>(FileDataset::Options{.source = source,
                                                                   .files = std::move(chosen),
                                                                   .sound = std::move(headers.sound),
                                                                   .labels = split.labels,
                                                                   .channels = headers.channels,
                                                                   .height = headers.height,
                                                                   .width = headers.width,
                                                                   .pixels = headers.pixels,
                                                                   .shrink = request.shrink});
  return split;
}

}  // namespace distill
