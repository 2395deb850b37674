#include "student_worker/data/picture_headers.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/str_cat.h"
#include "student_worker/data/file_dataset.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/read_threads.h"

namespace distill {
namespace {

// Holds the header of nearly every file; of the others (large profiles, previews) all is read.
constexpr uint64_t kHeaderBytes = 32 << 10;

const FileFault kSixteenBits{"pictures of 16 bits a value, rounded to 8 bits (v / 257)", ""};
const FileFault kTurned{
    "images that are turned upright as their EXIF says; their label maps are taken to be drawn on the upright image",
    ""};

std::string Sides(uint32_t height, uint32_t width) { return StrCat("[", height, ", ", width, "]"); }

// The content of a file, or nothing and a refusal in the report.
std::shared_ptr<const std::string> ReadOrRefuse(const SplitRequest& request, const ImageFile& file, uint64_t limit) {
  auto bytes = ReadImageBytes(file, limit);
  if (bytes.ok()) return *std::move(bytes);
  RefuseOrSkip(request, {UnreadableFault(bytes.status()), file.where, ""});
  return nullptr;
}

// The header of one file; refuses it when it has none.
bool ReadHeader(const SplitRequest& request, const ImageFile& file, ImageInfo* info) {
  if (file.size > kMaxFileBytes) {
    request.report->Refuse({StrCat("over the limit of ", kMaxFileBytes, " bytes for one picture"), "store them smaller",
                            StatusCode::kResourceExhausted},
                           file.where, StrCat(file.size, " bytes"));
    return false;
  }
  std::shared_ptr<const std::string> bytes = ReadOrRefuse(request, file, kHeaderBytes);
  if (bytes == nullptr) return false;
  if (!IsJpeg(*bytes) && !IsPng(*bytes) && !IsWebp(*bytes)) {
    const ContentKind kind = KindOfContent(*bytes, file.size);
    RefuseOrSkip(request,
                 {kind.name == "empty" ? FileFault{"empty", kind.remedy}
                                       : FileFault{StrCat("neither JPEG, PNG nor WebP but ", kind.name), kind.remedy},
                  file.where, ""});
    return false;
  }
  auto read = ReadImageInfo(*bytes);
  if (!read.ok() && bytes->size() < file.size) {
    bytes = ReadOrRefuse(request, file, kMaxFileBytes);
    if (bytes == nullptr) return false;
    read = ReadImageInfo(*bytes);
  }
  if (!read.ok()) {
    RefuseOrSkip(request, {kDamagedPicture, file.where, std::string(ToStd(read.status().message()))});
    return false;
  }
  *info = *read;
  return true;
}

}  // namespace

PictureHeaders ReadHeaders(const SplitRequest& request, const std::string& source, bool label_maps,
                           const std::vector<ImageFile>& files) {
  DataReport* const report = request.report;
  std::vector<ImageInfo> infos(files.size());
  std::vector<uint8_t> read(files.size());  // no vector<bool>: threads write to it
  const Status status = request.threads->ForEach(files.size(), [&](size_t i) -> Status {
    DISTILL_RETURN_IF_ERROR(report->wanted());
    read[i] = !files[i].refused && ReadHeader(request, files[i], &infos[i]);
    return OkStatus();
  });
  if (!status.ok()) report->Refuse(status);

  PictureHeaders headers;
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
  headers.channels = colour > 0 ? 3 : 1;
  // One grey file among thousands that are not is no reason to think of a grey set.
  const bool some_colour = want.channels == 1 && colour > 0 && colour < count;
  if (some_colour) headers.channels = 1;
  // A set of grey pictures in sizes of all kinds is one of photographs, which a colour student can take.
  if (request.any_size && want.channels == 3) headers.channels = 3;
  headers.wanted = request.any_size ? CheckChannels(request, source, headers.channels)
                                    : CheckShape(request, source, headers.channels, height, width);
  const FileFault other_size{StrCat("another size than ", Sides(height, width), " (height, width)"),
                             "all images must have one size, the student's (data.shrink apart); or bring them to one "
                             "with data.transforms",
                             StatusCode::kFailedPrecondition};
  const FileFault indivisible{StrCat("sides that data.shrink ", request.shrink, " does not divide"),
                              "set it to a common divisor of them, or to 1", StatusCode::kFailedPrecondition};
  const FileFault in_colour{"colour, though the student takes grey images (student.in_channels: 1)",
                            "convert them, or all are meant to be colour", StatusCode::kInvalidArgument};
  for (size_t i = 0; i < files.size(); ++i) {
    if (!read[i]) continue;
    const ImageInfo& info = infos[i];
    if (!request.any_size && (info.height != height || info.width != width)) {
      report->Refuse(other_size, files[i].where, Sides(info.height, info.width));
      headers.sound[i] = false;
    }
    if (request.any_size && (info.height % request.shrink != 0 || info.width % request.shrink != 0)) {
      report->Refuse(indivisible, files[i].where, Sides(info.height, info.width));
      headers.sound[i] = false;
    }
    if (some_colour && info.channels == 3) {
      report->Refuse(in_colour, files[i].where);
      headers.sound[i] = false;
    }
    if (headers.sound[i]) headers.pixels += uint64_t{info.height} * info.width;
  }
  if (sizes.size() == 1 || !request.any_size) {
    headers.height = height;
    headers.width = width;
  }
  return headers;
}

}  // namespace distill
