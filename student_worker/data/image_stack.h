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

// Stateless; any thread. Errors name the file. All of them use ParallelFor.

// Reads `files` (>= 1) into memory and gives the shape that all of them can have: colour if any is, one height and
// width. kDataLoss: damaged. kFailedPrecondition: sides differ, or request.shrink does not divide them.
// kResourceExhausted: the files take over request.max_bytes. `source` is named in errors about all files.
StatusOr<ImageInfo> ReadImageFiles(const SplitRequest& request, const std::string& source,
                                   std::vector<ImageFile>* files);

// Decodes files read so into `out`, [N, C, H / shrink, W / shrink], and empties their bytes on the way. kDataLoss:
// damaged; `out` is undefined then. `info` is what ReadImageFiles gave.
Status DecodeImageFiles(const ImageInfo& info, uint32_t shrink, std::vector<ImageFile>* files, uint8_t* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_STACK_H_
