// Image folders and tar archives of them.
#include <algorithm>

#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/labelled_pictures.h"
#include "student_worker/data/split_request.h"

namespace distill {

StatusOr<SplitIndex> ReadImageFolderSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  SplitIndex split;
  DISTILL_ASSIGN_OR_RETURN(const std::string source,
                           FindImageSource(request.root, request.folder, request.name, request.listing_report));
  if (request.part == SplitPart::kTest) {
    DISTILL_ASSIGN_OR_RETURN(const std::string own,
                             FindImageSource(request.root, request.folder, "test", request.report));
    RefuseOwnTestImages(request, own);
  }
  if (source.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (source.empty()) {
    return absl::NotFoundError(StrCat("no '", request.name, "/', '", request.name, ".tar' or '", request.name,
                                      ".tar.gz' in '", request.folder, "'; put the images there or correct ",
                                      labelled ? "data.path" : "data.unlabelled", " (data.format is image_folder)"));
  }
  DISTILL_ASSIGN_OR_RETURN(
      ImageListing listing,
      ListImages(request.root, source, request.name, labelled ? ImageLayout::kClassFolders : ImageLayout::kAnywhere,
                 kMaxHeldBytes, request.listing_report));
  if (listing.files.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (listing.files.empty()) {
    return absl::NotFoundError(StrCat("no JPEG, PNG or WebP image in '", source, "'; it needs ",
                                      labelled ? "CLASS/" : "", "NAME.jpg or .png"));
  }
  split.class_names = std::move(listing.class_folders);
  std::vector<int64_t> labels;
  std::vector<std::string> names;
  for (const ImageFile& file : listing.files) {
    const auto name = std::lower_bound(split.class_names.begin(), split.class_names.end(), file.folder);
    labels.push_back(labelled ? name - split.class_names.begin() : kNoLabel);
    names.push_back(StrCat(file.folder, "/", file.name));
  }
  const std::vector<uint32_t> part = PartOf(request, names, labels);
  if (part.empty()) {
    return absl::FailedPreconditionError(
        StrCat("data.split leaves no image of '", source, "'; it needs two or more of a class"));
  }
  split.found = part.size();
  IndexDigest digest;
  for (const uint32_t i : part) digest.Add(names[i], labels[i], listing.files[i].size, 0);
  split.digest = digest.Hex();
  std::vector<ImageFile> chosen;
  for (const uint32_t index : request.subset(part.size())) {
    chosen.push_back(std::move(listing.files[part[index]]));
    split.labels.push_back(labels[part[index]]);
  }
  listing.files.clear();  // and the contents of those that were not chosen
  SetPictures(request, source, source, std::move(chosen), &split);
  return split;
}

}  // namespace distill
