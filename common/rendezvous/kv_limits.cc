#include "common/rendezvous/kv_limits.h"

#include "common/rendezvous/kv_client.h"
#include "common/str_cat.h"
#include "common/utf8.h"

namespace distill {
namespace {
constexpr size_t kMostKeys = 1024;
}  // namespace

Status CheckKvKey(const std::string& key) {
  if (key.empty()) return absl::InvalidArgumentError("rendezvous: the key is empty");
  if (key.size() > kKvMaxKeyBytes) {
    return absl::InvalidArgumentError(
        StrCat("rendezvous: a key of ", key.size(), " bytes; at most ", kKvMaxKeyBytes, " are allowed"));
  }
  // Keys travel as protobuf strings.
  if (ReplaceInvalidUtf8(key) != key) return absl::InvalidArgumentError("rendezvous: the key is not UTF-8");
  return OkStatus();
}

Status CheckKvKeys(const std::vector<std::string>& keys) {
  if (keys.empty() || keys.size() > kMostKeys) {
    return absl::InvalidArgumentError(
        StrCat("rendezvous: ", keys.size(), " keys in one call; 1 to ", kMostKeys, " are allowed"));
  }
  for (const std::string& key : keys) DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  return OkStatus();
}

Status CheckKvValue(const std::string& key, const std::string& value) {
  if (value.size() <= kKvMaxValueBytes) return OkStatus();
  return absl::InvalidArgumentError(StrCat("rendezvous: a value of ", value.size(), " bytes for '", key, "'; at most ",
                                           kKvMaxValueBytes, " are allowed"));
}

}  // namespace distill
