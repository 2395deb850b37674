#include "common/safetensors/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "common/file_error.h"
#include "common/str_cat.h"

namespace distill {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are used as they lie in the file");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLengthBytes = 8;

struct TensorHeader {
  std::optional<std::string> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;
};

// Receives the header's JSON piece by piece and accepts only what the format allows, so that a hostile header cannot
// build a deep or surprising document first. Depth 1 is the outer object, depth 2 a tensor or the metadata.
class HeaderSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::map<std::string, TensorHeader> tensors;
  std::map<std::string, std::string> metadata;
  std::string error;  // why parsing stopped

  bool start_object(std::size_t) override {
    if (array_ != nullptr) return Fail("an object inside an array");
    if (depth_ == 0) return ++depth_, true;
    if (depth_ == 2) return Fail("an object where a plain value belongs");
    ++depth_;
    fields_.clear();
    return true;
  }
  bool end_object() override {
    if (depth_ == 2 && tensor_ != nullptr && (!tensor_->dtype || !tensor_->shape || !tensor_->offsets)) {
      return Fail("needs dtype, shape and data_offsets");
    }
    --depth_;
    if (depth_ == 1) name_.clear();
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      name_ = name;
      if (!names_.insert(name).second) return Fail("occurs twice");
      tensor_ = name == "__metadata__" ? nullptr : &tensors[name];
      return true;
    }
    field_ = name;
    if (!fields_.insert(name).second) return Fail(StrCat("key '", name, "' occurs twice"));
    if (tensor_ != nullptr && name != "dtype" && name != "shape" && name != "data_offsets") {
      return Fail(StrCat("unknown key '", name, "'"));
    }
    return true;
  }
  bool string(string_t& value) override {
    if (array_ == nullptr && depth_ == 2 && tensor_ == nullptr) {
      metadata[field_] = value;
      return true;
    }
    if (array_ == nullptr && depth_ == 2 && field_ == "dtype") {
      tensor_->dtype = value;
      return true;
    }
    return Fail("unexpected text");
  }
  bool start_array(std::size_t) override {
    if (array_ != nullptr || depth_ != 2 || tensor_ == nullptr || field_ == "dtype") return Fail("unexpected array");
    array_ = &(field_ == "shape" ? tensor_->shape : tensor_->offsets).emplace();
    return true;
  }
  bool end_array() override {
    array_ = nullptr;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (array_ == nullptr) return Fail("unexpected number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Fail("a number too large");
    array_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t) override { return Fail("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override { return Fail(StrCat("unexpected number ", text)); }
  bool null() override { return Fail("unexpected null"); }
  bool boolean(bool) override { return Fail("unexpected true or false"); }
  bool binary(binary_t&) override { return Fail("unexpected binary value"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    if (error.empty()) error = StrCat("header is not valid JSON in UTF-8 at byte ", position);
    return false;
  }

 private:
  bool Fail(std::string_view what) {
    error = name_.empty() ? StrCat("header: ", what) : StrCat("tensor '", name_, "': ", what);
    return false;
  }

  int depth_ = 0;
  std::string name_, field_;
  std::set<std::string> names_, fields_;
  TensorHeader* tensor_ = nullptr;         // into `tensors`, whose nodes stay put; null inside the metadata
  std::vector<int64_t>* array_ = nullptr;  // into *tensor_, while inside its array
};

// Bytes of a tensor; nothing when the product overflows.
std::optional<uint64_t> TensorBytes(const std::vector<int64_t>& shape, size_t dtype_size) {
  uint64_t bytes = dtype_size;
  for (int64_t d : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(d), &bytes)) return std::nullopt;
  }
  return bytes;
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  // Closes and reports: some file systems tell of a full disk only here.
  int Close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), std::min<size_t>(bytes.size(), 1u << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(errno, "write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return OkStatus();
}

Status WriteTemporary(const std::string& temporary, const std::vector<std::string_view>& pieces) {
  FileDescriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (file.get() < 0) return FileError(errno, "create", temporary);
  for (std::string_view piece : pieces) DISTILL_RETURN_IF_ERROR(WriteAll(file.get(), piece, temporary));
  if (::fsync(file.get()) != 0) return FileError(errno, "write", temporary);
  if (file.Close() != 0) return FileError(errno, "write", temporary);
  return OkStatus();
}

Status WritePiecesAtomically(const std::string& path, const std::vector<std::string_view>& pieces) {
  const std::string temporary = path + ".tmp";
  Status status = WriteTemporary(temporary, pieces);
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) status = FileError(errno, "rename to", path);
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  // The rename itself must survive a power loss.
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  FileDescriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) return FileError(errno, "open", folder);
  if (::fsync(directory.get()) != 0 && errno != EINVAL) return FileError(errno, "sync", folder);
  return OkStatus();
}

}  // namespace

StatusOr<Buffer> ReadRegularFile(const std::string& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever. It means nothing for regular files.
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return FileError(errno, "open", path);
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return FileError(errno, "read", path);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(StrCat("'", path, "' is not a regular file"));
  const size_t size = static_cast<size_t>(info.st_size);
  std::shared_ptr<uint8_t[]> bytes(new (std::nothrow) uint8_t[size]);
  if (bytes == nullptr)
    return absl::ResourceExhaustedError(StrCat("no memory for the ", size, " bytes of '", path, "'"));
  for (size_t done = 0; done < size;) {
    const ssize_t got = ::read(file.get(), bytes.get() + done, std::min<size_t>(size - done, 1u << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(errno, "read", path);
    if (got == 0) return absl::DataLossError(StrCat("'", path, "' became shorter while it was read"));
    done += static_cast<size_t>(got);
  }
  return Buffer{bytes.get(), size, bytes};
}

size_t SafetensorsDtypeSize(const std::string& dtype) {
  static const std::map<std::string, size_t> kSizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8}};
  const auto it = kSizes.find(dtype);
  return it == kSizes.end() ? 0 : it->second;
}

StatusOr<SafetensorsFile> ParseSafetensors(Buffer bytes, const std::string& name_for_messages) {
  const auto damaged = [&](const auto&... what) {
    return absl::DataLossError(StrCat("safetensors file '", name_for_messages, "': ", what...));
  };
  if (bytes.size < kLengthBytes) return damaged("has ", bytes.size, " bytes, too short for a header");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data, kLengthBytes);
  if (header_size > kMaxHeaderBytes) return damaged("header of ", header_size, " bytes, limit is ", kMaxHeaderBytes);
  if (header_size > bytes.size - kLengthBytes) {
    return damaged("truncated: header of ", header_size, " bytes in a file of ", bytes.size);
  }
  const char* header = reinterpret_cast<const char*>(bytes.data) + kLengthBytes;
  if (header_size == 0 || header[0] != '{') return damaged("header does not begin with '{'");

  HeaderSax sax;
  if (!nlohmann::json::sax_parse(header, header + header_size, &sax)) return damaged(sax.error);

  const uint8_t* data = bytes.data + kLengthBytes + header_size;
  const uint64_t data_size = bytes.size - kLengthBytes - header_size;
  SafetensorsFile file;
  file.metadata = std::move(sax.metadata);
  struct Extent {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (auto& [name, info] : sax.tensors) {
    const size_t dtype_size = SafetensorsDtypeSize(*info.dtype);
    if (dtype_size == 0) return damaged("tensor '", name, "': unknown dtype '", *info.dtype, "'");
    if (info.offsets->size() != 2)
      return damaged("tensor '", name, "': data_offsets has ", info.offsets->size(), " numbers, needs 2");
    const uint64_t begin = static_cast<uint64_t>((*info.offsets)[0]);
    const uint64_t end = static_cast<uint64_t>((*info.offsets)[1]);
    if (begin > end) return damaged("tensor '", name, "': ends at byte ", end, ", before its begin ", begin);
    if (end > data_size) {
      return damaged("truncated: tensor '", name, "' ends at byte ", end, " of the data, which has ", data_size);
    }
    const std::optional<uint64_t> needed = TensorBytes(*info.shape, dtype_size);
    if (!needed || *needed != end - begin) {
      return damaged("tensor '", name, "': its shape needs ", needed ? StrCat(*needed) : std::string("too many"),
                     " bytes, its offsets give ", end - begin);
    }
    extents.push_back({begin, end, &name});
    file.tensors[name] = {*info.dtype, std::move(*info.shape), Buffer{data + begin, end - begin, bytes.owner}};
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin < covered)
      return damaged("tensor '", *extent.name, "' overlaps another one at byte ", extent.begin);
    if (extent.begin > covered)
      return damaged("hole of ", extent.begin - covered, " bytes before tensor '", *extent.name, "'");
    covered = extent.end;
  }
  if (covered != data_size) return damaged(data_size - covered, " bytes after the last tensor belong to none");
  return file;
}

StatusOr<SafetensorsFile> ReadSafetensors(const std::string& path) {
  DISTILL_ASSIGN_OR_RETURN(Buffer bytes, ReadRegularFile(path));
  return ParseSafetensors(std::move(bytes), path);
}

Status WriteSafetensors(const std::string& path, const SafetensorsFile& file) {
  std::vector<std::pair<size_t, const std::pair<const std::string, SafeTensor>*>> order;
  for (const auto& entry : file.tensors) {
    const auto& [name, tensor] = entry;
    const size_t dtype_size = SafetensorsDtypeSize(tensor.dtype);
    const bool negative = std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t d) { return d < 0; });
    const std::optional<uint64_t> needed = negative ? std::nullopt : TensorBytes(tensor.shape, dtype_size);
    if (dtype_size == 0 || needed != tensor.bytes.size) {
      return absl::InvalidArgumentError(StrCat("cannot write '", path, "': tensor '", name, "' has ", tensor.bytes.size,
                                               " bytes, which do not fit its shape and dtype ", tensor.dtype));
    }
    order.emplace_back(dtype_size, &entry);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!file.metadata.empty()) header["__metadata__"] = file.metadata;
  uint64_t offset = 0;
  std::vector<std::string_view> pieces(2);
  for (const auto& [dtype_size, entry] : order) {
    const auto& [name, tensor] = *entry;
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes.size}}};
    offset += tensor.bytes.size;
    pieces.emplace_back(reinterpret_cast<const char*>(tensor.bytes.data), tensor.bytes.size);
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(StrCat("cannot write '", path, "': a name is not UTF-8 (", error.what(), ")"));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(StrCat("cannot write '", path, "': header of ", text.size(), " bytes"));
  }
  const uint64_t length = text.size();
  pieces[0] = {reinterpret_cast<const char*>(&length), kLengthBytes};
  pieces[1] = text;
  return WritePiecesAtomically(path, pieces);
}

Status WriteFileAtomically(const std::string& path, std::string_view bytes) {
  return WritePiecesAtomically(path, {bytes});
}

}  // namespace distill
