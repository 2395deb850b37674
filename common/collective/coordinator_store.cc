#include "common/collective/coordinator_store.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "common/str_cat.h"

namespace distill {
namespace {

// How soon a wait sees Abort().
constexpr std::chrono::milliseconds kWaitPiece{200};

StatusCode CodeOf(const Status& status) { return status.code(); }
StatusCode CodeOf(const StatusOr<std::string>& value) { return value.status().code(); }

std::string ToString(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::vector<uint8_t> ToBytes(const std::string& text) { return {text.begin(), text.end()}; }

}  // namespace

CoordinatorStore::CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout)
    : CoordinatorStore(std::move(client), timeout, std::make_shared<std::atomic<bool>>(false)) {}

CoordinatorStore::CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout,
                                   std::shared_ptr<std::atomic<bool>> aborted)
    : c10d::Store(timeout), client_(std::move(client)), aborted_(std::move(aborted)) {}

Status CoordinatorStore::first_error() const {
  const absl::MutexLock lock(&mutex_);
  return first_error_;
}

template <typename F>
auto CoordinatorStore::InPieces(std::chrono::milliseconds timeout, const F& wait) {
  if (timeout == kNoTimeout) timeout = timeout_;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    ThrowIfAborted();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    auto result = wait(std::clamp(left, std::chrono::milliseconds(0), kWaitPiece));
    if (CodeOf(result) != StatusCode::kDeadlineExceeded) return result;
    if (left <= kWaitPiece) {
      result = absl::DeadlineExceededError(StrCat("not there within ", timeout.count(), " ms"));
      return result;
    }
  }
}

void CoordinatorStore::ThrowIfAborted() const {
  if (*aborted_) C10_THROW_ERROR(DistStoreError, "rendezvous store: the group was aborted");
}

KvClient& CoordinatorStore::Client() const {
  ThrowIfAborted();
  return *client_;
}

void CoordinatorStore::Check(const Status& status, std::string_view what) {
  if (status.ok()) return;
  {
    const absl::MutexLock lock(&mutex_);
    first_error_.Update(status);
  }
  C10_THROW_ERROR(DistStoreError, StrCat("rendezvous store, ", what, ": ", status.message()));
}

c10::intrusive_ptr<c10d::Store> CoordinatorStore::clone() {
  return c10::make_intrusive<CoordinatorStore>(client_, timeout_, aborted_);
}

void CoordinatorStore::set(const std::string& key, const std::vector<uint8_t>& value) {
  Check(Client().Set(key, ToString(value)), "set");
}

std::vector<uint8_t> CoordinatorStore::compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                                  const std::vector<uint8_t>& desired) {
  const StatusOr<std::string> value = Client().CompareSet(key, ToString(expected), ToString(desired));
  Check(value.status(), "compare and set");
  return ToBytes(*value);
}

std::vector<uint8_t> CoordinatorStore::get(const std::string& key) {
  const auto value = InPieces(timeout_, [&](std::chrono::milliseconds piece) { return Client().Get(key, piece); });
  Check(value.status(), "get");
  return ToBytes(*value);
}

int64_t CoordinatorStore::add(const std::string& key, int64_t amount) {
  const StatusOr<int64_t> sum = Client().Add(key, amount);
  Check(sum.status(), "add");
  return *sum;
}

bool CoordinatorStore::deleteKey(const std::string& key) {
  const StatusOr<bool> existed = Client().Delete(key);
  Check(existed.status(), "delete");
  return *existed;
}

bool CoordinatorStore::check(const std::vector<std::string>& keys) {
  const StatusOr<bool> exist = Client().Check(keys);
  Check(exist.status(), "check");
  return *exist;
}

int64_t CoordinatorStore::getNumKeys() {
  const StatusOr<int64_t> count = Client().Count();
  Check(count.status(), "count");
  return *count;
}

void CoordinatorStore::wait(const std::vector<std::string>& keys) { wait(keys, timeout_); }

void CoordinatorStore::wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) {
  Check(InPieces(timeout, [&](std::chrono::milliseconds piece) { return Client().Wait(keys, piece); }), "wait");
}

}  // namespace distill
