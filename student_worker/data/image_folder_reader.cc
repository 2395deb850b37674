// Image folders and tar archives of them: files are gathered first (compressed, in memory), then sorted, cut to the
// subset and decoded.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/image_stack.h"
#include "student_worker/data/loaded_split.h"

namespace distill {
namespace {

Status CheckInClassFolder(const ImageFile& file, const std::string& source, const std::string& split) {
  if (file.folder.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", file.where, "' lies in no class folder; move it into one, or, if it has no label, out of '",
                     split, "' into a folder of its own that data.unlabelled names"));
  }
  if (file.folder.find('/') != std::string::npos || file.folder == "..") {  // archives only
    return absl::FailedPreconditionError(absl::StrCat("entry '", file.where, "' of '", source,
                                                      "' is not CLASS/NAME; pack the archive from inside the ", split,
                                                      " folder"));
  }
  return OkStatus();
}

}  // namespace

StatusOr<LoadedSplit> ReadImageFolderSplit(const SplitRequest& request) {
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  LoadedSplit split;
  DISTILL_ASSIGN_OR_RETURN(const std::string source, FindImageSource(request.root, request.folder, request.name));
  if (source.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (source.empty()) {
    return absl::NotFoundError(absl::StrCat("no '", request.name, "/', '", request.name, ".tar' or '", request.name,
                                            ".tar.gz' in '", request.folder, "'; put the images there or correct ",
                                            labelled ? "data.path" : "data.unlabelled",
                                            " (data.format is image_folder)"));
  }
  DISTILL_ASSIGN_OR_RETURN(std::vector<ImageFile> files,
                           GatherImageFiles(request.root, source, request.name, labelled ? 1 : 0, request.max_bytes));
  if (files.empty() && request.kind == SplitKind::kLabelledOrMissing) return split;
  if (files.empty()) {
    return absl::NotFoundError(absl::StrCat("no JPEG or PNG image in '", source, "'; it needs ",
                                            labelled ? "CLASS/" : "", "NAME.jpg or .png"));
  }
  if (labelled) {
    for (const ImageFile& file : files) {
      DISTILL_RETURN_IF_ERROR(CheckInClassFolder(file, source, request.name));
      if (split.class_names.empty() || split.class_names.back() != file.folder)
        split.class_names.push_back(file.folder);
    }
  }
  std::vector<ImageFile> chosen;
  for (uint32_t index : request.subset(files.size())) chosen.push_back(std::move(files[index]));
  files.clear();
  for (const ImageFile& file : chosen) {
    const auto name = std::lower_bound(split.class_names.begin(), split.class_names.end(), file.folder);
    split.labels.push_back(labelled ? name - split.class_names.begin() : kNoLabel);
  }

  DISTILL_ASSIGN_OR_RETURN(const ImageInfo full, ReadImageFiles(request, source, &chosen));
  split.channels = full.channels;
  split.height = full.height / request.shrink;
  split.width = full.width / request.shrink;
  const uint64_t bytes = uint64_t{split.channels} * split.height * split.width * chosen.size();
  DISTILL_RETURN_IF_ERROR(CheckSplitBytes(request, source, bytes));
  split.pixels.resize(bytes);
  DISTILL_RETURN_IF_ERROR(DecodeImageFiles(full, request.shrink, &chosen, split.pixels.data()));
  return split;
}

}  // namespace distill
