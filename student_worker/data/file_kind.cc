#include "student_worker/data/file_kind.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using std::string_view_literals::operator""sv;

std::string Lower(std::string_view text) {
  std::string lower(text);
  absl::AsciiStrToLower(&lower);
  return lower;
}

template <size_t N>
bool EndsWithOneOf(std::string_view name, const std::array<std::string_view, N>& endings) {
  const std::string lower = Lower(name);
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return lower.ends_with(ending); });
}

// ISO base media files say what they are in a box "ftyp" at their beginning.
std::string_view BrandOf(std::string_view head) {
  return head.size() >= 12 && head.substr(4, 4) == "ftyp"sv ? head.substr(8, 4) : ""sv;
}

bool IsText(std::string_view head) {
  return std::all_of(head.begin(), head.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 ? byte != 0x7F : byte == '\n' || byte == '\r' || byte == '\t';
  });
}

constexpr char kConvert[] = "convert them to JPEG or PNG";
constexpr char kFetchAgain[] = "fetch them again";

}  // namespace

bool IsImageName(std::string_view name) {
  return EndsWithOneOf(name, std::array{".jpg"sv, ".jpeg"sv, ".jpe"sv, ".jfif"sv, ".png"sv, ".webp"sv});
}

bool IsForeignImageName(std::string_view name) {
  return EndsWithOneOf(
      name, std::array{".bmp"sv, ".gif"sv, ".tif"sv, ".tiff"sv, ".heic"sv, ".heif"sv, ".avif"sv, ".jp2"sv, ".j2k"sv,
                       ".jxl"sv, ".ppm"sv, ".pgm"sv, ".pbm"sv,  ".pnm"sv,  ".tga"sv,  ".dng"sv,  ".cr2"sv, ".nef"sv,
                       ".arw"sv, ".svg"sv, ".ico"sv, ".exr"sv,  ".hdr"sv,  ".dcm"sv,  ".psd"sv});
}

bool IsLitterName(std::string_view name) {
  if (name.starts_with('.')) return true;
  static constexpr std::array kNames = {"__macosx"sv, "thumbs.db"sv,    "ehthumbs.db"sv, "desktop.ini"sv,
                                        "@eadir"sv,   "$recycle.bin"sv, "lost+found"sv,  "system volume information"sv,
                                        "icon\r"sv};
  return std::find(kNames.begin(), kNames.end(), Lower(name)) != kNames.end();
}

bool IsJpeg(std::string_view head) { return head.starts_with("\xFF\xD8\xFF"sv); }
bool IsWebp(std::string_view head) {
  return head.starts_with("RIFF"sv) && head.size() >= 12 && head.substr(8, 4) == "WEBP"sv;
}
bool IsPng(std::string_view head) { return head.starts_with("\x89PNG\r\n\x1A\n"sv); }

ContentKind KindOfContent(std::string_view head, uint64_t size) {
  if (size == 0) return {"empty", false, kFetchAgain};
  if (IsJpeg(head)) return {"JPEG", true, ""};
  if (IsPng(head)) return {"PNG", true, ""};
  const auto begins = [&](std::string_view with) { return head.starts_with(with); };
  if (IsWebp(head)) return {"WebP", true, ""};
  if (begins("GIF87a"sv) || begins("GIF89a"sv)) return {"GIF", true, kConvert};
  if (begins("BM"sv) && head.size() >= 26 && head.substr(6, 4) == "\0\0\0\0"sv) return {"BMP", true, kConvert};
  if (begins("II*\0"sv) || begins("MM\0*"sv) || begins("II+\0"sv) || begins("MM\0+"sv)) {
    return {"TIFF or a camera's raw format", true, kConvert};
  }
  const std::string_view brand = BrandOf(head);
  if (brand.starts_with("avi"sv)) return {"AVIF", true, kConvert};
  if (brand.starts_with("he"sv) || brand == "mif1"sv || brand == "msf1"sv) return {"HEIC", true, kConvert};
  if (brand.starts_with("jpx"sv) || begins("\0\0\0\x0CjP  "sv) || begins("\xFF\x4F\xFF\x51"sv)) {
    return {"JPEG 2000", true, kConvert};
  }
  if (begins("\xFF\x0A"sv) || begins("\0\0\0\x0CJXL "sv)) return {"JPEG XL", true, kConvert};
  if (begins("8BPS"sv)) return {"a Photoshop document", true, kConvert};
  if (begins("v/1\x01"sv)) return {"OpenEXR", true, kConvert};
  if (head.size() >= 3 && head[0] == 'P' && head[1] >= '1' && head[1] <= '7' && absl::ascii_isspace(head[2])) {
    return {"PNM", true, kConvert};
  }
  if (begins("\0\0\1\0"sv)) return {"an icon", true, kConvert};
  if (begins("\xFF\xD8"sv)) return {"a damaged JPEG", false, kFetchAgain};
  if (begins("\x89PNG"sv)) return {"a PNG damaged by a conversion of line ends", false, kFetchAgain};
  if (begins("version https://git-lfs.github.com/spec/"sv)) {
    return {"a Git LFS pointer, whose picture was not fetched", false, "run 'git lfs pull' in the repository"};
  }
  if (head.find("/annex/objects/"sv) != std::string_view::npos) {
    return {"a git-annex pointer, whose picture was not fetched", false, "run 'git annex get' in the repository"};
  }
  if (begins("\0\x05\x16\x07"sv) || begins("\0\x05\x16\0"sv)) {
    return {"macOS's metadata of a file (AppleDouble)", false, "remove them"};
  }
  if (begins("\x1F\x8B"sv)) return {"gzip", false, "unpack them"};
  if (begins("PK\3\4"sv)) return {"a ZIP archive", false, "unpack them"};
  if (begins("%PDF"sv)) return {"a PDF document", false, kConvert};
  if (begins("\x93NUMPY"sv)) return {"a NumPy array", false, kConvert};
  if (begins("\x89HDF\r\n"sv)) return {"an HDF5 file", false, kConvert};
  if (std::all_of(head.begin(), head.end(), [](char c) { return c == 0; })) {
    return {"zero bytes (a hole left by an unfinished copy?)", false, kFetchAgain};
  }
  std::string text = Lower(head);
  absl::StripLeadingAsciiWhitespace(&text);
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  if (text.starts_with("<!doctype html") || text.starts_with("<html")) {
    return {"an HTML page (a server's answer in place of the picture?)", false, kFetchAgain};
  }
  if (text.find("<svg") != std::string::npos) return {"SVG", true, kConvert};
  if (text.starts_with("<?xml")) return {"an XML document", false, kFetchAgain};
  if (IsText(head)) {
    std::string begin(head.substr(0, 24));
    std::replace_if(
        begin.begin(), begin.end(), [](char c) { return c < ' ' || c == '\''; }, ' ');
    return {StrCat("text that begins with \"", begin, "\""), false, kFetchAgain};
  }
  std::string hex;
  for (const char c : head.substr(0, 4)) absl::StrAppendFormat(&hex, " %02x", static_cast<unsigned char>(c));
  return {StrCat("unknown data that begin with", hex), false, kFetchAgain};
}

}  // namespace distill
