// Protobuf messages as JSON for people and scripts: distillctl --json and the status page say the same.
#ifndef DISTILL_COMMON_PROTO_JSON_H_
#define DISTILL_COMMON_PROTO_JSON_H_

#include <string>

#include "common/status.h"

namespace google::protobuf {
class Message;
}

namespace distill {

// With the names of the .proto file and all scalar fields, also those at their defaults; 64-bit integers are strings.
// `pretty`: over several lines with a newline at the end; otherwise one line without. kInternal: cannot be printed
// (only google.protobuf.Any and malformed timestamps cannot, of which our messages have none).
StatusOr<std::string> ToJson(const google::protobuf::Message& message, bool pretty);

}  // namespace distill

#endif  // DISTILL_COMMON_PROTO_JSON_H_
