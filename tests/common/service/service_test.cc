#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/metrics/process_metrics.h"
#include "common/service/certificate_metrics.h"
#include "common/service/service_flags.h"
#include "tests/common/http/http_test_client.h"
#include "tests/common/rpc/rpc_test_util.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "service_test_" + std::to_string(getpid()) + "_" + name;
}

struct Variable {
  Variable(const char* name, const char* value) : name(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name); }
  const char* const name;
};

// A program with one flag of its own.
struct Program {
  Program() {
    app.add_option("--max-batch", max_batch);
    AddServiceFlags(&app, &flags);
  }
  void Parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants it
    app.parse(arguments);
  }
  CLI::App app{"test", "program"};
  ServiceFlags flags;
  int max_batch = 1;
};

TEST(ServiceFlagsTest, CommandLineFillsTheStruct) {
  Program program;
  program.Parse({"--log-level", "debug", "--log-json", "--http-listen", "off", "--ready-file", "r", "--tls-ca", "ca",
                 "--tls-cert", "c", "--tls-key", "k", "--token-file", "t", "--insecure", "--max-batch", "8"});
  EXPECT_EQ(program.flags.log_level, "debug");
  EXPECT_TRUE(program.flags.log_json);
  EXPECT_EQ(program.flags.http_listen, "off");
  EXPECT_EQ(program.flags.ready_file, "r");
  EXPECT_EQ(program.flags.security.ca_file, "ca");
  EXPECT_EQ(program.flags.security.cert_file, "c");
  EXPECT_EQ(program.flags.security.key_file, "k");
  EXPECT_EQ(program.flags.security.token_file, "t");
  EXPECT_TRUE(program.flags.security.insecure);
  EXPECT_EQ(program.max_batch, 8);
}

TEST(ServiceFlagsTest, DefaultsHoldWithoutFlags) {
  Program program;
  program.Parse({});
  EXPECT_EQ(program.flags.log_level, "info");
  EXPECT_EQ(program.flags.http_listen, "127.0.0.1:0");
  EXPECT_FALSE(program.flags.security.insecure);
}

TEST(ServiceFlagsTest, CommandLineBeatsFileBeatsEnvironment) {
  const std::string file = TempPath("config.toml");
  std::ofstream(file) << "# comment\nlog-level = \"warning\"\nmax-batch = 3\ninsecure = true\n";
  const Variable level("DISTILL_LOG_LEVEL", "error"), batch("DISTILL_MAX_BATCH", "2"), json("DISTILL_LOG_JSON", "true"),
      token("DISTILL_TOKEN_FILE", "/run/token");
  Program environment;
  environment.Parse({});
  EXPECT_EQ(environment.flags.log_level, "error");
  EXPECT_EQ(environment.max_batch, 2);
  EXPECT_TRUE(environment.flags.log_json);
  EXPECT_EQ(environment.flags.security.token_file, "/run/token");
  Program all;
  all.Parse({"--config", file, "--max-batch", "4"});
  EXPECT_EQ(all.flags.log_level, "warning");
  EXPECT_EQ(all.max_batch, 4);
  EXPECT_TRUE(all.flags.security.insecure);
  EXPECT_TRUE(all.flags.log_json);
  std::filesystem::remove(file);
}

TEST(ServiceFlagsTest, WrongFlagsValuesAndFilesAreErrors) {
  const std::string file = TempPath("bad.toml");
  std::ofstream(file) << "log-levl = \"debug\"\n";
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"--log-level", "loud"}, {"--no-such-flag"}, {"--config", file}, {"--config", "/no/such/file"}, {"stray"}}) {
    Program program;
    EXPECT_THROW(program.Parse(arguments), CLI::ParseError) << arguments[0];
  }
  Program named;
  try {
    named.Parse({"--config", file});
  } catch (const CLI::ParseError& error) {
    EXPECT_THAT(error.what(), HasSubstr("log-levl"));
  }
  std::filesystem::remove(file);
}

TEST(ServiceFlagsTest, VersionNamesNumberAndDevice) {
  EXPECT_THAT(VersionString(), testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+ \\((cpu|cuda)\\)"));
  Program program;
  EXPECT_THROW(program.Parse({"--version"}), CLI::CallForVersion);
}

TEST(SignalsTest, SignalsAndRequestsEndTheWait) {
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  BlockSignals();
  kill(getpid(), SIGTERM);
  EXPECT_EQ(WaitForSignal(), SIGTERM);
  std::thread later([] { kill(getpid(), SIGINT); });
  EXPECT_EQ(WaitForSignal(), SIGINT);
  later.join();
  RequestStop();
  RequestStop();
  EXPECT_EQ(WaitForSignal(), 0);
  std::thread requester([] { RequestStop(); });
  EXPECT_EQ(WaitForSignal(), 0);
  requester.join();
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  close(pipe_ends[0]);
  EXPECT_EQ(write(pipe_ends[1], "x", 1), -1);  // EPIPE instead of death
  close(pipe_ends[1]);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST(ServiceHttpTest, HealthReadinessMetricsAndExtraRoutes) {
  MetricsRegistry metrics;
  metrics.GetCounter("distill_steps_total", "Steps.").Add(3);
  absl::Mutex mutex;
  std::string reason = "no coordinator";  // guarded by mutex
  auto server = StartServiceHttp("127.0.0.1:0", &metrics,
                                 [&] {
                                   absl::MutexLock lock(&mutex);
                                   return reason;
                                 },
                                 {{"/extra", [](const HttpRequest&) { return HttpResponse{.body = "extra"}; }}});
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_THAT(HttpGet(port, "/healthz"), AllOf(StartsWith("HTTP/1.1 200 "), EndsWith("ok\n")));
  EXPECT_THAT(HttpGet(port, "/readyz"), AllOf(StartsWith("HTTP/1.1 503 "), EndsWith("not ready: no coordinator\n")));
  {
    absl::MutexLock lock(&mutex);
    reason.clear();
  }
  EXPECT_THAT(HttpGet(port, "/readyz"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(HttpGet(port, "/metrics"),
              AllOf(HasSubstr("Content-Type: text/plain; version=0.0.4"), HasSubstr("distill_steps_total 3\n"),
                    HasSubstr("distill_build_info{version=\"" + VersionString() + "\"} 1\n"),
                    HasSubstr("\nprocess_resident_memory_bytes "), HasSubstr("\nprocess_start_time_seconds 1")));
  EXPECT_THAT(HttpGet(port, "/extra"), EndsWith("extra"));
}

TEST(ServiceHttpTest, OffGivesNoServerAndBadAddressNamesTheFlag) {
  MetricsRegistry metrics;
  auto off = StartServiceHttp("off", &metrics, [] { return ""; });
  ASSERT_TRUE(off.ok());
  EXPECT_EQ(*off, nullptr);
  const Status bad = StartServiceHttp("nonsense", &metrics, [] { return ""; }).status();
  EXPECT_EQ(bad.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.message()), HasSubstr("--http-listen"));
}

TEST(ServiceHttpTest, ScrapesShowTheTimeSpent) {
  MetricsRegistry metrics;
  auto server = StartServiceHttp("127.0.0.1:0", &metrics, [] { return ""; });
  ASSERT_TRUE(server.ok()) << server.status();
  const auto cpu_seconds = [&] {
    const std::string text = HttpGet((*server)->port(), "/metrics");
    return std::stod(text.substr(text.find("\nprocess_cpu_seconds_total ") + 27));
  };
  const double before = cpu_seconds();
  volatile double sum = 0;
  while (static_cast<double>(std::clock()) / CLOCKS_PER_SEC < before + 0.05) sum = sum + 1;
  EXPECT_GE(cpu_seconds(), before + 0.04);
}

TEST(FolderMetricsTest, SpaceIsThatOfTheFileSystem) {
  MetricsRegistry metrics;
  MeasureFolder("work", "/no/such/folder", &metrics);
  EXPECT_EQ(metrics.Serialize(), "");
  MeasureFolder("work", "/", &metrics);
  const std::filesystem::space_info space = std::filesystem::space("/");
  EXPECT_EQ(
      metrics.GetGauge("distill_folder_size_bytes", "Size of the folder's file system.", {{"folder", "work"}}).Value(),
      static_cast<double>(space.capacity));
  EXPECT_THAT(metrics.Serialize(), HasSubstr("distill_folder_free_bytes{folder=\"work\"} "));
}

TEST(CertificateMetricsTest, TheEarliestEndOfAFileIsShown) {
  const double now = static_cast<double>(std::time(nullptr));
  const TempFile hour(MakeCertificate("a").certificate);  // ends in an hour
  EXPECT_NEAR(CertificateExpiry(hour.path()).value(), now + 3600, 30);
  const TempFile both(MakeCertificate("b", 60 * 86400).certificate + MakeCertificate("a").certificate);
  EXPECT_NEAR(CertificateExpiry(both.path()).value(), now + 3600, 30);
  const TempFile garbage("garbage");
  EXPECT_THAT(std::string(CertificateExpiry(garbage.path()).status().message()), HasSubstr(garbage.path()));
  EXPECT_FALSE(CertificateExpiry("/no/such.pem").ok());
}

TEST(CertificateMetricsTest, CertificateAndAuthorityHaveASeriesEachAndPlaintextHasNone) {
  MetricsRegistry metrics;
  ExportCertificateExpiry({}, &metrics);
  ExportCertificateExpiry({.ca_file = "/no/such.pem"}, &metrics);
  EXPECT_EQ(metrics.Serialize(), "");
  const TempFile cert(MakeCertificate("a").certificate), ended(MakeCertificate("b", -60).certificate);
  testing::internal::CaptureStderr();
  ExportCertificateExpiry({.ca_file = ended.path(), .cert_file = cert.path()}, &metrics);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log,
              AllOf(HasSubstr("ends soon"), HasSubstr(cert.path()), HasSubstr("has ended"), HasSubstr(ended.path())));
  EXPECT_THAT(metrics.Serialize(), AllOf(HasSubstr("distill_tls_certificate_expiry_timestamp_seconds{file=\"cert\"} "),
                                         HasSubstr("distill_tls_certificate_expiry_timestamp_seconds{file=\"ca\"} ")));
}

TEST(ReadyFileTest, HoldsTheValuesAndLeavesNothingElse) {
  const std::string folder = TempPath("ready");
  std::filesystem::create_directory(folder);
  ASSERT_TRUE(WriteReadyFile("", {{"address", "x"}}).ok());
  ASSERT_TRUE(WriteReadyFile(folder + "/ready", {{"old", "value"}}).ok());
  ASSERT_TRUE(WriteReadyFile(folder + "/ready", {{"http", "127.0.0.1:2"}, {"address", "127.0.0.1:1"}}).ok());
  std::stringstream content;
  content << std::ifstream(folder + "/ready").rdbuf();
  EXPECT_EQ(content.str(), "address=127.0.0.1:1\nhttp=127.0.0.1:2\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  const Status bad = WriteReadyFile(folder + "/none/ready", {});
  EXPECT_EQ(bad.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(bad.message()), HasSubstr(folder + "/none/ready"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace distill
