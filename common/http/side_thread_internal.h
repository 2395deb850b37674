// A thread beside the HTTP server's loop, for what may block. Private to http_server.cc.
#ifndef DISTILL_COMMON_HTTP_SIDE_THREAD_INTERNAL_H_
#define DISTILL_COMMON_HTTP_SIDE_THREAD_INTERNAL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace distill {

// Does pieces of work one after another. Thread-safe. The thread is made with the first piece.
class SideThread {
 public:
  // `name` has at most 15 letters. At most `limit` pieces wait. Work that has run for `patience` counts as hanging.
  SideThread(std::string name, size_t limit, absl::Duration patience);
  ~SideThread();  // Stop(absl::InfiniteDuration()), if Stop() was not called

  // Queues `work`. nullopt, and nothing is queued, when it could not be done soon: the queue is
  // full or the thread hangs.
  std::optional<uint64_t> Add(std::function<void()> work);
  // Drops a piece that has not begun.
  void Forget(uint64_t ticket);
  // Drops all that has not begun and waits for what runs, at most `grace`. A thread that hangs still is left alone
  // then: it goes on until its work returns or the process ends, so that work must own what it touches. Afterwards
  // Add() queues nothing. Once.
  void Stop(absl::Duration grace);

 private:
  struct State;
  static void Loop(const std::shared_ptr<State>& state, const std::string& name);

  const std::string name_;
  const std::shared_ptr<State> state_;  // shared with the thread, which may outlive this
};

}  // namespace distill

#endif  // DISTILL_COMMON_HTTP_SIDE_THREAD_INTERNAL_H_
