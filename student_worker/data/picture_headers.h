// What the headers of a split's picture files say: looked at, all of them, before any is decoded.
#ifndef DISTILL_STUDENT_WORKER_DATA_PICTURE_HEADERS_H_
#define DISTILL_STUDENT_WORKER_DATA_PICTURE_HEADERS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/split_request.h"

namespace distill {

inline constexpr uint64_t kMaxFileBytes = 256 << 20;  // of one picture

struct PictureHeaders {
  uint32_t channels = 0;           // that all files can have: three if any is in colour
  uint32_t height = 0, width = 0;  // of all files, upright; 0: they differ, which request.any_size allows
  std::vector<bool> sound;         // by file: its header was read and it can be used
  uint64_t pixels = 0;             // of all sound files together
  bool wanted = false;             // the student takes them, and there is a sound file
};

// Reads the headers of `files` (>= 1), and no more of them, with request.threads. Refuses files that are empty, too
// large (kMaxFileBytes), unreadable or neither JPEG, PNG nor WebP (those that cannot be decoded are skipped where the
// job says so: request.bad_images), whose sides data.shrink does not divide, and, unless request.any_size, those of
// another size than the student wants (where it wants none: than most have). Warns of 16-bit values, and of turned
// pictures where label maps lie beside them. `source` is named in what is said of all files. Stateless; any thread.
PictureHeaders ReadHeaders(const SplitRequest& request, const std::string& source, bool label_maps,
                           const std::vector<ImageFile>& files);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PICTURE_HEADERS_H_
