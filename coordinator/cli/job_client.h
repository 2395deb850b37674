// The coordinator's JobService as the commands use it: deadlines, retries, and errors in words for people.
//
// Status messages returned here are complete sentences with a remedy (they may have several lines and are not yet made
// printable):
//   kUnavailable       the coordinator cannot be reached, or is not ready
//   kDeadlineExceeded  no answer within the timeout
//   kUnauthenticated   the coordinator refuses the credentials
//   other codes        the coordinator's own words
#ifndef DISTILL_COORDINATOR_CLI_JOB_CLIENT_H_
#define DISTILL_COORDINATOR_CLI_JOB_CLIENT_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/rpc_options.h"
#include "common/status.h"
#include "distill/v1/job.grpc.pb.h"

namespace distill::cli {

// Owned by one thread.
class JobClient {
 public:
  // One connection with its stub.
  struct Connection {
    std::shared_ptr<grpc::Channel> channel;  // shared with gRPC's stub, which keeps it alive while a call runs
    std::unique_ptr<v1::JobService::Stub> stub;
  };
  template <typename Request, typename Response>
  using Method = grpc::Status (v1::JobService::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  // kInvalidArgument: address, TLS or token files are wrong. Connects at the first call.
  static StatusOr<std::unique_ptr<JobClient>> Create(std::string address, RpcSecurity security,
                                                     std::chrono::milliseconds timeout);

  const std::string& address() const { return address_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  // One attempt, at most `timeout` long. `response` is unspecified after an error.
  template <typename Request, typename Response>
  Status Call(Method<Request, Response> method, const Request& request, Response* response) {
    return Attempt(method, request, response, connection_, std::chrono::steady_clock::now() + timeout_);
  }

  // Repeats the call on fresh connections while the coordinator is unavailable, with back-off, until `timeout` has
  // passed since the first attempt. `on_retry` hears why after each failed attempt that will be followed by another.
  // For idempotent calls.
  template <typename Request, typename Response>
  Status CallWithRetry(Method<Request, Response> method, const Request& request, Response* response,
                       const std::function<void(const Status&)>& on_retry) {
    const auto deadline = std::chrono::steady_clock::now() + timeout_;
    for (int attempt = 0;; ++attempt) {
      const Status status = Attempt(method, request, response, connection_, deadline);
      if (!absl::IsUnavailable(status) || std::chrono::steady_clock::now() + Backoff(attempt) >= deadline)
        return status;
      on_retry(status);
      Pause(Backoff(attempt));
      DISTILL_ASSIGN_OR_RETURN(connection_, Connect());
    }
  }

  // A new connection: gRPC's own back-off belongs to a channel, so a fresh one tries at once.
  StatusOr<Connection> Connect() const;
  // Pause after the attempt with this number (0 is the first): 200 ms, doubled each time, at most 2 s.
  static std::chrono::milliseconds Backoff(int attempt);
  // gRPC's answer in words, see above. `channel` tells whether the coordinator was reached.
  Status Translate(const grpc::Status& status, grpc::Channel* channel) const;

 private:
  JobClient(std::string address, RpcSecurity security, std::chrono::milliseconds timeout)
      : address_(std::move(address)), security_(std::move(security)), timeout_(timeout) {}

  template <typename Request, typename Response>
  Status Attempt(Method<Request, Response> method, const Request& request, Response* response,
                 const Connection& connection, std::chrono::steady_clock::time_point deadline) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + (deadline - std::chrono::steady_clock::now()));
    return Translate(((*connection.stub).*method)(&context, request, response), connection.channel.get());
  }
  static void Pause(std::chrono::milliseconds duration);

  const std::string address_;
  const RpcSecurity security_;
  const std::chrono::milliseconds timeout_;
  Connection connection_;
};

// The stored events of the job with this id, oldest first. One attempt, at most client.timeout() long.
Status FetchEvents(const JobClient& client, const std::string& job_id, std::vector<v1::JobEvent>* events);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_JOB_CLIENT_H_
