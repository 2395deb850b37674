#include "common/zoo/file_kind.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using std::string_view_literals::operator""sv;

constexpr size_t kHeadBytes = 512;
constexpr size_t kTailBytes = 1 << 20;

uint64_t LittleEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// Calls with the name of each entry of the directory at a ZIP's end, as far as it lies in `tail`. False: the end itself
// is missing.
template <typename Visit>
bool ForEachZipEntry(std::string_view tail, const Visit& visit) {
  constexpr size_t kFixed = 46;  // bytes of an entry before its name
  for (size_t at = tail.find("PK\1\2"sv); at != std::string_view::npos; at = tail.find("PK\1\2"sv, at + 4)) {
    if (at + kFixed > tail.size()) break;
    const uint64_t length = LittleEndian(tail.substr(at + 28, 2));
    visit(tail.substr(at + kFixed, length));
  }
  return tail.find("PK\5\6"sv) != std::string_view::npos;
}

FileKind KindOfZip(std::string_view tail) {
  bool script = false, pickle = false, exported = false;
  const bool complete = ForEachZipEntry(tail, [&](std::string_view name) {
    // torch puts everything below one folder, which is named as the file was.
    const size_t slash = name.find('/');
    const std::string_view inner = slash == std::string_view::npos ? name : name.substr(slash + 1);
    script |= inner == "constants.pkl";
    pickle |= inner == "data.pkl";
    exported |= inner == "archive_format" || inner == "serialized_exported_program.json" ||
                inner.starts_with("data/aotinductor/") || inner.starts_with("models/");
  });
  if (!complete) return FileKind::kZipCutOff;
  if (script) return FileKind::kTorchScript;
  if (exported) return FileKind::kTorchExport;
  if (pickle) return FileKind::kTorchSave;
  return FileKind::kZip;
}

bool LooksLikeSafetensors(std::string_view head) {
  return head.size() >= 10 && LittleEndian(head.substr(0, 8)) <= 100'000'000 && head[8] == '{';
}

// ModelProto begins with ir_version (field 1, a small number), then as a rule producer_name (2) or opset_import (8) or
// graph (7).
bool LooksLikeOnnx(std::string_view head) {
  if (head.size() < 4 || head[0] != 0x08 || static_cast<uint8_t>(head[1]) > 32) return false;
  return head[2] == 0x12 || head[2] == 0x3A || head[2] == 0x42;
}

constexpr std::string_view kSaveWeights =
    "in Python, safetensors.torch.save_file(model.state_dict(), 'model.safetensors') saves the weights of a network of "
    "the zoo";
constexpr std::string_view kSaveArchive =
    "torch.jit.script(model.eval()).save('model.pt') saves any other network as a program";

// What the file is, as the end of a sentence "this is ...".
std::string_view Describe(FileKind kind) {
  switch (kind) {
    case FileKind::kUnknown:
      return "of a kind that is not known here";
    case FileKind::kEmpty:
      return "an empty file";
    case FileKind::kSafetensors:
      return "a safetensors file";
    case FileKind::kTorchScript:
      return "a TorchScript archive";
    case FileKind::kTorchSave:
      return "a Python pickle as torch.save writes it (a state_dict, a checkpoint or a whole module)";
    case FileKind::kTorchExport:
      return "a program of torch.export (.pt2)";
    case FileKind::kZip:
      return "a ZIP archive, but not one of torch.jit.save";
    case FileKind::kZipCutOff:
      return "the beginning of a ZIP archive; its end is missing";
    case FileKind::kPickle:
      return "a Python pickle (pickle.dump, or torch.save before PyTorch 1.6)";
    case FileKind::kOnnx:
      return "an ONNX model";
    case FileKind::kHdf5:
      return "an HDF5 file, as Keras writes them";
    case FileKind::kNumpy:
      return "a NumPy array";
    case FileKind::kGzip:
      return "compressed with gzip";
    case FileKind::kTar:
      return "a tar archive";
    case FileKind::kLfsPointer:
      return "the pointer that Git LFS keeps in place of the file";
    case FileKind::kHtml:
      return "a web page, as a download that was refused leaves it";
  }
  return "";
}

std::string Remedy(FileKind kind, ModelFormat expected) {
  switch (kind) {
    case FileKind::kEmpty:
    case FileKind::kZipCutOff:
    case FileKind::kHtml:
      return "copy or download it again";
    case FileKind::kLfsPointer:
      return "run `git lfs pull` where it comes from, and copy it again";
    case FileKind::kGzip:
    case FileKind::kTar:
      return "unpack it first";
    case FileKind::kSafetensors:
      return "name it *.safetensors, and describe its network in a .yaml file beside it where the file does not";
    case FileKind::kTorchScript:
      return "name it *.pt; as weights of a network of the zoo, save torch.jit.load('it').state_dict() with "
             "safetensors.torch.save_file";
    case FileKind::kTorchSave:
    case FileKind::kPickle:
      return StrCat("no pickle is read here, because it can run any code; ", kSaveWeights,
                    expected == ModelFormat::kArchive ? StrCat(", ", kSaveArchive) : std::string());
    default:
      return StrCat("here models are safetensors files or TorchScript archives: ", kSaveWeights, ", ", kSaveArchive);
  }
}

}  // namespace

FileKind KindOfBytes(std::string_view head, std::string_view tail) {
  if (head.empty()) return FileKind::kEmpty;
  if (head.starts_with("PK\3\4"sv) || head.starts_with("PK\5\6"sv)) {
    return KindOfZip(tail.size() > kTailBytes ? tail.substr(tail.size() - kTailBytes) : tail);
  }
  if (head.starts_with("version https://git-lfs.github.com/")) return FileKind::kLfsPointer;
  if (LooksLikeSafetensors(head)) return FileKind::kSafetensors;
  if (head.size() >= 2 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5) return FileKind::kPickle;
  if (head.starts_with("\x89HDF\r\n"sv)) return FileKind::kHdf5;
  if (head.starts_with("\x93NUMPY"sv)) return FileKind::kNumpy;
  if (head.starts_with("\x1F\x8B"sv)) return FileKind::kGzip;
  if (head.size() >= 262 && head.substr(257, 5) == "ustar") return FileKind::kTar;
  if (LooksLikeOnnx(head)) return FileKind::kOnnx;
  const size_t first = head.find_first_not_of(" \t\r\n");
  const std::string text = absl::AsciiStrToLower(std::string(head.substr(std::min(first, head.size()), 16)));
  for (const char* start : {"<!doctype html", "<html", "<?xml"}) {
    if (text.starts_with(start)) return FileKind::kHtml;
  }
  return FileKind::kUnknown;
}

Status CheckKind(FileKind kind, ModelFormat expected) {
  const FileKind good = expected == ModelFormat::kWeights ? FileKind::kSafetensors : FileKind::kTorchScript;
  if (kind == good || kind == FileKind::kUnknown) return OkStatus();
  const std::string text = StrCat("this is ", Describe(kind), ", not ",
                                  expected == ModelFormat::kWeights ? "a safetensors file" : "a TorchScript archive",
                                  "; ", Remedy(kind, expected));
  const bool damaged = kind == FileKind::kEmpty || kind == FileKind::kZipCutOff;
  return damaged ? absl::DataLossError(text) : absl::FailedPreconditionError(text);
}

Status CheckModelFile(const std::string& path, ModelFormat expected) {
  // A pipe without a writer must not hold the caller.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    const std::string text = StrCat(path, ": ", std::strerror(errno));
    return errno == EACCES ? absl::PermissionDeniedError(text) : absl::NotFoundError(text);
  }
  const absl::Cleanup close_file = [file] { close(file); };
  struct stat info;
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(StrCat(path, ": not a regular file"));
  }
  const auto read_at = [&](off_t offset, size_t size) {
    std::string bytes(size, '\0');
    const ssize_t got = pread(file, bytes.data(), size, offset);
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
    return bytes;
  };
  const auto size = static_cast<size_t>(info.st_size);
  const std::string head = read_at(0, std::min(size, kHeadBytes));
  const size_t tail_size = std::min(size, kTailBytes);
  const std::string tail =
      head.starts_with("PK") ? read_at(static_cast<off_t>(size - tail_size), tail_size) : std::string();
  return Annotate(CheckKind(KindOfBytes(head, tail), expected), path);
}

}  // namespace distill
