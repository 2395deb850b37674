// A tree of files, on a disk or in an archive, looked at in one way: what is in a data set does not depend on whether
// it was packed.
#ifndef DISTILL_STUDENT_WORKER_DATA_FILE_TREE_H_
#define DISTILL_STUDENT_WORKER_DATA_FILE_TREE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"

namespace distill {

// Where a file's content lies.
inline constexpr uint64_t kNoOffset = UINT64_MAX;  // in a file of its own, or in memory

// One entry of a folder, symbolic links followed.
struct TreeNode {
  enum class Kind {
    kFile,
    kFolder,
    kLost,     // a link to nothing, or to itself
    kOutside,  // a link that leads out of what may be read
    kOther,    // a device, a pipe, a socket
  };
  Kind kind = Kind::kOther;
  std::string name;      // in its folder
  std::string where;     // for messages: its path, or ARCHIVE:MEMBER, by which links it was reached
  std::string identity;  // the same for whatever links lead to it
  std::string target;    // of a link: where it points, as stored; empty: it is no link
  uint64_t size = 0;     // of a file, in bytes
};

// Immutable; any thread. Outlives nothing: nodes hold no pointer into it.
class FileTree {
 public:
  virtual ~FileTree() = default;
  virtual TreeNode Root() const = 0;
  // What `folder` (kFolder) holds, sorted by name (bytes compared). kUnavailable: the disk failed. kNotFound: it cannot
  // be listed.
  virtual StatusOr<std::vector<TreeNode>> List(const TreeNode& folder) const = 0;
  // The first bytes of `file` (kFile), as KindOfContent wants them; nothing when it cannot be read.
  virtual std::string Head(const TreeNode& file) const = 0;
  // The content of `file` (kFile) where the tree holds it in memory: all of a compressed archive's pictures, the
  // head of its other files. Null: it is read from the disk: the path `where`, or the archive from Offset() on.
  virtual std::shared_ptr<const std::string> Content(const TreeNode& file) const = 0;
  // Where the content of `file` (kFile) begins in its archive, if it is read from there; else kNoOffset.
  virtual uint64_t Offset(const TreeNode& file) const = 0;
};

// The folder `path` on the disk. Links that lead out of `root` are kOutside.
std::unique_ptr<FileTree> OpenFolderTree(const std::string& root, const std::string& path);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_FILE_TREE_H_
