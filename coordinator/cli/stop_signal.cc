#include "coordinator/cli/stop_signal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

namespace distill::cli {
namespace {

// A handler has no other way to reach the object. The pipe stays open for the program's life: a handler may be running
// still.
int wake_pipe[2] = {-1, -1};
volatile sig_atomic_t got_interrupt = 0;
volatile sig_atomic_t got_resize = 0;

void Notify() {
  const int saved = errno;
  // A full pipe wakes the reader just as well.
  [[maybe_unused]] const ssize_t written = write(wake_pipe[1], "", 1);
  errno = saved;
}

void OnInterrupt(int) {
  got_interrupt = 1;
  Notify();
}

void OnResize(int) {
  got_resize = 1;
  Notify();
}

}  // namespace

StopSignal::StopSignal() {
  // Without a pipe (no descriptors left) signals are still seen, at the next timeout of Wait.
  if (wake_pipe[0] < 0 && pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) != 0) wake_pipe[0] = wake_pipe[1] = -1;
  got_interrupt = 0;
  got_resize = 0;
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigaction(SIGINT, &action, &old_interrupt_);
  action.sa_handler = OnResize;
  sigaction(SIGWINCH, &action, &old_resize_);
}

StopSignal::~StopSignal() {
  sigaction(SIGINT, &old_interrupt_, nullptr);
  sigaction(SIGWINCH, &old_resize_, nullptr);
}

bool StopSignal::Wait(std::chrono::milliseconds timeout) {
  pollfd wait{wake_pipe[0], POLLIN, 0};
  poll(&wait, 1, static_cast<int>(std::clamp<int64_t>(timeout.count(), 0, 60000)));
  char drained[256];
  while (read(wake_pipe[0], drained, sizeof drained) > 0) {
  }
  const bool resized = got_resize != 0;
  got_resize = 0;
  return resized;
}

void StopSignal::Wake() { Notify(); }

bool StopSignal::interrupted() const { return got_interrupt != 0; }

}  // namespace distill::cli
