#include "coordinator/cli/job_client.h"

#include <algorithm>
#include <thread>

#include "common/rpc/channel.h"
#include "common/str_cat.h"
#include "coordinator/cli/units.h"

namespace distill::cli {

StatusOr<std::unique_ptr<JobClient>> JobClient::Create(std::string address, RpcSecurity security,
                                                       std::chrono::milliseconds timeout) {
  std::unique_ptr<JobClient> client(new JobClient(std::move(address), std::move(security), timeout));
  DISTILL_ASSIGN_OR_RETURN(client->connection_, client->Connect());
  return client;
}

StatusOr<JobClient::Connection> JobClient::Connect() const {
  DISTILL_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, MakeChannel(address_, security_));
  return Connection{channel, v1::JobService::NewStub(channel)};
}

std::chrono::milliseconds JobClient::Backoff(int attempt) {
  return std::min(std::chrono::milliseconds(200) * (1 << std::min(attempt, 4)), std::chrono::milliseconds(2000));
}

void JobClient::Pause(std::chrono::milliseconds duration) { std::this_thread::sleep_for(duration); }

Status JobClient::Translate(const grpc::Status& status, grpc::Channel* channel) const {
  if (status.ok()) return OkStatus();
  const auto code = static_cast<StatusCode>(status.error_code());
  const std::string& detail = status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      if (channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY) {
        return Status(code, StrCat("the coordinator at ", address_, " is not ready (", detail, "); try again"));
      }
      return Status(code, StrCat("cannot reach the coordinator at ", address_, " (", detail,
                                 "); is distill-coordinator running? use --coordinator or DISTILL_COORDINATOR"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return Status(
          code,
          StrCat("no answer from the coordinator at ", address_, " within ",
                 FormatDuration(static_cast<double>(timeout_.count()) / 1000),
                 "; is distill-coordinator running? use --coordinator, DISTILL_COORDINATOR or a longer --timeout"));
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      return Status(StatusCode::kUnauthenticated,
                    StrCat("the coordinator at ", address_, " refuses the credentials (", detail,
                           "); give the right token with --token-file or DISTILL_TOKEN_FILE"));
    case grpc::StatusCode::UNIMPLEMENTED:
      return Status(code, StrCat("the server at ", address_, " does not know this call (", detail,
                                 "); is it a distill-coordinator of this version?"));
    default:
      return Status(code, detail.empty()
                              ? StrCat("the coordinator at ", address_, " answered with code ", static_cast<int>(code))
                              : detail);
  }
}

Status FetchEvents(const JobClient& client, const std::string& job_id, std::vector<v1::JobEvent>* events) {
  DISTILL_ASSIGN_OR_RETURN(const JobClient::Connection connection, client.Connect());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + client.timeout());
  v1::StreamEventsRequest request;
  request.set_job(job_id);
  const auto reader = connection.stub->StreamEvents(&context, request);
  for (v1::JobEvent event; reader->Read(&event);) events->push_back(event);
  return client.Translate(reader->Finish(), connection.channel.get());
}

}  // namespace distill::cli
