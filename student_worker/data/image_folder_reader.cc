// Image folders and tar archives of them: files are gathered first (compressed, in memory), then sorted, cut to the subset and decoded.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/loaded_split.h"
#include "student_worker/data/tar_reader.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr int kDecodeThreads = 2;

struct ImageFile {
  std::string class_name;
  std::string name;
  std::string where;  // for messages
  std::string bytes;  // empty until read
};

bool IsImageName(const std::string& name) {
  const std::string lower = absl::AsciiStrToLower(name);
  return absl::EndsWith(lower, ".jpg") || absl::EndsWith(lower, ".jpeg") || absl::EndsWith(lower, ".png");
}

Status TooLarge(const std::string& path) {
  return absl::ResourceExhaustedError(absl::StrCat("the images in '", path, "' take more than the limit of ", kMaxDatasetBytes,
                                                   " bytes; use data.train_limit or smaller images"));
}

Status NoClass(const std::string& image, const std::string& split) {
  return absl::FailedPreconditionError(
      absl::StrCat("'", image, "' lies in no class folder; move it into one, or, if it has no label, out of '", split,
                   "' into a folder of its own that data.unlabelled names"));
}

// Names only. Symbolic links must stay inside the root like everything else.
StatusOr<std::vector<ImageFile>> ListFolder(const std::string& root, const std::string& folder,
                                            const std::string& split, SplitKind kind) {
  std::vector<ImageFile> files;
  std::error_code error, query;  // `query`: of single entries, such as a link that leads nowhere; those are passed over
  for (fs::directory_iterator class_entry(folder, error), end; !error && class_entry != end; class_entry.increment(error)) {
    const std::string class_name = class_entry->path().filename().string();
    if (class_name.starts_with('.')) continue;
    if (IsImageName(class_name) && class_entry->is_regular_file(query)) {
      const std::string path = class_entry->path().string();
      if (kind != SplitKind::kUnlabelled) return NoClass(path, split);
      if (class_entry->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, path).status());
      files.push_back({"", class_name, path, ""});
    }
    if (!class_entry->is_directory(query)) continue;
    if (class_entry->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, class_entry->path().string()).status());
    for (fs::directory_iterator entry(class_entry->path(), error); !error && entry != end; entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (!IsImageName(name) || !entry->is_regular_file(query)) continue;
      if (entry->is_symlink(query)) DISTILL_RETURN_IF_ERROR(ResolveBelow(root, entry->path().string()).status());
      files.push_back({class_name, name, entry->path().string(), ""});
    }
    if (error) break;
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot list '", folder, "': ", error.message()));
  return files;
}

StatusOr<std::vector<ImageFile>> ReadArchive(const std::string& path, const std::string& split, SplitKind kind) {
  DISTILL_ASSIGN_OR_RETURN(auto file, GzipFile::Open(path));
  TarReader tar(file.get());
  std::vector<ImageFile> files;
  uint64_t total = 0;
  TarEntry entry;
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool more, tar.Next(&entry));
    if (!more) break;
    if (!entry.is_file || !IsImageName(entry.name)) continue;
    std::vector<std::string> parts = absl::StrSplit(entry.name, '/');
    if (kind == SplitKind::kUnlabelled) {
      if (parts.size() > 1 && parts[0] == split) parts.erase(parts.begin());
      const std::string name = parts.back();
      parts.pop_back();
      parts = {absl::StrJoin(parts, "/"), name};  // in the order of a folder's listing
    } else if (parts.size() == 3 && parts[0] == split) {
      parts.erase(parts.begin());
    }
    if (parts.size() == 1) return NoClass(absl::StrCat(path, ":", entry.name), split);
    const bool labelled = kind != SplitKind::kUnlabelled;
    if (labelled && (parts.size() != 2 || parts[0].empty() || parts[0] == "..")) {
      return absl::FailedPreconditionError(
          absl::StrCat("entry '", entry.name, "' of '", path, "' is not CLASS/NAME; pack the archive from inside the ", split, " folder"));
    }
    total += entry.size;
    if (total > kMaxDatasetBytes) return TooLarge(path);
    DISTILL_ASSIGN_OR_RETURN(std::string bytes, tar.ReadContent());
    files.push_back({parts[0], parts[1], absl::StrCat(path, ":", entry.name), std::move(bytes)});
  }
  // Reading up to the end makes zlib check the stream's sum.
  std::vector<char> rest(64 << 10);
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const size_t got, file->Read(rest.data(), rest.size()));
    if (got == 0) break;
  }
  return files;
}

Status ReadFile(ImageFile* file) {
  std::ifstream in(file->where, std::ios::binary);
  file->bytes.assign(std::istreambuf_iterator<char>(in), {});
  if (in.bad() || file->bytes.empty()) return absl::DataLossError(absl::StrCat("'", file->where, "' is empty or cannot be read"));
  return OkStatus();
}

// Runs fn(i) for i in [0, count) on a few threads; the error of the smallest failing index that was reached.
Status ParallelFor(size_t count, const std::function<Status(size_t)>& fn) {
  std::atomic<size_t> next = 0;
  absl::Mutex mutex;
  Status first;
  size_t first_index = count;
  auto run = [&](int number) {
    pthread_setname_np(pthread_self(), absl::StrCat("data-dec-", number).c_str());
    for (size_t i = next++; i < count; i = next++) {
      Status status;
      try {
        status = fn(i);
      } catch (const std::exception& error) {  // out of memory
        status = absl::ResourceExhaustedError(absl::StrCat("loading images: ", error.what()));
      }
      if (status.ok()) continue;
      absl::MutexLock lock(&mutex);
      if (i < first_index) {
        first = std::move(status);
        first_index = i;
      }
      next = count;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kDecodeThreads; ++i) threads.emplace_back(run, i);
  for (std::thread& thread : threads) thread.join();
  return first;
}

}  // namespace

StatusOr<LoadedSplit> ReadImageFolderSplit(const std::string& root, const std::string& folder,
                                           const std::string& split_name, SplitKind kind,
                                           const SubsetFunction& subset) {
  const bool labelled = kind != SplitKind::kUnlabelled;
  LoadedSplit split;
  std::string source;
  for (const char* ending : {"", ".tar", ".tar.gz"}) {
    const auto path = ResolveBelow(root, (fs::path(folder) / (split_name + ending)).string());
    if (path.ok()) {
      source = *path;
      break;
    }
    if (!absl::IsNotFound(path.status())) return path.status();
  }
  if (source.empty() && kind == SplitKind::kLabelledOrMissing) return split;
  if (source.empty()) {
    return absl::NotFoundError(absl::StrCat("no '", split_name, "/', '", split_name, ".tar' or '", split_name,
                                            ".tar.gz' in '", folder, "'; put the images there or correct ",
                                            labelled ? "data.path" : "data.unlabelled",
                                            " (data.format is image_folder)"));
  }
  std::error_code error;
  const bool is_folder = fs::is_directory(source, error);
  DISTILL_ASSIGN_OR_RETURN(std::vector<ImageFile> files, is_folder ? ListFolder(root, source, split_name, kind)
                                                                   : ReadArchive(source, split_name, kind));
  if (files.empty() && kind == SplitKind::kLabelledOrMissing) return split;
  if (files.empty()) {
    return absl::NotFoundError(absl::StrCat("no JPEG or PNG image in '", source, "'; it needs ",
                                            labelled ? "CLASS/" : "", "NAME.jpg or .png"));
  }
  if (files.size() > UINT32_MAX) return TooLarge(source);
  std::sort(files.begin(), files.end(), [](const ImageFile& a, const ImageFile& b) {
    return std::tie(a.class_name, a.name) < std::tie(b.class_name, b.name);
  });

  for (const ImageFile& file : files) {
    if (!labelled) break;
    if (split.class_names.empty() || split.class_names.back() != file.class_name) split.class_names.push_back(file.class_name);
  }
  std::vector<ImageFile> chosen;
  for (uint32_t index : subset(files.size())) chosen.push_back(std::move(files[index]));
  files.clear();
  if (is_folder) {
    std::atomic<uint64_t> total = 0;
    DISTILL_RETURN_IF_ERROR(ParallelFor(chosen.size(), [&](size_t i) -> Status {
      DISTILL_RETURN_IF_ERROR(ReadFile(&chosen[i]));
      return (total += chosen[i].bytes.size()) > kMaxDatasetBytes ? TooLarge(source) : OkStatus();
    }));
  }

  std::vector<ImageInfo> infos(chosen.size());
  DISTILL_RETURN_IF_ERROR(ParallelFor(chosen.size(), [&](size_t i) -> Status {
    auto info = ReadImageInfo(chosen[i].bytes);
    if (!info.ok()) return absl::DataLossError(absl::StrCat("'", chosen[i].where, "': ", info.status().message()));
    infos[i] = *info;
    return OkStatus();
  }));
  ImageInfo want = infos[0];
  for (size_t i = 0; i < infos.size(); ++i) {
    want.channels = std::max(want.channels, infos[i].channels);
    if (infos[i].height != want.height || infos[i].width != want.width) {
      return absl::FailedPreconditionError(absl::StrCat("'", chosen[i].where, "' has ", infos[i].width, "x", infos[i].height,
                                                        " pixels, '", chosen[0].where, "' has ", want.width, "x", want.height,
                                                        "; all images must have one size"));
    }
  }
  split.channels = want.channels;
  split.height = want.height;
  split.width = want.width;
  const uint64_t image_bytes = uint64_t{want.channels} * want.height * want.width;
  if (image_bytes > kMaxDatasetBytes / chosen.size()) return TooLarge(source);
  split.pixels.resize(image_bytes * chosen.size());
  DISTILL_RETURN_IF_ERROR(ParallelFor(chosen.size(), [&](size_t i) -> Status {
    const Status status = DecodeImage(chosen[i].bytes, want, split.pixels.data() + i * image_bytes);
    if (!status.ok()) return absl::DataLossError(absl::StrCat("'", chosen[i].where, "': ", status.message()));
    chosen[i].bytes = std::string();  // gives the memory back while the rest is decoded
    return OkStatus();
  }));
  for (const ImageFile& file : chosen) {
    if (!labelled) {
      split.labels.push_back(kNoLabel);
      continue;
    }
    split.labels.push_back(std::lower_bound(split.class_names.begin(), split.class_names.end(), file.class_name) -
                           split.class_names.begin());
  }
  return split;
}

}  // namespace distill
