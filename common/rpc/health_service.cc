#include "common/rpc/health_service.h"

namespace distill {
namespace {

// HealthCheckResponse: field 1 is the status; 1 SERVING, 2 NOT_SERVING.
grpc::ByteBuffer Answer(bool serving) {
  const char message[] = {0x08, static_cast<char>(serving ? 1 : 2)};
  const grpc::Slice slice(message, sizeof message);
  return grpc::ByteBuffer(&slice, 1);
}

class Check : public grpc::ServerGenericBidiReactor {
 public:
  explicit Check(bool serving) : answer_(Answer(serving)) {
    StartWriteAndFinish(&answer_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  const grpc::ByteBuffer answer_;
};

class NoSuchMethod : public grpc::ServerGenericBidiReactor {
 public:
  NoSuchMethod() { Finish({grpc::StatusCode::UNIMPLEMENTED, "this server has no such method"}); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerGenericBidiReactor* HealthService::CreateReactor(grpc::GenericCallbackServerContext* context) {
  if (context->method() == kCheck) return new Check(serving_);
  return new NoSuchMethod;
}

}  // namespace distill
