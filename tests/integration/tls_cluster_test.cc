// A cluster that trusts nobody without TLS and the token, with the files that scripts/make_certs.sh makes; and what
// each program says when one of them is wrong. Each program gets its files in another way: by flag, environment or
// config file.
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <filesystem>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

// Sets variables for programs started while it lives.
class ScopedEnvironment {
 public:
  explicit ScopedEnvironment(std::vector<std::pair<std::string, std::string>> values) : values_(std::move(values)) {
    for (const auto& [name, value] : values_) setenv(name.c_str(), value.c_str(), 1);
  }
  ~ScopedEnvironment() {
    for (const auto& [name, value] : values_) unsetenv(name.c_str());
  }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;

 private:
  const std::vector<std::pair<std::string, std::string>> values_;
};

class TlsClusterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!FashionMnistInstalled()) GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
    MakeCerts({certs_.path(), "coordinator", "teacher"});
    // distillctl finds its files in the config file of the home folder that the harness gives it.
    std::filesystem::create_directories(cluster_.dir() / ".config/distill");
    WriteFile(cluster_.dir() / ".config/distill/config.toml",
              "tls-ca = \"" + Ca() + "\"\ntoken-file = \"" + Token() + "\"\n");
  }
  void MakeCerts(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::string(DISTILL_SOURCE_DIR) + "/scripts/make_certs.sh");
    const CommandResult made = RunCommand(arguments, std::chrono::seconds(30));
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  std::string Ca() const { return certs_ / "ca.crt"; }
  std::string Token() const { return certs_ / "token"; }
  std::string Certificate(const std::string& name) const { return certs_ / (name + "/tls.crt"); }
  std::string Key(const std::string& name) const { return certs_ / (name + "/tls.key"); }
  std::vector<std::string> Files(const std::string& name) const {
    return {"--tls-ca", Ca(), "--tls-cert", Certificate(name), "--tls-key", Key(name), "--token-file", Token()};
  }

  bool StartCoordinator() { return cluster_.StartCoordinator(Files("coordinator")); }  // by flag
  bool StartTeacher(const std::string& id) {                                           // by environment
    const ScopedEnvironment environment({{"DISTILL_TLS_CA", Ca()},
                                         {"DISTILL_TLS_CERT", Certificate("teacher")},
                                         {"DISTILL_TLS_KEY", Key("teacher")},
                                         {"DISTILL_TOKEN_FILE", Token()}});
    return cluster_.StartTeacher(id);
  }
  bool StartStudent(const std::string& id) {  // by config file; it serves nothing, so it needs no certificate
    WriteFile(cluster_.dir() / "student.toml", "tls-ca = \"" + Ca() + "\"\ntoken-file = \"" + Token() + "\"\n");
    return cluster_.StartStudent(id, {"--config", cluster_.dir() / "student.toml"});
  }

  // The SHA-256 of the certificate that a server shows, or that a file holds.
  static std::string Fingerprint(const std::string& pem_command) {
    return RunCommand({"/bin/sh", "-c", pem_command + " | openssl x509 -noout -fingerprint -sha256"},
                      std::chrono::seconds(20))
        .out;
  }
  std::string ShownBy(const std::string& id) {
    return Fingerprint("openssl s_client -alpn h2 -connect " + cluster_.Ready(id, "address") +
                       " </dev/null 2>/dev/null");
  }
  static std::string InFile(const std::string& file) { return Fingerprint("cat '" + file + "'"); }

  // `distillctl list` with these flags and no config file.
  CommandResult List(std::vector<std::string> flags) {
    flags.insert(flags.begin(), {std::string(DISTILL_BIN_DIR) + "/distillctl", "list", "--timeout", "3s",
                                 "--coordinator", cluster_.Ready("coordinator", "address")});
    return RunCommand(flags, std::chrono::seconds(60), {{"HOME", certs_.path()}});
  }
  // Starts a worker that cannot work and expects it to end by itself.
  static void ExpectEnds(std::vector<std::string> argv, int exit_code, const std::string& message) {
    argv[0] = std::string(DISTILL_BIN_DIR) + "/" + argv[0];
    const CommandResult result = RunCommand(argv, std::chrono::seconds(100));
    EXPECT_EQ(result.exit_code, exit_code) << result.out << result.err;
    EXPECT_NE((result.out + result.err).find(message), std::string::npos) << "no '" << message << "' in:\n"
                                                                          << result.out << result.err;
  }
  std::vector<std::string> Student(std::vector<std::string> files) {
    std::vector<std::string> argv = {"distill-student",       "--coordinator", cluster_.Ready("coordinator", "address"),
                                     "--data-root",           kDataRoot,       "--work-dir",
                                     cluster_.dir() / "work", "--id",          "bad"};
    argv.insert(argv.end(), files.begin(), files.end());
    return argv;
  }

  TempDir certs_;
  Cluster cluster_;
};

TEST_F(TlsClusterTest, JobRunsToItsEndThroughTlsAndToken) {
  ASSERT_TRUE(StartCoordinator());
  ASSERT_TRUE(StartTeacher("t0"));
  ASSERT_TRUE(StartStudent("s0"));
  ASSERT_TRUE(StartStudent("s1"));
  EXPECT_EQ(ShownBy("coordinator"), InFile(Certificate("coordinator")));
  EXPECT_EQ(ShownBy("t0"), InFile(Certificate("teacher")));
  const auto job = cluster_.WaitEnd(cluster_.Submit(JobText().Yaml()));
  EXPECT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "");
  EXPECT_TRUE(std::filesystem::exists(job["artifacts"].value("safetensors", "")));
}

TEST_F(TlsClusterTest, WrongCredentialsOfClientsEndWithTheirOwnCodesAndMessages) {
  ASSERT_TRUE(StartCoordinator());
  WriteFile(certs_ / "wrong-token", "0123456789abcdef\n");
  TempDir other;
  MakeCerts({other.path(), "coordinator"});

  EXPECT_EQ(List({"--tls-ca", Ca(), "--token-file", Token()}).exit_code, 0);
  const CommandResult wrong_token = List({"--tls-ca", Ca(), "--token-file", certs_ / "wrong-token"});
  EXPECT_EQ(wrong_token.exit_code, 8) << wrong_token.err;
  EXPECT_NE(wrong_token.err.find("the token is wrong; give --token-file"), std::string::npos) << wrong_token.err;
  const CommandResult no_token = List({"--tls-ca", Ca()});
  EXPECT_EQ(no_token.exit_code, 8) << no_token.err;
  EXPECT_NE(no_token.err.find("carries none; give --token-file"), std::string::npos) << no_token.err;
  // A client that trusts another authority, or speaks no TLS, does not get as far as being refused: nothing answers it.
  const CommandResult wrong_ca = List({"--tls-ca", other / "ca.crt", "--token-file", Token()});
  EXPECT_EQ(wrong_ca.exit_code, 7) << wrong_ca.err;
  const CommandResult plaintext = List({"--token-file", Token()});
  EXPECT_EQ(plaintext.exit_code, 7) << plaintext.err;
  const CommandResult no_file = List({"--tls-ca", Ca(), "--token-file", certs_ / "absent"});
  EXPECT_EQ(no_file.exit_code, 2) << no_file.err;
  EXPECT_NE(no_file.err.find("absent"), std::string::npos) << no_file.err;

  ExpectEnds(Student({"--tls-ca", Ca(), "--token-file", certs_ / "wrong-token"}), 8,
             "the token is wrong; give --token-file");
  ExpectEnds(Student({"--tls-ca", Ca()}), 8, "carries none; give --token-file");
  ExpectEnds(Student({"--tls-ca", Ca(), "--token-file", certs_ / "absent"}), 42, "--token-file: cannot open");
  ExpectEnds({"distill-teacher", "--model", "fashion=" + TeacherFile(), "--coordinator",
              cluster_.Ready("coordinator", "address"), "--tls-ca", Ca(), "--token-file", certs_ / "wrong-token"},
             8, "the token is wrong; give --token-file");
}

TEST_F(TlsClusterTest, StudentThatTrustsAnotherAuthorityGivesUpOnTheCoordinator) {
  ASSERT_TRUE(StartCoordinator());
  TempDir other;
  MakeCerts({other.path(), "coordinator"});
  ExpectEnds(Student({"--tls-ca", other / "ca.crt", "--token-file", Token()}), 7,
             cluster_.Ready("coordinator", "address"));
}

TEST_F(TlsClusterTest, ExpiredCertificateIsNotTrustedAndTheServerWarns) {
  // The script makes no certificate that has ended; its authority and key do.
  const CommandResult expired =
      RunCommand({"/bin/sh", "-c",
                  "cd '" + certs_.path() +
                      "' && openssl req -new -key coordinator/tls.key -subj /CN=coordinator -out request && "
                      "echo subjectAltName=IP:127.0.0.1 > ext && openssl x509 -req -in request -CA ca.crt -CAkey "
                      "ca.key -set_serial 7 -days -1 "
                      "-extfile ext -out coordinator/tls.crt"},
                 std::chrono::seconds(20));
  ASSERT_EQ(expired.exit_code, 0) << expired.err;
  ASSERT_TRUE(StartCoordinator());
  EXPECT_NE(cluster_.Log("coordinator").find("a certificate has ended"), std::string::npos)
      << cluster_.Log("coordinator");
  EXPECT_NE(cluster_.HttpGet("coordinator", "/metrics")
                .find("distill_tls_certificate_expiry_timestamp_seconds{file=\"cert\"}"),
            std::string::npos);
  const CommandResult list = List({"--tls-ca", Ca(), "--token-file", Token()});
  EXPECT_EQ(list.exit_code, 7) << list.err;
  EXPECT_NE(list.err.find("certificate"), std::string::npos) << list.err;
}

TEST_F(TlsClusterTest, ServersRefuseToListenOpenlyWithoutTlsAndToken) {
  for (const std::string listen : {"0.0.0.0:0", "[::]:0"}) {
    ExpectEnds({"distill-coordinator", "--state-dir", cluster_.dir() / "state", "--listen", listen}, 42,
               "refusing to listen on " + listen);
    ExpectEnds(
        {"distill-coordinator", "--state-dir", cluster_.dir() / "state", "--listen", listen, "--token-file", Token()},
        42, "without TLS (--tls-cert, --tls-key)");
    ExpectEnds({"distill-teacher", "--model", "fashion=" + TeacherFile(), "--listen", listen, "--tls-cert",
                Certificate("teacher"), "--tls-key", Key("teacher")},
               42, "without a token (--token-file)");
  }
}

TEST_F(TlsClusterTest, CertificatesAreRotatedByRestartsWhileAJobRuns) {
  ASSERT_TRUE(StartCoordinator());
  ASSERT_TRUE(StartTeacher("t0"));
  ASSERT_TRUE(StartTeacher("t1"));
  ASSERT_TRUE(StartStudent("s0"));
  ASSERT_TRUE(StartStudent("s1"));
  JobText text;
  text.whole_steps = 150;
  const std::string job = cluster_.Submit(text.Yaml());
  ASSERT_FALSE(
      cluster_.WaitFor(job, std::chrono::seconds(90), [](const auto& j) { return StageOf(j) == 1; }).is_null());
  const std::string old_coordinator = ShownBy("coordinator");
  const std::string old_teacher = ShownBy("t0");

  MakeCerts({"--renew", certs_.path()});
  EXPECT_EQ(ShownBy("coordinator"), old_coordinator) << "files are read at the start only";
  EXPECT_EQ(cluster_.Kill("coordinator", SIGTERM), 143);
  ASSERT_TRUE(StartCoordinator());
  EXPECT_NE(ShownBy("coordinator"), old_coordinator);
  EXPECT_EQ(ShownBy("coordinator"), InFile(Certificate("coordinator")));
  for (const std::string id : {"t0", "t1"}) {
    EXPECT_EQ(cluster_.Kill(id, SIGTERM), 143);
    ASSERT_TRUE(StartTeacher(id));
    EXPECT_NE(ShownBy(id), old_teacher);
    EXPECT_EQ(ShownBy(id), InFile(Certificate("teacher")));
  }
  const auto end = cluster_.WaitEnd(job);
  EXPECT_EQ(end.value("state", ""), "JOB_STATE_SUCCEEDED") << end.value("reason", "");
}

}  // namespace
}  // namespace distill::testing
