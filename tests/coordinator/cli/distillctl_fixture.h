// The real program distillctl against a JobService with canned data, over real gRPC.
#ifndef DISTILL_TESTS_COORDINATOR_CLI_DISTILLCTL_FIXTURE_H_
#define DISTILL_TESTS_COORDINATOR_CLI_DISTILLCTL_FIXTURE_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/server.h"
#include "tests/coordinator/cli/canned_job_service.h"
#include "tests/coordinator/cli/child.h"
#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {

class DistillctlFixture : public ::testing::Test {
 protected:
  DistillctlFixture() {
    std::string folder = ::testing::TempDir() + "distillctl_XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    *service_.submit_response.mutable_plan() = SamplePlan();
    service_.submit_response.set_job_id("j-1");
    env_ = {{"PATH", "/usr/bin:/bin"}, {"HOME", folder_}, {"TZ", "UTC"}, {"LC_ALL", "C.UTF-8"}, {"TERM", "xterm"}};
  }
  ~DistillctlFixture() override {
    StopServer();
    std::filesystem::remove_all(folder_);
  }

  void StartServer(RpcServer::Options options = {}) {
    if (!address_.empty()) options.listen = address_;
    auto server = RpcServer::Start(options, {&service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = server_->address();
    env_["DISTILL_COORDINATOR"] = address_;
  }
  void StopServer() {
    service_.EndStreams();
    if (server_ != nullptr) server_->Stop(std::chrono::seconds(5));
    server_.reset();
    service_.AllowStreams();
  }

  std::unique_ptr<Child> Start(std::vector<std::string> args, Child::Options options = {}) {
    args.insert(args.begin(), DISTILLCTL);
    options.env = env_;
    return std::make_unique<Child>(args, options);
  }
  ChildResult Run(std::vector<std::string> args, Child::Options options = {}) {
    return Start(std::move(args), std::move(options))->Wait();
  }
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  // A port where nothing listens: of a server that has just stopped.
  void UseDeadAddress() {
    StartServer();
    StopServer();
  }

  std::string folder_, address_;
  std::map<std::string, std::string> env_;
  CannedJobService service_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace distill::cli

#endif  // DISTILL_TESTS_COORDINATOR_CLI_DISTILLCTL_FIXTURE_H_
