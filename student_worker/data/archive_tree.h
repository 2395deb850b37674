// A tar archive as a tree of files: what unpacking it would give, with its links resolved inside the archive.
#ifndef DISTILL_STUDENT_WORKER_DATA_ARCHIVE_TREE_H_
#define DISTILL_STUDENT_WORKER_DATA_ARCHIVE_TREE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/file_tree.h"

namespace distill {

// Lists the archive `path`. Of a plain one the members' places are kept, from where they can be read at any time; of a
// gzipped one the pictures are read into memory, as nothing in it can be found again. Of members of one name the last
// counts, as when unpacking; `report` gets a warning that names them, and refuses members whose names lead out of the
// archive or that are both file and folder. A hard link is the member it names; a symbolic link leads on inside the
// archive, else it is kLost or, where it leads out of the archive, kOutside. kDataLoss: damaged, truncated or joined
// (TarReader). kResourceExhausted: the pictures that it holds in memory take over `max_bytes`.
StatusOr<std::unique_ptr<FileTree>> OpenArchiveTree(const std::string& path, uint64_t max_bytes, DataReport* report);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_ARCHIVE_TREE_H_
