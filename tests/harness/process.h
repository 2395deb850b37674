// Starts real programs for the integration and fault tests, and makes sure none outlives its test.
#ifndef DISTILL_TESTS_HARNESS_PROCESS_H_
#define DISTILL_TESTS_HARNESS_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace distill::testing {

// A child process. Killed (SIGKILL) and reaped by the destructor; also killed by the kernel when the test program dies.
class Process {
 public:
  struct Options {
    std::string log;                         // file that gets stdout and stderr; empty: inherited
    std::string stdout_file;                 // when set, stdout goes here instead
    std::map<std::string, std::string> env;  // added to the environment, or instead of what is there
  };
  // argv[0] is the program's path. Aborts the test program when it cannot be started.
  Process(const std::vector<std::string>& argv, const Options& options);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  bool Running();
  void Signal(int signal);
  // Exit code (128 + signal number when killed), or nullopt when it still runs after `timeout`.
  std::optional<int> Wait(std::chrono::milliseconds timeout);

 private:
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

struct CommandResult {
  int exit_code = -1;
  std::string out, err;
};
// Runs to the end; a run past `timeout` is killed and gives exit code -1.
CommandResult RunCommand(const std::vector<std::string>& argv, std::chrono::milliseconds timeout,
                         const std::map<std::string, std::string>& env = {});

// A folder below the test's temp folder, removed with everything in it by the destructor (kept when the test failed and
// DISTILL_TEST_KEEP is set).
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string ReadFileOrEmpty(const std::string& path);
void WriteFile(const std::string& path, const std::string& content);

}  // namespace distill::testing

#endif  // DISTILL_TESTS_HARNESS_PROCESS_H_
