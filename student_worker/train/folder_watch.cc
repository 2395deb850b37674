#include "student_worker/train/folder_watch.h"

#include <pthread.h>

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/time/time.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {

std::string FolderContent(const std::string& folder) {
  namespace fs = std::filesystem;
  std::set<std::string> lines;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code gone;  // since it was listed
    const auto size = fs::file_size(entry->path(), gone);
    const auto time = fs::last_write_time(entry->path(), gone);
    lines.insert(StrCat(entry->path().filename().string(), "\n", size, "\n", time.time_since_epoch().count(), "\n"));
  }
  std::string text;
  for (const std::string& line : lines) text += line;
  return text;
}

FolderWatch::FolderWatch(std::string folder, std::string known, std::chrono::milliseconds period,
                         std::function<void()> on_change)
    : folder_(std::move(folder)), period_(period), on_change_(std::move(on_change)), known_(std::move(known)) {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "model-folder");
    Run();
  });
}

FolderWatch::~FolderWatch() { thread_.join(); }

bool FolderWatch::Stop(std::chrono::milliseconds limit) {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  return AwaitFor(&mutex_, absl::Condition(&stopped_), absl::FromChrono(limit));
}

void FolderWatch::Run() {
  std::string last = known_;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (AwaitFor(&mutex_, absl::Condition(&stopping_), absl::FromChrono(period_))) {
        stopped_ = true;
        return;
      }
    }
    std::string now = FolderContent(folder_);
    if (now == last && now != known_) {
      known_ = now;
      on_change_();
    }
    last = std::move(now);
  }
}

}  // namespace distill
