// The streams of one teacher, whatever protocol they come by, and what they share: the engine, the memory
// (memory_budget.h), the wish to drain.
//
// States: loading -> serving (SetEngine) -> draining (Drain). Streams that come while it loads or drains, or when there
// are as many as may be, end with kUnavailable at once.
#ifndef DISTILL_TEACHER_SERVER_STREAM_SET_H_
#define DISTILL_TEACHER_SERVER_STREAM_SET_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics.h"
#include "common/shared_memory/descriptor_server.h"
#include "common/status.h"
#include "teacher_server/memory_budget.h"
#include "teacher_server/stream_core.h"
#include "teacher_server/stream_limits.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

// Thread-safe. Order of destruction: the RpcServer, then the engine (or its Stop()), then the services and the set.
class StreamSet {
 public:
  // Neither is owned, both outlive the set. `rings` hands out shared memory to clients of this host; null: they get
  // everything by their transport, as others do.
  StreamSet(const StreamLimits& limits, MetricsRegistry* metrics, DescriptorServer* rings = nullptr);
  ~StreamSet();
  StreamSet(const StreamSet&) = delete;
  StreamSet& operator=(const StreamSet&) = delete;

  // The engine outlives all streams. Call once.
  void SetEngine(TeacherEngine* engine) { engine_.store(engine, std::memory_order_release); }
  // Null while loading.
  TeacherEngine* engine() const { return engine_.load(std::memory_order_acquire); }

  // A new stream; `peer` is for the log. One that is refused has called `transport->Finish` when this returns. The
  // transport calls Leave() once Finish has come and it is done with the stream.
  std::shared_ptr<StreamCore> Add(std::string peer, StreamTransport* transport, const StreamKind& kind = {});
  void Leave(const StreamCore& stream);
  // serving -> draining: new streams and new batches get kUnavailable; a stream whose accepted batches are all answered
  // ends with kUnavailable. Does not wait. Idempotent.
  void Drain();
  // Waits until no stream is left, at most `timeout`. True when none is.
  bool WaitIdle(std::chrono::milliseconds timeout);

  // For the streams.
  const StreamLimits& limits() const { return limits_; }
  MemoryBudget& budget() { return budget_; }
  bool draining() const { return draining_.load(); }
  // Memory was given back: those whose turn it is try again. Under no lock.
  void Freed();
  void CountRequest(const std::string& model, const Status& status);
  // Null: no shared memory.
  DescriptorServer* rings() { return rings_; }
  const std::string& boot_id() const { return boot_id_; }
  Counter& sent_bytes() { return sent_bytes_; }
  Counter& shared_bytes() { return shared_bytes_; }
  Gauge& shared_streams() { return shared_streams_; }
  Counter& credit_wait() { return credit_wait_; }

 private:
  // The thread "feature-watch": ends streams that never open, and those that hold what others wait for.
  void Watch();
  std::vector<std::shared_ptr<StreamCore>> Live();
  // The stream of that id; null when it has left.
  std::shared_ptr<StreamCore> Find(uint64_t id);

  const StreamLimits limits_;
  MemoryBudget budget_;
  MetricsRegistry* const metrics_;  // not owned: outlives the set
  DescriptorServer* const rings_;   // not owned: outlives the set; may be null
  const std::string boot_id_;       // of this kernel; "": unknown
  Counter& sent_bytes_;
  Counter& shared_bytes_;
  Counter& credit_wait_;
  Gauge& streams_;
  Gauge& shared_streams_;
  Gauge& budget_used_;
  Counter& slow_clients_;
  // Written once, read by every stream: null while loading.
  std::atomic<TeacherEngine*> engine_{nullptr};
  // Only ever goes to true; streams read it under their own lock and are poked after it was set.
  std::atomic<bool> draining_{false};
  absl::Mutex mutex_;
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::shared_ptr<StreamCore>> live_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // One thread at a time pokes; what is freed meanwhile makes it look once more.
  bool poking_ ABSL_GUARDED_BY(mutex_) = false;
  bool freed_again_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watch_;  // joined by the destructor; last: it reads all of the above
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_STREAM_SET_H_
