// What standard output is connected to, and a few lines there that are redrawn in place.
#ifndef DISTILL_COORDINATOR_CLI_TERMINAL_H_
#define DISTILL_COORDINATOR_CLI_TERMINAL_H_

#include <string>
#include <vector>

#include "coordinator/cli/text.h"

namespace distill::cli {

// Width and height from the terminal behind `fd` (80 x 24 when it does not say), UTF-8 from the locale, colours from
// `color` ("always", "never", or "auto": a terminal, not TERM=dumb, and NO_COLOR unset or empty).
TextOptions DetectText(int fd, const std::string& color);
// True when `fd` is a terminal on which lines can be redrawn.
bool CanRedraw(int fd);

// Lines redrawn in place. Makes the bytes, the caller writes them. Thread-compatible.
class LiveScreen {
 public:
  // Bytes that replace what was shown before by `lines`, on a terminal that is now `width` columns wide. The cursor
  // rests on the line after the last one.
  std::string Draw(const std::vector<std::string>& lines, int width);

 private:
  std::vector<int> shown_;  // columns of each line drawn last
};

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_TERMINAL_H_
