#include "coordinator/cli/terminal.h"

#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "common/str_cat.h"

namespace distill::cli {
namespace {

std::string_view Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Columns of a line that may hold SGR sequences ("\x1b[...m"), the only ones that RenderLine makes.
int ColumnsOf(std::string_view line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\x1b') {
      i = std::min(line.find('m', i), line.size());
    } else {
      text += line[i];
    }
  }
  return DisplayWidth(text);
}

}  // namespace

TextOptions DetectText(int fd, const std::string& color) {
  TextOptions options;
  options.utf8 = std::string_view(nl_langinfo(CODESET)) == "UTF-8";
  options.color = color == "always" || (color == "auto" && isatty(fd) != 0 && Environment("TERM") != "dumb" &&
                                        Environment("NO_COLOR").empty());
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0) {
    options.width = size.ws_col;
    options.height = size.ws_row;
  }
  return options;
}

bool CanRedraw(int fd) { return isatty(fd) != 0 && Environment("TERM") != "dumb" && !Environment("TERM").empty(); }

std::string LiveScreen::Draw(const std::vector<std::string>& lines, int width) {
  // After the terminal became narrower, a line that was drawn as one row may take several.
  int rows = 0;
  for (const int columns : shown_) rows += std::max(1, (columns + width - 1) / std::max(1, width));
  std::string out;
  if (rows > 0) out = StrCat("\r\x1b[", rows, "A");
  shown_.clear();
  for (const std::string& line : lines) {
    StrAppend(&out, line, "\x1b[K\n");
    shown_.push_back(ColumnsOf(line));
  }
  return out + "\x1b[J";
}

}  // namespace distill::cli
