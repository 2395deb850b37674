#include "common/collective/coordinator_store.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "common/str_cat.h"

namespace distill {
namespace {

std::string ToString(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::vector<uint8_t> ToBytes(const std::string& text) { return {text.begin(), text.end()}; }

}  // namespace

CoordinatorStore::CoordinatorStore(std::shared_ptr<KvClient> client, std::chrono::milliseconds timeout,
                                   Clock::time_point deadline)
    : c10d::Store(timeout), client_(std::move(client)), deadline_(deadline) {}

void CoordinatorStore::ClearDeadline() {
  const absl::MutexLock lock(&mutex_);
  deadline_ = Clock::time_point::max();
}

Status CoordinatorStore::first_error() const {
  const absl::MutexLock lock(&mutex_);
  return first_error_;
}

std::chrono::milliseconds CoordinatorStore::Bounded(std::chrono::milliseconds timeout) const {
  const absl::MutexLock lock(&mutex_);
  if (timeout == kNoTimeout) timeout = timeout_;
  if (deadline_ == Clock::time_point::max()) return timeout;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
  return std::clamp(left, std::chrono::milliseconds(1), timeout);
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
  const absl::MutexLock lock(&mutex_);
  return c10::make_intrusive<CoordinatorStore>(client_, timeout_, deadline_);
}

void CoordinatorStore::set(const std::string& key, const std::vector<uint8_t>& value) {
  Check(client_->Set(key, ToString(value)), "set");
}

std::vector<uint8_t> CoordinatorStore::compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                                  const std::vector<uint8_t>& desired) {
  const StatusOr<std::string> value = client_->CompareSet(key, ToString(expected), ToString(desired));
  Check(value.status(), "compare and set");
  return ToBytes(*value);
}

std::vector<uint8_t> CoordinatorStore::get(const std::string& key) {
  const StatusOr<std::string> value = client_->Get(key, Bounded(timeout_));
  Check(value.status(), "get");
  return ToBytes(*value);
}

int64_t CoordinatorStore::add(const std::string& key, int64_t amount) {
  const StatusOr<int64_t> sum = client_->Add(key, amount);
  Check(sum.status(), "add");
  return *sum;
}

bool CoordinatorStore::deleteKey(const std::string& key) {
  const StatusOr<bool> existed = client_->Delete(key);
  Check(existed.status(), "delete");
  return *existed;
}

bool CoordinatorStore::check(const std::vector<std::string>& keys) {
  const StatusOr<bool> exist = client_->Check(keys);
  Check(exist.status(), "check");
  return *exist;
}

int64_t CoordinatorStore::getNumKeys() {
  const StatusOr<int64_t> count = client_->Count();
  Check(count.status(), "count");
  return *count;
}

void CoordinatorStore::wait(const std::vector<std::string>& keys) { wait(keys, timeout_); }

void CoordinatorStore::wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) {
  Check(client_->Wait(keys, Bounded(timeout)), "wait");
}

}  // namespace distill
