// c10d's rendezvous store over our KvClient: no open TCPStore port, and it survives any rank. Private to
// common/collective.
//
// Thread-safe. Functions throw c10::DistStoreError, as c10d expects of a store; the Status behind the first failure is
// kept for whoever catches it.
#ifndef DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_
#define DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rendezvous/kv_client.h"
#include "common/status.h"

namespace distill {

class CoordinatorStore : public c10d::Store {
 public:
  using Clock = std::chrono::steady_clock;

  // Waits last at most `timeout` each, and until ClearDeadline() end at `deadline` at the latest.
  CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout, Clock::time_point deadline);

  void ClearDeadline();
  // Of the first call that failed; OK when none did.
  Status first_error() const;

  c10::intrusive_ptr<c10d::Store> clone() override;
  using c10d::Store::compareSet;
  using c10d::Store::set;
  void set(const std::string& key, const std::vector<uint8_t>& value) override;
  std::vector<uint8_t> compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                  const std::vector<uint8_t>& desired) override;
  std::vector<uint8_t> get(const std::string& key) override;
  int64_t add(const std::string& key, int64_t amount) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override;

 private:
  std::chrono::milliseconds Bounded(std::chrono::milliseconds timeout) const;
  // Remembers and throws unless ok.
  void Check(const Status& status, std::string_view what);

  const std::shared_ptr<KvClient> client_;  // shared with clones
  mutable absl::Mutex mutex_;
  Clock::time_point deadline_ ABSL_GUARDED_BY(mutex_);
  Status first_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_
