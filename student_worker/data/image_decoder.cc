// Both libraries report errors by longjmp. The functions between setjmp and the library calls therefore hold no object
// with a destructor: buffers live in a struct of the caller.
#include "student_worker/data/image_decoder.h"

#include <png.h>

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>

#include <cstring>
#include <string>
#include <vector>

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
  std::vector<uint8_t> pixels;  // [H, W, C]
  std::vector<uint8_t*> rows;
  char error[256] = "";
  StatusCode code = StatusCode::kDataLoss;
  std::jmp_buf jump;
  size_t position = 0;  // PNG: next input byte
};

bool IsJpeg(std::string_view file) { return file.starts_with("\xFF\xD8\xFF"); }
bool IsPng(std::string_view file) { return file.starts_with(std::string_view("\x89PNG\r\n\x1A\n", 8)); }

// Checks the size and makes room; false with `error` set when the image is not what is wanted.
bool Prepare(Job* job) {
  const bool class_ids = job->mode == Mode::kClassIds;
  if (job->info.height == 0 || job->info.width == 0 || job->info.height > kMaxSide || job->info.width > kMaxSide) {
    std::snprintf(job->error, sizeof(job->error), "%ux%u pixels, sides must be 1 to %u", job->info.width,
                  job->info.height, kMaxSide);
    return false;
  }
  if (job->mode == Mode::kHeader) return true;
  if (class_ids && (job->info.height != job->want.height || job->info.width != job->want.width)) {
    job->code = StatusCode::kFailedPrecondition;
    std::snprintf(job->error, sizeof(job->error), "%ux%u pixels, but its image has %ux%u", job->info.width,
                  job->info.height, job->want.width, job->want.height);
    return false;
  }
  if (job->info.height != job->want.height || job->info.width != job->want.width ||
      job->info.channels > job->want.channels) {
    std::snprintf(job->error, sizeof(job->error), "%ux%u pixels with %u channels, expected %ux%u with %u",
                  job->info.width, job->info.height, job->info.channels, job->want.width, job->want.height,
                  job->want.channels);
    return false;
  }
  const size_t stride = size_t{job->want.width} * job->want.channels;
  job->pixels.resize(stride * job->want.height);
  for (uint32_t y = 0; y < job->want.height; ++y) job->rows.push_back(job->pixels.data() + y * stride);
  return true;
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

// Warnings (level -1) mean that the decoder invents pixels from here on, such as grey for a truncated file: an error
// for us.
void OnJpegMessage(j_common_ptr info, int level) {
  if (level < 0) OnJpegError(info);
}

bool RunJpeg(Job* job, jpeg_decompress_struct* jpeg) {
  if (setjmp(job->jump) != 0) return false;
  jpeg_create_decompress(jpeg);
  jpeg_mem_src(jpeg, reinterpret_cast<const unsigned char*>(job->file.data()), job->file.size());
  jpeg_read_header(jpeg, TRUE);
  if (jpeg->num_components != 1 && jpeg->num_components != 3) {
    std::snprintf(job->error, sizeof(job->error), "%d colour components (CMYK?); convert it to RGB",
                  jpeg->num_components);
    return false;
  }
  job->info = ImageInfo{static_cast<uint32_t>(jpeg->num_components), jpeg->image_height, jpeg->image_width};
  if (!Prepare(job)) return false;
  if (job->mode == Mode::kHeader) return true;
  jpeg->out_color_space = job->want.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg->dct_method = JDCT_ISLOW;
  jpeg_start_decompress(jpeg);
  while (jpeg->output_scanline < jpeg->output_height) {
    jpeg_read_scanlines(jpeg, &job->rows[jpeg->output_scanline], job->want.height - jpeg->output_scanline);
  }
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

bool RunPng(Job* job, png_structp png, png_infop info) {
  if (setjmp(job->jump) != 0) return false;
  png_set_user_limits(png, kMaxSide, kMaxSide);
  png_set_read_fn(png, job, ReadPngBytes);
  png_read_info(png, info);
  const bool class_ids = job->mode == Mode::kClassIds;
  if (class_ids && !CheckHoldsClassIds(job, png, info)) return false;
  const bool colour =
      !class_ids && (png_get_color_type(png, info) & PNG_COLOR_MASK_COLOR) != 0;  // palettes carry this bit, too
  job->info = ImageInfo{colour ? 3u : 1u, png_get_image_height(png, info), png_get_image_width(png, info)};
  if (!Prepare(job)) return false;
  if (job->mode == Mode::kHeader) return true;
  if (class_ids) {
    png_set_packing(png);  // 1, 2 and 4 bits to a byte each, unscaled
  } else {
    png_set_expand(png);  // palette to RGB, small depths to 8 bits
    png_set_strip_16(png);
    png_set_strip_alpha(png);
    if (job->want.channels == 3) png_set_gray_to_rgb(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  if (png_get_rowbytes(png, info) != size_t{job->want.width} * job->want.channels)
    png_error(png, "unexpected row size");
  png_read_image(png, job->rows.data());
  png_read_end(png, nullptr);
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

Status Run(Job* job) {
  const bool ok = IsJpeg(job->file)  ? ReadJpeg(job)
                  : IsPng(job->file) ? ReadPng(job)
                                     : (std::snprintf(job->error, sizeof(job->error), "neither JPEG nor PNG"), false);
  return ok ? OkStatus() : Status(job->code, job->error);
}

}  // namespace

StatusOr<ImageInfo> ReadImageInfo(std::string_view file) {
  Job job;
  job.file = file;
  job.mode = Mode::kHeader;
  DISTILL_RETURN_IF_ERROR(Run(&job));
  return job.info;
}

Status DecodeImage(std::string_view file, const ImageInfo& want, uint8_t* out) {
  Job job;
  job.file = file;
  job.want = want;
  DISTILL_RETURN_IF_ERROR(Run(&job));
  const size_t plane = size_t{want.height} * want.width;
  for (uint32_t c = 0; c < want.channels; ++c) {
    for (size_t i = 0; i < plane; ++i) out[c * plane + i] = job.pixels[i * want.channels + c];
  }
  return OkStatus();
}

Status DecodeClassIds(std::string_view file, uint32_t height, uint32_t width, uint8_t* out) {
  if (IsJpeg(file))
    return absl::FailedPreconditionError("a JPEG file, which changes values; label maps must be PNG files");
  Job job;
  job.file = file;
  job.mode = Mode::kClassIds;
  job.want = {1, height, width};
  DISTILL_RETURN_IF_ERROR(Run(&job));
  std::memcpy(out, job.pixels.data(), job.pixels.size());
  return OkStatus();
}

}  // namespace distill
