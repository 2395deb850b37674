// Files of a data set read whole, with the reason when that fails.
#ifndef DISTILL_STUDENT_WORKER_DATA_READ_FILE_H_
#define DISTILL_STUDENT_WORKER_DATA_READ_FILE_H_

#include <cstdint>
#include <string>

#include "common/status.h"

namespace distill {

// The first `limit` bytes of a file from `offset` on, or all of them when there are fewer. Errors name the reason, not
// the file: kDataLoss: it cannot be opened. kUnavailable: the disk failed. Stateless; any thread.
StatusOr<std::string> ReadFileHead(const std::string& path, uint64_t limit, uint64_t offset = 0);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_READ_FILE_H_
