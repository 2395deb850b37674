// The clients' suite against the coordinator's own service, and what only the real one does.
#include <thread>

#include "distill/v1/store.grpc.pb.h"
#include "tests/common/rendezvous/kv_suite.h"
#include "tests/coordinator/services/service_fixture.h"

namespace distill {
namespace {

class CoordinatorHarness : public KvHarness {
 public:
  CoordinatorHarness() { RendezvousStore::Run(coordinator_.coordinator->rendezvous().Open("job", 1, {})); }
  std::shared_ptr<KvClient> Client() override {
    return MakeCoordinatorKvClient(
               coordinator_.server->address(), {},
               [] {
                 return WorkerIdentity{"s0", "a", 1};
               },
               "job", 1)
        .value();
  }

 private:
  TestCoordinator coordinator_;
};
INSTANTIATE_TEST_SUITE_P(Coordinator, KvSuite,
                         testing::Values(KvSuiteParam{"Coordinator",
                                                      [] { return std::make_unique<CoordinatorHarness>(); }}),
                         [](const auto& info) { return info.param.name; });

class StoreServiceTest : public testing::Test {
 protected:
  StoreServiceTest() : stub_(v1::StoreService::NewStub(coordinator_.Channel())) {
    RendezvousStore::Run(store().Open("job", 1, {}));
  }
  RendezvousStore& store() { return coordinator_.coordinator->rendezvous(); }
  static v1::StoreGetRequest GetRequest(const std::string& key, uint32_t timeout_ms, uint64_t generation = 1) {
    v1::StoreGetRequest request;
    request.mutable_scope()->set_job_id("job");
    request.mutable_scope()->set_generation(generation);
    request.set_key(key);
    request.set_timeout_ms(timeout_ms);
    return request;
  }
  TestCoordinator coordinator_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(StoreServiceTest, WithoutATimeoutAnAbsentKeyIsNotFound) {
  grpc::ClientContext context;
  v1::StoreGetResponse response;
  EXPECT_EQ(stub_->Get(&context, GetRequest("k", 0), &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(StoreServiceTest, AnotherGenerationIsAborted) {
  grpc::ClientContext context;
  v1::StoreGetResponse response;
  const grpc::Status status = stub_->Get(&context, GetRequest("k", 60000, 2), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED) << status.error_message();
}

TEST_F(StoreServiceTest, WhoHeardOfANewerCoordinatorIsSentAway) {
  for (const uint32_t timeout_ms : {0, 60000}) {
    v1::StoreGetRequest request = GetRequest("k", timeout_ms);
    request.mutable_scope()->set_coordinator_epoch(coordinator_.coordinator->epoch() + 1);
    grpc::ClientContext context;
    v1::StoreGetResponse response;
    EXPECT_EQ(stub_->Get(&context, request, &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(StoreServiceTest, ANewGenerationWakesWaitersOfTheOld) {
  grpc::Status status;
  std::thread waiter([&] {
    grpc::ClientContext context;
    v1::StoreGetResponse response;
    status = stub_->Get(&context, GetRequest("never", 60000), &response);
  });
  // Whether the call waits already or not, it is of the old generation.
  RendezvousStore::Run(store().Open("job", 2, {}));
  waiter.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED) << status.error_message();
}

TEST_F(StoreServiceTest, ManyWaitersThatGoAwayLeaveRoomForOthers) {
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientAsyncResponseReader<v1::StoreGetResponse>>> calls;
  std::vector<v1::StoreGetResponse> responses(300);
  std::vector<grpc::Status> statuses(300);
  grpc::CompletionQueue queue;
  for (int i = 0; i < 300; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    calls.push_back(stub_->AsyncGet(contexts.back().get(), GetRequest("never", 600000), &queue));
    calls.back()->Finish(&responses[i], &statuses[i], nullptr);
  }
  ASSERT_TRUE(store().Set({"job", 1}, "k", "v").ok());
  grpc::ClientContext context;
  v1::StoreGetResponse response;
  ASSERT_TRUE(stub_->Get(&context, GetRequest("k", 60000), &response).ok())
      << "waiting calls must not keep others from being served";
  EXPECT_EQ(response.value(), "v");
  for (auto& one : contexts) one->TryCancel();
  void* tag = nullptr;
  bool ok = false;
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(queue.Next(&tag, &ok));
  for (const grpc::Status& status : statuses) EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
}

}  // namespace
}  // namespace distill
