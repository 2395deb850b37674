#include "student_worker/train/folder_watch.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "tests/student_worker/train/temp_folder.h"

namespace distill {
namespace {

constexpr std::chrono::milliseconds kPeriod{20}, kLong{30000};

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// Tells how often it was called, and lets a test wait for the next call.
class Calls {
 public:
  std::function<void()> callback() {
    return [this] {
      absl::MutexLock lock(&mutex_);
      ++count_;
    };
  }
  void Await(int count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return count_ >= count; };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::FromChrono(kLong)));
  }
  int count() {
    absl::MutexLock lock(&mutex_);
    return count_;
  }

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST(FolderWatchTest, TellsWhatComesChangesAndGoes) {
  TempFolder folder;
  Write(folder / "old.pt", "a");
  Calls calls;
  FolderWatch watch(folder / "", FolderContent(folder / ""), kPeriod, calls.callback());
  Write(folder / "new.pt", "a");
  calls.Await(1);
  Write(folder / "new.pt", "ab");
  calls.Await(2);
  std::filesystem::remove(folder / "old.pt");
  calls.Await(3);
  EXPECT_TRUE(watch.Stop(kLong));
  EXPECT_EQ(calls.count(), 3);
}

TEST(FolderWatchTest, WhatCameWhileTheCallerReadIsTold) {
  TempFolder folder;
  const std::string before = FolderContent(folder / "");
  Write(folder / "new.pt", "a");
  Calls calls;
  FolderWatch watch(folder / "", before, kPeriod, calls.callback());
  calls.Await(1);
  EXPECT_TRUE(watch.Stop(kLong));
}

TEST(FolderWatchTest, AFolderThatGoesIsAnEmptyOne) {
  TempFolder folder;
  std::filesystem::create_directories(folder / "models");
  Write(folder / "models/a.pt", "a");
  Calls calls;
  FolderWatch watch(folder / "models", FolderContent(folder / "models"), kPeriod, calls.callback());
  std::filesystem::remove_all(folder / "models");
  calls.Await(1);
  EXPECT_TRUE(watch.Stop(kLong));
}

TEST(FolderWatchTest, StopDoesNotWaitForACallThatHangs) {
  TempFolder folder;
  absl::Notification begun, free;
  FolderWatch watch(folder / "", FolderContent(folder / ""), kPeriod, [&] {
    begun.Notify();
    free.WaitForNotification();
  });
  Write(folder / "new.pt", "a");
  begun.WaitForNotification();
  EXPECT_FALSE(watch.Stop(std::chrono::milliseconds(50)));
  free.Notify();
  EXPECT_TRUE(watch.Stop(kLong));
}

}  // namespace
}  // namespace distill
