#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>

#include "common/log.h"
#include "common/service/service_flags.h"

namespace distill {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

// Descriptors that live as long as the process.
struct Descriptors {
  int signals, requests;
};
const Descriptors& TheDescriptors() {
  static const Descriptors descriptors = [] {
    const sigset_t set = StopSignals();
    Descriptors made{signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (made.signals < 0 || made.requests < 0) {
      LogError("cannot create the descriptors that signals are waited for with", {{"errno", errno}});
      std::abort();
    }
    return made;
  }();
  return descriptors;
}

}  // namespace

void BlockSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int WaitForSignal() {
  const Descriptors& descriptors = TheDescriptors();
  for (;;) {
    pollfd watched[2] = {{descriptors.signals, POLLIN, 0}, {descriptors.requests, POLLIN, 0}};
    if (poll(watched, 2, -1) < 0) continue;  // EINTR
    // A signal goes before a request: it says more.
    signalfd_siginfo info;
    if (read(descriptors.signals, &info, sizeof info) == sizeof info) return static_cast<int>(info.ssi_signo);
    uint64_t count;
    if (read(descriptors.requests, &count, sizeof count) == sizeof count) return 0;
  }
}

bool StopSignalPending() {
  sigset_t pending;
  sigpending(&pending);
  return sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1;
}

void RequestStop() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then a request waits already.
  [[maybe_unused]] const ssize_t n = write(TheDescriptors().requests, &one, sizeof one);
}

}  // namespace distill
