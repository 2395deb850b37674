// Requests that wait for one model, and the choice of those that run together next.
//
// A batch is led by the first request of the client whose turn it is. Further requests join while they fit under
// `max_images`: they ask for the same taps on images of the same shape and are not exclusive. They join client by
// client, one each per round, so that a client with many requests cannot push the others out; the leader's client then
// goes to the end of the row. Within one client the order is kept: only its oldest request can join. A request larger
// than `max_images` runs alone (it is never split: results would then depend on this server's setting).
//
// There is no waiting for company: PopBatch() returns at once when anything waits. A batch grows while the model is
// busy.
//
// Thread-safe. Callbacks inside the items are never called by the queue.
#ifndef DISTILL_TEACHER_SERVER_BATCH_QUEUE_H_
#define DISTILL_TEACHER_SERVER_BATCH_QUEUE_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

struct QueuedRequest {
  TeacherRequest request;
  TeacherEngine::Callback done;
  std::chrono::steady_clock::time_point since;  // when it was pushed
};

class BatchQueue {
 public:
  // REQUIRES: max_images >= 1.
  explicit BatchQueue(uint32_t max_images) : max_images_(max_images) {}
  BatchQueue(const BatchQueue&) = delete;
  BatchQueue& operator=(const BatchQueue&) = delete;

  // False when closed; `item` is then unchanged.
  bool Push(QueuedRequest&& item);
  // Blocks until something waits. Empty: the queue is closed and nothing waits any more.
  std::vector<QueuedRequest> PopBatch();
  // Takes out the client's waiting requests: the one with `tag`, or all.
  std::vector<QueuedRequest> Remove(uint64_t client, std::optional<uint64_t> tag);
  // No more Push; PopBatch still hands out what waits.
  void Close();
  // Takes out everything.
  std::vector<QueuedRequest> Clear();
  size_t size() const;

 private:
  bool ReadyLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return closed_ || size_ > 0; }

  const uint32_t max_images_;
  mutable absl::Mutex mutex_;
  // A client has an entry exactly while it has requests here, and then stands in turns_ exactly once.
  std::map<uint64_t, std::deque<QueuedRequest>> waiting_ ABSL_GUARDED_BY(mutex_);
  std::deque<uint64_t> turns_ ABSL_GUARDED_BY(mutex_);
  size_t size_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_BATCH_QUEUE_H_
