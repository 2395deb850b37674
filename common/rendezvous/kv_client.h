// Client of the coordinator's rendezvous store (proto/distill/v1/store.proto) as plain C++; c10d's store face over it
// is common/collective/coordinator_store.h. Thread-safe; every call blocks at most its timeout (30 s where it takes
// none) plus one round trip. While the coordinator is away, calls retry until their timeout; long waits survive its
// connection, but its memory of keys ends with its process. Errors: kDeadlineExceeded a wait ran out, kAborted the
// scope's generation is over, kUnavailable the coordinator is away, kInvalidArgument over a size limit, or a key that
// is empty or not UTF-8, kResourceExhausted the scope is full.
#ifndef DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_
#define DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/fleet/worker_identity.h"
#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

inline constexpr size_t kKvMaxKeyBytes = 1024;
inline constexpr size_t kKvMaxValueBytes = 1 << 20;
inline constexpr size_t kKvMaxScopeBytes = 64 << 20;  // keys and values together

class KvClient {
 public:
  virtual ~KvClient() = default;
  virtual Status Set(const std::string& key, const std::string& value) = 0;
  // Waits for the key. Timeout 0: does not wait (kDeadlineExceeded when the key is absent).
  virtual StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout) = 0;
  // The sum; an absent key counts as 0. kInvalidArgument: the value is no number, or the sum overflows. Never sent
  // twice: on kUnavailable after a lost answer the addition may or may not have happened.
  virtual StatusOr<int64_t> Add(const std::string& key, int64_t amount) = 0;
  // Sets `desired` if the present value is `expected`, or the key is absent and `expected` empty. Returns the value
  // afterwards, "" when the key is absent still.
  virtual StatusOr<std::string> CompareSet(const std::string& key, const std::string& expected,
                                           const std::string& desired) = 0;
  // Whether all keys exist now. REQUIRES (also for Wait): 1 to 1024 keys, else kInvalidArgument.
  virtual StatusOr<bool> Check(const std::vector<std::string>& keys) = 0;
  // Until all keys exist.
  virtual Status Wait(const std::vector<std::string>& keys, std::chrono::milliseconds timeout) = 0;
  // Whether the key existed. Never sent twice, as Add.
  virtual StatusOr<bool> Delete(const std::string& key) = 0;
  // Keys in the scope.
  virtual StatusOr<int64_t> Count() = 0;
};

// Speaks to the coordinator, inside the scope (job, generation), in which the worker must hold a rank (else kAborted).
// `identity` says who calls (FleetClient::identity); any thread asks it, before each call. Connects at the first call.
// kInvalidArgument: as MakeChannel().
StatusOr<std::shared_ptr<KvClient>> MakeCoordinatorKvClient(const std::string& coordinator, const RpcSecurity& security,
                                                            std::function<WorkerIdentity()> identity,
                                                            const std::string& job_id, uint64_t generation);
// In this process only: world size 1 and tests. Instances are independent; share the pointer between ranks.
std::shared_ptr<KvClient> MakeLocalKvClient();

}  // namespace distill

#endif  // DISTILL_COMMON_RENDEZVOUS_KV_CLIENT_H_
