// A failed operation on a file as a Status.
#ifndef DISTILL_COMMON_FILE_ERROR_H_
#define DISTILL_COMMON_FILE_ERROR_H_

#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

// "cannot rename to '/work/job-1': No space left on device; free space there, or choose another --work-dir". `error`:
// errno, not 0. `action`: what was tried, in words that stand before the path. `elsewhere`: what people could choose
// instead. No code says that a job is at fault (student_worker/train/failure_class.h): a file is its machine's.
//
// kNotFound: it is not there, or there is a file where a folder is meant, or the other way round. kPermissionDenied.
// kResourceExhausted: no space left, a quota, a file larger than may be. kDataLoss: the disk fails. kUnavailable: all
// others, which may pass.
Status FileError(int error, std::string_view action, std::string_view path,
                 std::string_view elsewhere = "another folder");

}  // namespace distill

#endif  // DISTILL_COMMON_FILE_ERROR_H_
