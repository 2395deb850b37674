#include "student_worker/data/bad_images.h"

#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "student_worker/data/data_report.h"

namespace distill {

void BadImages::SetTotal(uint64_t images) {
  absl::MutexLock lock(&mutex_);
  total_ = images;
}

Status BadImages::Judge() const {
  absl::MutexLock lock(&mutex_);
  return JudgeLocked();
}

Status BadImages::JudgeLocked() const {
  if (total_ == 0 || static_cast<double>(files_.size()) <= limit_ * static_cast<double>(total_)) return OkStatus();
  return absl::DataLossError(StrCat(
      files_.size(), " of ", total_, " pictures cannot be decoded, over data.bad_image_limit ", limit_, ": ",
      NameSome(std::vector<std::string>(files_.begin(), files_.end())), "; fetch them again, or raise the limit"));
}

Status BadImages::Note(const std::string& file, const Status& why) {
  if (!skips_) return why;
  absl::MutexLock lock(&mutex_);
  if (files_.insert(file).second) {
    ++untold_;
    if (news_.size() < DataReport::kNamedInWarning)
      news_.push_back(StrCat("'", file, "' (", ToStd(why.message()), ")"));
  }
  return JudgeLocked();
}

uint64_t BadImages::count() const {
  absl::MutexLock lock(&mutex_);
  return files_.size();
}

std::vector<std::string> BadImages::TakeNews() {
  absl::MutexLock lock(&mutex_);
  if (untold_ == 0) return {};
  std::string text =
      StrCat("Pictures that cannot be decoded are skipped (", files_.size(), " so far): ", absl::StrJoin(news_, ", "));
  if (untold_ > news_.size()) StrAppend(&text, " and ", untold_ - news_.size(), " more");
  news_.clear();
  untold_ = 0;
  return {text + "."};
}

}  // namespace distill
