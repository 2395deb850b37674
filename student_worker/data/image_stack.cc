#include "student_worker/data/image_stack.h"

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "student_worker/data/parallel_for.h"
#include "student_worker/data/shrink.h"

namespace distill {

StatusOr<ImageInfo> ReadImageFiles(const SplitRequest& request, const std::string& source,
                                   std::vector<ImageFile>* files) {
  std::atomic<uint64_t> total = 0;
  std::vector<ImageInfo> infos(files->size());
  DISTILL_RETURN_IF_ERROR(ParallelFor(files->size(), [&](size_t i) -> Status {
    ImageFile& file = (*files)[i];
    DISTILL_RETURN_IF_ERROR(ReadImageFile(&file));
    DISTILL_RETURN_IF_ERROR(CheckSplitBytes(request, source, total += file.bytes.size()));
    auto info = ReadImageInfo(file.bytes);
    if (!info.ok()) return absl::DataLossError(absl::StrCat("'", file.where, "': ", info.status().message()));
    infos[i] = *info;
    return OkStatus();
  }));
  ImageInfo common = infos[0];
  for (size_t i = 0; i < infos.size(); ++i) {
    common.channels = std::max(common.channels, infos[i].channels);
    if (infos[i].height != common.height || infos[i].width != common.width) {
      return absl::FailedPreconditionError(absl::StrCat(
          "'", (*files)[i].where, "' has ", infos[i].width, "x", infos[i].height, " pixels, '", files->front().where,
          "' has ", common.width, "x", common.height, "; all images must have one size"));
    }
  }
  if (common.height % request.shrink != 0 || common.width % request.shrink != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", files->front().where, "' has ", common.width, "x", common.height, " pixels, and data.shrink ",
                     request.shrink, " does not divide both sides; set it to a common divisor of them, or to 1"));
  }
  return common;
}

Status DecodeImageFiles(const ImageInfo& info, uint32_t shrink, std::vector<ImageFile>* files, uint8_t* out) {
  const uint64_t full_bytes = uint64_t{info.channels} * info.height * info.width;
  const uint64_t image_bytes = full_bytes / shrink / shrink;
  return ParallelFor(files->size(), [&](size_t i) -> Status {
    ImageFile& file = (*files)[i];
    uint8_t* const image = out + i * image_bytes;
    std::vector<uint8_t> full(shrink > 1 ? full_bytes : 0);
    const Status status = DecodeImage(file.bytes, info, shrink > 1 ? full.data() : image);
    if (!status.ok()) return absl::DataLossError(absl::StrCat("'", file.where, "': ", status.message()));
    if (shrink > 1) ShrinkImage(info.channels, info.height, info.width, shrink, full.data(), image);
    file.bytes = std::string();  // gives the memory back while the rest is decoded
    return OkStatus();
  });
}

}  // namespace distill
