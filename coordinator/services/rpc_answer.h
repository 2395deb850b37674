// Runs a handler's body and finishes its call with what it returned. The border that no exception crosses.
#ifndef DISTILL_COORDINATOR_SERVICES_RPC_ANSWER_H_
#define DISTILL_COORDINATOR_SERVICES_RPC_ANSWER_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <exception>
#include <utility>

#include "common/rpc/channel.h"
#include "common/status.h"
#include "common/str_cat.h"
#include "coordinator/services/worker_pool.h"

namespace distill {

// `body` returns a Status and has filled in the response when it is ok.
template <typename Body>
Status Guarded(const Body& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return absl::InternalError(StrCat("the coordinator failed to answer: ", error.what()));
  }
}

template <typename Body>
grpc::ServerUnaryReactor* AnswerUnary(grpc::CallbackServerContext* context, const Body& body) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();  // owned by gRPC
  reactor->Finish(ToGrpc(Guarded(body)));
  return reactor;
}

// The same on one of the pool's threads. `body` holds what it needs by value; request and response live until it is
// done.
template <typename Body>
grpc::ServerUnaryReactor* AnswerLater(WorkerPool* pool, grpc::CallbackServerContext* context, Body body) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();  // owned by gRPC
  pool->Post([reactor, body = std::move(body)] { reactor->Finish(ToGrpc(Guarded(body))); });
  return reactor;
}

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_RPC_ANSWER_H_
