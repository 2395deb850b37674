#include "coordinator/jobfile/text_checks.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/str_cat.h"
#include "common/utf8.h"

namespace distill {
namespace {

bool IsNameOver(std::string_view text, std::string_view inner, bool upper) {
  const auto edge = [&](char c) {
    return absl::ascii_isdigit(c) || absl::ascii_islower(c) || (upper && absl::ascii_isupper(c));
  };
  if (text.empty() || text.size() > 63 || !edge(text.front()) || !edge(text.back())) return false;
  for (char c : text) {
    if (!edge(c) && inner.find(c) == std::string_view::npos) return false;
  }
  return true;
}

}  // namespace

size_t FirstInvalidByte(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text.substr(i));
    const uint8_t c = static_cast<uint8_t>(text[i]);
    const bool control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
    if (length == 0 || control) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string CutText(std::string_view text, size_t most) {
  if (text.size() <= most) return std::string(text);
  while (most > 0 && (static_cast<uint8_t>(text[most]) & 0xC0) == 0x80) --most;
  return std::string(text.substr(0, most));
}

std::string Shorten(std::string_view text) {
  constexpr size_t kMost = 60;
  std::string out = CutText(text, kMost);
  if (text.size() > kMost) out += "...";
  for (char& c : out) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '?';
  }
  return out;
}

bool IsJobName(std::string_view text) { return IsNameOver(text, "-", false); }
bool IsPlainName(std::string_view text) { return IsNameOver(text, "-._", true); }

std::string PathProblem(std::string_view path) {
  if (path.empty()) return "must not be empty";
  if (path.size() > 1024) return "is longer than 1024 bytes";
  for (char c : path) {
    if (absl::ascii_iscntrl(c)) return "contains a control character";
  }
  const std::vector<std::string> parts = absl::StrSplit(ToAbsl(path), '/');
  for (const std::string& part : parts) {
    if (part == "..") {
      return "must not contain '..'; give a path below the worker's folder, or an absolute path inside it";
    }
  }
  return "";
}

bool ParseByteSize(std::string_view text, uint64_t* bytes) {
  uint64_t factor = 1;
  for (const auto& [unit, size] :
       {std::pair<std::string_view, uint64_t>{"KiB", 1ull << 10}, {"MiB", 1ull << 20}, {"GiB", 1ull << 30}, {"B", 1}}) {
    if (text.ends_with(unit)) {
      text.remove_suffix(unit.size());
      factor = size;
      break;
    }
  }
  text = ToStd(absl::StripAsciiWhitespace(ToAbsl(text)));
  uint64_t number = 0;
  if (text.empty() || !absl::ascii_isdigit(text[0]) || !absl::SimpleAtoi(ToAbsl(text), &number)) return false;
  if (number > (1ull << 63) / factor) return false;
  *bytes = number * factor;
  return true;
}

}  // namespace distill
