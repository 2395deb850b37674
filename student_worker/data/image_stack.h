// Many picture files to one array of pixels: what the readers of folders share after the files are chosen.
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_STACK_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_STACK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/loaded_split.h"

namespace distill {

inline constexpr uint64_t kMaxFileBytes = 256 << 20;  // of one picture

// Stateless; any thread. What is wrong with a file goes to request.report, of every file. All of them use ParallelFor.

struct ImageHeaders {
  ImageInfo common;         // the shape that all files can have: colour if any is, one height and width
  std::vector<bool> sound;  // by file: its header was read and its size is that of `common`
  bool wanted = false;      // `common` is what the student takes, and there is a sound file
};

// Reads the headers of `files` (>= 1), and no more of them. Refuses files that are empty, too large (kMaxFileBytes),
// unreadable or neither JPEG nor PNG, and those of another size than the student wants (where it wants none: than most
// have). Warns of 16-bit values, and of turned pictures where label maps lie beside them. `source` is named in what is
// said of all files.
ImageHeaders ReadHeaders(const SplitRequest& request, const std::string& source, bool label_maps,
                         const std::vector<ImageFile>& files);

// Decodes the sound files into `out`, [N, C, H / shrink, W / shrink], and gives up the content of each on the way. With
// out == nullptr they are decoded for their faults alone. Refuses damaged files; warns of those that are only odd
// (DecodeNotes).
Status DecodeImageFiles(const SplitRequest& request, const ImageHeaders& headers, std::vector<ImageFile>* files,
                        uint8_t* out);

// Both of them: checks the headers, makes room in `split`, and decodes. `split` has no pixels when the report holds a
// refusal, and nothing is decoded when the student takes other shapes. kResourceExhausted: over request.max_bytes;
// label maps count as one channel more. `source` and `label_maps` as above. Gives what ReadHeaders gave.
StatusOr<ImageHeaders> LoadImages(const SplitRequest& request, const std::string& source, bool label_maps,
                                  std::vector<ImageFile>* files, LoadedSplit* split);

// The content of a file, or nothing and a refusal in the report.
std::shared_ptr<const std::string> ReadOrRefuse(const ImageFile& file, uint64_t limit, DataReport* report);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_STACK_H_
