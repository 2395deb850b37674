// Notices files that come into, leave or change in a folder.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_FOLDER_WATCH_H_
#define DISTILL_STUDENT_WORKER_TRAIN_FOLDER_WATCH_H_

#include <chrono>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {

// Names, sizes and times of all that a folder holds, to be compared; a folder that cannot be read holds nothing.
std::string FolderContent(const std::string& folder);

// Looks into a folder once per period: on a network disk nothing else tells of another machine's files. A change is
// told when the period after it brought no further one, so that a file that is being copied is whole by then.
class FolderWatch {
 public:
  // `known`: FolderContent() as the caller read it. `on_change` runs on the watching thread ("model-folder").
  FolderWatch(std::string folder, std::string known, std::chrono::milliseconds period, std::function<void()> on_change);
  // REQUIRES: Stop() returned true.
  ~FolderWatch();
  FolderWatch(const FolderWatch&) = delete;
  FolderWatch& operator=(const FolderWatch&) = delete;

  // No on_change begins any more. False: one has not ended within `limit`; call again, or end the process by _exit().
  [[nodiscard]] bool Stop(std::chrono::milliseconds limit);

 private:
  void Run();

  const std::string folder_;
  const std::chrono::milliseconds period_;
  const std::function<void()> on_change_;
  std::string known_;  // to on_change; only the watching thread's
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_FOLDER_WATCH_H_
