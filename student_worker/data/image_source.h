// The picture files of one split: a folder of them, or a tar archive of such a folder.
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace distill {

struct ImageFile {
  std::string folder;  // the folders between the split and the file, joined by '/'; empty: directly in the split
  std::string name;
  std::string where;  // for messages: its path, or ARCHIVE:MEMBER
  std::string bytes;  // its content; of files in a folder empty until ReadImageFile()
};

// Stateless; any thread. Errors name the file or folder.

// The real path of NAME, NAME.tar or NAME.tar.gz in `folder` below `root`, the first that exists; empty when none does.
// kInvalidArgument: it lies outside `root`.
StatusOr<std::string> FindImageSource(const std::string& root, const std::string& folder, const std::string& name);

// The files in `source` (as FindImageSource gives it) whose names end in .jpg, .jpeg or .png, in whatever case, sorted
// by (folder, name), bytes of the names compared. Of a folder: those in it and in its folders that do not begin with a
// dot; a symbolic link that leads nowhere is passed over. Of an archive: all members, with their content; where they
// begin with `split`/ (packed from beside the folder instead of from inside it) this is left out as long as
// `class_folders` folders remain. kInvalidArgument: a symbolic link leads out of `root`. kDataLoss: a damaged archive.
// kResourceExhausted: the archive's pictures take over `max_bytes`, or there are over 2^32 - 1.
StatusOr<std::vector<ImageFile>> GatherImageFiles(const std::string& root, const std::string& source,
                                                  const std::string& split, size_t class_folders, uint64_t max_bytes);

// Fills in file->bytes unless they are there. kDataLoss: empty or unreadable. kResourceExhausted: over 256 MiB.
Status ReadImageFile(ImageFile* file);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_
