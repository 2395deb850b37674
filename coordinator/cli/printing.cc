#include "coordinator/cli/printing.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include "common/proto_json.h"
#include "common/str_cat.h"
#include "coordinator/cli/text.h"

namespace distill::cli {

namespace {

// errno of the first write to standard output that failed, or 0. By the program's end errno is another call's.
std::atomic<int> output_error = 0;

}  // namespace

void Print(std::string_view text, std::FILE* to) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), to) == text.size() && std::fflush(to) == 0;
  int none = 0;
  if (!written && to == stdout) output_error.compare_exchange_strong(none, errno);
}

void PrintError(const Status& status) {
  std::string_view rest = ToStd(status.message());
  std::string out = "error: ";
  while (true) {
    const size_t end = rest.find('\n');
    StrAppend(&out, Printable(rest.substr(0, end)), "\n");
    if (end == std::string_view::npos || end + 1 == rest.size()) break;
    rest.remove_prefix(end + 1);
  }
  Print(out, stderr);
}

void PrintNote(std::string_view text) { Print(StrCat(Printable(text), "\n"), stderr); }

std::string ToJson(const google::protobuf::Message& message, bool pretty) {
  const StatusOr<std::string> json = distill::ToJson(message, pretty);
  if (json.ok()) return *json;
  PrintNote(ToStd(json.status().message()));
  return "";
}

bool CloseOutput() {
  Print("");  // what others, such as the parser's --help, have left in the buffer
  if (output_error == 0 && std::ferror(stdout) == 0) return true;
  PrintNote(StrCat("error: cannot write to standard output: ",
                   output_error == 0 ? "cause unknown" : std::strerror(output_error)));
  return false;
}

}  // namespace distill::cli
