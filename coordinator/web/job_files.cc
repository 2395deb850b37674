#include "coordinator/web/job_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_split.h"
#include "common/log.h"
#include "common/str_cat.h"
#include "coordinator/web/status_api.h"

namespace distill::web {
namespace {

// A descriptor that is closed at the end.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_;
};

constexpr int kFolderFlags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
// A pipe in the place of a file must not make the opener wait.
constexpr int kFileFlags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

bool IsShownName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_';
  });
}

Status FolderError(const std::string& folder, int error) {
  const std::string text = StrCat("--files-dir ", folder, " cannot be read: ", std::strerror(error),
                                  "; it is the folder where the coordinator sees the students' --work-dir");
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(text);
  if (error == ENOENT) return absl::NotFoundError(text);
  if (error == ENOTDIR) return absl::InvalidArgumentError(text);
  return absl::UnavailableError(text);
}

StatusOr<Fd> OpenFolder(const std::string& folder) {
  Fd opened(open(folder.c_str(), kFolderFlags));
  if (!opened.ok()) return FolderError(folder, errno);
  return StatusOr<Fd>(std::move(opened));
}

double SecondsOf(const timespec& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// What is below `parent`/`name`. Folders that go away meanwhile (a checkpoint that a newer one replaces) are passed
// over.
void ListInto(int parent, const std::string& name, const std::string& prefix, int depth, std::vector<JobFile>* files) {
  const int fd = openat(parent, name.c_str(), kFolderFlags | O_NOFOLLOW);
  if (fd < 0) return;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(fdopendir(fd), closedir);
  if (folder == nullptr) {
    close(fd);
    return;
  }
  while (const dirent* const entry = readdir(folder.get())) {
    if (files->size() >= kMaxFiles) return;
    struct stat found {};
    if (!IsShownName(entry->d_name) || fstatat(fd, entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0) continue;
    const std::string path = StrCat(prefix, entry->d_name);
    if (S_ISREG(found.st_mode)) {
      files->push_back({path, static_cast<uint64_t>(found.st_size), SecondsOf(found.st_mtim)});
    } else if (S_ISDIR(found.st_mode) && depth < kMaxFileDepth) {
      ListInto(fd, entry->d_name, path + "/", depth + 1, files);
    }
  }
}

HttpResponse NoSuchFile() {
  return JsonError(404, "no such file; a checkpoint is removed when newer ones have replaced it");
}

HttpResponse Failed(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR || error == ELOOP) return NoSuchFile();
  if (error == EACCES || error == EPERM) {
    return JsonError(403,
                     "the coordinator may not read this file: it must run as the students' user, or they must let "
                     "its group read");
  }
  LogWarning("status page: a file cannot be opened", {{"path", path}, {"error", std::strerror(error)}});
  return JsonError(503, StrCat("the file cannot be read now: ", std::strerror(error)));
}

// A whole number and nothing else.
std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

struct Range {
  uint64_t first = 0, length = 0;
  bool outside = false;
};
// nullopt: no range is asked for, or none that is understood, and the whole file is sent.
std::optional<Range> RangeOf(const HttpRequest& request, uint64_t size, const std::string& tag) {
  const auto header = request.headers.find("range");
  if (header == request.headers.end()) return std::nullopt;
  // With If-Range a client goes on with a download only if the file is still the same.
  const auto same = request.headers.find("if-range");
  if (same != request.headers.end() && same->second != tag) return std::nullopt;
  std::string_view text = header->second;
  constexpr std::string_view kUnit = "bytes=";
  if (!text.starts_with(kUnit)) return std::nullopt;
  text.remove_prefix(kUnit.size());
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::optional<uint64_t> from = Number(text.substr(0, dash)), to = Number(text.substr(dash + 1));
  if (dash == 0) {  // the last so many bytes
    if (!to) return std::nullopt;
    const uint64_t length = std::min(*to, size);
    return Range{size - length, length, length == 0};
  }
  if (!from || (dash + 1 < text.size() && (!to || *to < *from))) return std::nullopt;
  if (*from >= size) return Range{0, 0, true};
  return Range{*from, (to ? std::min(*to, size - 1) : size - 1) - *from + 1, false};
}

}  // namespace

StatusOr<std::vector<JobFile>> ListJobFiles(const std::string& folder, const std::string& job_id) {
  DISTILL_ASSIGN_OR_RETURN(const Fd root, OpenFolder(folder));
  std::vector<JobFile> files;
  if (IsShownName(job_id)) ListInto(root.get(), job_id, "", 1, &files);
  std::sort(files.begin(), files.end(), [](const JobFile& a, const JobFile& b) { return a.path < b.path; });
  return files;
}

HttpResponse SendJobFile(const std::string& folder, const std::string& job_id, std::string_view path,
                         const HttpRequest& request) {
  std::vector<std::string> parts = absl::StrSplit(ToAbsl(path), '/');
  if (parts.size() > kMaxFileDepth) return NoSuchFile();
  parts.insert(parts.begin(), job_id);
  if (!std::all_of(parts.begin(), parts.end(), IsShownName)) return NoSuchFile();
  StatusOr<Fd> root = OpenFolder(folder);
  if (!root.ok()) return JsonError(503, ToStd(root.status().message()));
  Fd at = *std::move(root);
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    Fd next(openat(at.get(), parts[i].c_str(), kFolderFlags | O_NOFOLLOW));
    if (!next.ok()) return Failed(StrCat(job_id, "/", path), errno);
    at = std::move(next);
  }
  Fd file(openat(at.get(), parts.back().c_str(), kFileFlags));
  if (!file.ok()) return errno == ENXIO ? NoSuchFile() : Failed(StrCat(job_id, "/", path), errno);
  struct stat found {};
  if (fstat(file.get(), &found) != 0) return Failed(StrCat(job_id, "/", path), errno);
  if (!S_ISREG(found.st_mode)) return NoSuchFile();

  const auto size = static_cast<uint64_t>(found.st_size);
  const std::string tag =
      StrCat("\"", found.st_ino, "-", size, "-", found.st_mtim.tv_sec, ".", found.st_mtim.tv_nsec, "\"");
  // A name that tells jobs apart in a folder of downloads; its characters were checked above.
  std::string name = StrCat(job_id, "-", path);
  std::replace(name.begin(), name.end(), '/', '-');
  HttpResponse response{.content_type = "application/octet-stream",
                        .headers = {{"Content-Disposition", StrCat("attachment; filename=\"", name, "\"")},
                                    {"Cache-Control", "private, no-cache"},
                                    {"Accept-Ranges", "bytes"},
                                    {"ETag", tag}}};
  const auto known = request.headers.find("if-none-match");
  if (known != request.headers.end() && known->second == tag) {
    response.status = 304;
    return response;
  }
  uint64_t first = 0, length = size;
  if (const std::optional<Range> range = RangeOf(request, size, tag)) {
    if (range->outside) {
      HttpResponse refused = JsonError(416, StrCat("the file has ", size, " bytes"));
      refused.headers["Content-Range"] = StrCat("bytes */", size);
      return refused;
    }
    first = range->first;
    length = range->length;
    response.status = 206;
    response.headers["Content-Range"] = StrCat("bytes ", first, "-", first + length - 1, "/", size);
  }
  response.file = std::make_shared<HttpFile>(file.Release(), StrCat(job_id, "/", path), first, length);
  return response;
}

}  // namespace distill::web
