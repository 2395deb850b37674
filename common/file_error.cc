#include "common/file_error.h"

#include <cerrno>
#include <cstring>

#include "common/str_cat.h"

namespace distill {

Status FileError(int error, std::string_view action, std::string_view path, std::string_view elsewhere) {
  const std::string text = StrCat("cannot ", action, " '", path, "': ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(text);
    case ENOTDIR:
    case EISDIR:
    case EEXIST:
      return absl::NotFoundError(StrCat(text, "; choose ", elsewhere));
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(StrCat(text, "; permit it there, or choose ", elsewhere));
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(StrCat(text, "; free space there, or choose ", elsewhere));
    case EIO:
      return absl::DataLossError(StrCat(text, "; the disk fails, choose ", elsewhere));
    default:
      return absl::UnavailableError(text);
  }
}

}  // namespace distill
