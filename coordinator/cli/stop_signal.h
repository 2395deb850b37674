// SIGINT and SIGWINCH as something to wait for, together with news from other threads.
#ifndef DISTILL_COORDINATOR_CLI_STOP_SIGNAL_H_
#define DISTILL_COORDINATOR_CLI_STOP_SIGNAL_H_

#include <signal.h>

#include <chrono>

namespace distill::cli {

// While it lives, SIGINT no longer ends the program but interrupted() turns true. At most one lives at a time. Wait()
// belongs to the owner; Wake() may be called from any thread.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();  // restores the handlers that were there before
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Returns after Wake(), after a signal, or when `timeout` has passed. True: the terminal has changed its size since
  // the last call.
  bool Wait(std::chrono::milliseconds timeout);
  void Wake();
  bool interrupted() const;

 private:
  struct sigaction old_interrupt_ {};
  struct sigaction old_resize_ {};
};

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_STOP_SIGNAL_H_
