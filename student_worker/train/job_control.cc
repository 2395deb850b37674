#include "student_worker/train/job_control.h"

namespace distill {

void JobControl::Revoke() {
  std::function<void()> abort;
  {
    absl::MutexLock lock(&mutex_);
    revoked_ = true;
    abort = abort_;
  }
  if (abort) abort();
}

void JobControl::SetTeachers(std::vector<TeacherEndpoint> teachers) {
  absl::MutexLock lock(&mutex_);
  teachers_ = std::move(teachers);
  ++teachers_version_;
}

bool JobControl::TeachersChanged(uint64_t* version, std::vector<TeacherEndpoint>* teachers) const {
  absl::MutexLock lock(&mutex_);
  if (*version == teachers_version_) return false;
  *version = teachers_version_;
  *teachers = teachers_;
  return true;
}

void JobControl::SetAbort(std::function<void()> abort) {
  bool now = false;
  {
    absl::MutexLock lock(&mutex_);
    abort_ = abort;
    now = revoked_;
  }
  if (now && abort) abort();
}

}  // namespace distill
