// JPEG and PNG files in memory to uint8 [C, H, W], and PNG files of class ids to uint8 [H, W]. libjpeg-turbo with the
// accurate integer DCT: the same pixels on every machine.
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_

#include <cstdint>
#include <string_view>

#include "common/status.h"

namespace distill {

struct ImageInfo {
  uint32_t channels = 0;  // 1 grey, 3 colour (palettes are colour; alpha does not count)
  uint32_t height = 0;
  uint32_t width = 0;
  bool operator==(const ImageInfo&) const = default;
};

// From the file's header only. kDataLoss: neither JPEG nor PNG, damaged, CMYK, or a side over 16384 pixels.
StatusOr<ImageInfo> ReadImageInfo(std::string_view file);

// Decodes into `out`, which has room for want.channels * want.height * want.width bytes. A grey file is spread to
// want.channels == 3. kDataLoss: damaged or truncated (also where the decoder could guess on), or another size than
// `want`; `out` is then undefined. Stateless; any thread.
Status DecodeImage(std::string_view file, const ImageInfo& want, uint8_t* out);

// Decodes a label map: a PNG whose values are class ids, grey or with a palette (its indices), 1, 2, 4 or 8 bits deep,
// into `out`, [height, width]: the values as they are stored. kFailedPrecondition: another kind of PNG, a JPEG (which
// changes values), or another size. kDataLoss: damaged, truncated, or neither. `out` is unchanged then. Stateless; any
// thread.
Status DecodeClassIds(std::string_view file, uint32_t height, uint32_t width, uint8_t* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_
