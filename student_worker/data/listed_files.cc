#include "student_worker/data/listed_files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include <sys/stat.h>

#include "common/str_cat.h"
#include "student_worker/data/dataset.h"

namespace distill {

ImageFile ListedFiles::Find(const std::string& listed, const std::string& detail) {
  namespace fs = std::filesystem;
  const fs::path path = fs::path(listed).is_absolute() ? fs::path(listed) : request_.folder / fs::path(listed);
  ImageFile file{.name = listed, .where = path.lexically_normal().string(), .refused = true};
  const auto refuse = [&](const char* what, const std::string& remedy, StatusCode code) {
    request_.report->Refuse({StrCat(what_, " ", what), remedy, code}, file.where, detail);
    return file;
  };
  struct stat info;
  if (lstat(file.where.c_str(), &info) != 0) {
    const bool missing = errno == ENOENT || errno == ENOTDIR;
    if (!missing) return refuse("that cannot be looked at", std::strerror(errno), StatusCode::kUnavailable);
    return refuse("that do not exist", remedy_, StatusCode::kNotFound);
  }
  // Links may lead anywhere: the file's own, and those on the way, once for each folder.
  const std::string at = S_ISLNK(info.st_mode) ? file.where : path.lexically_normal().parent_path().string();
  auto known = inside_.find(at);
  if (known == inside_.end()) known = inside_.emplace(at, ResolveBelow(request_.root, at).ok()).first;
  if (!known->second) {
    return refuse("outside the data root", "copy them into it", StatusCode::kInvalidArgument);
  }
  if (S_ISLNK(info.st_mode) && stat(file.where.c_str(), &info) != 0) {
    request_.report->Refuse({"links that lead nowhere", "mend or remove them", StatusCode::kNotFound}, file.where,
                            detail);
    return file;
  }
  if (!S_ISREG(info.st_mode)) {
    return refuse("that are no files", "correct the list", StatusCode::kFailedPrecondition);
  }
  file.size = static_cast<uint64_t>(info.st_size);
  file.refused = false;
  return file;
}

}  // namespace distill
