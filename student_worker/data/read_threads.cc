#include "student_worker/data/read_threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "common/str_cat.h"

namespace distill {

struct ReadThreads::Loop {
  size_t count = 0;
  const std::function<Status(size_t)>* fn = nullptr;  // the caller's, who waits until nobody is inside
  std::atomic<size_t> next{0};
  absl::Mutex mutex;
  int inside ABSL_GUARDED_BY(mutex) = 0;  // threads, without the caller
  Status error ABSL_GUARDED_BY(mutex);
  size_t error_index ABSL_GUARDED_BY(mutex) = SIZE_MAX;
};

ReadThreads::ReadThreads(uint32_t threads) {
  for (uint32_t i = 1; i < threads; ++i) {
    threads_.emplace_back([this, i] {
      pthread_setname_np(pthread_self(), StrCat("data-", i).c_str());
      Serve();
    });
  }
}

ReadThreads::~ReadThreads() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void ReadThreads::Work(Loop* loop) {
  for (size_t i = loop->next++; i < loop->count; i = loop->next++) {
    Status status;
    try {
      status = (*loop->fn)(i);
    } catch (const std::exception& error) {  // out of memory
      status = absl::ResourceExhaustedError(StrCat("reading images: ", error.what()));
    }
    if (status.ok()) continue;
    absl::MutexLock lock(&loop->mutex);
    if (i < loop->error_index) {
      loop->error = std::move(status);
      loop->error_index = i;
    }
    loop->next = loop->count;
  }
}

void ReadThreads::Serve() {
  while (true) {
    std::shared_ptr<Loop> loop;
    {
      absl::MutexLock lock(&mutex_);
      auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !loops_.empty(); };
      mutex_.Await(absl::Condition(&wanted));
      if (stopping_) return;
      loop = loops_.front();
      if (loop->next >= loop->count) {
        loops_.pop_front();
        continue;
      }
      // While it is in the list its caller has not looked whether anybody is inside.
      absl::MutexLock inner(&loop->mutex);
      ++loop->inside;
    }
    Work(loop.get());
    absl::MutexLock lock(&loop->mutex);
    --loop->inside;
  }
}

Status ReadThreads::ForEach(size_t count, const std::function<Status(size_t)>& fn) {
  const auto loop = std::make_shared<Loop>();
  loop->count = count;
  loop->fn = &fn;
  const bool shared = count > 1 && !threads_.empty();
  if (shared) {
    absl::MutexLock lock(&mutex_);
    loops_.push_back(loop);
  }
  Work(loop.get());
  if (shared) {
    absl::MutexLock lock(&mutex_);
    std::erase(loops_, loop);
  }
  absl::MutexLock lock(&loop->mutex);
  auto alone = [&loop]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(loop->mutex) { return loop->inside == 0; };
  loop->mutex.Await(absl::Condition(&alone));
  return loop->error;
}

}  // namespace distill
