// How a student's machine reads data sets: settings of the worker, which change no pixel.
#ifndef DISTILL_STUDENT_WORKER_DATA_DATA_OPTIONS_H_
#define DISTILL_STUDENT_WORKER_DATA_DATA_OPTIONS_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>

namespace distill {

class DataSurvey;

// What stays in memory between two readings of a picture.
enum class CacheMode {
  kAuto,     // all pictures decoded, if they fit; else nothing: the kernel's page cache has their files
  kNone,     // nothing
  kEncoded,  // files as they are, as many as fit: for slow network disks
  kDecoded,  // pixels, as many as fit
};
// "auto", "none", "encoded", "decoded".
inline std::optional<CacheMode> ParseCacheMode(std::string_view text) {
  if (text == "auto") return CacheMode::kAuto;
  if (text == "none") return CacheMode::kNone;
  if (text == "encoded") return CacheMode::kEncoded;
  if (text == "decoded") return CacheMode::kDecoded;
  return std::nullopt;
}

struct DataOptions {
  uint32_t threads = 2;  // that read and decode
  CacheMode cache = CacheMode::kAuto;
  uint64_t cache_bytes = 4ull << 30;  // of all splits of the job together
  // Of who looks at a data set without training on it: all pictures are read once, nothing is kept, whatever the cache
  // says, every file that is wrong or odd is named, and this is told what there is, also where the set is refused. Not
  // owned; null: no one looks.
  DataSurvey* survey = nullptr;
};

// Bytes that may be kept. Thread-safe.
class CacheBudget {
 public:
  explicit CacheBudget(uint64_t bytes) : left_(bytes) {}
  // False, and nothing taken, when fewer are left.
  bool Take(uint64_t bytes) {
    uint64_t left = left_.load(std::memory_order_relaxed);
    while (left >= bytes) {
      if (left_.compare_exchange_weak(left, left - bytes, std::memory_order_relaxed)) return true;
    }
    return false;
  }

 private:
  std::atomic<uint64_t> left_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATA_OPTIONS_H_
