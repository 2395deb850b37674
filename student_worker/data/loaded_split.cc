#include "student_worker/data/loaded_split.h"

#include "absl/strings/str_cat.h"

namespace distill {

Status CheckSplitBytes(const SplitRequest& request, const std::string& source, uint64_t bytes) {
  if (bytes <= request.max_bytes) return OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the images in '", source, "' take over ", request.max_bytes, " bytes, what is left of the limit of ",
      kMaxDatasetBytes, " for all of them; use data.train_limit, data.shrink or smaller images"));
}

}  // namespace distill
