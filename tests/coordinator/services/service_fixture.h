// A whole coordinator behind real gRPC on 127.0.0.1, in this process.
#ifndef DISTILL_TESTS_COORDINATOR_SERVICES_SERVICE_FIXTURE_H_
#define DISTILL_TESTS_COORDINATOR_SERVICES_SERVICE_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/ticker.h"
#include "coordinator/services/fleet_service.h"
#include "coordinator/services/job_service.h"
#include "coordinator/services/store_service.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {

class TestCoordinator {
 public:
  TestCoordinator() {
    Coordinator::Options options;
    options.heartbeat_seconds = 0.05;
    options.lease_seconds = 30;  // a slow machine must not lose anybody
    options.version = "test";
    coordinator = Coordinator::Create(options, OpenSqliteJobStore(":memory:").value(), SystemClock(), &metrics).value();
    jobs_ = MakeJobService(coordinator.get());
    fleet_ = MakeFleetService(coordinator.get());
    store_ = MakeStoreService(&coordinator->rendezvous(), coordinator->epoch());
    server = RpcServer::Start({.listen = "127.0.0.1:0"}, {jobs_.get(), fleet_.get(), store_.get()}).value();
    ticker_ = std::make_unique<Ticker>("test-tick", absl::Milliseconds(20), [this] { coordinator->Tick(); });
  }
  std::shared_ptr<grpc::Channel> Channel() const { return MakeChannel(server->address(), {}).value(); }

  // Waits until `condition` holds; fails the test after 60 s.
  template <typename Condition>
  static void Await(const Condition& condition, const char* what) {
    const absl::Time end = absl::Now() + absl::Seconds(60);
    while (!condition()) {
      ASSERT_LT(absl::Now(), end) << "never: " << what;
      absl::SleepFor(absl::Milliseconds(2));
    }
  }

  void RegisterTeacher() {
    RegisterInput input;
    input.from = {"t0", "1"};
    input.kind = WorkerKind::kTeacher;
    input.address = "127.0.0.1:1";
    input.models = Fleet().models;
    ASSERT_TRUE(coordinator->Register(input).ok());
  }

  MetricsRegistry metrics;
  std::unique_ptr<Coordinator> coordinator;

 private:
  std::unique_ptr<grpc::Service> jobs_, fleet_, store_;

 public:
  std::unique_ptr<RpcServer> server;

 private:
  std::unique_ptr<Ticker> ticker_;
};

}  // namespace distill

#endif  // DISTILL_TESTS_COORDINATOR_SERVICES_SERVICE_FIXTURE_H_
