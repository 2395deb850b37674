#include "common/proto_json.h"

#include <google/protobuf/util/json_util.h>

#include "common/str_cat.h"

namespace distill {

StatusOr<std::string> ToJson(const google::protobuf::Message& message, bool pretty) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = pretty;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) return absl::InternalError(StrCat("cannot be printed as JSON: ", status.ToString()));
  return json;
}

}  // namespace distill
