// Reads a tar archive front to back: v7, ustar, GNU (long names and links, sparse members) and pax (path, linkpath,
// size, sparse members of versions 0.0, 0.1 and 1.0). Nothing is ever written to disk.
#ifndef DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_
#define DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "student_worker/data/gzip_file.h"

namespace distill {

struct TarEntry {
  enum class Type {
    kFile,
    kFolder,
    kHardLink,      // `target` is the name of a member before it
    kSymbolicLink,  // `target` is a path from the member's folder
    kOther,         // a device, a pipe, or a kind this reader does not know
  };
  std::string name;  // as stored
  Type type = Type::kOther;
  std::string target;  // of links
  uint64_t size = 0;   // bytes of a file's content; of a sparse one with its holes
};

// Thread-compatible.
class TarReader {
 public:
  explicit TarReader(GzipFile* file) : file_(file) {}  // not owned; outlives the reader

  // Advances to the next entry, skipping unread content. False at the archive's end mark, when nothing but zeros
  // follows it up to the end of the file. kDataLoss: damaged, truncated, a part of a multi-volume archive, or something
  // follows the end mark, as in archives that were joined by cat.
  StatusOr<bool> Next(TarEntry* entry);
  // Where the present entry's content begins in the archive's file, if it lies there in one piece: in an archive that
  // is not compressed, unless the member is sparse. REQUIRES: Next() returned true, and nothing was read since.
  std::optional<uint64_t> ContentOffset() const;
  // Up to `size` further bytes of the present entry's content; fewer only at its end. Holes are zeros. REQUIRES: Next()
  // returned true.
  StatusOr<std::string> Read(uint64_t size);

 private:
  struct Piece {  // of a sparse member's content: `bytes` stored ones, from `offset` on
    uint64_t offset = 0, bytes = 0;
  };
  // What pax headers and GNU's long names say of the entry that follows them.
  struct Extra {
    std::string name, target, sparse_name;
    bool has_size = false, has_pax = false;
    uint64_t size = 0;
    // Sparse members.
    uint64_t major = 0, real_size = 0;
    bool sparse = false, map_in_content = false;
    std::vector<Piece> map;
  };
  Status Damaged(std::string_view how) const;
  Status Skip(uint64_t bytes);
  StatusOr<std::string> ReadPadded(uint64_t size);
  Status ReadPax(std::string_view records, Extra* extra) const;
  Status ReadOldGnuMap(const char* header);
  Status ReadMapFromContent();
  Status CheckMap(const std::string& name) const;
  Status CheckNothingFollows();

  GzipFile* const file_;
  uint64_t stored_ = 0;               // unread bytes of the present entry in the archive, without padding
  uint64_t padding_ = 0;              // after them
  uint64_t size_ = 0, position_ = 0;  // of the present entry's content, and where Read() stands in it
  std::vector<Piece> map_;            // of the present entry; a plain one has one piece
  size_t piece_ = 0;                  // the first that does not end before `position_`
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_
