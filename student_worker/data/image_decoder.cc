// libjpeg and libpng report errors by longjmp. The functions between setjmp and the library calls therefore hold no
// object with a destructor: buffers live in a struct of the caller.
#include "student_worker/data/image_decoder.h"

#include <png.h>

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/orientation.h"
#include "student_worker/data/webp_file.h"

namespace distill {
namespace {

constexpr uint32_t kMaxSide = 16384;

enum class Mode {
  kHeader,    // info only
  kPixels,    // 8-bit pixels of the wanted shape
  kClassIds,  // PNG: the stored values, one byte each
};

// One decoding: input, interleaved output, error text.
struct Job {
  std::string_view file;
  Mode mode = Mode::kPixels;
  ImageInfo want;
  ImageInfo info;
  uint32_t height = 0, width = 0;  // as stored, before turning
  std::vector<uint8_t> pixels;     // [height, width, C]; of a part of a JPEG: [part.height, row_pixels, C]
  std::vector<uint8_t*> rows;
  uint32_t row_pixels = 0;              // of a row of `pixels`
  CropRect stored;                      // of `pixels`: what was asked for, as stored
  const PartChooser* choose = nullptr;  // null: all of it
  DecodedPart part;
  std::vector<uint8_t> inks;  // JPEG of four components: one row
  char error[256] = "";
  StatusCode code = StatusCode::kDataLoss;
  std::jmp_buf jump;
  size_t position = 0;      // PNG: next input byte
  bool in_pixels = false;   // JPEG: its header is read
  bool many_scans = false;  // JPEG
  DecodeNotes notes;
};

// The header's facts; the sizes are those that are stored.
void SetInfo(Job* job, uint32_t channels, uint32_t height, uint32_t width, int orientation, int bits) {
  job->height = height;
  job->width = width;
  const bool exchanged = ExchangesSides(orientation);
  job->info = ImageInfo{channels, exchanged ? width : height, exchanged ? height : width, orientation, bits};
}

// Checks the size and makes room; false with `error` set when the image is not what is wanted.
bool Prepare(Job* job) {
  const ImageInfo &info = job->info, &want = job->want;
  if (info.height == 0 || info.width == 0 || info.height > kMaxSide || info.width > kMaxSide) {
    std::snprintf(job->error, sizeof(job->error), "[%u, %u] pixels (height, width), sides must be 1 to %u", info.height,
                  info.width, kMaxSide);
    return false;
  }
  if (job->mode == Mode::kHeader) return true;
  if (job->mode == Mode::kClassIds) {
    job->code = StatusCode::kFailedPrecondition;
    if (info.height != want.height || info.width != want.width) {
      std::snprintf(job->error, sizeof(job->error), "[%u, %u] pixels (height, width), but its image has [%u, %u]",
                    info.height, info.width, want.height, want.width);
      return false;
    }
    if (info.orientation != 1) {
      std::snprintf(job->error, sizeof(job->error), "its EXIF says to turn it (orientation %d); store it upright",
                    info.orientation);
      return false;
    }
    job->code = StatusCode::kDataLoss;
  }
  if (info.channels > want.channels) {
    std::snprintf(job->error, sizeof(job->error), "%u channels, expected %u", info.channels, want.channels);
    return false;
  }
  if (job->choose != nullptr) job->part.wanted = (*job->choose)(info.height, info.width);
  return true;
}

// Room for [height, row_pixels] pixels.
void MakeRows(Job* job, uint32_t height, uint32_t row_pixels) {
  const size_t stride = size_t{row_pixels} * job->want.channels;
  job->row_pixels = row_pixels;
  job->pixels.resize(stride * height);
  job->rows.resize(height);
  for (uint32_t y = 0; y < height; ++y) job->rows[y] = job->pixels.data() + y * stride;
}

// Of a file all of whose pixels are decoded.
void MakeAllRows(Job* job) {
  MakeRows(job, job->height, job->width);
  job->stored = {0, 0, job->height, job->width};
  if (job->choose != nullptr) job->part.box = BoxOf(job->part.wanted.crop);
}

// --- JPEG ---

struct JpegErrors {
  jpeg_error_mgr base;  // first: libjpeg hands its address back
  Job* job;
};

void OnJpegError(j_common_ptr info) {
  Job* job = reinterpret_cast<JpegErrors*>(info->err)->job;
  char text[JMSG_LENGTH_MAX];
  info->err->format_message(info, text);
  std::snprintf(job->error, sizeof(job->error), "%.200s", text);
  std::longjmp(job->jump, 1);
}

bool IsRestartMarker(int marker) { return marker >= 0xD0 && marker <= 0xD7; }

// Most warnings (level -1) mean that the decoder invents pixels from here on, such as grey for a truncated file: an
// error for us. The exceptions leave the pixels whole; see the header.
void OnJpegMessage(j_common_ptr info, int level) {
  if (level >= 0) return;
  Job* job = reinterpret_cast<JpegErrors*>(info->err)->job;
  const auto* jpeg = reinterpret_cast<j_decompress_ptr>(info);
  switch (info->err->msg_code) {
    case JWRN_JFIF_MAJOR:  // a version of JFIF that it does not know
      return;
    case JWRN_EXTRANEOUS_DATA:
      // Before a restart marker they are rests of pixels that were decoded wrongly.
      if (IsRestartMarker(info->err->msg_parm.i[1])) break;
      job->notes.stray_bytes = job->notes.stray_bytes || job->in_pixels;
      return;
    case JWRN_JPEG_EOF:
      // If pixels are missing, JWRN_HIT_MARKER follows.
      if (!job->in_pixels || job->many_scans || jpeg->arith_code) break;
      job->notes.no_end_mark = true;
      return;
    default:
      break;
  }
  OnJpegError(info);
}

int JpegOrientation(const jpeg_decompress_struct* jpeg) {
  for (const jpeg_marker_struct* segment = jpeg->marker_list; segment != nullptr; segment = segment->next) {
    const std::string_view bytes(reinterpret_cast<const char*>(segment->data), segment->data_length);
    if (segment->marker == JPEG_APP0 + 1 && bytes.starts_with("Exif")) return ReadOrientation(bytes);
  }
  return 1;
}

// What cyan, magenta, yellow and black on white paper leave of red, green and blue. Adobe's programs, from which nearly
// all such files come, store the paper that is left instead of the ink.
void InksToRgb(const uint8_t* inks, uint32_t width, bool inverted, uint8_t* rgb) {
  const auto left = [inverted](uint8_t value) {
    return uint32_t{inverted ? value : static_cast<uint8_t>(255 - value)};
  };
  for (uint32_t x = 0; x < width; ++x, inks += 4) {
    for (int c = 0; c < 3; ++c) *rgb++ = static_cast<uint8_t>((left(inks[c]) * left(inks[3]) + 127) / 255);
  }
}

// Which pixels of a scaled JPEG [height, width] hold the wanted part, and where it lies among them, upright.
void PlaceJpegPart(Job* job, uint32_t scale, uint32_t height, uint32_t width) {
  const int orientation = job->info.orientation;
  PictureBox box = StoredBox(orientation, BoxOf(job->part.wanted.crop), job->height, job->width);
  box = {box.top / scale, box.left / scale, box.height / scale, box.width / scale};
  const auto end = [](double at, uint32_t most) { return std::min(static_cast<uint32_t>(std::ceil(at)), most); };
  CropRect& stored = job->stored;
  stored.top = static_cast<uint32_t>(box.top);
  stored.left = static_cast<uint32_t>(box.left);
  stored.height = end(box.top + box.height, height) - stored.top;
  stored.width = end(box.left + box.width, width) - stored.left;
  box.top -= stored.top;
  box.left -= stored.left;
  job->part.box = UprightBox(orientation, box, stored.height, stored.width);
}

void ReadJpegRows(Job* job, jpeg_decompress_struct* jpeg, uint32_t count) {
  const uint32_t end = jpeg->output_scanline + count, first = job->stored.top;
  while (jpeg->output_scanline < end) {
    jpeg_read_scanlines(jpeg, &job->rows[jpeg->output_scanline - first], end - jpeg->output_scanline);
  }
}

// Decodes the rows and columns of the wanted part. Of the others nothing is computed, but what is stored of them is
// read, down to the end: damage is found wherever it is.
void RunJpegPart(Job* job, jpeg_decompress_struct* jpeg) {
  // Columns at a cut have no neighbours to take colour from: some more are decoded, and left out.
  constexpr uint32_t kMargin = 2;
  const uint32_t scale = ReductionOf(job->part.wanted);
  jpeg->scale_num = 8 / scale;
  jpeg->scale_denom = 8;
  jpeg_start_decompress(jpeg);
  const uint32_t height = jpeg->output_height, width = jpeg->output_width;
  PlaceJpegPart(job, scale, height, width);
  CropRect& stored = job->stored;
  JDIMENSION left = stored.left > kMargin ? stored.left - kMargin : 0;
  JDIMENSION columns = std::min(stored.left + stored.width + kMargin, width) - left;
  if (columns < width) jpeg_crop_scanline(jpeg, &left, &columns);
  MakeRows(job, stored.height + 1, jpeg->output_width);  // the last one is for what is thrown away
  if (stored.top > 0) jpeg_skip_scanlines(jpeg, stored.top);
  ReadJpegRows(job, jpeg, stored.height);
  // Skipping the last row, too, would end the reading here.
  const uint32_t below = height - jpeg->output_scanline;
  if (below > 1) jpeg_skip_scanlines(jpeg, below - 1);
  if (below > 0) jpeg_read_scanlines(jpeg, &job->rows.back(), 1);
  stored.left -= left;  // from here on among the columns that were decoded
  stored.top = 0;
}

bool RunJpeg(Job* job, jpeg_decompress_struct* jpeg) {
  if (setjmp(job->jump) != 0) return false;
  jpeg_create_decompress(jpeg);
  jpeg_mem_src(jpeg, reinterpret_cast<const unsigned char*>(job->file.data()), job->file.size());
  jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(jpeg, TRUE);
  const bool inks = jpeg->num_components == 4;
  if (jpeg->num_components != 1 && jpeg->num_components != 3 && !inks) {
    std::snprintf(job->error, sizeof(job->error), "%d colour components; convert it to RGB", jpeg->num_components);
    return false;
  }
  SetInfo(job, inks ? 3 : jpeg->num_components, jpeg->image_height, jpeg->image_width, JpegOrientation(jpeg), 8);
  if (!Prepare(job)) return false;
  if (job->mode == Mode::kHeader) return true;
  jpeg->out_color_space = inks ? JCS_CMYK : job->want.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg->dct_method = JDCT_ISLOW;
  job->in_pixels = true;
  job->many_scans = jpeg_has_multiple_scans(jpeg) != 0;
  job->notes.reducible = !inks;
  if (job->choose != nullptr && !inks) {
    RunJpegPart(job, jpeg);
    jpeg_finish_decompress(jpeg);
    return true;
  }
  MakeAllRows(job);
  jpeg_start_decompress(jpeg);
  if (inks) job->inks.resize(size_t{jpeg->output_width} * 4);
  while (inks && jpeg->output_scanline < jpeg->output_height) {
    uint8_t* const row = job->rows[jpeg->output_scanline];
    uint8_t* four = job->inks.data();
    jpeg_read_scanlines(jpeg, &four, 1);
    InksToRgb(four, jpeg->output_width, jpeg->saw_Adobe_marker != 0, row);
  }
  if (!inks) ReadJpegRows(job, jpeg, jpeg->output_height);
  jpeg_finish_decompress(jpeg);
  return true;
}

bool ReadJpeg(Job* job) {
  jpeg_decompress_struct jpeg = {};
  JpegErrors errors;
  errors.job = job;
  jpeg.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = OnJpegError;
  errors.base.emit_message = OnJpegMessage;
  const bool ok = RunJpeg(job, &jpeg);
  jpeg_destroy_decompress(&jpeg);
  return ok;
}

// --- PNG ---

void OnPngError(png_structp png, png_const_charp text) {
  Job* job = static_cast<Job*>(png_get_error_ptr(png));
  std::snprintf(job->error, sizeof(job->error), "%.200s", text);
  std::longjmp(job->jump, 1);
}

void OnPngWarning(png_structp, png_const_charp) {}  // about optional chunks; pixels are unaffected

void ReadPngBytes(png_structp png, png_bytep out, size_t size) {
  Job* job = static_cast<Job*>(png_get_io_ptr(png));
  if (size > job->file.size() - job->position) png_error(png, "file ends in the middle");
  std::memcpy(out, job->file.data() + job->position, size);
  job->position += size;
}

// Values are class ids only in grey and palette files of at most 8 bits.
bool CheckHoldsClassIds(Job* job, png_structp png, png_infop info) {
  const int type = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);
  const bool grey = type == PNG_COLOR_TYPE_GRAY, palette = type == PNG_COLOR_TYPE_PALETTE;
  if ((grey || palette) && depth <= 8) return true;
  job->code = StatusCode::kFailedPrecondition;
  std::snprintf(job->error, sizeof(job->error),
                "%d-bit %s PNG; a label map is a grey or palette PNG of at most 8 bits whose values "
                "are the class ids",
                depth,
                grey                                ? "grey"
                : type == PNG_COLOR_TYPE_GRAY_ALPHA ? "grey and alpha"
                : type == PNG_COLOR_TYPE_RGB_ALPHA  ? "RGB and alpha"
                                                    : "RGB");
  return false;
}

int PngOrientation(png_structp png, png_infop info) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(png, info, &size, &exif) == 0) return 1;
  return ReadOrientation(std::string_view(reinterpret_cast<const char*>(exif), size));
}

bool RunPng(Job* job, png_structp png, png_infop info) {
  if (setjmp(job->jump) != 0) return false;
  png_set_user_limits(png, kMaxSide, kMaxSide);
  png_set_read_fn(png, job, ReadPngBytes);
  png_read_info(png, info);
  const bool class_ids = job->mode == Mode::kClassIds;
  if (class_ids && !CheckHoldsClassIds(job, png, info)) return false;
  const bool colour =
      !class_ids && (png_get_color_type(png, info) & PNG_COLOR_MASK_COLOR) != 0;  // palettes carry this bit, too
  SetInfo(job, colour ? 3 : 1, png_get_image_height(png, info), png_get_image_width(png, info),
          PngOrientation(png, info), png_get_bit_depth(png, info) == 16 ? 16 : 8);
  if (!Prepare(job)) return false;
  if (job->mode == Mode::kHeader) return true;
  if (class_ids) {
    png_set_packing(png);  // 1, 2 and 4 bits to a byte each, unscaled
  } else {
    png_set_expand(png);  // palette to RGB, small depths to 8 bits
    png_set_scale_16(png);
    png_set_strip_alpha(png);
    if (job->want.channels == 3) png_set_gray_to_rgb(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  if (png_get_rowbytes(png, info) != size_t{job->width} * job->want.channels) png_error(png, "unexpected row size");
  MakeAllRows(job);
  png_read_image(png, job->rows.data());
  png_read_end(png, info);
  // Some programs put the orientation behind the pixels.
  const int orientation = PngOrientation(png, info);
  if (const int before = job->info.orientation; orientation != before) {
    SetInfo(job, job->info.channels, job->height, job->width, orientation, job->info.bits);
    if (class_ids || ExchangesSides(orientation) != ExchangesSides(before)) {
      job->code = StatusCode::kFailedPrecondition;
      std::snprintf(job->error, sizeof(job->error),
                    "its EXIF, which stands behind its pixels, says to turn it (orientation %d) to [%u, %u] pixels "
                    "(height, width); store it upright",
                    orientation, job->info.height, job->info.width);
      return false;
    }
  }
  return true;
}

bool ReadPng(Job* job) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, job, OnPngError, OnPngWarning);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  bool ok = false;
  if (info == nullptr) {
    std::snprintf(job->error, sizeof(job->error), "libpng cannot start");
  } else {
    ok = RunPng(job, png, info);
  }
  png_destroy_read_struct(&png, &info, nullptr);
  return ok;
}

// --- WebP ---

// Its files are colour, also where they show none.
Status ReadWebp(Job* job) {
  DISTILL_ASSIGN_OR_RETURN(const WebpInfo info, ReadWebpInfo(job->file));
  SetInfo(job, 3, info.height, info.width, info.orientation, 8);
  if (!Prepare(job)) return Status(job->code, job->error);
  if (job->mode == Mode::kHeader) return OkStatus();
  MakeAllRows(job);
  return DecodeWebp(job->file, job->height, job->width, size_t{job->row_pixels} * 3, job->pixels.data());
}

Status Run(Job* job) {
  if (IsWebp(job->file)) return ReadWebp(job);
  if (IsJpeg(job->file) || IsPng(job->file)) {
    const bool ok = IsJpeg(job->file) ? ReadJpeg(job) : ReadPng(job);
    return ok ? OkStatus() : Status(job->code, job->error);
  }
  const ContentKind kind = KindOfContent(job->file, job->file.size());
  return absl::DataLossError(StrCat("neither JPEG, PNG nor WebP but ", kind.name));
}

}  // namespace

StatusOr<ImageInfo> ReadImageInfo(std::string_view file) {
  Job job;
  job.file = file;
  job.mode = Mode::kHeader;
  DISTILL_RETURN_IF_ERROR(Run(&job));
  return job.info;
}

Status DecodeImage(std::string_view file, uint32_t channels, Picture* out, DecodeNotes* notes) {
  DecodedPart part;
  return DecodePart(file, channels, nullptr, out, &part, notes);
}

Status DecodePart(std::string_view file, uint32_t channels, const PartChooser& choose, Picture* out, DecodedPart* part,
                  DecodeNotes* notes) {
  Job job;
  job.file = file;
  job.want.channels = channels;
  if (choose != nullptr) job.choose = &choose;
  DISTILL_RETURN_IF_ERROR(Run(&job));
  *part = job.part;
  part->height = job.info.height;
  part->width = job.info.width;
  const CropRect& stored = job.stored;
  const bool exchanged = ExchangesSides(job.info.orientation);
  out->channels = channels;
  out->height = exchanged ? stored.width : stored.height;
  out->width = exchanged ? stored.height : stored.width;
  out->pixels.resize(channels * out->plane());
  out->label_map.clear();
  TurnUpright(job.info.orientation, channels, stored.height, stored.width,
              job.pixels.data() + size_t{stored.left} * channels, job.row_pixels, out->pixels.data());
  if (notes != nullptr) *notes = job.notes;
  return OkStatus();
}

Status DecodeClassIds(std::string_view file, uint32_t height, uint32_t width, uint8_t* out) {
  if (IsJpeg(file)) {
    return absl::FailedPreconditionError("a JPEG file, which changes values; label maps must be PNG files");
  }
  if (IsWebp(file)) return absl::FailedPreconditionError("a WebP file; label maps must be PNG files");
  Job job;
  job.file = file;
  job.mode = Mode::kClassIds;
  job.want = {1, height, width};
  DISTILL_RETURN_IF_ERROR(Run(&job));
  std::memcpy(out, job.pixels.data(), job.pixels.size());
  return OkStatus();
}

}  // namespace distill
