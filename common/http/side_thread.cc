#include <pthread.h>

#include <exception>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/http/side_thread_internal.h"
#include "common/log.h"
#include "common/steady_wait.h"

namespace distill {

struct SideThread::State {
  State(size_t limit, absl::Duration patience) : limit(limit), patience(patience) {}
  const size_t limit;
  const absl::Duration patience;

  absl::Mutex mutex;
  std::map<uint64_t, std::function<void()>> queue ABSL_GUARDED_BY(mutex);  // by ticket, which is their order
  uint64_t last_ticket ABSL_GUARDED_BY(mutex) = 0;
  std::optional<absl::Duration> begun ABSL_GUARDED_BY(mutex);  // SteadyNow() when what runs began
  bool started ABSL_GUARDED_BY(mutex) = false;
  bool stop ABSL_GUARDED_BY(mutex) = false;
  bool ended ABSL_GUARDED_BY(mutex) = false;
};

SideThread::SideThread(std::string name, size_t limit, absl::Duration patience)
    : name_(std::move(name)), state_(std::make_shared<State>(limit, patience)) {}

SideThread::~SideThread() { Stop(absl::InfiniteDuration()); }

std::optional<uint64_t> SideThread::Add(std::function<void()> work) {
  absl::MutexLock lock(&state_->mutex);
  if (state_->stop || state_->queue.size() >= state_->limit) return std::nullopt;
  if (state_->begun.has_value() && SteadyNow() - *state_->begun >= state_->patience) return std::nullopt;
  if (!state_->started) {
    // Detached: Stop() waits for `ended`, and need not wait for ever.
    std::thread([state = state_, name = name_] { Loop(state, name); }).detach();
    state_->started = true;
  }
  state_->queue.emplace(++state_->last_ticket, std::move(work));
  return state_->last_ticket;
}

void SideThread::Forget(uint64_t ticket) {
  std::function<void()> dropped;  // destroyed without the lock
  absl::MutexLock lock(&state_->mutex);
  const auto found = state_->queue.find(ticket);
  if (found == state_->queue.end()) return;
  dropped = std::move(found->second);
  state_->queue.erase(found);
}

void SideThread::Stop(absl::Duration grace) {
  std::map<uint64_t, std::function<void()>> dropped;  // destroyed without the lock
  absl::MutexLock lock(&state_->mutex);
  if (std::exchange(state_->stop, true)) return;
  dropped.swap(state_->queue);
  if (state_->started) AwaitFor(&state_->mutex, absl::Condition(&state_->ended), grace);
}

void SideThread::Loop(const std::shared_ptr<State>& state, const std::string& name) {
  pthread_setname_np(pthread_self(), name.c_str());
  while (true) {
    std::function<void()> work;
    {
      absl::MutexLock lock(&state->mutex);
      state->begun.reset();
      const auto due = [&]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mutex) { return state->stop || !state->queue.empty(); };
      state->mutex.Await(absl::Condition(&due));
      if (state->stop) {
        state->ended = true;
        return;
      }
      work = std::move(state->queue.begin()->second);
      state->queue.erase(state->queue.begin());
      state->begun = SteadyNow();
    }
    try {
      work();
    } catch (const std::exception& error) {  // memory ran out; whoever waits for the work gives it up in time
      LogError("HTTP side thread", {{"thread", name}, {"error", error.what()}});
    }
  }
}

}  // namespace distill
