#include "tests/coordinator/cli/child.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

namespace distill::cli {

Child::Child(const std::vector<std::string>& argv, const Options& options) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  int input[2];
  EXPECT_EQ(pipe2(input, O_CLOEXEC), 0);
  EXPECT_EQ(write(input[1], options.input.data(), options.input.size()), static_cast<ssize_t>(options.input.size()));
  close(input[1]);
  posix_spawn_file_actions_adddup2(&actions, input[0], 0);
  std::vector<int> theirs = {input[0]};
  if (options.terminal) {
    winsize size{};
    size.ws_col = static_cast<unsigned short>(options.columns);
    size.ws_row = static_cast<unsigned short>(options.rows);
    int slave = -1;
    EXPECT_EQ(openpty(&out_fd_, &slave, nullptr, nullptr, &size), 0);
    fcntl(out_fd_, F_SETFD, FD_CLOEXEC);
    fcntl(slave, F_SETFD, FD_CLOEXEC);
    termios mode{};
    tcgetattr(slave, &mode);
    mode.c_oflag &= ~static_cast<tcflag_t>(OPOST);  // bytes arrive as they were written
    tcsetattr(slave, TCSANOW, &mode);
    posix_spawn_file_actions_adddup2(&actions, slave, 1);
    posix_spawn_file_actions_adddup2(&actions, slave, 2);
    theirs.push_back(slave);
  } else {
    int out[2], err[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(err, O_CLOEXEC), 0);
    out_fd_ = out[0];
    err_fd_ = err[0];
    theirs.insert(theirs.end(), {out[1], err[1]});
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    if (!options.stdout_file.empty())
      posix_spawn_file_actions_addopen(&actions, 1, options.stdout_file.c_str(), O_WRONLY, 0);
  }
  std::vector<std::string> environment;
  for (const auto& [name, value] : options.env) environment.push_back(name + "=" + value);
  std::vector<char*> args, env;
  for (const std::string& arg : argv) args.push_back(const_cast<char*>(arg.c_str()));
  for (const std::string& variable : environment) env.push_back(const_cast<char*>(variable.c_str()));
  args.push_back(nullptr);
  env.push_back(nullptr);
  // posix_spawn, not fork: this process has gRPC's threads.
  const int error = posix_spawn(&pid_, argv[0].c_str(), &actions, nullptr, args.data(), env.data());
  EXPECT_EQ(error, 0) << argv[0] << ": " << strerror(error);
  posix_spawn_file_actions_destroy(&actions);
  for (const int fd : theirs) close(fd);
  if (error != 0) pid_ = -1;
  readers_.emplace_back([this] { ReadAll(out_fd_, &out_); });
  if (err_fd_ >= 0) readers_.emplace_back([this] { ReadAll(err_fd_, &err_); });
}

Child::~Child() {
  if (pid_ > 0) kill(pid_, SIGKILL);
  Reap();
  for (std::thread& reader : readers_) {
    if (reader.joinable()) reader.join();
  }
  close(out_fd_);
  if (err_fd_ >= 0) close(err_fd_);
}

void Child::ReadAll(int fd, Stream* stream) {
  pthread_setname_np(pthread_self(), "child-output");
  char block[4096];
  ssize_t n = 0;
  // A terminal whose other side is closed gives EIO instead of an end.
  while ((n = read(fd, block, sizeof block)) > 0 || (n < 0 && errno == EINTR)) {
    if (n < 0) continue;
    absl::MutexLock lock(&mutex_);
    stream->text.append(block, static_cast<size_t>(n));
  }
  absl::MutexLock lock(&mutex_);
  stream->ended = true;
}

bool Child::WaitFor(Stream* stream, const std::string& text) {
  absl::MutexLock lock(&mutex_);
  const auto done = [&] { return stream->ended || stream->text.find(text) != std::string::npos; };
  mutex_.AwaitWithTimeout(absl::Condition(&done), absl::Minutes(1));
  return stream->text.find(text) != std::string::npos;
}

bool Child::WaitForOutput(const std::string& text) ABSL_NO_THREAD_SAFETY_ANALYSIS { return WaitFor(&out_, text); }
bool Child::WaitForError(const std::string& text) ABSL_NO_THREAD_SAFETY_ANALYSIS { return WaitFor(&err_, text); }

std::string Child::output() {
  absl::MutexLock lock(&mutex_);
  return out_.text;
}

void Child::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

void Child::Resize(int columns, int rows) {
  winsize size{};
  size.ws_col = static_cast<unsigned short>(columns);
  size.ws_row = static_cast<unsigned short>(rows);
  EXPECT_EQ(ioctl(out_fd_, TIOCSWINSZ, &size), 0);
  Signal(SIGWINCH);  // the kernel tells only the terminal's foreground group, and the child has no session of its own
}

int Child::Reap() {
  if (pid_ <= 0) return exit_code_;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_code_;
}

ChildResult Child::Wait() {
  // The streams end when the program does; reading first, so that a full pipe cannot hold it up.
  for (std::thread& reader : readers_) {
    if (reader.joinable()) reader.join();
  }
  ChildResult result;
  result.exit_code = Reap();
  absl::MutexLock lock(&mutex_);
  result.out = out_.text;
  result.err = err_.text;
  return result;
}

}  // namespace distill::cli
