// A child process that runs a piece of the test, for what can only be seen with two processes. It is killed and reaped
// at the end. The parent must have no other threads when it forks.
#ifndef DISTILL_TESTS_COMMON_SHARED_MEMORY_FORKED_H_
#define DISTILL_TESTS_COMMON_SHARED_MEMORY_FORKED_H_

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

namespace distill::testing {

class Forked {
 public:
  // `run` gets the end of a pipe to tell the parent things; the child ends with what it returns.
  explicit Forked(const std::function<int(int tell)>& run) {
    int ends[2];
    if (pipe(ends) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(ends[0]);
      _exit(run(ends[1]));
    }
    close(ends[1]);
    from_child_ = ends[0];
  }
  ~Forked() {
    Kill();
    if (from_child_ >= 0) close(from_child_);
  }
  Forked(const Forked&) = delete;
  Forked& operator=(const Forked&) = delete;

  // Exactly so many bytes of what it says; fewer when it ends before.
  std::string Read(size_t bytes) {
    std::string said(bytes, '\0');
    size_t at = 0;
    while (at < bytes) {
      const ssize_t n = read(from_child_, said.data() + at, bytes - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    said.resize(at);
    return said;
  }
  void Signal(int number) { kill(pid_, number); }
  // Waits until it stands still.
  void Stop() {
    kill(pid_, SIGSTOP);
    int status;
    waitpid(pid_, &status, WUNTRACED);
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  // The value it ends with.
  int Wait() {
    int status = -1;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int from_child_ = -1;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_COMMON_SHARED_MEMORY_FORKED_H_
