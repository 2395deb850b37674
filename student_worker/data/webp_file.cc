// RIFF: "RIFF", the size of what follows, "WEBP", then chunks: a name of four letters, a size (both numbers of 32 bits,
// little-endian), the content, and a zero byte where its size is odd. An extended file begins with the chunk VP8X,
// whose first byte has flags; pictures are in VP8 (lossy) or VP8L (lossless); EXIF comes behind them.
#include "student_worker/data/webp_file.h"

#include <webp/decode.h>

#include "common/str_cat.h"
#include "student_worker/data/orientation.h"

namespace distill {
namespace {

using std::string_view_literals::operator""sv;

constexpr size_t kFileHeader = 12, kChunkHeader = 8;
constexpr char kHasExif = 0x08;  // of VP8X

uint32_t LittleEndian(std::string_view file, size_t at) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(file[at + static_cast<size_t>(i)]);
  return value;
}

const uint8_t* Bytes(std::string_view file) { return reinterpret_cast<const uint8_t*>(file.data()); }

Status Explain(VP8StatusCode code) {
  switch (code) {
    case VP8_STATUS_OK:
      return OkStatus();
    case VP8_STATUS_OUT_OF_MEMORY:
      return absl::ResourceExhaustedError("no memory to decode it");
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
      return absl::DataLossError("file ends in the middle");
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return absl::DataLossError("a kind of WebP that libwebp cannot read");
    default:
      return absl::DataLossError("damaged WebP data");
  }
}

// What RIFF says the file is long, its header included.
uint64_t RiffSize(std::string_view file) { return uint64_t{LittleEndian(file, 4)} + 8; }

StatusOr<int> FindOrientation(std::string_view file) {
  const bool extended = file.size() > kFileHeader + kChunkHeader && file.substr(kFileHeader, 4) == "VP8X"sv;
  if (!extended || (file[kFileHeader + kChunkHeader] & kHasExif) == 0) return 1;
  const uint64_t end = RiffSize(file);
  for (uint64_t at = kFileHeader; at + kChunkHeader <= end;) {
    if (at + kChunkHeader > file.size()) return absl::DataLossError("file ends before its EXIF");
    const uint64_t size = LittleEndian(file, at + 4);
    if (file.substr(at, 4) == "EXIF"sv) {
      if (at + kChunkHeader + size > file.size()) return absl::DataLossError("file ends in its EXIF");
      return ReadOrientation(file.substr(at + kChunkHeader, size));
    }
    at += kChunkHeader + size + size % 2;
  }
  return 1;
}

}  // namespace

StatusOr<WebpInfo> ReadWebpInfo(std::string_view file) {
  WebPBitstreamFeatures features;
  DISTILL_RETURN_IF_ERROR(Explain(WebPGetFeatures(Bytes(file), file.size(), &features)));
  if (features.has_animation != 0) return absl::DataLossError("an animation; store one picture of it");
  if (features.width <= 0 || features.height <= 0) return absl::DataLossError("damaged WebP data");
  DISTILL_ASSIGN_OR_RETURN(const int orientation, FindOrientation(file));
  return WebpInfo{static_cast<uint32_t>(features.height), static_cast<uint32_t>(features.width), orientation};
}

Status DecodeWebp(std::string_view file, uint32_t height, uint32_t width, size_t stride, uint8_t* rgb) {
  // What is missing behind the pixels would not be missed.
  if (RiffSize(file) > file.size()) {
    return absl::DataLossError(StrCat("file ends in the middle: ", file.size(), " of ", RiffSize(file), " bytes"));
  }
  WebPDecoderConfig config;
  if (WebPInitDecoderConfig(&config) == 0) return absl::InternalError("libwebp has another version than its headers");
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = rgb;
  config.output.u.RGBA.stride = static_cast<int>(stride);
  config.output.u.RGBA.size = stride * height;
  DISTILL_RETURN_IF_ERROR(Explain(WebPGetFeatures(Bytes(file), file.size(), &config.input)));
  if (config.input.width != static_cast<int>(width) || config.input.height != static_cast<int>(height)) {
    return absl::DataLossError("its size changed while it was read");
  }
  const Status status = Explain(WebPDecode(Bytes(file), file.size(), &config));
  WebPFreeDecBuffer(&config.output);
  return status;
}

}  // namespace distill
