// The program itself: flags, ready file, HTTP, signals, exit codes.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <sstream>

#include "common/exit_codes.h"
#include "tests/common/http/http_test_client.h"
#include "tests/common/rpc/big_message.h"
#include "tests/harness/process.h"

namespace distill {
namespace {

using ::distill::testing::Process;
using ::distill::testing::ReadFileOrEmpty;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kProgram = std::string(DISTILL_BIN_DIR) + "/distill-coordinator";

class CoordinatorProcessTest : public ::testing::Test {
 protected:
  std::vector<std::string> Command(const std::string& ready, const std::string& listen = "127.0.0.1:0") {
    return {kProgram,       "--listen",   listen,          "--state-dir", dir_ / "state",
            "--ready-file", dir_ / ready, "--http-listen", "127.0.0.1:0"};
  }
  std::unique_ptr<Process> Start(const std::string& ready) { return Launch(Command(ready), ready); }
  std::unique_ptr<Process> Launch(const std::vector<std::string>& command, const std::string& ready) {
    auto process = std::make_unique<Process>(command, Process::Options{.log = dir_ / (ready + ".log")});
    const auto end = std::chrono::steady_clock::now() + seconds(60);
    while (!std::filesystem::exists(dir_ / ready)) {
      const auto code = process->Wait(std::chrono::milliseconds(10));
      EXPECT_FALSE(code.has_value()) << "exited with " << *code << ": " << ReadFileOrEmpty(dir_ / (ready + ".log"));
      EXPECT_LT(std::chrono::steady_clock::now(), end) << "not ready";
      if (code || std::chrono::steady_clock::now() >= end) break;
    }
    return process;
  }
  std::string Ready(const std::string& file, const std::string& key) {
    std::istringstream lines(ReadFileOrEmpty(dir_ / file));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(key + "=")) return line.substr(key.size() + 1);
    }
    return "";
  }
  static int PortOf(const std::string& address) { return std::stoi(address.substr(address.rfind(':') + 1)); }
  static std::string HttpGet(const std::string& address, const std::string& path) {
    return distill::HttpGet(PortOf(address), path);
  }
  // Exit code of a run that is expected to end by itself; its output is in error_.
  int Run(std::vector<std::string> argv) {
    const auto result = distill::testing::RunCommand(argv, seconds(60));
    error_ = result.err + result.out;
    return result.exit_code;
  }

  distill::testing::TempDir dir_;
  std::string error_;
};

TEST_F(CoordinatorProcessTest, ServesUntilSigterm) {
  auto process = Start("ready");
  EXPECT_THAT(Ready("ready", "address"), HasSubstr("127.0.0.1:"));
  const std::string http = Ready("ready", "http");
  EXPECT_THAT(HttpGet(http, "/readyz"), HasSubstr("200 OK"));
  EXPECT_THAT(HttpGet(http, "/metrics"), HasSubstr("distill_coordinator_epoch 1"));
  process->Signal(SIGTERM);
  EXPECT_EQ(process->Wait(seconds(30)), kExitTerminated) << ReadFileOrEmpty(dir_ / "ready.log");
  process = Start("again");
  EXPECT_THAT(HttpGet(Ready("again", "http"), "/metrics"), HasSubstr("distill_coordinator_epoch 2"));
  process->Signal(SIGKILL);
  EXPECT_EQ(process->Wait(seconds(30)), 128 + SIGKILL);
  process = Start("last");
  EXPECT_THAT(HttpGet(Ready("last", "http"), "/metrics"), HasSubstr("distill_coordinator_epoch 3"));
}

TEST_F(CoordinatorProcessTest, TheStatusPageIsServedOnLoopbackAndRefusedElsewhere) {
  auto process = Start("ready");
  const std::string http = Ready("ready", "http");
  const auto get = [](const std::string& address, const std::string& path) {
    const std::string answer = HttpGet(address, path);
    return answer.substr(0, answer.find("\r\n"));
  };
  EXPECT_EQ(get(http, "/assets/app.js"), "HTTP/1.1 403 Forbidden") << "this test's Host is no name of the machine";
  process->Signal(SIGTERM);
  EXPECT_EQ(process->Wait(seconds(30)), kExitTerminated);

  distill::testing::WriteFile(dir_ / "token", "secret\n");
  const auto start = [&](const std::string& ready, const std::string& listen, std::vector<std::string> flags) {
    std::vector<std::string> command = {kProgram,       "--listen",   "127.0.0.1:0",   "--state-dir", dir_ / "state",
                                        "--ready-file", dir_ / ready, "--http-listen", listen};
    command.insert(command.end(), flags.begin(), flags.end());
    process = Launch(command, ready);
    return Ready(ready, "http");
  };
  const std::string with_token = start("token.ready", "127.0.0.1:0", {"--token-file", dir_ / "token"});
  EXPECT_EQ(get(with_token, "/api/v1/jobs"), "HTTP/1.1 401 Unauthorized");
  EXPECT_EQ(get(with_token, "/"), "HTTP/1.1 303 See Other");
  EXPECT_EQ(get(with_token, "/metrics"), "HTTP/1.1 200 OK");
  const std::string open = start("open.ready", "0.0.0.0:0", {"--token-file", dir_ / "token"});
  EXPECT_THAT(HttpGet(open, "/"), AllOf(HasSubstr("403 Forbidden"), HasSubstr("--tls-cert"), HasSubstr("--insecure")));
  EXPECT_EQ(get(open, "/metrics"), "HTTP/1.1 200 OK");
  EXPECT_THAT(ReadFileOrEmpty(dir_ / "open.ready.log"), HasSubstr("the status page is not served on 0.0.0.0:0"));
  const std::string insecure = start("insecure.ready", "0.0.0.0:0", {"--insecure"});
  EXPECT_EQ(get(insecure, "/api/v1/jobs"), "HTTP/1.1 200 OK");
}

// What the kubelet and Prometheus ask, while so many look at the page; then also while somebody holds as many
// connections as he can.
TEST_F(CoordinatorProcessTest, ProbesAnswerWhileTwoHundredLookAtThePage) {
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  auto process = Start("ready");
  const int port = PortOf(Ready("ready", "http"));
  const auto expect_probes = [&] {
    for (const char* path : {"/healthz", "/readyz", "/metrics"}) {
      EXPECT_THAT(distill::HttpGet(port, path), HasSubstr("200 OK")) << path;
    }
  };
  // Two connections each, kept; the page asks for these every two seconds, here without a pause. A browser connects
  // anew when a connection that it has kept was closed.
  std::deque<std::unique_ptr<HttpTestClient>> viewers(2 * 200);
  int answered = 0;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < viewers.size(); ++i) {
      const std::string request =
          std::string("GET /api/v1/") + (i % 2 == 0 ? "jobs" : "fleet") + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
      std::string answer;
      if (viewers[i] != nullptr) {
        viewers[i]->Send(request);
        answer = viewers[i]->Receive();
      }
      if (answer.empty()) {
        viewers[i] = std::make_unique<HttpTestClient>(port);
        viewers[i]->Send(request);
        answer = viewers[i]->Receive();
      }
      answered += answer.starts_with("HTTP/1.1 200 ");
      if (i % 100 == 99) expect_probes();
    }
  }
  EXPECT_EQ(answered, 4 * static_cast<int>(viewers.size()));
  std::deque<HttpTestClient> silent;
  for (size_t i = std::min<size_t>(5000, files.rlim_max / 2); i > 0; --i) silent.emplace_back(port);
  expect_probes();
  process->Signal(SIGTERM);
  EXPECT_EQ(process->Wait(seconds(30)), kExitTerminated);
}

TEST_F(CoordinatorProcessTest, ABombInAHealthCheckIsNotUnpacked) {
  auto process = Start("ready");
  const std::string address = Ready("ready", "address"), pid = std::to_string(process->pid());
  ResetPeakMemory(pid);
  const int before = PeakMemory(pid);
  for (const char* method : {"/grpc.health.v1.Health/Check", "/distill.v1.JobService/SubmitJob"}) {
    EXPECT_FALSE(SendZeros(address, method, 128, true).ok());
  }
  EXPECT_LT(PeakMemory(pid) - before, 50) << "MiB";
  EXPECT_TRUE(process->Running());
}

TEST_F(CoordinatorProcessTest, ASecondOneOnTheSameStateTakesOverAndTheFirstStops) {
  auto first = Start("first");
  auto second = Start("second");
  EXPECT_EQ(first->Wait(seconds(30)), kExitConfiguration);
  EXPECT_THAT(ReadFileOrEmpty(dir_ / "first.log"), HasSubstr("another coordinator took the job store over"));
  EXPECT_TRUE(second->Running());
}

TEST_F(CoordinatorProcessTest, ExitCodesSayWhetherTryingAgainHelps) {
  EXPECT_EQ(Run({kProgram, "--no-such-flag"}), kExitUsage);
  EXPECT_EQ(Run({kProgram, "--lease", "abc"}), kExitUsage);
  EXPECT_EQ(Run({kProgram, "--help"}), kExitOk);
  EXPECT_EQ(Run({kProgram, "--listen", "127.0.0.1:0", "--state-dir", "/dev/null/state"}), kExitDiskFull);
  EXPECT_THAT(error_, HasSubstr("/dev/null/state"));
  auto command = Command("x", "0.0.0.0:0");
  EXPECT_EQ(Run(command), kExitConfiguration);
  EXPECT_THAT(error_, HasSubstr("--insecure"));
  command = Command("x");
  command.insert(command.end(), {"--lease", "1", "--heartbeat", "1"});
  EXPECT_EQ(Run(command), kExitConfiguration);
  EXPECT_THAT(error_, HasSubstr("at least twice"));
  auto running = Start("ready");
  EXPECT_EQ(Run({kProgram, "--listen", Ready("ready", "address"), "--state-dir", dir_ / "other"}), kExitTemporary);
  EXPECT_THAT(error_, HasSubstr("in use"));
  distill::testing::WriteFile(dir_ / "other/coordinator.db", std::string(5000, 'x'));
  EXPECT_EQ(Run({kProgram, "--listen", "127.0.0.1:0", "--state-dir", dir_ / "other"}), kExitConfiguration);
  EXPECT_THAT(error_, HasSubstr("coordinator.db"));
}

}  // namespace
}  // namespace distill
