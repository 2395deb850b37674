#include "student_worker/data/image_source.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/gzip_file.h"
#include "student_worker/data/tar_reader.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxFileBytes = 256 << 20;

bool IsImageName(const std::string& name) {
  const std::string lower = absl::AsciiStrToLower(name);
  return absl::EndsWith(lower, ".jpg") || absl::EndsWith(lower, ".jpeg") || absl::EndsWith(lower, ".png");
}

// Names only. Symbolic links must stay inside the root like everything else.
StatusOr<std::vector<ImageFile>> ListFolder(const std::string& root, const std::string& folder) {
  std::vector<ImageFile> files;
  std::error_code error, query;  // `query`: of single entries, such as a link that leads nowhere; those are passed over
  for (fs::directory_iterator outer(folder, error), end; !error && outer != end; outer.increment(error)) {
    const std::string outer_name = outer->path().filename().string();
    if (outer_name.starts_with('.')) continue;
    if (IsImageName(outer_name) && outer->is_regular_file(query)) {
      if (outer->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, outer->path().string()).status());
      files.push_back({"", outer_name, outer->path().string(), ""});
    }
    if (!outer->is_directory(query)) continue;
    if (outer->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, outer->path().string()).status());
    for (fs::directory_iterator inner(outer->path(), error); !error && inner != end; inner.increment(error)) {
      const std::string name = inner->path().filename().string();
      if (!IsImageName(name) || !inner->is_regular_file(query)) continue;
      if (inner->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, inner->path().string()).status());
      files.push_back({outer_name, name, inner->path().string(), ""});
    }
    if (error) break;
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot list '", folder, "': ", error.message()));
  return files;
}

StatusOr<std::vector<ImageFile>> ReadArchive(const std::string& path, const std::string& split, size_t class_folders,
                                             uint64_t max_bytes) {
  DISTILL_ASSIGN_OR_RETURN(auto file, GzipFile::Open(path));
  TarReader tar(file.get());
  std::vector<ImageFile> files;
  uint64_t total = 0;
  TarEntry entry;
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool more, tar.Next(&entry));
    if (!more) break;
    if (!entry.is_file || !IsImageName(entry.name)) continue;
    std::vector<std::string> folders = absl::StrSplit(entry.name, '/');
    const std::string name = folders.back();
    folders.pop_back();
    if (folders.size() > class_folders && folders[0] == split) folders.erase(folders.begin());
    total += entry.size;
    if (total > max_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the images in '", path, "' take more than the limit of ",
                                                       max_bytes,
                                                       " bytes even compressed; pack fewer or smaller ones"));
    }
    DISTILL_ASSIGN_OR_RETURN(std::string bytes, tar.ReadContent());
    files.push_back({absl::StrJoin(folders, "/"), name, absl::StrCat(path, ":", entry.name), std::move(bytes)});
  }
  // Reading up to the end makes zlib check the stream's sum.
  std::vector<char> rest(64 << 10);
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const size_t got, file->Read(rest.data(), rest.size()));
    if (got == 0) break;
  }
  return files;
}

}  // namespace

StatusOr<std::string> FindImageSource(const std::string& root, const std::string& folder, const std::string& name) {
  for (const char* ending : {"", ".tar", ".tar.gz"}) {
    auto path = ResolveBelow(root, (fs::path(folder) / (name + ending)).string());
    if (path.ok() || !absl::IsNotFound(path.status())) return path;
  }
  return std::string();
}

StatusOr<std::vector<ImageFile>> GatherImageFiles(const std::string& root, const std::string& source,
                                                  const std::string& split, size_t class_folders, uint64_t max_bytes) {
  std::error_code error;
  DISTILL_ASSIGN_OR_RETURN(std::vector<ImageFile> files, fs::is_directory(source, error)
                                                             ? ListFolder(root, source)
                                                             : ReadArchive(source, split, class_folders, max_bytes));
  if (files.size() > UINT32_MAX) {
    return absl::ResourceExhaustedError(
        absl::StrCat("'", source, "' holds ", files.size(), " images; a data set may have ", UINT32_MAX));
  }
  std::sort(files.begin(), files.end(), [](const ImageFile& a, const ImageFile& b) {
    return std::tie(a.folder, a.name) < std::tie(b.folder, b.name);
  });
  return files;
}

Status ReadImageFile(ImageFile* file) {
  if (!file->bytes.empty()) return OkStatus();
  std::error_code error;
  const uint64_t size = fs::file_size(file->where, error);
  if (!error && size > kMaxFileBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("'", file->where, "' has ", size, " bytes, over the limit of ",
                                                     kMaxFileBytes, " for one picture"));
  }
  std::ifstream in(file->where, std::ios::binary);
  file->bytes.assign(std::istreambuf_iterator<char>(in), {});
  if (in.bad() || file->bytes.empty()) {
    return absl::DataLossError(absl::StrCat("'", file->where, "' is empty or cannot be read"));
  }
  return OkStatus();
}

}  // namespace distill
