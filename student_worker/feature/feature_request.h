// One batch that waits for its features: who was asked, who said what, and when nobody is left to ask.
//
// Thread-compatible; the pool's thread owns it.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_FEATURE_REQUEST_H_
#define DISTILL_STUDENT_WORKER_FEATURE_FEATURE_REQUEST_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "common/status.h"
#include "common/wire/feature_batch.h"

namespace distill {

// A status by which a teacher (or any peer) says that the same question will get the same answer.
bool IsRefusal(const Status& status);

struct FeatureRequest {
  using Time = std::chrono::steady_clock::time_point;

  // What one teacher said to it.
  struct Said {
    std::string teacher;  // for people: name and address
    Status status;        // the last one
    int times = 0;
    // Its answer came whole, and holds numbers that are none.
    bool not_finite = false;
  };

  uint64_t ticket = 0;
  uint64_t id = 0;  // the step, for messages
  ImageBatch images;
  std::function<void(StatusOr<FeatureBatch>)> callback;
  Time start;
  std::map<std::string, Said> said;  // by address
  std::optional<Time> first_said;    // when `said` got its first entry
  int attempts = 0;                  // teachers that owe the answer now
  int stalls = 0;                    // times that it was taken from a silent teacher

  void Note(const std::string& address, const std::string& teacher, const Status& status, bool not_finite, Time now);
  // The teacher at this address has had its chances: one refusal, one answer of numbers that are none, or three errors.
  bool Exhausted(const std::string& address) const;
  // "features of step 7"
  std::string What() const;
  // Who said what, as one failure. The code is that of all statuses, or kInternal when they differ. REQUIRES: somebody
  // said something.
  Status Verdict() const;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_FEATURE_REQUEST_H_
