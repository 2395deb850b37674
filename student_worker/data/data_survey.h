// What all pictures of a data set look like together: gathered while each is read once (DataOptions.survey).
#ifndef DISTILL_STUDENT_WORKER_DATA_DATA_SURVEY_H_
#define DISTILL_STUDENT_WORKER_DATA_DATA_SURVEY_H_

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "student_worker/data/picture.h"

namespace distill {

// Of the pictures of one split that can be decoded, as the student reads them before any transform.
struct SplitSurvey {
  uint64_t images = 0;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> sizes;  // images by (height, width)
  std::vector<std::string> class_names;                     // by label; empty: classes are numbers, or there are none
  std::map<int64_t, uint64_t> images_of_class;              // by label; kNoLabel is none
  std::array<uint64_t, 256> pixels_of_class = {};           // of label maps; the last: without a label
  uint64_t pixels = 0;                                      // of one channel, all images together
  std::vector<uint64_t> sums, square_sums;                  // by channel, of values 0 to 255: exact whole numbers

  // By channel, in units of value / 255, over all pixels of all images alike (a large image weighs more).
  std::vector<double> Mean() const;
  std::vector<double> Std() const;
};

// Thread-safe. Whatever the order in which pictures come, it says the same.
class DataSurvey {
 public:
  void Add(const std::string& split, int64_t label, const Picture& picture);
  void SetClassNames(const std::string& split, std::vector<std::string> names);
  // All that is wrong and odd, one sentence each.
  void SetReport(std::vector<std::string> mistakes, std::vector<std::string> warnings);

  std::map<std::string, SplitSurvey> splits() const;  // "train", "test", "unlabelled": those that have pictures
  std::vector<std::string> mistakes() const;
  std::vector<std::string> warnings() const;

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, SplitSurvey> splits_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> mistakes_ ABSL_GUARDED_BY(mutex_), warnings_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_DATA_SURVEY_H_
