// A program run by a test, with its output as it comes: through pipes, or on a terminal of its own.
#ifndef DISTILL_TESTS_COORDINATOR_CLI_CHILD_H_
#define DISTILL_TESTS_COORDINATOR_CLI_CHILD_H_

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill::cli {

struct ChildResult {
  int exit_code = -1;  // 128 + signal number when killed by one
  std::string out, err;
};

// Started by the constructor, killed and reaped by the destructor. Owned by one thread.
class Child {
 public:
  struct Options {
    std::map<std::string, std::string> env;  // the whole environment
    std::string input;                       // standard input, at most a pipe's 64 KiB
    std::string stdout_file;                 // standard output goes there instead
    bool terminal = false;                   // standard output and standard error are one terminal
    int columns = 80, rows = 24;             // of the terminal
  };
  Child(const std::vector<std::string>& argv, const Options& options);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Waits until standard output (or the terminal), respectively standard error, holds `text`; false when the stream
  // ended without it or a minute has passed.
  bool WaitForOutput(const std::string& text);
  bool WaitForError(const std::string& text);
  std::string output();
  void Signal(int signal);
  // Tells the terminal its new size; the program gets SIGWINCH.
  void Resize(int columns, int rows);
  // Waits for the end.
  ChildResult Wait();

 private:
  struct Stream {
    std::string text;
    bool ended = false;
  };
  void ReadAll(int fd, Stream* stream);
  bool WaitFor(Stream* stream, const std::string& text);
  int Reap();

  pid_t pid_ = -1;
  int exit_code_ = -1;
  int out_fd_ = -1, err_fd_ = -1;
  absl::Mutex mutex_;
  Stream out_ ABSL_GUARDED_BY(mutex_), err_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> readers_;
};

}  // namespace distill::cli

#endif  // DISTILL_TESTS_COORDINATOR_CLI_CHILD_H_
