#include "coordinator/cli/text.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"
#include "common/utf8.h"

namespace distill::cli {
namespace {

// Reads the code point at `pos` and moves behind it. False, with `pos` unchanged, when the bytes there are not valid
// UTF-8.
bool Decode(std::string_view text, size_t& pos, char32_t& code) {
  const size_t length = Utf8Length(text.substr(pos));
  if (length == 0) return false;
  const auto lead = static_cast<unsigned char>(text[pos]);
  code = length == 1 ? lead : lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) code = (code << 6) | (static_cast<unsigned char>(text[pos + i]) & 0x3f);
  pos += length;
  return true;
}

// Code points that a terminal acts on, or that hide or reorder text.
bool IsUnsafe(char32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0xad || code == 0x061c ||
         (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2060 && code <= 0x206f) || code == 0xfeff || (code >= 0xfff9 && code <= 0xfffb) ||
         (code >= 0xe0000 && code <= 0xe0fff);
}

// The ranges that matter for names and paths; a full table is not worth its size here.
int CodeWidth(char32_t code) {
  if ((code >= 0x300 && code <= 0x36f) || (code >= 0x20d0 && code <= 0x20ff) || (code >= 0xfe00 && code <= 0xfe0f))
    return 0;
  if ((code >= 0x1100 && code <= 0x115f) || (code >= 0x2e80 && code <= 0xa4cf) || (code >= 0xac00 && code <= 0xd7a3) ||
      (code >= 0xf900 && code <= 0xfaff) || (code >= 0xfe30 && code <= 0xfe6f) || (code >= 0xff00 && code <= 0xff60) ||
      (code >= 0xffe0 && code <= 0xffe6) || (code >= 0x1f300 && code <= 0x1faff) ||
      (code >= 0x20000 && code <= 0x3fffd)) {
    return 2;
  }
  return 1;
}

// The longest prefix of at most `width` columns. `text` is printable.
std::string_view Prefix(std::string_view text, int width) {
  size_t pos = 0;
  int used = 0;
  while (pos < text.size()) {
    size_t next = pos;
    char32_t code = 0;
    if (!Decode(text, next, code)) ++next;
    used += CodeWidth(code);
    if (used > width) break;
    pos = next;
  }
  return text.substr(0, pos);
}

const char* StyleSequence(Style style) {
  switch (style) {
    case Style::kNone:
      return "";
    case Style::kBold:
      return "\x1b[1m";
    case Style::kDim:
      return "\x1b[2m";
    case Style::kGreen:
      return "\x1b[32m";
    case Style::kRed:
      return "\x1b[31m";
    case Style::kYellow:
      return "\x1b[33m";
    case Style::kCyan:
      return "\x1b[36m";
  }
  return "";
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  size_t pos = 0;
  char32_t code = 0;
  while (pos < text.size()) {
    if (!Decode(text, pos, code)) return pos;
  }
  return std::nullopt;
}

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t pos = 0;
  while (pos < text.size()) {
    const size_t start = pos;
    char32_t code = 0;
    if (!Decode(text, pos, code)) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(text[pos]));
      ++pos;
    } else if (!IsUnsafe(code)) {
      out.append(text.substr(start, pos - start));
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (code < 0x80) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned>(code));
    } else {
      absl::StrAppendFormat(&out, "\\u{%x}", static_cast<unsigned>(code));
    }
  }
  return out;
}

int DisplayWidth(std::string_view text) {
  int width = 0;
  size_t pos = 0;
  while (pos < text.size()) {
    char32_t code = 0;
    if (!Decode(text, pos, code)) ++pos;
    width += CodeWidth(code);
  }
  return width;
}

std::string Truncate(std::string_view text, int width, bool utf8) {
  if (width <= 0) return "";
  if (DisplayWidth(text) <= width) return std::string(text);
  const std::string_view mark = utf8 ? "…" : "...";
  const int mark_width = utf8 ? 1 : 3;
  if (width < mark_width) return std::string(Prefix(text, width));
  return StrCat(Prefix(text, width - mark_width), mark);
}

std::string PadRight(std::string_view text, int width) {
  return StrCat(text, std::string(std::max(0, width - DisplayWidth(text)), ' '));
}

std::string PadLeft(std::string_view text, int width) {
  return StrCat(std::string(std::max(0, width - DisplayWidth(text)), ' '), text);
}

std::string Paint(std::string_view text, Style style, bool color) {
  if (!color || style == Style::kNone || text.empty()) return std::string(text);
  return StrCat(StyleSequence(style), text, "\x1b[0m");
}

std::string RenderLine(const std::vector<Span>& spans, const TextOptions& options) {
  int total = 0;
  std::vector<std::string> texts;
  for (const Span& span : spans) {
    texts.push_back(Printable(span.text));
    total += DisplayWidth(texts.back());
  }
  std::string line;
  int used = 0;
  for (size_t i = 0; i < spans.size(); ++i) {
    const int width = DisplayWidth(texts[i]);
    // When the whole line does not fit, the cut (and its mark) falls into the span that reaches the last columns.
    const bool cut = total > options.width && used + width > options.width - (options.utf8 ? 1 : 3);
    if (!cut) {
      StrAppend(&line, Paint(texts[i], spans[i].style, options.color));
      used += width;
      continue;
    }
    std::string rest = texts[i];
    for (size_t j = i + 1; j < spans.size(); ++j) rest += texts[j];
    StrAppend(&line, Paint(Truncate(rest, options.width - used, options.utf8), spans[i].style, options.color));
    break;
  }
  return line;
}

}  // namespace distill::cli
