// Client of the coordinator's rendezvous store (proto/distill/v1/store.proto) as plain C++; c10d's store face over it is
// common/collective/coordinator_store.h. Thread-safe; every call blocks at most its timeout (plus one round trip).
// Errors: kDeadlineExceeded a wait ran out, kAborted the scope's generation is over, kUnavailable the coordinator is away
// (calls retry until their timeout), kInvalidArgument over a size limit.
#ifndef DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_
#define DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

class KvClient {
 public:
  virtual ~KvClient() = default;
  virtual Status Set(const std::string& key, const std::string& value) = 0;
  virtual StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout) = 0;  // waits for the key
  virtual StatusOr<int64_t> Add(const std::string& key, int64_t amount) = 0;
  virtual StatusOr<std::string> CompareSet(const std::string& key, const std::string& expected, const std::string& desired) = 0;
  virtual StatusOr<bool> Check(const std::vector<std::string>& keys) = 0;
  virtual Status Wait(const std::vector<std::string>& keys, std::chrono::milliseconds timeout) = 0;
  virtual StatusOr<bool> Delete(const std::string& key) = 0;
  virtual StatusOr<int64_t> Count() = 0;
};

// Speaks to the coordinator, inside the scope (job, generation).
StatusOr<std::shared_ptr<KvClient>> MakeCoordinatorKvClient(const std::string& coordinator, const RpcSecurity& security,
                                                            const std::string& job_id, uint64_t generation);
// In this process only: world size 1 and tests. Instances are independent; share the pointer between ranks.
std::shared_ptr<KvClient> MakeLocalKvClient();

}  // namespace distill

#endif  // DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_
