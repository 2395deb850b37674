// What is wrong or odd with the files of a data set, gathered over all its splits: one run tells all of it. And whether
// anybody still wants to know.
#ifndef DISTILL_STUDENT_WORKER_DATA_DATA_REPORT_H_
#define DISTILL_STUDENT_WORKER_DATA_DATA_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"

namespace distill {

// What files are said to have in common. Files of equal FileFault are told together:
//     WHAT: 'FILE' (DETAIL), 'FILE' (DETAIL) and 7 more; REMEDY
struct FileFault {
  std::string what;    // without a capital and without a full stop: "empty", "no class folder around them"
  std::string remedy;  // likewise; empty: none
  StatusCode code = StatusCode::kDataLoss;  // of the refusal; warnings have none
  auto operator<=>(const FileFault&) const = default;
};

// Thread-safe. Whatever the order in which threads add to it, it says the same.
class DataReport {
 public:
  // Files named in a refusal, over all its faults, and for each fault of a warning; the others are counted.
  static constexpr size_t kNamedFiles = 20;
  static constexpr size_t kNamedInWarning = 5;

  // `stop`: true from some moment on: nobody wants the data set any more. Called from any thread; null: it is wanted.
  // `tells_all`: every file is named, whatever the constants above say.
  explicit DataReport(std::function<bool()> stop = nullptr, bool tells_all = false)
      : stop_(std::move(stop)),
        named_files_(tells_all ? SIZE_MAX : kNamedFiles),
        named_in_warning_(tells_all ? SIZE_MAX : kNamedInWarning) {}

  // kCancelled: nobody wants it any more. Readers ask before each file, and every few megabytes of a long one, and go
  // no further then.
  Status wanted() const;

  // The data set must be refused. `file` as a reader could open it; `detail` about this file alone.
  void Refuse(const FileFault& fault, const std::string& file, const std::string& detail = "");
  // The same for what concerns no single file. REQUIRES: !status.ok().
  void Refuse(const Status& status);

  // The data set can be used, but its owner should know.
  void Warn(const FileFault& fault, const std::string& file, const std::string& detail = "");
  void Warn(const std::string& sentence);

  bool ok() const { return refusals() == 0; }
  uint64_t refusals() const;  // so far: files and statuses
  // One status for everything that was refused, or OkStatus. Its code is that of the fault told first.
  Status status() const;
  // The same, a sentence for each fault, in the order in which status() tells them.
  std::vector<std::string> mistakes() const;
  // One sentence for each fault, each ending with a full stop.
  std::vector<std::string> warnings() const;

 private:
  struct Files {
    uint64_t count = 0;
    std::set<std::pair<std::string, std::string>> named;  // (file, detail): the first ones in alphabetical order
  };
  using Faults = std::map<FileFault, Files>;
  void Add(const FileFault& fault, const std::string& file, const std::string& detail, Faults* faults) const;
  struct Told {
    std::vector<std::string> texts;
    StatusCode code = StatusCode::kOk;  // of the first
    uint64_t count = 0;                 // files and statuses
  };
  Told TellMistakes() const;
  static std::string Tell(const FileFault& fault, const Files& files, size_t most);

  const std::function<bool()> stop_;
  const size_t named_files_, named_in_warning_;
  mutable absl::Mutex mutex_;
  Faults refused_ ABSL_GUARDED_BY(mutex_);
  std::vector<Status> refused_whole_ ABSL_GUARDED_BY(mutex_);
  Faults warned_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> sentences_ ABSL_GUARDED_BY(mutex_);
};

// "'a', 'b' and 3 more" of some names in their order.
std::string NameSome(const std::vector<std::string>& names, size_t most = DataReport::kNamedFiles);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATA_REPORT_H_
