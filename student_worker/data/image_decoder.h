// JPEG, PNG and WebP files in memory to uint8 [C, H, W], and PNG files of class ids to uint8 [H, W]. libjpeg-turbo with
// the accurate integer DCT: the same pixels on every machine.
//
// Pictures come out upright: the orientation that EXIF gives (of a JPEG in its segment APP1, of a PNG in its chunk
// eXIf) is applied, and heights and widths are those of the upright picture. Values of 16 bits become the nearest of 8,
// v / 257. Alpha is dropped. JPEGs of four inks (CMYK, YCCK) become colour: what the inks leave of the white paper,
// without a profile.
//
// Of damage that libjpeg would only warn of, one kind is let through, as it leaves the pixels whole: bytes between two
// segments that belong to none; and a missing end mark of a JPEG of one scan with Huffman codes, whose pixels were all
// there. (Of several scans a later one may be missing, and nothing would show it.)
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_

#include <cstdint>
#include <string_view>

#include "common/status.h"
#include "student_worker/data/picture.h"
#include "student_worker/data/picture_part.h"

namespace distill {

struct ImageInfo {
  uint32_t channels = 0;  // 1 grey, 3 colour (palettes are colour; alpha does not count)
  uint32_t height = 0;    // upright
  uint32_t width = 0;
  int orientation = 1;  // as EXIF numbers them (orientation.h); 1: stored upright
  int bits = 8;         // of a stored value; less than 8: 8
  bool operator==(const ImageInfo&) const = default;
};

// From the file's header, which is its beginning: `file` may be cut off after it (of a WebP with
// EXIF: after that, which stands at the end). kDataLoss: neither JPEG, PNG
// nor WebP, damaged, or a side over 16384 pixels.
StatusOr<ImageInfo> ReadImageInfo(std::string_view file);

// What a decoded file had that a sound one has not.
struct DecodeNotes {
  bool stray_bytes = false;  // JPEG: after the beginning of its pixels, between segments
  bool no_end_mark = false;  // JPEG
  // What it can do, sound or not: be decoded at a reduced size (JPEG, but not of four inks).
  bool reducible = false;
};

// Decodes into `out`, as large as the file has it and with `channels` channels: a grey file is spread to three. `out`
// has no label map then. kDataLoss: damaged or truncated (also where the decoder could guess on), or a colour file
// where `channels` is 1, which is found out before anything is decoded; `out` is then undefined. Stateless; any thread.
Status DecodeImage(std::string_view file, uint32_t channels, Picture* out, DecodeNotes* notes = nullptr);

// What DecodePart leaves in its Picture.
struct DecodedPart {
  uint32_t height = 0, width = 0;  // of the whole picture, upright
  WantedPart wanted;               // as it was chosen
  PictureBox box;                  // where it lies in the Picture, which may hold more than the part
};

// Of a picture that lies in memory.
inline DecodedPart ChooseOf(const Picture& picture, const PartChooser& choose) {
  const WantedPart wanted = choose(picture.height, picture.width);
  return {picture.height, picture.width, wanted, BoxOf(wanted.crop)};
}

// As DecodeImage, but `out` needs to hold only what `choose` says, which is called once, with the whole picture's
// sizes. Of a JPEG only the rows and columns of the part are computed, at a half, a quarter or an eighth of the size
// where ReductionOf allows it; unreduced they are the same pixels as DecodeImage's. Damage is found in all of the file.
// Other files, and JPEGs of four inks, are decoded whole. `choose` null: the whole picture; `part` has no box then.
Status DecodePart(std::string_view file, uint32_t channels, const PartChooser& choose, Picture* out, DecodedPart* part,
                  DecodeNotes* notes = nullptr);

// Decodes a label map: a PNG whose values are class ids, grey or with a palette (its indices), 1, 2, 4 or 8 bits deep,
// into `out`, [height, width]: the values as they are stored. kFailedPrecondition: another kind of PNG, a JPEG or WebP
// (which change values), another size, or one that EXIF says to turn. kDataLoss: damaged, truncated, or neither. `out`
// is unchanged then. Stateless; any thread.
Status DecodeClassIds(std::string_view file, uint32_t height, uint32_t width, uint8_t* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_DECODER_H_
