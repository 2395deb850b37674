// The picture files of one split: a folder of them, or a tar archive of such a folder. One rule says which files those
// are, whether the folder was packed or not.
#ifndef DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_
#define DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/data/data_report.h"
#include "student_worker/data/file_tree.h"

namespace distill {

struct ImageFile {
  std::string folder;  // the folders between the split and the file, joined by '/'; empty: directly in the split
  std::string name;
  std::string where;    // for messages: its path, or ARCHIVE:MEMBER
  uint64_t size = 0;    // bytes
  std::string archive;  // where its content is read from, from `offset` on; empty: from the file `where`
  uint64_t offset = 0;
  // Was refused when it was listed, as a link to nothing: it counts as a picture of its split, but is not read.
  bool refused = false;
  // Its content, if it lies in memory (of what is no picture only the head); null: to be read.
  std::shared_ptr<const std::string> content;
};

// Where in its split a picture may lie.
enum class ImageLayout {
  kClassFolders,  // in a folder of the split: CLASS/NAME
  kFlat,          // in the split itself
  kAnywhere,      // in it, or in folders of any depth
};

struct ImageListing {
  std::vector<ImageFile> files;            // sorted by (folder, name), bytes of the names compared
  std::vector<std::string> class_folders;  // kClassFolders: the folders in the split, sorted; with pictures or without
};

// Stateless; any thread. Errors name the file or folder.

// The real path of NAME, NAME.tar or NAME.tar.gz in `folder` below `root`, the first that exists; empty when none does.
// A warning when several do. kInvalidArgument: it lies outside `root`.
StatusOr<std::string> FindImageSource(const std::string& root, const std::string& folder, const std::string& name,
                                      DataReport* report);

// The pictures (IsImageName) in `source`, as FindImageSource gives it. Litter (IsLitterName) is no part of a data set
// and is left out. Symbolic links are followed, and what they lead to goes under the link's name; a link back to a
// folder that holds it is left out. In an archive that was packed from beside the folder `split` instead of from inside
// it, `split`/ is left out of the names.
//
// Left out with a warning: litter that is named like a picture; pictures of other formats or with other names; links
// back. Refused in `report`, by name: pictures in a place that `layout` does not have; links to nothing and links out
// of `root` (of an archive: out of it), unless they are named like files that are no pictures; pictures that are no
// files; kClassFolders: folders without a picture, unless the split has none at all. kDataLoss: a damaged archive.
// kNotFound, kUnavailable: the disk failed. kResourceExhausted: the pictures of a compressed archive, which are held in
// memory, take over `max_bytes`, or there are over 2^32 - 1.
StatusOr<ImageListing> ListImages(const std::string& root, const std::string& source, const std::string& split,
                                  ImageLayout layout, uint64_t max_bytes, DataReport* report);

// Of litter (IsLitterName) that is named like a picture.
extern const FileFault kLitterPicture;
// Refuses a link (kLost or kOutside) that could be meant as a picture or a folder of them. `archive`: which holds it;
// empty: a folder.
void RefuseLink(const std::string& root, const std::string& archive, const TreeNode& node, DataReport* report);

// The content of a file, or its first `limit` bytes. Errors name the reason, not the file; kDataLoss, kUnavailable.
StatusOr<std::shared_ptr<const std::string>> ReadImageBytes(const ImageFile& file, uint64_t limit);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_IMAGE_SOURCE_H_
