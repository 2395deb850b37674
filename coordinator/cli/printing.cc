#include "coordinator/cli/printing.h"

#include <google/protobuf/util/json_util.h>

#include <atomic>
#include <cerrno>
#include <cstring>

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
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = pretty;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  // Only Any and malformed Timestamps can fail; the job protocol has neither.
  if (!status.ok()) PrintNote(StrCat("cannot print as JSON: ", status.ToString()));
  return json;
}

bool CloseOutput() {
  Print("");  // what others, such as the parser's --help, have left in the buffer
  if (output_error == 0 && std::ferror(stdout) == 0) return true;
  PrintNote(StrCat("error: cannot write to standard output: ",
                   output_error == 0 ? "cause unknown" : std::strerror(output_error)));
  return false;
}

}  // namespace distill::cli
