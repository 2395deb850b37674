// Standard output and standard error of distillctl.
#ifndef DISTILL_COORDINATOR_CLI_PRINTING_H_
#define DISTILL_COORDINATOR_CLI_PRINTING_H_

#include <google/protobuf/message.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "common/status.h"

namespace distill::cli {

// Writes and flushes. A failed write is seen at the program's end (CloseOutput).
void Print(std::string_view text, std::FILE* to = stdout);
// "error: message" on standard error; further lines of the message as they are. Made printable.
void PrintError(const Status& status);
// A line of advice or news on standard error. Made printable.
void PrintNote(std::string_view text);

// As common/proto_json.h; "" with a note on standard error for what cannot be printed.
std::string ToJson(const google::protobuf::Message& message, bool pretty);

// False, with a message on standard error, when something printed to standard output did not get there (a full disk).
bool CloseOutput();

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_PRINTING_H_
