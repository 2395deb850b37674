// What every KvClient checks before it does anything.
#ifndef DISTILL_COMMON_RENDEZVOUS_KV_LIMITS_H_
#define DISTILL_COMMON_RENDEZVOUS_KV_LIMITS_H_

#include <string>
#include <vector>

#include "common/status.h"

namespace distill {

// All kInvalidArgument.
Status CheckKvKey(const std::string& key);
Status CheckKvKeys(const std::vector<std::string>& keys);
Status CheckKvValue(const std::string& key, const std::string& value);

}  // namespace distill

#endif  // DISTILL_COMMON_RENDEZVOUS_KV_LIMITS_H_
