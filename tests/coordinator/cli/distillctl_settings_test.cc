// What all commands of distillctl share: errors, settings, help, completion, and what their page says.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/str_cat.h"
#include "tests/coordinator/cli/distillctl_fixture.h"

namespace distill::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class DistillctlSettingsTest : public DistillctlFixture {};

TEST_F(DistillctlSettingsTest, UnknownJobs) {
  StartServer();
  for (const char* command : {"describe", "watch", "logs", "cancel", "history", "results"}) {
    const ChildResult result = Run({command, "nope"});
    EXPECT_EQ(result.exit_code, kExitNotFound) << command;
    EXPECT_EQ(result.err, "error: no job 'nope'\n") << command;
    EXPECT_THAT(result.out, IsEmpty()) << command;
  }
}

TEST_F(DistillctlSettingsTest, UnreachableCoordinator) {
  UseDeadAddress();
  const std::string file = Write("job.yaml", "name: fashion\n");
  for (std::vector<std::string> args : std::vector<std::vector<std::string>>{{"list"},
                                                                             {"describe", "x"},
                                                                             {"watch", "x"},
                                                                             {"logs", "x"},
                                                                             {"cancel", "x"},
                                                                             {"fleet"},
                                                                             {"taps", "x"},
                                                                             {"history", "x"},
                                                                             {"results", "x"},
                                                                             {"submit", file}}) {
    args.insert(args.begin(), {"--timeout", "1s"});
    const ChildResult result = Run(args);
    EXPECT_EQ(result.exit_code, kExitUnreachable) << args[2];
    EXPECT_THAT(result.err,
                AllOf(HasSubstr("cannot reach the coordinator at " + address_ + " ("),
                      HasSubstr("is distill-coordinator running? use --coordinator or DISTILL_COORDINATOR")))
        << args[2];
  }
}

TEST_F(DistillctlSettingsTest, CoordinatorThatDoesNotAnswer) {
  // A socket that listens but never speaks.
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 8), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const ChildResult result =
      Run({"--coordinator", StrCat("127.0.0.1:", ntohs(address.sin_port)), "--timeout", "500ms", "list"});
  EXPECT_EQ(result.exit_code, kExitUnreachable);
  EXPECT_THAT(result.err, HasSubstr("coordinator at 127.0.0.1:"));
  close(fd);
}

TEST_F(DistillctlSettingsTest, WrongTokenIsUnauthenticated) {
  service_.Put(RunningJob());
  RpcServer::Options options;
  options.security.token_file = Write("token", "secret-of-the-server\n");
  StartServer(options);
  for (const char* command : {"list", "fleet"}) {
    const ChildResult result = Run({command});
    EXPECT_EQ(result.exit_code, kExitUnauthenticated) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("refuses the credentials"), HasSubstr("--token-file")));
  }
  EXPECT_EQ(Run({"watch", "j-1", "--token-file", Write("other", "something-else\n")}).exit_code, kExitUnauthenticated);
  EXPECT_EQ(Run({"list", "--token-file", options.security.token_file}).exit_code, kExitOk);
  env_["DISTILL_TOKEN_FILE"] = options.security.token_file;
  EXPECT_EQ(Run({"list"}).exit_code, kExitOk);
}

TEST_F(DistillctlSettingsTest, WrongCommandLines) {
  StartServer();
  const auto expect = [&](std::vector<std::string> args, const std::string& message) {
    const ChildResult result = Run(args);
    EXPECT_EQ(result.exit_code, kExitUsage) << ::testing::PrintToString(args);
    EXPECT_THAT(result.err, HasSubstr(message)) << ::testing::PrintToString(args);
    EXPECT_THAT(result.out, IsEmpty());
  };
  expect({}, "subcommand is required");
  expect({"lsit"}, "no command is called 'lsit'; did you mean 'list'?");
  expect({"list", "--nope"}, "--nope");
  expect({"describe"}, "JOB");
  expect({"describe", "a", "b"}, "b");
  expect({"list", "--timeout", "soon"}, "'soon' is not a duration");
  expect({"list", "--output", "xml"}, "xml");
  expect({"list", "--limit", "-1"}, "-1");
  expect({"taps", "x", "--image", "28"}, "'28' is not HxW");
  expect({"submit", "f", "--set", "novalue"}, "'novalue' is not KEY=VALUE");
  expect({"submit", "f", "--request-id", std::string(129, 'x')}, "1 to 128 bytes");
  expect({"--coordinator", "nonsense", "list"}, "nonsense");
  expect({"--coordinator", "192.0.2.1:7070", "list"}, "--insecure");
  expect({"--token-file", folder_ + "/missing", "list"}, folder_ + "/missing");
  expect({"completion", "zsh"}, "zsh");
}

TEST_F(DistillctlSettingsTest, AJobMayBeCalledLikeACommand) {
  v1::Job job = RunningJob();
  job.set_name("list");
  service_.Put(job);
  StartServer();
  EXPECT_THAT(Run({"describe", "list"}).out, HasSubstr("j-1 (list)"));
  EXPECT_THAT(Run({"results", "list", "list"}).out, HasSubstr("list (j-1)"));
}

TEST_F(DistillctlSettingsTest, ConfigFileIsBelowEnvironmentAndFlags) {
  service_.Put(RunningJob());
  StartServer();
  const auto jobs = [](const ChildResult& result) { return result.out.find("\"jobs\"") != std::string::npos; };
  std::filesystem::create_directories(folder_ + "/.config/distill");
  Write(".config/distill/config.toml", "coordinator = \"" + address_ + "\"\noutput = \"json\"\n");
  env_.erase("DISTILL_COORDINATOR");
  const ChildResult file = Run({"list"});
  EXPECT_EQ(file.exit_code, kExitOk) << file.err;
  EXPECT_TRUE(jobs(file)) << file.out;
  EXPECT_FALSE(jobs(Run({"list", "--output", "table"})));
  Write("other.toml", "coordinator = \"127.0.0.1:1\"\n");
  EXPECT_EQ(Run({"list", "--config", folder_ + "/other.toml"}).exit_code, kExitUnreachable);
  env_["DISTILL_COORDINATOR"] = address_;
  EXPECT_EQ(Run({"list", "--config", folder_ + "/other.toml"}).exit_code, kExitOk);
  Write("typo.toml", "cordinator = \"127.0.0.1:1\"\n");
  const ChildResult typo = Run({"list", "--config", folder_ + "/typo.toml"});
  EXPECT_EQ(typo.exit_code, kExitUsage);
  EXPECT_THAT(typo.err, HasSubstr("cordinator"));
}

// Whatever is asked for: exit code 1 and the cause, not that of some call since.
TEST_F(DistillctlSettingsTest, OutputThatDoesNotArriveIsAnErrorWithItsCause) {
  service_.Put(SucceededJob());
  service_.PutEvent(1, "submitted");
  v1::TapInfo* tap = service_.taps.add_taps();
  tap->set_path("layer1");
  StartServer();
  const std::string file = Write("job.yaml", "name: fashion\n");
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{{"submit", file},
                                                                                       {"submit", file, "--dry-run"},
                                                                                       {"submit", file, "-q"},
                                                                                       {"submit", file, "--watch"},
                                                                                       {"list"},
                                                                                       {"list", "-q"},
                                                                                       {"describe", "j-1"},
                                                                                       {"watch", "j-1"},
                                                                                       {"logs", "j-1"},
                                                                                       {"logs", "-f", "j-1"},
                                                                                       {"cancel", "j-1"},
                                                                                       {"file", "j-1"},
                                                                                       {"fleet"},
                                                                                       {"taps", "cifar_resnet8"},
                                                                                       {"history", "j-1"},
                                                                                       {"history", "--csv", "j-1"},
                                                                                       {"results", "j-1"},
                                                                                       {"report", "-o", "-", "j-1"},
                                                                                       {"completion", "bash"},
                                                                                       {"--help"},
                                                                                       {"--help-all"},
                                                                                       {"--version"},
                                                                                       {"watch", "--help"}}) {
    for (const char* output : {"table", "json"}) {
      std::vector<std::string> words = {"-o", output};
      words.insert(words.end(), command.begin(), command.end());
      const ChildResult result = Run(words, {.stdout_file = "/dev/full"});
      EXPECT_EQ(result.exit_code, kExitInternal) << command[0] << " " << output << ": " << result.err;
      EXPECT_THAT(result.err, HasSubstr("error: cannot write to standard output: No space left on device\n"))
          << command[0] << " " << output;
    }
  }
}

TEST_F(DistillctlSettingsTest, HelpNamesTheExitCodes) {
  const ChildResult result = Run({"--help"});
  EXPECT_EQ(result.exit_code, kExitOk);
  EXPECT_THAT(result.out, AllOf(HasSubstr("Exit codes:"), HasSubstr("130  interrupted"), HasSubstr("submit"),
                                HasSubstr("--coordinator")));
  EXPECT_EQ(Run({"watch", "--help"}).exit_code, kExitOk);
  EXPECT_THAT(Run({"--version"}).out, Not(IsEmpty()));
}

class CompletionTest : public DistillctlSettingsTest {
 protected:
  // What bash offers for the last of `words`.
  std::string Complete(const std::vector<std::string>& words) {
    std::string script = "source \"$1\"; COMP_WORDS=(";
    for (const std::string& word : words) script += "'" + word + "' ";
    script += "); COMP_CWORD=" + std::to_string(words.size() - 1) +
              "; _distillctl; printf '%s\\n' \"${COMPREPLY[@]}\" | sort -u";
    Child::Options options;
    options.env = env_;
    return Child({"/bin/bash", "-u", "-c", script, "bash", script_}, options).Wait().out;
  }
  void SetUp() override {
    const ChildResult result = Run({"completion", "bash"});
    ASSERT_EQ(result.exit_code, kExitOk) << result.err;
    script_ = Write("completion.bash", result.out);
  }
  std::string script_;
};

TEST_F(CompletionTest, ScriptIsValidBash) {
  Child::Options options;
  options.env = env_;
  const ChildResult result = Child({"/bin/bash", "-n", script_}, options).Wait();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
}

TEST_F(CompletionTest, CompletesCommandsFlagsAndValues) {
  EXPECT_EQ(Complete({"distillctl", "s"}), "submit\n");
  EXPECT_EQ(
      Complete({"distillctl", ""}),
      "cancel\ncompletion\ndescribe\nfile\nfleet\nhistory\nlist\nlogs\nmodel\nreport\nresults\nresume\nsubmit\ntaps\n"
      "uncordon\nwatch\n");
  EXPECT_EQ(Complete({"distillctl", "submit", "--dry"}), "--dry-run\n");
  EXPECT_EQ(Complete({"distillctl", "submit", "--coord"}), "--coordinator\n");
  EXPECT_EQ(Complete({"distillctl", "fleet", "--dry"}), "\n");
  EXPECT_EQ(Complete({"distillctl", "--output", ""}), "json\ntable\n");
  EXPECT_EQ(Complete({"distillctl", "--output", "=", "j"}), "json\n");
  EXPECT_EQ(Complete({"distillctl", "--color", "al"}), "always\n");
  EXPECT_EQ(Complete({"distillctl", "list", "--state", "f"}), "failed\n");
  EXPECT_EQ(Complete({"distillctl", "report", "j-1", "--f"}), "--force\n");
  // The value of a flag is no command.
  EXPECT_EQ(Complete({"distillctl", "--timeout", "watch", "f"}), "file\nfleet\n");
  EXPECT_EQ(Complete({"distillctl", "--timeout", "2"}), "\n");
}

TEST_F(CompletionTest, CompletesJobFilesAndJobs) {
  Write("my job.yaml", "");
  Write("other.yml", "");
  Write("notes.txt", "");
  EXPECT_EQ(Complete({"distillctl", "submit", folder_ + "/"}), folder_ + "/my job.yaml\n" + folder_ + "/other.yml\n");
  EXPECT_THAT(Complete({"distillctl", "--token-file", folder_ + "/no"}), folder_ + "/notes.txt\n");
  EXPECT_EQ(Complete({"distillctl", "report", "j-1", "-o", folder_ + "/no"}), folder_ + "/notes.txt\n");
  EXPECT_EQ(Complete({"distillctl", "watch", "j-1", "-o", ""}), "json\ntable\n");
  v1::Job job = RunningJob();
  service_.Put(job);
  job.set_id("j-2");
  service_.Put(job);
  // compgen would run this.
  job.set_id("$(touch${IFS}" + folder_ + "/hacked)");
  service_.Put(job);
  StartServer();
  EXPECT_EQ(Complete({DISTILLCTL, "watch", "j"}), "j-1\nj-2\n");
  EXPECT_EQ(Complete({DISTILLCTL, "report", "j"}), "j-1\nj-2\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/hacked"));
}

TEST_F(DistillctlSettingsTest, EveryCommandAndFlagIsDocumented) {
  const ChildResult help = Run({"--help-all"});
  ASSERT_EQ(help.exit_code, kExitOk) << help.err;
  std::ifstream file(CLI_DOC);
  std::stringstream docs;
  docs << file.rdbuf();
  ASSERT_THAT(docs.str(), Not(IsEmpty())) << CLI_DOC;
  std::set<std::string> flags;
  const std::regex flag("--[a-z][-a-z0-9]*");
  for (std::sregex_iterator it(help.out.begin(), help.out.end(), flag), end; it != end; ++it) flags.insert(it->str());
  EXPECT_GT(flags.size(), 20u) << help.out;
  for (const std::string& name : flags)
    EXPECT_THAT(docs.str(), HasSubstr("`" + name)) << "docs/cli.md does not mention " << name;
  for (const char* command : {"submit", "list", "describe", "watch", "logs", "cancel", "fleet", "taps", "history",
                              "results", "report", "completion", "file"}) {
    EXPECT_THAT(help.out, HasSubstr(StrCat("\n", command, "\n"))) << command;
    EXPECT_THAT(docs.str(), HasSubstr(StrCat("\n### `distillctl ", command))) << command;
  }
  for (const int code : {0, 1, 2, 3, 4, 5, 6, 7, 8, 130})
    EXPECT_THAT(docs.str(), HasSubstr(StrCat("\n| ", code, " |"))) << code;
}

}  // namespace
}  // namespace distill::cli
