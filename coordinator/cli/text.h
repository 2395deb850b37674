// Text on a terminal: validity, escaping, width in columns, colour.
//
// Everything that comes from a server or a file passes through Printable() before it is shown: a job's name or an error
// message must not be able to move the cursor, recolour the screen or forge a line. Stateless; any thread.
#ifndef DISTILL_COORDINATOR_CLI_TEXT_H_
#define DISTILL_COORDINATOR_CLI_TEXT_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distill::cli {

// How text may look where it is going.
struct TextOptions {
  bool color = false;  // SGR colours are understood and wanted
  bool utf8 = true;    // false: only ASCII is drawn by us (text from the server keeps its letters)
  int width = 80;      // columns; lines of live displays are cut there, tables are not
  int height = 24;     // rows; live displays stay below
};

// Offset of the first byte that is not valid UTF-8 (overlong forms and surrogates included), nothing when all is.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// `text` with everything escaped that a terminal would act on: control characters of C0 and C1, DEL, bidirectional
// overrides and other invisible marks, bytes that are not UTF-8. "a\nb\x1b[2J" becomes "a\\nb\\x1b[2J".
std::string Printable(std::string_view text);

// Columns that printable text takes: wide East Asian letters and emoji count 2, combining marks 0.
int DisplayWidth(std::string_view text);

// At most `width` columns of `text`; when something is cut the last column is "…" (or the last three "..." without
// UTF-8).
std::string Truncate(std::string_view text, int width, bool utf8);

// Filled with spaces up to `width` columns; longer text is returned as it is.
std::string PadRight(std::string_view text, int width);
std::string PadLeft(std::string_view text, int width);

enum class Style { kNone, kBold, kDim, kGreen, kRed, kYellow, kCyan };

// `text` between the style's SGR sequence and the reset, or `text` alone when `color` is false.
std::string Paint(std::string_view text, Style style, bool color);

// A piece of a line in one style. The text is made printable when the line is.
struct Span {
  std::string text;
  Style style = Style::kNone;
};
// The pieces as one line of at most options.width columns, without line end.
std::string RenderLine(const std::vector<Span>& spans, const TextOptions& options);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_TEXT_H_
