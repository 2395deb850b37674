#include <algorithm>
#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/rendezvous/kv_client.h"
#include "common/rendezvous/kv_limits.h"
#include "common/rpc/channel.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "distill/v1/store.grpc.pb.h"

namespace distill {
namespace {

// One wait on the server; long waits are made of these, so that a restarted coordinator is asked again soon.
constexpr absl::Duration kWaitPiece = absl::Seconds(2);
// What an answer may take besides the wait itself.
constexpr absl::Duration kRoundTrip = absl::Seconds(2);
constexpr absl::Duration kOperationTimeout = absl::Seconds(30);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
constexpr absl::Duration kLongestBackoff = absl::Milliseconds(500);

class CoordinatorKvClient : public KvClient {
 public:
  CoordinatorKvClient(std::string coordinator, const std::shared_ptr<grpc::Channel>& channel,
                      std::function<WorkerIdentity()> identity, std::string job_id, uint64_t generation)
      : coordinator_(std::move(coordinator)),
        stub_(v1::StoreService::NewStub(channel)),
        identity_(std::move(identity)),
        job_id_(std::move(job_id)),
        generation_(generation) {}

  Status Set(const std::string& key, const std::string& value) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    DISTILL_RETURN_IF_ERROR(CheckKvValue(key, value));
    v1::StoreSetRequest request;
    request.set_key(key);
    request.set_value(value);
    v1::StoreSetResponse response;
    return Repeat("rendezvous Set", &v1::StoreService::Stub::Set, &request, &response);
  }

  StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    v1::StoreGetRequest request;
    request.set_key(key);
    v1::StoreGetResponse response;
    DISTILL_RETURN_IF_ERROR(WaitInPieces("rendezvous Get", StrCat("'", key, "'"), &v1::StoreService::Stub::Get,
                                         &request, &response, timeout));
    return std::move(*response.mutable_value());
  }

  StatusOr<int64_t> Add(const std::string& key, int64_t amount) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    v1::StoreAddRequest request;
    request.set_key(key);
    request.set_amount(amount);
    v1::StoreAddResponse response;
    DISTILL_RETURN_IF_ERROR(Once("rendezvous Add", &v1::StoreService::Stub::Add, &request, &response));
    return response.value();
  }

  StatusOr<std::string> CompareSet(const std::string& key, const std::string& expected,
                                   const std::string& desired) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    DISTILL_RETURN_IF_ERROR(CheckKvValue(key, desired));
    v1::StoreCompareSetRequest request;
    request.set_key(key);
    request.set_expected(expected);
    request.set_desired(desired);
    v1::StoreGetResponse response;
    // Sent again after a lost answer it finds `desired` there and returns it, as the first one did.
    DISTILL_RETURN_IF_ERROR(Repeat("rendezvous CompareSet", &v1::StoreService::Stub::CompareSet, &request, &response));
    return std::move(*response.mutable_value());
  }

  StatusOr<bool> Check(const std::vector<std::string>& keys) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKeys(keys));
    v1::StoreCheckRequest request;
    request.mutable_keys()->Add(keys.begin(), keys.end());
    v1::StoreCheckResponse response;
    DISTILL_RETURN_IF_ERROR(Repeat("rendezvous Check", &v1::StoreService::Stub::Check, &request, &response));
    return response.all_exist();
  }

  Status Wait(const std::vector<std::string>& keys, std::chrono::milliseconds timeout) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKeys(keys));
    v1::StoreWaitRequest request;
    request.mutable_keys()->Add(keys.begin(), keys.end());
    v1::StoreWaitResponse response;
    const std::string what =
        keys.size() == 1 ? StrCat("'", keys[0], "'") : StrCat("one of ", keys.size(), " keys ('", keys[0], "', ...)");
    return WaitInPieces("rendezvous Wait", what, &v1::StoreService::Stub::Wait, &request, &response, timeout);
  }

  StatusOr<bool> Delete(const std::string& key) override {
    DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
    v1::StoreDeleteRequest request;
    request.set_key(key);
    v1::StoreDeleteResponse response;
    DISTILL_RETURN_IF_ERROR(Once("rendezvous Delete", &v1::StoreService::Stub::Delete, &request, &response));
    return response.existed();
  }

  StatusOr<int64_t> Count() override {
    v1::StoreCountRequest request;
    v1::StoreCountResponse response;
    DISTILL_RETURN_IF_ERROR(Repeat("rendezvous Count", &v1::StoreService::Stub::Count, &request, &response));
    return static_cast<int64_t>(response.keys());
  }

 private:
  template <typename Request, typename Response>
  using Method = grpc::Status (v1::StoreService::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  template <typename Request, typename Response>
  Status Call(std::string_view what, Method<Request, Response> method, Request* request, Response* response,
              absl::Duration timeout, bool wait_for_ready) {
    const WorkerIdentity identity = identity_();
    v1::StoreScope* const scope = request->mutable_scope();
    scope->set_job_id(job_id_);
    scope->set_generation(generation_);
    scope->set_worker_id(identity.worker_id);
    scope->set_incarnation(identity.incarnation);
    scope->set_coordinator_epoch(identity.coordinator_epoch);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    context.set_wait_for_ready(wait_for_ready);
    return FromGrpc((stub_.get()->*method)(&context, *request, response), what, coordinator_);
  }

  // No answer, or one from a coordinator that is on its way down or up.
  static bool IsAway(const Status& status) {
    return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded ||
           status.code() == StatusCode::kCancelled;
  }
  static Status Away(const Status& last) { return absl::UnavailableError(last.message()); }

  // For calls whose repetition changes nothing.
  template <typename Request, typename Response>
  Status Repeat(std::string_view what, Method<Request, Response> method, Request* request, Response* response) {
    const absl::Duration deadline = SteadyNow() + kOperationTimeout;
    for (absl::Duration backoff = kFirstBackoff;; backoff = std::min(2 * backoff, kLongestBackoff)) {
      const Status status = Call(what, method, request, response, kRoundTrip, false);
      if (!IsAway(status)) return status;
      if (SteadyNow() + backoff > deadline) return Away(status);
      absl::SleepFor(backoff);
    }
  }

  // For calls that must not happen twice: waits for a connection, then sends once.
  template <typename Request, typename Response>
  Status Once(std::string_view what, Method<Request, Response> method, Request* request, Response* response) {
    const Status status = Call(what, method, request, response, kOperationTimeout, true);
    return IsAway(status) ? Away(status) : status;
  }

  // For calls that wait on the server for `missing`.
  template <typename Request, typename Response>
  Status WaitInPieces(std::string_view what, const std::string& missing, Method<Request, Response> method,
                      Request* request, Response* response, std::chrono::milliseconds timeout) {
    const absl::Duration deadline = SteadyNow() + absl::FromChrono(std::max(timeout, std::chrono::milliseconds(0)));
    absl::Duration backoff = kFirstBackoff;
    for (;;) {
      const absl::Duration start = SteadyNow();
      const absl::Duration piece = std::clamp(deadline - start, absl::ZeroDuration(), kWaitPiece);
      request->set_timeout_ms(
          static_cast<uint32_t>(absl::ToInt64Milliseconds(absl::Ceil(piece, absl::Milliseconds(1)))));
      const Status status = Call(what, method, request, response, piece + kRoundTrip, false);
      // A deadline that passed on the server ("not there yet") is an answer; one that passed here is not.
      const bool not_yet = status.code() == StatusCode::kNotFound ||
                           (status.code() == StatusCode::kDeadlineExceeded && SteadyNow() - start < piece + kRoundTrip);
      if (!not_yet && !IsAway(status)) return status;
      const absl::Duration now = SteadyNow();
      if (now >= deadline) {
        if (!not_yet) return Away(status);
        return absl::DeadlineExceededError(
            StrCat(what, " at ", coordinator_, ": ", missing, " did not appear within ", timeout.count(), " ms"));
      }
      if (not_yet) {
        backoff = kFirstBackoff;
        continue;
      }
      absl::SleepFor(std::min(backoff, deadline - now));
      backoff = std::min(2 * backoff, kLongestBackoff);
    }
  }

  const std::string coordinator_;
  const std::unique_ptr<v1::StoreService::Stub> stub_;  // thread-safe
  const std::function<WorkerIdentity()> identity_;
  const std::string job_id_;
  const uint64_t generation_;
};

}  // namespace

StatusOr<std::shared_ptr<KvClient>> MakeCoordinatorKvClient(const std::string& coordinator, const RpcSecurity& security,
                                                            std::function<WorkerIdentity()> identity,
                                                            const std::string& job_id, uint64_t generation) {
  DISTILL_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, MakeChannel(coordinator, security));
  return std::shared_ptr<KvClient>(
      std::make_shared<CoordinatorKvClient>(coordinator, channel, std::move(identity), job_id, generation));
}

}  // namespace distill
