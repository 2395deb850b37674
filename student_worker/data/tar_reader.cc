// The formats: POSIX.1-2017 `pax`, and "Basic Tar Format" and "Storing Sparse Files" in the manual of GNU tar.
#include "student_worker/data/tar_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kMaxHeaderBytes = 1 << 20;  // of a long name or a pax header
constexpr size_t kMaxPieces = 1 << 16;

uint64_t Padding(uint64_t size) { return (kBlock - size % kBlock) % kBlock; }

// An octal field ended by NUL or space, or (GNU, for large values) a big-endian number after a byte 0x80.
bool ParseNumber(const char* field, size_t size, uint64_t* value) {
  *value = 0;
  size_t i = 0;
  if (static_cast<unsigned char>(field[0]) == 0x80) {
    for (i = 1; i < size; ++i) {
      if (*value > std::numeric_limits<uint64_t>::max() >> 8) return false;
      *value = *value << 8 | static_cast<unsigned char>(field[i]);
    }
    return true;
  }
  while (i < size && field[i] == ' ') ++i;
  for (; i < size && field[i] != '\0' && field[i] != ' '; ++i) {
    if (field[i] < '0' || field[i] > '7') return false;
    *value = *value * 8 + (field[i] - '0');  // at most 12 digits
  }
  return true;
}

std::string Text(const char* field, size_t size) { return std::string(field, strnlen(field, size)); }

bool ParseDecimal(std::string_view text, uint64_t* value) { return absl::SimpleAtoi(ToAbsl(text), value); }

}  // namespace

Status TarReader::Damaged(std::string_view how) const {
  return absl::DataLossError(StrCat("'", file_->path(), "' is not a tar archive or is damaged (", how, ")"));
}

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
  if (size > kMaxHeaderBytes) return Damaged(StrCat("a header of ", size, " bytes"));
  std::string content(size, '\0');
  DISTILL_RETURN_IF_ERROR(file_->ReadExact(content.data(), size, "a header of the archive"));
  DISTILL_RETURN_IF_ERROR(Skip(Padding(size)));
  return content;
}

// Records "LENGTH KEY=VALUE\n", LENGTH counting all of the record.
Status TarReader::ReadPax(std::string_view records, Extra* extra) const {
  extra->has_pax = true;
  uint64_t offset = 0, number = 0;  // of sparse 0.0, which gives its map as a row of offset and numbytes
  while (!records.empty()) {
    const size_t space = records.find(' ');
    uint64_t length = 0;
    if (space == std::string_view::npos || !ParseDecimal(records.substr(0, space), &length) || length <= space + 2 ||
        length > records.size() || records[length - 1] != '\n') {
      return Damaged("a pax header without its form");
    }
    const std::string_view record = records.substr(space + 1, length - space - 2);
    records.remove_prefix(length);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return Damaged("a pax header without its form");
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") extra->name = value;
    if (key == "linkpath") extra->target = value;
    if (key == "GNU.sparse.name") extra->sparse_name = value;
    if (key == "GNU.sparse.map") {
      std::string_view rest = value;
      std::vector<uint64_t> numbers;
      while (!rest.empty()) {
        const size_t comma = std::min(rest.find(','), rest.size());
        if (!ParseDecimal(rest.substr(0, comma), &number) || numbers.size() > 2 * kMaxPieces) {
          return Damaged("a sparse member without a map");
        }
        numbers.push_back(number);
        rest.remove_prefix(std::min(comma + 1, rest.size()));
      }
      if (numbers.size() % 2 != 0) return Damaged("a sparse member with half a map");
      extra->map.clear();
      for (size_t i = 0; i < numbers.size(); i += 2) extra->map.push_back({numbers[i], numbers[i + 1]});
      extra->sparse = true;
    }
    const bool numeric = key == "size" || key == "GNU.sparse.size" || key == "GNU.sparse.realsize" ||
                         key == "GNU.sparse.major" || key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes";
    if (!numeric) continue;
    if (!ParseDecimal(value, &number)) return Damaged("a pax header with a number that is none");
    if (key == "size") {
      extra->size = number;
      extra->has_size = true;
    } else if (key == "GNU.sparse.size" || key == "GNU.sparse.realsize") {
      extra->real_size = number;
      extra->sparse = true;
    } else if (key == "GNU.sparse.major") {
      if (number > 1) return Damaged(StrCat("a sparse member of version ", number, ", which is not known"));
      extra->map_in_content = number == 1;
      extra->sparse = true;
    } else if (key == "GNU.sparse.offset") {
      offset = number;
    } else {
      if (extra->map.size() >= kMaxPieces) return Damaged("a sparse member of too many pieces");
      extra->map.push_back({offset, number});
    }
  }
  return OkStatus();
}

// Four pieces in the header, 21 in each block that follows it, with a byte that says whether another one comes.
Status TarReader::ReadOldGnuMap(const char* header) {
  const auto take = [&](const char* field, int count) {
    for (int i = 0; i < count; ++i, field += 24) {
      Piece piece;
      if (field[0] == '\0') return OkStatus();
      if (!ParseNumber(field, 12, &piece.offset) || !ParseNumber(field + 12, 12, &piece.bytes)) {
        return Damaged("a sparse member without a map");
      }
      map_.push_back(piece);
    }
    return OkStatus();
  };
  map_.clear();
  DISTILL_RETURN_IF_ERROR(take(header + 386, 4));
  char block[kBlock];
  for (bool more = header[482] != 0; more; more = block[504] != 0) {
    if (map_.size() >= kMaxPieces) return Damaged("a sparse member of too many pieces");
    DISTILL_RETURN_IF_ERROR(file_->ReadExact(block, kBlock, "the map of a sparse member"));
    DISTILL_RETURN_IF_ERROR(take(block, 21));
  }
  return OkStatus();
}

// Version 1.0: the content begins with decimal numbers, a line each: how many pieces, then offset and bytes of each;
// filled up to a whole block.
Status TarReader::ReadMapFromContent() {
  std::string text;
  size_t at = 0;
  const auto next = [&](uint64_t* number) -> Status {
    size_t end;
    while ((end = text.find('\n', at)) == std::string::npos) {
      if (stored_ < kBlock || text.size() > kMaxPieces * 42) return Damaged("a sparse member without a map");
      char block[kBlock];
      DISTILL_RETURN_IF_ERROR(file_->ReadExact(block, kBlock, "the map of a sparse member"));
      text.append(block, kBlock);
      stored_ -= kBlock;
    }
    if (!ParseDecimal(std::string_view(text).substr(at, end - at), number)) {
      return Damaged("a sparse member without a map");
    }
    at = end + 1;
    return OkStatus();
  };
  uint64_t count = 0;
  DISTILL_RETURN_IF_ERROR(next(&count));
  if (count > kMaxPieces) return Damaged("a sparse member of too many pieces");
  map_.clear();
  for (uint64_t i = 0; i < count; ++i) {
    Piece piece;
    DISTILL_RETURN_IF_ERROR(next(&piece.offset));
    DISTILL_RETURN_IF_ERROR(next(&piece.bytes));
    map_.push_back(piece);
  }
  return OkStatus();
}

// Pieces come in order, lie inside the content, and are all that is stored.
Status TarReader::CheckMap(const std::string& name) const {
  uint64_t end = 0, stored = 0;
  for (const Piece& piece : map_) {
    if (piece.offset < end || piece.offset > size_ || piece.bytes > size_ - piece.offset) {
      return Damaged(StrCat("the map of the sparse member '", name, "' contradicts itself"));
    }
    end = piece.offset + piece.bytes;
    stored += piece.bytes;
  }
  if (stored != stored_) return Damaged(StrCat("the map of the sparse member '", name, "' contradicts its size"));
  return OkStatus();
}

Status TarReader::CheckNothingFollows() {
  std::vector<char> rest(64 << 10);
  while (true) {  // to the end, which also makes zlib check the stream's sum
    DISTILL_ASSIGN_OR_RETURN(const size_t got, file_->Read(rest.data(), rest.size()));
    if (got == 0) return OkStatus();
    if (std::any_of(rest.begin(), rest.begin() + got, [](char c) { return c != 0; })) {
      return absl::DataLossError(
          StrCat("'", file_->path(),
                 "' goes on after its end mark, as when archives are joined by cat; what follows would be lost: join "
                 "them by tar --concatenate, or unpack them into one folder"));
    }
  }
}

std::optional<uint64_t> TarReader::ContentOffset() const {
  const bool whole = map_.size() == 1 && map_[0].offset == 0 && map_[0].bytes == size_;
  if (file_->compressed() || !whole) return std::nullopt;
  return file_->position();
}

StatusOr<std::string> TarReader::Read(uint64_t size) {
  size = std::min(size, size_ - position_);
  std::string bytes(size, '\0');
  for (uint64_t done = 0; done < size;) {
    while (piece_ < map_.size() && position_ >= map_[piece_].offset + map_[piece_].bytes) ++piece_;
    if (piece_ == map_.size()) {  // a hole up to the end
      position_ += size - done;
      break;
    }
    const Piece& piece = map_[piece_];
    const bool hole = position_ < piece.offset;
    const uint64_t end = hole ? piece.offset : piece.offset + piece.bytes;
    const uint64_t part = std::min(size - done, end - position_);
    if (!hole) {
      DISTILL_RETURN_IF_ERROR(file_->ReadExact(bytes.data() + done, part, "an entry of the archive"));
      stored_ -= part;
    }
    position_ += part;
    done += part;
  }
  return bytes;
}

StatusOr<bool> TarReader::Next(TarEntry* entry) {
  DISTILL_RETURN_IF_ERROR(Skip(stored_ + padding_));
  stored_ = padding_ = size_ = position_ = piece_ = 0;
  map_.clear();
  Extra extra;
  while (true) {
    char header[kBlock];
    DISTILL_RETURN_IF_ERROR(file_->ReadExact(header, kBlock, "the archive's end mark"));
    if (std::all_of(header, header + kBlock, [](char c) { return c == 0; })) {
      DISTILL_RETURN_IF_ERROR(CheckNothingFollows());
      return false;
    }
    // Sum of all bytes with the checksum field taken as spaces.
    uint64_t sum = 8 * ' ', stored = 0, size = 0;
    for (size_t i = 0; i < kBlock; ++i) sum += i >= 148 && i < 156 ? 0 : static_cast<unsigned char>(header[i]);
    if (!ParseNumber(header + 148, 8, &stored) || stored != sum || !ParseNumber(header + 124, 12, &size)) {
      return Damaged("bad header checksum");
    }
    const char type = header[156];
    if (type == 'L' || type == 'K' || type == 'x' || type == 'g') {  // about the entry that follows, or about all
      DISTILL_ASSIGN_OR_RETURN(const std::string content, ReadPadded(size));
      if (type == 'L') extra.name = Text(content.data(), content.size());
      if (type == 'K') extra.target = Text(content.data(), content.size());
      if (type == 'x') DISTILL_RETURN_IF_ERROR(ReadPax(content, &extra));
      continue;
    }
    if (type == 'M') {
      return absl::DataLossError(StrCat("'", file_->path(),
                                        "' is a part of a multi-volume archive; unpack its parts together and pack "
                                        "one archive"));
    }
    const bool ustar = std::memcmp(header + 257, "ustar\0", 6) == 0;
    const std::string prefix = ustar ? Text(header + 345, 155) : "";
    entry->name = prefix.empty() ? Text(header, 100) : StrCat(prefix, "/", Text(header, 100));
    if (!extra.name.empty()) entry->name = extra.name;
    if (!extra.sparse_name.empty()) entry->name = extra.sparse_name;
    entry->target = extra.target.empty() ? Text(header + 157, 100) : extra.target;
    if (extra.has_size) size = extra.size;
    entry->type = type == '0' || type == '\0' || type == '7' || type == 'S' ? TarEntry::Type::kFile
                  : type == '1'                                             ? TarEntry::Type::kHardLink
                  : type == '2'                                             ? TarEntry::Type::kSymbolicLink
                  : type == '5'                                             ? TarEntry::Type::kFolder
                                                                            : TarEntry::Type::kOther;
    // v7 knows no folders but a slash at the name's end.
    if (type != 'S' && entry->type == TarEntry::Type::kFile && entry->name.ends_with('/')) {
      entry->type = TarEntry::Type::kFolder;
    }
    // Links, devices and folders have no content, whatever some writers put into their size.
    if (type >= '1' && type <= '6' && !(type == '1' && extra.has_size)) size = 0;
    stored_ = size;
    padding_ = Padding(size);
    size_ = size;
    if (type == 'S') {
      if (!ParseNumber(header + 483, 12, &size_)) return Damaged("a sparse member without a size");
      DISTILL_RETURN_IF_ERROR(ReadOldGnuMap(header));
      DISTILL_RETURN_IF_ERROR(CheckMap(entry->name));
    } else if (extra.sparse) {
      map_ = std::move(extra.map);
      size_ = extra.real_size;
      if (extra.map_in_content) DISTILL_RETURN_IF_ERROR(ReadMapFromContent());
      DISTILL_RETURN_IF_ERROR(CheckMap(entry->name));
    } else {
      map_ = {{0, size}};
    }
    entry->size = size_;
    return true;
  }
}

}  // namespace distill
