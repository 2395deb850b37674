// The account of a pool's window: bytes that teachers may still send plus bytes received and not yet released, over all
// teachers together. The pool's thread grants, recalls and receives; a tensor gives its bytes back from whichever
// thread drops its last reference, also after the pool is gone.
//
// Memory of tensors is kept and used again, because steps ask for the same sizes: fresh pages of an answer of 100 MB
// cost more than receiving it, and malloc gives blocks of that size back to the kernel. Tensors that exist and memory
// that is kept take at most bytes() together.
//
// Thread-safe.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_FEATURE_WINDOW_H_
#define DISTILL_STUDENT_WORKER_FEATURE_FEATURE_WINDOW_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "student_worker/feature/answer_assembler.h"

namespace distill {

class FeatureWindow : public std::enable_shared_from_this<FeatureWindow> {
 public:
  // `released` is called after each release, on the thread that released, under no lock.
  FeatureWindow(uint64_t bytes, std::function<void()> released) : bytes_(bytes), released_(std::move(released)) {}

  ~FeatureWindow();  // no tensor is left then: each holds its window
  FeatureWindow(const FeatureWindow&) = delete;
  FeatureWindow& operator=(const FeatureWindow&) = delete;

  uint64_t bytes() const { return bytes_; }
  // At most bytes().
  uint64_t used() const;
  uint64_t free() const { return bytes_ - used(); }

  // Credit given to a teacher, and credit taken back from it unused. REQUIRES: Grant: bytes <= free(), and no other
  // thread grants; Recall: granted before.
  void Grant(uint64_t bytes);
  void Recall(uint64_t bytes);
  // Memory of a tensor, cache-line aligned, out of bytes that were granted: they count as received until its last
  // reference goes. Null bytes: there is no memory, and the account is unchanged.
  FillableBuffer Receive(uint64_t bytes);
  // Memory that no tensor has and that the next ones get.
  uint64_t kept() const;
  // Credit for bytes of a received tensor that did not come after all (its answer broke off).
  void Unreceive(uint64_t bytes) { Grant(bytes); }

 private:
  void Release(uint8_t* memory, uint64_t bytes);

  const uint64_t bytes_;
  const std::function<void()> released_;
  mutable absl::Mutex mutex_;
  uint64_t granted_ ABSL_GUARDED_BY(mutex_) = 0;                     // teachers may still send them
  uint64_t held_ ABSL_GUARDED_BY(mutex_) = 0;                        // of tensors that exist
  std::multimap<uint64_t, uint8_t*> spare_ ABSL_GUARDED_BY(mutex_);  // kept blocks by size, owned
  uint64_t spare_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_FEATURE_WINDOW_H_
