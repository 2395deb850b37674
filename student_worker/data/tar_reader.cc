#include "student_worker/data/tar_reader.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace distill {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kMaxNameBytes = 64 << 10;
constexpr uint64_t kMaxEntryBytes = 256 << 20;

uint64_t Padding(uint64_t size) { return (kBlock - size % kBlock) % kBlock; }

// An octal field, ended by NUL or space. Sizes over 8 GiB (base-256) do not occur in images and count as damage.
bool ParseOctal(const char* field, size_t size, uint64_t* value) {
  *value = 0;
  size_t i = 0;
  while (i < size && field[i] == ' ') ++i;
  for (; i < size && field[i] != '\0' && field[i] != ' '; ++i) {
    if (field[i] < '0' || field[i] > '7') return false;
    *value = *value * 8 + (field[i] - '0');
  }
  return true;
}

std::string Text(const char* field, size_t size) { return std::string(field, strnlen(field, size)); }

// The value of "path" in pax records "LENGTH KEY=VALUE\n"; "" when absent.
std::string PaxPath(std::string_view records) {
  std::string path;
  while (!records.empty()) {
    const size_t space = records.find(' ');
    uint64_t length = 0;
    if (space == std::string_view::npos || !absl::SimpleAtoi(std::string(records.substr(0, space)), &length) || length <= space + 1 ||
        length > records.size()) {
      break;
    }
    std::string_view record = records.substr(space + 1, length - space - 2);
    if (record.starts_with("path=")) path = std::string(record.substr(5));
    records.remove_prefix(length);
  }
  return path;
}

}  // namespace

Status TarReader::Skip(uint64_t bytes) {
  char scratch[16 << 10];
  while (bytes > 0) {
    const size_t part = std::min<uint64_t>(bytes, sizeof(scratch));
    DISTILL_RETURN_IF_ERROR(file_->ReadExact(scratch, part, "an entry of the archive"));
    bytes -= part;
  }
  return OkStatus();
}

StatusOr<std::string> TarReader::ReadPadded(uint64_t size) {
  std::string content(size, '\0');
  DISTILL_RETURN_IF_ERROR(file_->ReadExact(content.data(), size, "an entry of the archive"));
  DISTILL_RETURN_IF_ERROR(Skip(Padding(size)));
  return content;
}

StatusOr<std::string> TarReader::ReadContent() {
  const uint64_t size = content_;
  content_ = 0;
  return ReadPadded(size);
}

StatusOr<bool> TarReader::Next(TarEntry* entry) {
  DISTILL_RETURN_IF_ERROR(Skip(content_ + Padding(content_)));
  content_ = 0;
  std::string long_name;
  while (true) {
    char header[kBlock];
    DISTILL_RETURN_IF_ERROR(file_->ReadExact(header, kBlock, "the archive's end mark"));
    if (std::all_of(header, header + kBlock, [](char c) { return c == 0; })) return false;
    // Sum of all bytes with the checksum field taken as spaces.
    uint64_t sum = 8 * ' ', stored = 0, size = 0;
    for (size_t i = 0; i < kBlock; ++i) sum += i >= 148 && i < 156 ? 0 : static_cast<unsigned char>(header[i]);
    if (!ParseOctal(header + 148, 8, &stored) || stored != sum || !ParseOctal(header + 124, 12, &size)) {
      return absl::DataLossError(absl::StrCat("'", file_->path(), "' is not a tar archive or is damaged (bad header checksum)"));
    }
    const char type = header[156];
    if (type == 'L' || type == 'x') {  // name of the entry that follows
      if (size > kMaxNameBytes) return absl::DataLossError(absl::StrCat("'", file_->path(), "' has a name of ", size, " bytes"));
      DISTILL_ASSIGN_OR_RETURN(const std::string content, ReadPadded(size));
      if (type == 'L') long_name = Text(content.data(), content.size());
      if (type == 'x') long_name = PaxPath(content);
      continue;
    }
    if (type == 'g' || type == 'K') {  // archive-wide comments; long link target
      DISTILL_RETURN_IF_ERROR(Skip(size + Padding(size)));
      continue;
    }
    entry->name = Text(header, 100);
    const std::string prefix = std::memcmp(header + 257, "ustar\0", 6) == 0 ? Text(header + 345, 155) : "";
    if (!prefix.empty()) entry->name = prefix + "/" + entry->name;
    if (!long_name.empty()) entry->name = long_name;
    if (absl::StartsWith(entry->name, "./")) entry->name.erase(0, 2);
    entry->is_file = type == '0' || type == '\0' || type == '7';
    entry->size = size;
    if (size > kMaxEntryBytes) {
      return absl::DataLossError(
          absl::StrCat("'", file_->path(), "' has an entry '", entry->name, "' of ", size, " bytes; at most ", kMaxEntryBytes));
    }
    content_ = size;
    return true;
  }
}

}  // namespace distill
