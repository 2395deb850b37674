#include "common/rpc/server.h"

#include <arpa/inet.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>

#include "absl/synchronization/notification.h"
#include "common/rpc/channel.h"
#include "distill/v1/features.grpc.pb.h"
#include "distill/v1/store.grpc.pb.h"
#include "tests/common/rpc/big_message.h"
#include "tests/common/rpc/rpc_test_util.h"

namespace distill {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Counts what reaches it. Get waits until the call is cancelled or `release` fires.
class CountingStore : public v1::StoreService::Service {
 public:
  grpc::Status Count(grpc::ServerContext* context, const v1::StoreCountRequest*,
                     v1::StoreCountResponse* response) override {
    if (context->client_metadata().contains("authorization")) saw_token = true;
    response->set_keys(++calls);
    return grpc::Status::OK;
  }
  grpc::Status Set(grpc::ServerContext*, const v1::StoreSetRequest* request, v1::StoreSetResponse*) override {
    ++calls;
    bytes = request->value().size();
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext* context, const v1::StoreGetRequest*, v1::StoreGetResponse* response) override {
    entered.Notify();
    while (!release.WaitForNotificationWithTimeout(absl::Milliseconds(5))) {
      if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
    }
    response->set_value("released");
    return grpc::Status::OK;
  }
  std::atomic<int> calls{0};
  std::atomic<size_t> bytes{0};
  std::atomic<bool> saw_token{false};
  absl::Notification entered, release;
};

std::unique_ptr<RpcServer> MustStart(const RpcServer::Options& options, grpc::Service* service) {
  auto server = RpcServer::Start(options, {service});
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? std::move(*server) : nullptr;
}

std::shared_ptr<grpc::Channel> MustConnect(const std::string& address, const RpcSecurity& security = {}) {
  auto channel = MakeChannel(address, security);
  EXPECT_TRUE(channel.ok()) << channel.status();
  return channel.ok() ? *channel : nullptr;
}

void SetDeadline(grpc::ClientContext* context, milliseconds after = seconds(20)) {
  context->set_deadline(std::chrono::system_clock::now() + after);
}

Status CallCount(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::StoreCountResponse response;
  return FromGrpc(v1::StoreService::NewStub(channel)->Count(&context, {}, &response), "Count", "server");
}

// grpc.health.v1.Health/Check without its .proto: field 1 of the answer is the status, 1 SERVING, 2 NOT_SERVING.
StatusOr<int> Health(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  SetDeadline(&context);
  grpc::CompletionQueue queue;
  grpc::Slice empty;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::ByteBuffer(&empty, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  if (!status.ok()) return FromGrpc(status, "Check", "server");
  grpc::Slice slice;
  if (!answer.DumpToSingleSlice(&slice).ok() || slice.size() != 2 || slice.begin()[0] != 0x08)
    return absl::InternalError("no health answer");
  return slice.begin()[1];
}

TEST(RpcServerTest, ServesOnAPortOfTheKernelsChoice) {
  CountingStore store;
  auto server = MustStart({}, &store);
  EXPECT_GT(server->port(), 0);
  EXPECT_EQ(server->address(), "127.0.0.1:" + std::to_string(server->port()));
  EXPECT_TRUE(CallCount(MustConnect(server->address())).ok());
  EXPECT_EQ(store.calls, 1);
}

TEST(RpcServerTest, HealthFollowsSetServing) {
  CountingStore store;
  auto server = MustStart({}, &store);
  auto channel = MustConnect(server->address());
  EXPECT_EQ(Health(channel).value(), 1);
  server->SetServing(false);
  EXPECT_EQ(Health(channel).value(), 2);
  EXPECT_TRUE(CallCount(channel).ok());  // calls go on
  server->SetServing(true);
  EXPECT_EQ(Health(channel).value(), 1);
}

TEST(RpcServerTest, TokenIsRequiredOverPlaintext) {
  const TempFile token("s3cret\n"), wrong("s3creT"), longer("s3crets");
  CountingStore store;
  auto server = MustStart({.security = {.token_file = token.path()}}, &store);
  const Status none = CallCount(MustConnect(server->address()));
  EXPECT_EQ(none.code(), StatusCode::kUnauthenticated) << none;
  EXPECT_NE(std::string(none.message()).find("--token-file"), std::string::npos) << none;
  for (const TempFile* file : {&wrong, &longer}) {
    const Status status = CallCount(MustConnect(server->address(), {.token_file = file->path()}));
    EXPECT_EQ(status.code(), StatusCode::kUnauthenticated) << status;
    EXPECT_NE(std::string(status.message()).find("wrong"), std::string::npos) << status;
  }
  EXPECT_EQ(store.calls, 0) << "a handler ran without a token";
  EXPECT_TRUE(CallCount(MustConnect(server->address(), {.token_file = token.path()})).ok());
  EXPECT_EQ(store.calls, 1);
  EXPECT_FALSE(store.saw_token);
  EXPECT_EQ(Health(MustConnect(server->address())).value(), 1);  // health is open
}

// Asks the reflection service for its list of services; empty on error.
std::string ListServices(const std::shared_ptr<grpc::Channel>& channel, grpc::Status* status) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  SetDeadline(&context);
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag;
  bool ok;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice request("\x3A\x01*", 3);  // list_services = "*"
  grpc::ByteBuffer answer;
  if (ok) {
    call->WriteLast(grpc::ByteBuffer(&request, 1), grpc::WriteOptions(), nullptr);
    queue.Next(&tag, &ok);
    call->Read(&answer, nullptr);
    queue.Next(&tag, &ok);
  }
  call->Finish(status, nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice slice;
  if (!answer.Valid() || !answer.DumpToSingleSlice(&slice).ok()) return "";
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

TEST(RpcServerTest, ReflectionListsServicesAndNeedsTheToken) {
  const TempFile token("s3cret");
  CountingStore store;
  auto server = MustStart({.security = {.token_file = token.path()}}, &store);
  grpc::Status status;
  const std::string listed = ListServices(MustConnect(server->address(), {.token_file = token.path()}), &status);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_NE(listed.find("distill.v1.StoreService"), std::string::npos);
  EXPECT_EQ(ListServices(MustConnect(server->address()), &status), "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

// A bidirectional stream of byte buffers, as students hold to teachers.
class StreamReactor : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  void OnDone(const grpc::Status& status) override { done.set_value(status); }
  std::promise<grpc::Status> done;
};

class EmptyFeatureService : public v1::FeatureService::Service {
  grpc::Status StreamFeatures(grpc::ServerContext*,
                              grpc::ServerReaderWriter<v1::FeatureResponse, v1::FeatureRequest>*) override {
    return grpc::Status::OK;
  }
};

TEST(RpcServerTest, TokenTravelsWithGenericCallbackStreams) {
  const TempFile token("s3cret");
  EmptyFeatureService service;
  auto server = MustStart({.security = {.token_file = token.path()}}, &service);
  for (bool with_token : {false, true}) {
    grpc::GenericStub stub(
        MustConnect(server->address(), with_token ? RpcSecurity{.token_file = token.path()} : RpcSecurity{}));
    grpc::ClientContext context;
    SetDeadline(&context);
    StreamReactor reactor;
    stub.PrepareBidiStreamingCall(&context, "/distill.v1.FeatureService/StreamFeatures", {}, &reactor);
    reactor.StartCall();
    const grpc::Status status = reactor.done.get_future().get();
    EXPECT_EQ(status.error_code(), with_token ? grpc::StatusCode::OK : grpc::StatusCode::UNAUTHENTICATED)
        << status.error_message();
  }
}

TEST(RpcServerTest, TlsChecksBothSides) {
  const KeyAndCertificate server_identity = MakeCertificate("server"), client_identity = MakeCertificate("client"),
                          stranger = MakeCertificate("stranger");
  const TempFile server_cert(server_identity.certificate), server_key(server_identity.key);
  const TempFile client_cert(client_identity.certificate), client_key(client_identity.key);
  const TempFile stranger_cert(stranger.certificate), stranger_key(stranger.key);
  const TempFile token("s3cret");
  CountingStore store;
  auto server = MustStart({.security = {.ca_file = client_cert.path(),
                                        .cert_file = server_cert.path(),
                                        .key_file = server_key.path(),
                                        .token_file = token.path()}},
                          &store);
  const auto call = [&](const RpcSecurity& security) {
    return CallCount(MustConnect(server->address(), security)).code();
  };
  EXPECT_EQ(call({.ca_file = server_cert.path(), .token_file = token.path()}), StatusCode::kOk);
  EXPECT_EQ(call({.ca_file = server_cert.path()}), StatusCode::kUnauthenticated);
  EXPECT_EQ(call({.ca_file = stranger_cert.path(), .token_file = token.path()}),
            StatusCode::kUnavailable);                                      // not whom we trust
  EXPECT_EQ(call({.token_file = token.path()}), StatusCode::kUnavailable);  // plaintext to a TLS port
  EXPECT_EQ(call({.ca_file = server_cert.path(),
                  .cert_file = client_cert.path(),
                  .key_file = client_key.path(),
                  .token_file = token.path()}),
            StatusCode::kOk);
  EXPECT_EQ(call({.ca_file = server_cert.path(),
                  .cert_file = stranger_cert.path(),
                  .key_file = stranger_key.path(),
                  .token_file = token.path()}),
            StatusCode::kUnavailable);
  EXPECT_EQ(store.calls, 2);
}

TEST(RpcServerTest, OtherAddressesThanLoopbackNeedTlsAndToken) {
  const KeyAndCertificate identity = MakeCertificate("server");
  const TempFile cert(identity.certificate), key(identity.key), token("s3cret");
  CountingStore store;
  const auto refuse = [&](const RpcSecurity& security) {
    return RpcServer::Start({.listen = "0.0.0.0:0", .security = security}, {&store}).status();
  };
  for (const Status& status :
       {refuse({}), refuse({.token_file = token.path()}), refuse({.cert_file = cert.path(), .key_file = key.path()})}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find("--insecure"), std::string::npos) << status;
  }
  EXPECT_EQ(RpcServer::Start({.listen = "nonsense"}, {&store}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(RpcServer::Start({.listen = "192.0.2.1:0", .security = {.insecure = true}}, {&store}).status().code(),
            StatusCode::kInvalidArgument);  // not an address of this machine
}

TEST(RpcServerTest, PortInUseIsNamed) {
  CountingStore store, other;
  auto server = MustStart({}, &store);
  const Status taken = RpcServer::Start({.listen = server->address()}, {&other}).status();
  EXPECT_EQ(taken.code(), StatusCode::kUnavailable) << taken;
  EXPECT_NE(std::string(taken.message()).find("port " + std::to_string(server->port()) + " is in use"),
            std::string::npos)
      << taken;
  EXPECT_TRUE(CallCount(MustConnect(server->address())).ok());
}

TEST(RpcServerTest, MessagesOverTheLimitAreRefusedAndTheServerGoesOn) {
  CountingStore store;
  auto server = MustStart({}, &store);
  // Without the client's own limit, so that the server's is tested.
  grpc::ChannelArguments unlimited;
  unlimited.SetMaxSendMessageSize(-1);
  std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(server->address(), grpc::InsecureChannelCredentials(), unlimited);
  auto stub = v1::StoreService::NewStub(channel);
  v1::StoreSetRequest request;
  v1::StoreSetResponse response;
  request.set_value(std::string(kMaxMessageBytes - 100, 'x'));
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    EXPECT_EQ(stub->Set(&context, request, &response).error_code(), grpc::StatusCode::OK);
    EXPECT_EQ(store.bytes, static_cast<size_t>(kMaxMessageBytes - 100));
  }
  request.set_value(std::string(kMaxMessageBytes + 1, 'x'));
  for (const auto& to : {channel, MustConnect(server->address())}) {
    grpc::ClientContext context;
    SetDeadline(&context);
    EXPECT_EQ(v1::StoreService::NewStub(to)->Set(&context, request, &response).error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  EXPECT_EQ(store.calls, 1);
  EXPECT_TRUE(CallCount(channel).ok());
}

// A megabyte of gzip may stand for a gigabyte of zeros.
TEST(RpcServerTest, CompressedMessagesAreRefusedUnpacked) {
  const TempFile token("s3cret");
  CountingStore store;
  auto open = MustStart({}, &store), guarded = MustStart({.security = {.token_file = token.path()}}, &store);
  ResetPeakMemory();
  const int before = PeakMemory();
  const grpc::Status set = SendZeros(open->address(), "/distill.v1.StoreService/Set", 128, true);
  EXPECT_EQ(set.error_code(), grpc::StatusCode::UNIMPLEMENTED) << set.error_message();
  EXPECT_NE(set.error_message().find("gzip"), std::string::npos) << set.error_message();
  EXPECT_FALSE(SendZeros(guarded->address(), "/grpc.health.v1.Health/Check", 128, true).ok());
  EXPECT_EQ(SendZeros(guarded->address(), "/distill.v1.StoreService/Set", 128, true).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_LT(PeakMemory() - before, 60) << "MiB";
  EXPECT_EQ(store.calls, 0);
  EXPECT_TRUE(CallCount(MustConnect(open->address())).ok());
}

TEST(RpcServerTest, NothingIsReadBeforeTheToken) {
  const TempFile token("s3cret");
  CountingStore store;
  auto server = MustStart({.security = {.token_file = token.path()}}, &store);
  ResetPeakMemory();
  const int before = PeakMemory();
  for (const char* method : {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
                             "/distill.v1.StoreService/Set", "/distill.v1.FeatureService/StreamFeatures"}) {
    SendZeros(server->address(), method, 60, false);
  }
  EXPECT_LT(PeakMemory() - before, 40) << "MiB";
  EXPECT_EQ(store.calls, 0);
}

TEST(RpcServerTest, HealthAnswersOneMethodAndHoldsNoStreams) {
  const TempFile token("s3cret");
  CountingStore store;
  auto open = MustStart({}, &store), guarded = MustStart({.security = {.token_file = token.path()}}, &store);
  EXPECT_EQ(SendZeros(open->address(), "/grpc.health.v1.Health/Watch", 0, false).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(SendZeros(open->address(), "/no.Such/Method", 0, false).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  for (const char* method : {"/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check/", "/no.Such/Method"}) {
    EXPECT_EQ(SendZeros(guarded->address(), method, 0, false).error_code(), grpc::StatusCode::UNAUTHENTICATED)
        << method;
  }
}

// The SETTINGS frame that a server sends first; RFC 9113, section 6.5.
TEST(RpcServerTest, AConnectionIsToldHowManyCallsItMayHave) {
  CountingStore store;
  auto server = MustStart({}, &store);
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<uint16_t>(server->port()));
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(connection, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  const std::string hello("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
  ASSERT_EQ(write(connection, hello.data(), hello.size()), static_cast<ssize_t>(hello.size()));
  const auto read_exactly = [&](size_t count) {
    std::string bytes(count, '\0');
    EXPECT_EQ(recv(connection, bytes.data(), count, MSG_WAITALL), static_cast<ssize_t>(count));
    return bytes;
  };
  const std::string head = read_exactly(9);
  ASSERT_EQ(head[3], 4) << "no SETTINGS frame";
  const std::string settings =
      read_exactly(static_cast<unsigned char>(head[1]) << 8 | static_cast<unsigned char>(head[2]));
  close(connection);
  int streams = -1;
  for (size_t i = 0; i + 6 <= settings.size(); i += 6) {
    const auto byte = [&](size_t at) { return static_cast<unsigned char>(settings[i + at]); };
    if ((byte(0) << 8 | byte(1)) == 3) streams = byte(2) << 24 | byte(3) << 16 | byte(4) << 8 | byte(5);
  }
  EXPECT_EQ(streams, RpcServer::kMaxStreams);
}

TEST(RpcServerTest, StopLetsRunningCallsFinish) {
  CountingStore store;
  auto server = MustStart({}, &store);
  auto channel = MustConnect(server->address());
  v1::StoreGetResponse response;
  auto running = std::async(std::launch::async, [&] {
    grpc::ClientContext context;
    SetDeadline(&context);
    return v1::StoreService::NewStub(channel)->Get(&context, {}, &response);
  });
  store.entered.WaitForNotification();
  auto stopping = std::async(std::launch::async, [&] { server->Stop(seconds(20)); });
  // New calls are refused as soon as the stop has begun.
  Status refused;
  do refused = CallCount(MustConnect(server->address()));
  while (refused.ok());
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable) << refused;
  store.release.Notify();
  const grpc::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.value(), "released");
  stopping.get();
  server->Stop(seconds(0));  // again: no effect
}

TEST(RpcServerTest, StopCancelsWhatOutlastsTheGrace) {
  CountingStore store;
  auto server = MustStart({}, &store);
  auto channel = MustConnect(server->address());
  auto running = std::async(std::launch::async, [&] {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::StoreGetResponse response;
    return v1::StoreService::NewStub(channel)->Get(&context, {}, &response);
  });
  store.entered.WaitForNotification();
  server->Stop(milliseconds(50));
  EXPECT_FALSE(running.get().ok());
}

TEST(RpcServerTest, ClientsFindAServerThatComesBackOnTheSamePort) {
  CountingStore store;
  auto server = MustStart({}, &store);
  const std::string address = server->address();
  auto channel = MustConnect(address);
  ASSERT_TRUE(CallCount(channel).ok());
  server.reset();
  EXPECT_EQ(CallCount(channel).code(), StatusCode::kUnavailable);
  server = MustStart({.listen = address}, &store);
  grpc::ClientContext context;
  SetDeadline(&context);
  context.set_wait_for_ready(true);
  v1::StoreCountResponse response;
  EXPECT_TRUE(v1::StoreService::NewStub(channel)->Count(&context, {}, &response).ok());
}

}  // namespace
}  // namespace distill
