// c10d's rendezvous store over our KvClient: no open TCPStore port, and it survives any rank. Private to
// common/collective.
//
// Thread-safe. Functions throw c10::DistStoreError, as c10d expects of a store; the Status behind the first failure is
// kept for whoever catches it.
#ifndef DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_
#define DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
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
  // Waits last at most `timeout` each.
  CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout);
  // A clone: Abort() of one is Abort() of all that share `aborted`.
  CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout,
                   std::shared_ptr<std::atomic<bool>> aborted);

  KvClient& client() { return *client_; }
  // Waits, and calls to come, fail: within some tenths of a second. From any thread. Throws nothing.
  void Abort() { *aborted_ = true; }
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
  // Calls `wait`, which takes a time-out and says kDeadlineExceeded after it, until `timeout` is over.
  template <typename F>
  auto InPieces(std::chrono::milliseconds timeout, const F& wait);
  void ThrowIfAborted() const;
  // The client, for one call. Throws after Abort().
  KvClient& Client() const;
  // Remembers and throws unless ok.
  void Check(const Status& status, std::string_view what);

  const std::shared_ptr<KvClient> client_;            // shared with clones, as the next
  const std::shared_ptr<std::atomic<bool>> aborted_;  // set by Abort() on any thread
  mutable absl::Mutex mutex_;
  Status first_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_COORDINATOR_STORE_H_
