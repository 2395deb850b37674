#include "tests/harness/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace distill::testing {

Process::Process(const std::vector<std::string>& argv, const Options& options) {
  // Everything that allocates happens before fork.
  std::vector<char*> args;
  for (const std::string& arg : argv) args.push_back(const_cast<char*>(arg.c_str()));
  args.push_back(nullptr);
  std::vector<std::string> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string entry = *e;
    if (options.env.count(entry.substr(0, entry.find('='))) == 0)
      environment.push_back(entry);  // getenv takes the first
  }
  for (const auto& [name, value] : options.env) environment.push_back(name + "=" + value);
  std::vector<char*> envp;
  for (const std::string& e : environment) envp.push_back(const_cast<char*>(e.c_str()));
  envp.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) {
    std::perror("fork");
    std::abort();
  }
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    const auto redirect = [](const std::string& path, std::initializer_list<int> targets) {
      if (path.empty()) return;
      const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      for (int target : targets) dup2(fd, target);
    };
    redirect(options.log, {1, 2});
    redirect(options.stdout_file, {1});
    execve(args[0], args.data(), envp.data());
    std::perror(args[0]);
    _exit(127);
  }
}

Process::~Process() {
  if (exit_code_) return;
  kill(pid_, SIGKILL);
  kill(pid_, SIGCONT);
  int status = 0;
  waitpid(pid_, &status, 0);
}

bool Process::Running() { return !Wait(std::chrono::milliseconds(0)).has_value(); }

void Process::Signal(int signal) {
  if (!exit_code_) kill(pid_, signal);
}

std::optional<int> Process::Wait(std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!exit_code_) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      break;
    }
    if (std::chrono::steady_clock::now() >= end) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return exit_code_;
}

CommandResult RunCommand(const std::vector<std::string>& argv, std::chrono::milliseconds timeout,
                         const std::map<std::string, std::string>& env) {
  TempDir dir;
  Process process(argv, {.log = dir / "err", .stdout_file = dir / "out", .env = env});
  CommandResult result;
  result.exit_code = process.Wait(timeout).value_or(-1);
  result.out = ReadFileOrEmpty(dir / "out");
  result.err = ReadFileOrEmpty(dir / "err");
  return result;
}

TempDir::TempDir() {
  std::string pattern = std::filesystem::temp_directory_path() / "distill-test-XXXXXX";
  path_ = mkdtemp(pattern.data());
}

TempDir::~TempDir() {
  if (std::getenv("DISTILL_TEST_KEEP") != nullptr && ::testing::Test::HasFailure()) {
    std::fprintf(stderr, "kept: %s\n", path_.c_str());
    return;
  }
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ReadFileOrEmpty(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

}  // namespace distill::testing
