#include "common/status.h"

#include "absl/strings/str_cat.h"

namespace distill {

Status Annotate(const Status& status, std::string_view context) {
  if (status.ok()) return status;
  return Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace distill
