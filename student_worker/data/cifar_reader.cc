// The binary version of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html). A file is records of one
// size, one an image: a label (CIFAR-100: the coarse one of 20, which is not used, then the fine one of 100), then the
// red, the green and the blue values of 32 x 32 pixels, row by row.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/gzip_file.h"
#include "student_worker/data/split_request.h"
#include "student_worker/data/tar_reader.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kChannels = 3, kSide = 32;
constexpr uint64_t kImageBytes = uint64_t{kChannels} * kSide * kSide;
constexpr uint64_t kMaxFileBytes = 1 << 30;  // CIFAR-100's largest has 154 MB

struct Kind {
  const char* name;
  const char* folder;   // as its archive unpacks
  const char* archive;  // as it is published
  uint32_t classes;
  uint32_t label_bytes;  // the last counts
  std::vector<std::string> train, test;
  uint64_t record() const { return label_bytes + kImageBytes; }
};
const Kind kCifar10{
    "CIFAR-10",
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    10,
    1,
    {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"},
    {"test_batch.bin"}};
const Kind kCifar100{"CIFAR-100", "cifar-100-binary", "cifar-100-binary.tar.gz", 100, 2, {"train.bin"}, {"test.bin"}};

// The files of a set by name, and where they were found.
struct Files {
  const Kind* kind = nullptr;
  std::string where;
  std::map<std::string, std::string> contents;  // those that were wanted
  std::vector<std::string> seen;                // the names of all
};

constexpr char kFetch[] =
    "fetch the binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or correct data.path (data.format is "
    "cifar)";

const std::vector<std::string>& WantedNames(const Kind& kind, const SplitRequest& request) {
  return request.name == "test" ? kind.test : kind.train;
}

bool Has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Which of the two sets files of these names are: null, neither.
StatusOr<const Kind*> KindOf(const std::vector<std::string>& names, const std::string& where) {
  const auto has_any = [&](const Kind& kind) {
    const auto has = [&](const std::string& name) { return Has(names, name); };
    return std::any_of(kind.train.begin(), kind.train.end(), has) ||
           std::any_of(kind.test.begin(), kind.test.end(), has);
  };
  const bool ten = has_any(kCifar10), hundred = has_any(kCifar100);
  if (ten && hundred) {
    return absl::FailedPreconditionError(
        StrCat("'", where, "' holds files of CIFAR-10 and of CIFAR-100; let data.path name a folder of one of them"));
  }
  return ten ? &kCifar10 : hundred ? &kCifar100 : nullptr;
}

Status NoFiles(const std::string& where, const std::vector<std::string>& names) {
  const bool pickled = Has(names, "data_batch_1") || Has(names, "batches.meta") || Has(names, "train");
  return absl::NotFoundError(StrCat("no .bin files of CIFAR-10 or CIFAR-100 in '", where, "'",
                                    pickled ? ", but the version for Python, which is not read" : "", "; ", kFetch));
}

Status CheckSize(const std::string& where, uint64_t size) {
  if (size <= kMaxFileBytes) return OkStatus();
  return absl::ResourceExhaustedError(StrCat("'", where, "' has ", size, " bytes, over the limit of ", kMaxFileBytes));
}

StatusOr<Files> ReadFolder(const SplitRequest& request, const std::string& folder) {
  Files files{.where = folder};
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    files.seen.push_back(entry.path().filename().string());
  }
  if (error) return absl::UnavailableError(StrCat("'", folder, "': ", error.message()));
  DISTILL_ASSIGN_OR_RETURN(files.kind, KindOf(files.seen, folder));
  if (files.kind == nullptr) return files;
  for (const std::string& name : WantedNames(*files.kind, request)) {
    if (!Has(files.seen, name)) continue;
    DISTILL_ASSIGN_OR_RETURN(const std::string path, ResolveBelow(request.root, (fs::path(folder) / name).string()));
    DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<GzipFile> file, GzipFile::Open(path));
    DISTILL_RETURN_IF_ERROR(CheckSize(path, file->file_bytes()));
    std::string& content = files.contents[name];
    content.resize(file->file_bytes());
    DISTILL_RETURN_IF_ERROR(file->ReadExact(content.data(), content.size(), "its content"));
  }
  return files;
}

StatusOr<Files> ReadArchive(const SplitRequest& request, const std::string& path) {
  Files files{.where = path};
  DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<GzipFile> file, GzipFile::Open(path));
  TarReader tar(file.get());
  TarEntry entry;
  while (true) {
    DISTILL_RETURN_IF_ERROR(request.report->wanted());
    DISTILL_ASSIGN_OR_RETURN(const bool more, tar.Next(&entry));
    if (!more) break;
    if (entry.type != TarEntry::Type::kFile) continue;
    const std::string name = fs::path(entry.name).filename().string();
    files.seen.push_back(name);
    if (!Has(WantedNames(kCifar10, request), name) && !Has(WantedNames(kCifar100, request), name)) continue;
    DISTILL_RETURN_IF_ERROR(CheckSize(StrCat(path, ":", entry.name), entry.size));
    DISTILL_ASSIGN_OR_RETURN(files.contents[name], tar.Read(entry.size));
  }
  DISTILL_ASSIGN_OR_RETURN(files.kind, KindOf(files.seen, path));
  return files;
}

// The files where data.path says, in a folder there that has the name of an unpacked archive, or in an archive there.
StatusOr<Files> FindFiles(const SplitRequest& request) {
  std::error_code error;
  if (!fs::is_directory(request.folder, error)) {
    DISTILL_ASSIGN_OR_RETURN(Files files, ReadArchive(request, request.folder));
    if (files.kind == nullptr) return NoFiles(request.folder, files.seen);
    return files;
  }
  DISTILL_ASSIGN_OR_RETURN(Files files, ReadFolder(request, request.folder));
  if (files.kind != nullptr) return files;
  std::vector<std::string> places;
  for (const Kind* kind : {&kCifar10, &kCifar100}) {
    for (const char* const name : {kind->folder, kind->archive}) {
      if (!Has(files.seen, name)) continue;
      places.push_back(name);
      break;  // an archive and what was unpacked of it are one set
    }
  }
  if (places.empty()) return NoFiles(request.folder, files.seen);
  if (places.size() > 1) {
    return absl::FailedPreconditionError(StrCat("'", request.folder, "' holds '", places[0], "' and '", places[1],
                                                "'; let data.path name one of the two"));
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string place,
                           ResolveBelow(request.root, (fs::path(request.folder) / places[0]).string()));
  const bool is_folder = fs::is_directory(place, error);
  DISTILL_ASSIGN_OR_RETURN(Files there, is_folder ? ReadFolder(request, place) : ReadArchive(request, place));
  if (there.kind == nullptr) return NoFiles(place, there.seen);
  return there;
}

}  // namespace

StatusOr<SplitIndex> ReadCifarSplit(const SplitRequest& request) {
  SplitIndex split;
  if (request.shrink != 1) {
    return absl::InvalidArgumentError(
        StrCat("data.shrink is ", request.shrink, ", but images of data.format cifar stay as they are; leave it out"));
  }
  if (request.kind != SplitKind::kLabelled || request.part != SplitPart::kAll) {
    return absl::InvalidArgumentError(
        "data.unlabelled and data.split are for other formats: CIFAR's files all have labels, and its test images are "
        "files of their own");
  }
  DISTILL_ASSIGN_OR_RETURN(const Files files, FindFiles(request));
  const Kind& kind = *files.kind;
  std::vector<uint8_t> labels;
  std::vector<const char*> images;
  for (const std::string& name : WantedNames(kind, request)) {
    const std::string where = StrCat(files.where, files.where.ends_with(".gz") ? ":" : "/", name);
    const auto found = files.contents.find(name);
    if (found == files.contents.end()) {
      return absl::NotFoundError(StrCat("'", where, "' is missing, of the ", WantedNames(kind, request).size(),
                                        " files of ", kind.name, "'s ", request.name, " images; ", kFetch));
    }
    const std::string& content = found->second;
    if (content.empty() || content.size() % kind.record() != 0) {
      return absl::DataLossError(StrCat("'", where, "' has ", content.size(), " bytes, which are no records of ",
                                        kind.record(), " bytes; fetch it again"));
    }
    for (size_t at = 0; at < content.size(); at += kind.record()) {
      labels.push_back(static_cast<uint8_t>(content[at + kind.label_bytes - 1]));
      images.push_back(content.data() + at + kind.label_bytes);
      if (labels.back() >= kind.classes) {
        return absl::DataLossError(StrCat("image ", at / kind.record(), " in '", where, "' has label ",
                                          int{labels.back()}, ", but ", kind.name, " has the classes 0 to ",
                                          kind.classes - 1, "; fetch it again"));
      }
    }
  }
  if (request.want.classes > 0 && request.want.classes < kind.classes) {
    return absl::InvalidArgumentError(StrCat(kind.name, " in '", files.where, "' has ", kind.classes,
                                             " classes, the student ", request.want.classes,
                                             "; set num_classes: ", kind.classes));
  }
  split.channels = kChannels;
  split.height = kSide;
  split.width = kSide;
  split.found = labels.size();
  split.label_found.resize(256);
  IndexDigest digest;
  for (const uint8_t label : labels) {
    split.label_found[label] = true;
    digest.Add("", label, kImageBytes, 0);
  }
  split.digest = digest.Hex();
  if (!CheckShape(request, files.where, kChannels, kSide, kSide)) return split;
  for (const uint32_t index : request.subset(static_cast<uint32_t>(labels.size()))) {
    const auto* image = reinterpret_cast<const uint8_t*>(images[index]);
    split.pixels.insert(split.pixels.end(), image, image + kImageBytes);
    split.labels.push_back(labels[index]);
  }
  return split;
}

}  // namespace distill
