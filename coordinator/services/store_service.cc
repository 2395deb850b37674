#include "coordinator/services/store_service.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/services/rpc_answer.h"
#include "distill/v1/store.grpc.pb.h"

namespace distill {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;
using Scope = RendezvousStore::Scope;

Scope ScopeOf(const v1::StoreScope& scope) {
  return {scope.job_id(), scope.generation(), {scope.worker_id(), scope.incarnation()}};
}

// A call that waits for keys. Owned by itself until gRPC is done with it.
class WaitCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<WaitCall> {
 public:
  explicit WaitCall(RendezvousStore* store) : store_(store) {}

  // `take` gets the first key's value before the call finishes. Returns what the handler has to return.
  static Reactor* Start(std::shared_ptr<WaitCall> call, const Scope& scope, const std::vector<std::string>& keys,
                        uint32_t timeout_ms, std::function<void(std::string)> take) {
    call->self_ = call;
    const uint64_t ticket =
        call->store_->WaitFor(scope, keys, absl::Milliseconds(timeout_ms), [call, take](StatusOr<std::string> value) {
          if (value.ok()) take(*std::move(value));
          call->Finish(ToGrpc(value.status()));
        });
    call->SetTicket(ticket);
    return call.get();
  }

  void OnCancel() override {
    uint64_t ticket = 0;
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      ticket = ticket_;
    }
    if (ticket != 0) store_->CancelWait(ticket);
  }
  void OnDone() override { self_.reset(); }  // may delete this

 private:
  // The client may have gone away before the ticket was known.
  void SetTicket(uint64_t ticket) {
    bool cancelled = false;
    {
      absl::MutexLock lock(&mutex_);
      ticket_ = ticket;
      cancelled = cancelled_;
    }
    if (cancelled && ticket != 0) store_->CancelWait(ticket);
  }

  RendezvousStore* const store_;    // not owned: outlives the server
  std::shared_ptr<WaitCall> self_;  // set while gRPC uses this object
  absl::Mutex mutex_;
  uint64_t ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

class StoreService : public v1::StoreService::CallbackService {
 public:
  StoreService(RendezvousStore* store, uint64_t epoch) : store_(store), epoch_(epoch) {}

  Reactor* Set(Context* context, const v1::StoreSetRequest* request, v1::StoreSetResponse*) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      return store_->Set(ScopeOf(request->scope()), request->key(), request->value());
    });
  }

  Reactor* Get(Context* context, const v1::StoreGetRequest* request, v1::StoreGetResponse* response) override {
    if (request->timeout_ms() == 0) {
      return AnswerUnary(context, [&]() -> Status {
        DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
        DISTILL_ASSIGN_OR_RETURN(*response->mutable_value(), store_->Get(ScopeOf(request->scope()), request->key()));
        return OkStatus();
      });
    }
    if (const Status epoch = CheckEpoch(request->scope()); !epoch.ok())
      return AnswerUnary(context, [&] { return epoch; });
    return WaitCall::Start(std::make_shared<WaitCall>(store_), ScopeOf(request->scope()), {request->key()},
                           request->timeout_ms(),
                           [response](std::string value) { response->set_value(std::move(value)); });
  }

  Reactor* Add(Context* context, const v1::StoreAddRequest* request, v1::StoreAddResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      DISTILL_ASSIGN_OR_RETURN(const int64_t value,
                               store_->Add(ScopeOf(request->scope()), request->key(), request->amount()));
      response->set_value(value);
      return OkStatus();
    });
  }

  Reactor* CompareSet(Context* context, const v1::StoreCompareSetRequest* request,
                      v1::StoreGetResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      DISTILL_ASSIGN_OR_RETURN(*response->mutable_value(), store_->CompareSet(ScopeOf(request->scope()), request->key(),
                                                                              request->expected(), request->desired()));
      return OkStatus();
    });
  }

  Reactor* Check(Context* context, const v1::StoreCheckRequest* request, v1::StoreCheckResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      DISTILL_ASSIGN_OR_RETURN(
          const bool all, store_->Check(ScopeOf(request->scope()), {request->keys().begin(), request->keys().end()}));
      response->set_all_exist(all);
      return OkStatus();
    });
  }

  Reactor* Wait(Context* context, const v1::StoreWaitRequest* request, v1::StoreWaitResponse*) override {
    if (const Status epoch = CheckEpoch(request->scope()); !epoch.ok())
      return AnswerUnary(context, [&] { return epoch; });
    return WaitCall::Start(std::make_shared<WaitCall>(store_), ScopeOf(request->scope()),
                           {request->keys().begin(), request->keys().end()}, request->timeout_ms(), [](std::string) {});
  }

  Reactor* Delete(Context* context, const v1::StoreDeleteRequest* request, v1::StoreDeleteResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      DISTILL_ASSIGN_OR_RETURN(const bool existed, store_->Delete(ScopeOf(request->scope()), request->key()));
      response->set_existed(existed);
      return OkStatus();
    });
  }

  Reactor* Count(Context* context, const v1::StoreCountRequest* request, v1::StoreCountResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      DISTILL_RETURN_IF_ERROR(CheckEpoch(request->scope()));
      DISTILL_ASSIGN_OR_RETURN(const uint64_t keys, store_->Count(ScopeOf(request->scope())));
      response->set_keys(keys);
      return OkStatus();
    });
  }

 private:
  // The keys of a coordinator that was restored from a copy are not those the ranks agreed on.
  Status CheckEpoch(const v1::StoreScope& scope) const {
    if (scope.coordinator_epoch() <= epoch_) return OkStatus();
    return absl::UnavailableError(StrCat("worker '", scope.worker_id(), "' has heard of coordinator epoch ",
                                         scope.coordinator_epoch(), ", this coordinator is of epoch ", epoch_));
  }

  RendezvousStore* const store_;  // not owned: outlives the service
  const uint64_t epoch_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeStoreService(RendezvousStore* store, uint64_t epoch) {
  return std::make_unique<StoreService>(store, epoch);
}

}  // namespace distill
