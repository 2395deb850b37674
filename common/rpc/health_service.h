// grpc.health.v1.Health for a server that answers it without a token. Private to server.cc.
#ifndef DISTILL_COMMON_RPC_HEALTH_SERVICE_H_
#define DISTILL_COMMON_RPC_HEALTH_SERVICE_H_

#include <grpcpp/generic/async_generic_service.h>

#include <atomic>
#include <string_view>

namespace distill {

// Answers grpc.health.v1.Health/Check, and UNIMPLEMENTED to every other method that no service of the server has.
//
// Strangers may call it, so it reads nothing: gRPC's own health service takes a whole message, as large as the server's
// limit, into memory for each call before it looks at it, and keeps any number of Watch streams. Here the answer
// follows the headers; a request's body stays within HTTP/2's window and is dropped. Hence every service name gets the
// whole server's answer, and Watch is UNIMPLEMENTED, on which clients are to take the server for healthy.
//
// Thread-safe. Costs no thread.
class HealthService : public grpc::CallbackGenericService {
 public:
  // The method that strangers may call.
  static constexpr std::string_view kCheck = "/grpc.health.v1.Health/Check";

  void SetServing(bool serving) { serving_ = serving; }
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

 private:
  std::atomic<bool> serving_ = true;
};

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_HEALTH_SERVICE_H_
