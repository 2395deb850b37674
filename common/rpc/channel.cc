#include "common/rpc/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/client_interceptor.h>

#include <utility>
#include <vector>

#include "common/rpc/address.h"
#include "common/rpc/rpc_internal.h"
#include "common/rpc/security_files.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// Adds the token to each call's headers. gRPC's own call credentials refuse plaintext channels, and plaintext on
// loopback is how a single machine runs.
class TokenInterceptor : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string& header) : header_(header) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", header_});
    }
    methods->Proceed();
  }

 private:
  const std::string header_;
};
class TokenInterceptorFactory : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(const std::string& token) : header_(StrCat("Bearer ", token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override {
    return new TokenInterceptor(header_);
  }

 private:
  const std::string header_;
};

}  // namespace

StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& address, const RpcSecurity& security) {
  InstallGrpcLogging();
  DISTILL_ASSIGN_OR_RETURN(const HostPort host_port, ParseHostPort(address));
  if (host_port.port == 0)
    return absl::InvalidArgumentError(StrCat("bad address '", address, "': port 0 cannot be connected to"));
  DISTILL_ASSIGN_OR_RETURN(const SecurityFiles files, ReadSecurityFiles(security));
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  if (!files.ca.empty() || !files.cert.empty()) {
    credentials = grpc::SslCredentials({files.ca, files.key, files.cert});
  } else if (IsLoopback(host_port.host) || security.insecure) {
    credentials = grpc::InsecureChannelCredentials();
  } else {
    return absl::InvalidArgumentError(
        StrCat("refusing to speak plaintext to ", address,
               ", which is not loopback: give --tls-ca, or --insecure on a network you trust"));
  }

  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A coordinator that comes back should be found at once. "Min" is in fact the time one connection attempt may take.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 2000);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  for (const auto& [name, value] : kNoCompression) arguments.SetInt(name, value);

  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!files.token.empty()) interceptors.push_back(std::make_unique<TokenInterceptorFactory>(files.token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(ToString(host_port), credentials, arguments,
                                                                 std::move(interceptors));
}

Status FromGrpc(const grpc::Status& status, std::string_view what, std::string_view address) {
  if (status.ok()) return OkStatus();
  return Status(static_cast<StatusCode>(status.error_code()),
                StrCat(what, " at ", address, ": ", status.error_message()));
}

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace distill
