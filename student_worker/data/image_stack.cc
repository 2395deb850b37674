#include "student_worker/data/image_stack.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/str_cat.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/parallel_for.h"
#include "student_worker/data/shrink.h"

namespace distill {
namespace {

// Holds the header of nearly every file; of the others (large profiles, previews) all is read.
constexpr uint64_t kHeaderBytes = 32 << 10;

const FileFault kDamaged{"pictures that cannot be decoded", "fetch them again, convert them, or remove them"};
const FileFault kSixteenBits{"pictures of 16 bits a value, rounded to 8 bits (v / 257)", ""};
const FileFault kTurned{
    "images that are turned upright as their EXIF says; their label maps are taken to be drawn on the upright image",
    ""};
const FileFault kStray{"JPEG files with stray bytes among their segments, decoded to the end", ""};
const FileFault kNoEnd{"JPEG files without an end mark, whose pixels were all there", ""};

std::string Sides(uint32_t height, uint32_t width) { return StrCat("[", height, ", ", width, "]"); }

// The header of one file; refuses it when it has none.
bool ReadHeader(const SplitRequest& request, const ImageFile& file, ImageInfo* info) {
  DataReport* const report = request.report;
  if (file.size > kMaxFileBytes) {
    report->Refuse({StrCat("over the limit of ", kMaxFileBytes, " bytes for one picture"), "store them smaller",
                    StatusCode::kResourceExhausted},
                   file.where, StrCat(file.size, " bytes"));
    return false;
  }
  std::shared_ptr<const std::string> bytes = ReadOrRefuse(file, kHeaderBytes, report);
  if (bytes == nullptr) return false;
  if (!IsJpeg(*bytes) && !IsPng(*bytes)) {
    const ContentKind kind = KindOfContent(*bytes, file.size);
    report->Refuse(kind.name == "empty" ? FileFault{"empty", kind.remedy}
                                        : FileFault{StrCat("neither JPEG nor PNG but ", kind.name), kind.remedy},
                   file.where);
    return false;
  }
  auto read = ReadImageInfo(*bytes);
  if (!read.ok() && bytes->size() < file.size) {
    bytes = ReadOrRefuse(file, kMaxFileBytes, report);
    if (bytes == nullptr) return false;
    read = ReadImageInfo(*bytes);
  }
  if (!read.ok()) {
    report->Refuse(kDamaged, file.where, std::string(ToStd(read.status().message())));
    return false;
  }
  *info = *read;
  return true;
}

}  // namespace

std::shared_ptr<const std::string> ReadOrRefuse(const ImageFile& file, uint64_t limit, DataReport* report) {
  auto bytes = ReadImageBytes(file, limit);
  if (bytes.ok()) return *std::move(bytes);
  report->Refuse({StrCat("unreadable, as ", ToStd(bytes.status().message())), "", bytes.status().code()}, file.where);
  return nullptr;
}

ImageHeaders ReadHeaders(const SplitRequest& request, const std::string& source, bool label_maps,
                         const std::vector<ImageFile>& files) {
  DataReport* const report = request.report;
  std::vector<ImageInfo> infos(files.size());
  std::vector<uint8_t> read(files.size());  // no vector<bool>: threads write to it
  const Status status = ParallelFor(files.size(), [&](size_t i) -> Status {
    DISTILL_RETURN_IF_ERROR(report->wanted());
    read[i] = !files[i].refused && ReadHeader(request, files[i], &infos[i]);
    return OkStatus();
  });
  if (!status.ok()) report->Refuse(status);

  ImageHeaders headers;
  headers.sound.assign(read.begin(), read.end());
  std::map<std::pair<uint32_t, uint32_t>, size_t> sizes;  // how many files have each height and width
  size_t count = 0, colour = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!read[i]) continue;
    ++count;
    ++sizes[{infos[i].height, infos[i].width}];
    colour += infos[i].channels == 3;
    if (infos[i].bits == 16) report->Warn(kSixteenBits, files[i].where);
    if (label_maps && infos[i].orientation != 1) report->Warn(kTurned, files[i].where);
  }
  if (count == 0) return headers;
  const auto commonest =
      std::max_element(sizes.begin(), sizes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const WantedImages& want = request.want;
  const std::pair<uint32_t, uint32_t> wanted{want.height * request.shrink, want.width * request.shrink};
  const bool any_as_wanted = sizes.contains(wanted);
  const auto [height, width] = any_as_wanted ? wanted : commonest->first;
  headers.common = ImageInfo{colour > 0 ? 3u : 1u, height, width};
  // One grey file among thousands that are not is no reason to think of a grey set.
  const bool some_colour = want.channels == 1 && colour > 0 && colour < count;
  if (some_colour) headers.common.channels = 1;
  headers.wanted = CheckShape(request, source, headers.common.channels, height, width);
  const FileFault other_size{StrCat("another size than ", Sides(height, width), " (height, width)"),
                             "all images must have one size, the student's (data.shrink apart)",
                             StatusCode::kFailedPrecondition};
  const FileFault in_colour{"colour, though the student takes grey images (student.in_channels: 1)",
                            "convert them, or all are meant to be colour", StatusCode::kInvalidArgument};
  for (size_t i = 0; i < files.size(); ++i) {
    if (!read[i]) continue;
    const ImageInfo& info = infos[i];
    if (info.height != height || info.width != width) {
      report->Refuse(other_size, files[i].where, Sides(info.height, info.width));
      headers.sound[i] = false;
    }
    if (some_colour && info.channels == 3) {
      report->Refuse(in_colour, files[i].where);
      headers.sound[i] = false;
    }
  }
  return headers;
}

Status DecodeImageFiles(const SplitRequest& request, const ImageHeaders& headers, std::vector<ImageFile>* files,
                        uint8_t* out) {
  const ImageInfo& info = headers.common;
  const uint32_t shrink = request.shrink;
  const uint64_t full_bytes = uint64_t{info.channels} * info.height * info.width;
  const uint64_t image_bytes = full_bytes / shrink / shrink;
  return ParallelFor(files->size(), [&](size_t i) -> Status {
    DISTILL_RETURN_IF_ERROR(request.report->wanted());
    if (!headers.sound[i]) return OkStatus();
    ImageFile& file = (*files)[i];
    const std::shared_ptr<const std::string> bytes = ReadOrRefuse(file, kMaxFileBytes, request.report);
    if (bytes == nullptr) return OkStatus();
    uint8_t* const image = out == nullptr ? nullptr : out + i * image_bytes;
    const bool direct = image != nullptr && shrink == 1;
    std::vector<uint8_t> full(direct ? 0 : full_bytes);
    DecodeNotes notes;
    const Status status = DecodeImage(*bytes, info, direct ? image : full.data(), &notes);
    if (!status.ok()) {
      request.report->Refuse(kDamaged, file.where, std::string(ToStd(status.message())));
      return OkStatus();
    }
    if (notes.stray_bytes) request.report->Warn(kStray, file.where);
    if (notes.no_end_mark) request.report->Warn(kNoEnd, file.where);
    if (image != nullptr && !direct) {
      ShrinkImage(info.channels, info.height, info.width, shrink, full.data(), image);
    }
    file.content.reset();  // gives the memory back while the rest is decoded
    return OkStatus();
  });
}

StatusOr<ImageHeaders> LoadImages(const SplitRequest& request, const std::string& source, bool label_maps,
                                  std::vector<ImageFile>* files, LoadedSplit* split) {
  ImageHeaders headers = ReadHeaders(request, source, label_maps, *files);
  if (!headers.wanted) return headers;  // not to fill the memory with what nobody can use
  split->channels = headers.common.channels;
  split->height = headers.common.height / request.shrink;
  split->width = headers.common.width / request.shrink;
  const uint64_t plane = uint64_t{split->height} * split->width;
  DISTILL_RETURN_IF_ERROR(
      CheckSplitBytes(request, source, (split->channels + (label_maps ? 1 : 0)) * plane * files->size()));
  const bool keep = request.report->ok();
  if (keep) {
    split->pixels.resize(split->channels * plane * files->size());
    if (label_maps) split->label_maps.resize(plane * files->size());
  }
  DISTILL_RETURN_IF_ERROR(DecodeImageFiles(request, headers, files, keep ? split->pixels.data() : nullptr));
  return headers;
}

}  // namespace distill
