#include <algorithm>
#include <charconv>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rendezvous/kv_client.h"
#include "common/rendezvous/kv_limits.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

class LocalKvClient : public KvClient {
 public:
  Status Set(const std::string& key, const std::string& value) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    DISTILL_RETURN_IF_ERROR(CheckKvValue(key, value));
    absl::MutexLock lock(&mutex_);
    return Put(key, value);
  }

  StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout) override {
    DISTILL_RETURN_IF_ERROR(Wait({key}, timeout));
    absl::MutexLock lock(&mutex_);
    const auto found = values_.find(key);
    // Deleted again just now; a remote reader could not tell that from "never set".
    if (found == values_.end())
      return absl::DeadlineExceededError(StrCat("rendezvous: '", key, "' was deleted while it was waited for"));
    return found->second;
  }

  StatusOr<int64_t> Add(const std::string& key, int64_t amount) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    absl::MutexLock lock(&mutex_);
    int64_t present = 0, sum = 0;
    if (const auto found = values_.find(key); found != values_.end()) {
      const std::string& text = found->second;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), present);
      if (error != std::errc() || end != text.data() + text.size()) {
        return absl::InvalidArgumentError(StrCat("rendezvous: the value of '", key, "' is no number"));
      }
    }
    if (__builtin_add_overflow(present, amount, &sum))
      return absl::InvalidArgumentError(StrCat("rendezvous: '", key, "' overflows"));
    DISTILL_RETURN_IF_ERROR(Put(key, std::to_string(sum)));
    return sum;
  }

  StatusOr<std::string> CompareSet(const std::string& key, const std::string& expected,
                                   const std::string& desired) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    DISTILL_RETURN_IF_ERROR(CheckKvValue(key, desired));
    absl::MutexLock lock(&mutex_);
    const auto found = values_.find(key);
    if (found == values_.end() ? !expected.empty() : found->second != expected) {
      return found == values_.end() ? std::string() : found->second;
    }
    DISTILL_RETURN_IF_ERROR(Put(key, desired));
    return desired;
  }

  StatusOr<bool> Check(const std::vector<std::string>& keys) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKeys(keys));
    absl::MutexLock lock(&mutex_);
    return HasAll(keys);
  }

  Status Wait(const std::vector<std::string>& keys, std::chrono::milliseconds timeout) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKeys(keys));
    absl::MutexLock lock(&mutex_);
    const auto all = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return HasAll(keys); };
    if (AwaitFor(&mutex_, absl::Condition(&all), absl::FromChrono(timeout))) return OkStatus();
    const auto missing =
        std::find_if(keys.begin(), keys.end(), [&](const std::string& key) { return !values_.contains(key); });
    return absl::DeadlineExceededError(
        StrCat("rendezvous: '", *missing, "' did not appear within ", timeout.count(), " ms"));
  }

  StatusOr<bool> Delete(const std::string& key) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    absl::MutexLock lock(&mutex_);
    const auto found = values_.find(key);
    if (found == values_.end()) return false;
    bytes_ -= key.size() + found->second.size();
    values_.erase(found);
    return true;
  }

  StatusOr<int64_t> Count() override {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(values_.size());
  }

 private:
  bool HasAll(const std::vector<std::string>& keys) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return values_.contains(key); });
  }
  Status Put(const std::string& key, const std::string& value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto found = values_.find(key);
    const size_t before = found == values_.end() ? 0 : key.size() + found->second.size();
    const size_t bytes = bytes_ - before + key.size() + value.size();
    if (bytes > kKvMaxScopeBytes)
      return absl::ResourceExhaustedError(StrCat("rendezvous: the job's keys exceed ", kKvMaxScopeBytes, " bytes"));
    bytes_ = bytes;
    values_[key] = value;
    return OkStatus();
  }

  absl::Mutex mutex_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::shared_ptr<KvClient> MakeLocalKvClient() { return std::make_shared<LocalKvClient>(); }

}  // namespace distill
