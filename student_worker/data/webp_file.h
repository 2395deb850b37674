// WebP files in memory, lossy and lossless: libwebp between image_decoder.cc and the file.
#ifndef DISTILL_STUDENT_WORKER_DATA_WEBP_FILE_H_
#define DISTILL_STUDENT_WORKER_DATA_WEBP_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/status.h"

namespace distill {

struct WebpInfo {
  uint32_t height = 0, width = 0;  // as stored
  int orientation = 1;             // as EXIF numbers them (orientation.h)
};

// Stateless; any thread. REQUIRES of all: IsWebp(file).

// From the header. `file` may be cut off after it, but where it says that EXIF follows (behind the pixels), that must
// be there. kDataLoss: damaged, cut off too early, or an animation.
StatusOr<WebpInfo> ReadWebpInfo(std::string_view file);

// Decodes all of a file of [height, width] pixels (as ReadWebpInfo says) into `rgb`, [height, width, 3], rows `stride`
// bytes apart. Alpha is dropped. The same pixels on every machine. kDataLoss: damaged or truncated; `rgb` is undefined.
Status DecodeWebp(std::string_view file, uint32_t height, uint32_t width, size_t stride, uint8_t* rgb);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_WEBP_FILE_H_
