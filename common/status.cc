#include "common/status.h"

#include "common/str_cat.h"

namespace distill {

Status Annotate(const Status& status, std::string_view context) {
  if (status.ok()) return status;
  return Status(status.code(), StrCat(context, ": ", status.message()));
}

}  // namespace distill
