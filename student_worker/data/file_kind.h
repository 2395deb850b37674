// What a file of a data set is: by its name, and by the first bytes of its content.
#ifndef DISTILL_STUDENT_WORKER_DATA_FILE_KIND_H_
#define DISTILL_STUDENT_WORKER_DATA_FILE_KIND_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace distill {

// Stateless; any thread.

// Bytes of a file's beginning that KindOfContent looks at; more does no harm.
inline constexpr size_t kHeadBytes = 256;

// The name of a picture that is read: .jpg, .jpeg, .jpe, .jfif, .png or .webp, in whatever case.
bool IsImageName(std::string_view name);

// The name of a picture of another format: .bmp, .gif, .tif, .heic and so on. Such files are not read.
bool IsForeignImageName(std::string_view name);

// A file or folder that desktops, editors and file servers leave in others' folders, and whatever begins with a dot:
// "._a.png" and "__MACOSX" (macOS), "Thumbs.db" and "desktop.ini" (Windows), "@eaDir" (NAS), ".ipynb_checkpoints". They
// and everything in them are no part of a data set.
bool IsLitterName(std::string_view name);

bool IsJpeg(std::string_view head);
bool IsPng(std::string_view head);
bool IsWebp(std::string_view head);

struct ContentKind {
  std::string name;         // "BMP", "an HTML page", "a Git LFS pointer", "empty", "unknown (it begins with 0a 0b)"
  bool is_picture = false;  // in some format, readable here or not
  std::string remedy;       // what to do when it stands where a JPEG, PNG or WebP should
};
// `size`: of the whole file, of which `head` is the beginning: all of it, or at least kHeadBytes.
ContentKind KindOfContent(std::string_view head, uint64_t size);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_FILE_KIND_H_
