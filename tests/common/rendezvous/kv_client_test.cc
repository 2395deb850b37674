#include "common/rendezvous/kv_client.h"

#include <atomic>

#include "absl/synchronization/mutex.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "distill/v1/store.grpc.pb.h"
#include "tests/common/rendezvous/kv_suite.h"

namespace distill {
namespace {

using std::chrono::milliseconds;

class LocalHarness : public KvHarness {
 public:
  std::shared_ptr<KvClient> Client() override { return client_; }

 private:
  const std::shared_ptr<KvClient> client_ = MakeLocalKvClient();
};

// A StoreService of one scope, kept in a local store. Tests make it fail on purpose.
class StoreServer : public v1::StoreService::Service {
 public:
  grpc::Status Set(grpc::ServerContext*, const v1::StoreSetRequest* request, v1::StoreSetResponse*) override {
    if (auto bad = Begin(request->scope())) return *bad;
    return ToGrpc(store_->Set(request->key(), request->value()));
  }
  grpc::Status Get(grpc::ServerContext*, const v1::StoreGetRequest* request, v1::StoreGetResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    longest_wait = std::max<uint32_t>(longest_wait, request->timeout_ms());
    auto value = store_->Get(request->key(), milliseconds(request->timeout_ms()));
    if (value.ok()) response->set_value(*value);
    // "0: do not wait; then NOT_FOUND when absent"
    if (request->timeout_ms() == 0 && value.status().code() == StatusCode::kDeadlineExceeded)
      return {grpc::StatusCode::NOT_FOUND, "absent"};
    return ToGrpc(value.status());
  }
  grpc::Status Add(grpc::ServerContext*, const v1::StoreAddRequest* request, v1::StoreAddResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    auto sum = store_->Add(request->key(), request->amount());
    if (sum.ok()) response->set_value(*sum);
    if (lose_next_answer.exchange(false)) return {grpc::StatusCode::UNAVAILABLE, "answer lost"};
    return ToGrpc(sum.status());
  }
  grpc::Status CompareSet(grpc::ServerContext*, const v1::StoreCompareSetRequest* request,
                          v1::StoreGetResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    auto value = store_->CompareSet(request->key(), request->expected(), request->desired());
    if (value.ok()) response->set_value(*value);
    if (lose_next_answer.exchange(false)) return {grpc::StatusCode::UNAVAILABLE, "answer lost"};
    return ToGrpc(value.status());
  }
  grpc::Status Check(grpc::ServerContext*, const v1::StoreCheckRequest* request,
                     v1::StoreCheckResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    auto all = store_->Check({request->keys().begin(), request->keys().end()});
    if (all.ok()) response->set_all_exist(*all);
    return ToGrpc(all.status());
  }
  grpc::Status Wait(grpc::ServerContext*, const v1::StoreWaitRequest* request, v1::StoreWaitResponse*) override {
    if (auto bad = Begin(request->scope())) return *bad;
    longest_wait = std::max<uint32_t>(longest_wait, request->timeout_ms());
    return ToGrpc(store_->Wait({request->keys().begin(), request->keys().end()}, milliseconds(request->timeout_ms())));
  }
  grpc::Status Delete(grpc::ServerContext*, const v1::StoreDeleteRequest* request,
                      v1::StoreDeleteResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    auto existed = store_->Delete(request->key());
    if (existed.ok()) response->set_existed(*existed);
    return ToGrpc(existed.status());
  }
  grpc::Status Count(grpc::ServerContext*, const v1::StoreCountRequest* request,
                     v1::StoreCountResponse* response) override {
    if (auto bad = Begin(request->scope())) return *bad;
    response->set_keys(store_->Count().value());
    return grpc::Status::OK;
  }

  void AwaitCalls(int count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&] { return calls_ >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), absl::Seconds(30)));
  }
  int calls() {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }

  std::atomic<uint64_t> generation{3};
  std::atomic<int> refuse_calls{0};
  std::atomic<bool> lose_next_answer{false};
  std::atomic<uint32_t> longest_wait{0};  // ms

 private:
  std::optional<grpc::Status> Begin(const v1::StoreScope& scope) {
    {
      absl::MutexLock lock(&mutex_);
      ++calls_;
    }
    if (refuse_calls > 0) {
      --refuse_calls;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
    }
    if (scope.worker_id() != "s0" || scope.incarnation() != "a" || scope.coordinator_epoch() != 7) {
      return grpc::Status(grpc::StatusCode::INTERNAL, "the caller does not say who it is");
    }
    if (scope.job_id() != "job-1") return grpc::Status(grpc::StatusCode::INTERNAL, "wrong job " + scope.job_id());
    if (scope.generation() != generation)
      return grpc::Status(grpc::StatusCode::ABORTED, "the job is at another generation");
    return std::nullopt;
  }
  const std::shared_ptr<KvClient> store_ = MakeLocalKvClient();
  absl::Mutex mutex_;
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
};

class GrpcHarness : public KvHarness {
 public:
  GrpcHarness() { Start("127.0.0.1:0"); }
  std::shared_ptr<KvClient> Client() override {
    auto client = MakeCoordinatorKvClient(
        address_, {},
        [] {
          return WorkerIdentity{"s0", "a", 7};
        },
        "job-1", 3);
    EXPECT_TRUE(client.ok()) << client.status();
    return *client;
  }
  void Start(const std::string& listen) {
    auto server = RpcServer::Start({.listen = listen}, {&store});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    address_ = server_->address();
  }
  void Stop() { server_.reset(); }
  void Restart() { Start(address_); }

  StoreServer store;

 private:
  std::unique_ptr<RpcServer> server_;
  std::string address_;
};

INSTANTIATE_TEST_SUITE_P(Local, KvSuite,
                         testing::Values(KvSuiteParam{"Local", [] { return std::make_unique<LocalHarness>(); }}));
INSTANTIATE_TEST_SUITE_P(Grpc, KvSuite,
                         testing::Values(KvSuiteParam{"Grpc", [] { return std::make_unique<GrpcHarness>(); }}));

TEST(LocalKvClientTest, InstancesAreIndependent) {
  auto a = MakeLocalKvClient(), b = MakeLocalKvClient();
  ASSERT_TRUE(a->Set("k", "v").ok());
  EXPECT_FALSE(b->Check({"k"}).value());
}

TEST(CoordinatorKvClientTest, LongWaitsAreMadeOfShortOnes) {
  GrpcHarness harness;
  auto client = harness.Client();
  auto wait = std::async(std::launch::async, [&] { return client->Wait({"k"}, std::chrono::minutes(5)); });
  auto get = std::async(std::launch::async, [&] { return client->Get("k", std::chrono::minutes(5)); });
  harness.store.AwaitCalls(2);
  ASSERT_TRUE(client->Set("k", "v").ok());
  EXPECT_TRUE(wait.get().ok());
  EXPECT_EQ(get.get().value(), "v");
  EXPECT_LE(harness.store.longest_wait, 5000u);
  EXPECT_GT(harness.store.longest_wait, 0u);
}

TEST(CoordinatorKvClientTest, WaitsAndCallsOutliveARestartOfTheServer) {
  GrpcHarness harness;
  auto client = harness.Client();
  auto get = std::async(std::launch::async, [&] { return client->Get("k", std::chrono::minutes(1)); });
  harness.store.AwaitCalls(1);
  harness.Stop();
  EXPECT_EQ(client->Get("k", milliseconds(0)).status().code(), StatusCode::kUnavailable);  // the channel has noticed
  auto set = std::async(std::launch::async, [&] { return client->Set("other", "v"); });
  auto add = std::async(std::launch::async, [&] { return client->Add("n", 1); });
  harness.Restart();
  EXPECT_TRUE(set.get().ok());
  EXPECT_EQ(add.get().value(), 1);
  ASSERT_TRUE(harness.Client()->Set("k", "v").ok());
  const StatusOr<std::string> value = get.get();
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, "v");
}

TEST(CoordinatorKvClientTest, AnOldGenerationIsAborted) {
  GrpcHarness harness;
  auto client = harness.Client();
  harness.store.generation = 4;
  EXPECT_EQ(client->Set("k", "v").code(), StatusCode::kAborted);
  EXPECT_EQ(client->Get("k", std::chrono::minutes(1)).status().code(), StatusCode::kAborted);
  EXPECT_EQ(client->Wait({"k"}, std::chrono::minutes(1)).code(), StatusCode::kAborted);
  EXPECT_EQ(client->Add("k", 1).status().code(), StatusCode::kAborted);
}

TEST(CoordinatorKvClientTest, RefusalsAreRetriedButAdditionsNeverSentTwice) {
  GrpcHarness harness;
  auto client = harness.Client();
  harness.store.refuse_calls = 2;
  EXPECT_TRUE(client->Set("k", "v").ok());
  EXPECT_EQ(harness.store.calls(), 3);
  harness.store.lose_next_answer = true;
  const Status lost = client->Add("n", 1).status();
  EXPECT_EQ(lost.code(), StatusCode::kUnavailable) << lost;
  EXPECT_EQ(client->Get("n", milliseconds(0)).value(), "1");
  harness.store.lose_next_answer = true;
  EXPECT_EQ(client->CompareSet("c", "", "one").value(), "one");
}

TEST(CoordinatorKvClientTest, AnAbsentCoordinatorIsUnavailableWhenTheTimeIsUp) {
  GrpcHarness harness;
  auto client = harness.Client();
  harness.Stop();
  const Status status = client->Get("k", milliseconds(200)).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  EXPECT_EQ(MakeCoordinatorKvClient(
                "nonsense", {}, [] { return WorkerIdentity(); }, "job-1", 3)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
