// Files of jobs for the status page: what students wrote below their --work-dir, seen from the coordinator's machine.
//
//   FOLDER/JOB/student.safetensors, FOLDER/JOB/checkpoints/stage-0-step-100/model.safetensors, ...
//
// Only regular files below a job's own folder are shown. A name is taken literally, part by part: letters, digits, '-',
// '.' and '_', no '.' at its begin (by which '.', '..' and files that are being written fall out). No part may be a
// symbolic link, so nothing leads out of the folder, also when somebody changes it meanwhile.
#ifndef DISTILL_COORDINATOR_WEB_JOB_FILES_H_
#define DISTILL_COORDINATOR_WEB_JOB_FILES_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/http/http_server.h"
#include "common/status.h"

namespace distill::web {

struct JobFile {
  std::string path;  // below the job's folder, '/' between its parts
  uint64_t bytes = 0;
  double modified_time = 0;  // seconds since 1970
};

inline constexpr size_t kMaxFiles = 1000;  // listed of one job
inline constexpr int kMaxFileDepth = 4;    // parts of a path below the job's folder

// All of these touch the disk, which may be another machine's: they may block. Any thread.

// By path; empty when the job has written nothing yet. kNotFound, kPermissionDenied, kInvalidArgument (no folder),
// kUnavailable: the folder as a whole cannot be read; the message names it.
StatusOr<std::vector<JobFile>> ListJobFiles(const std::string& folder, const std::string& job_id);

// The answer to GET or HEAD of one file, `path` being below the job's folder: 200, 206 for `Range: bytes=A-B` (one
// range), 304 for If-None-Match, 416 for a range that lies outside, 404 without telling apart what is not there and
// what is not shown, 403 when this process may not read it. Always as a download, never as a page.
HttpResponse SendJobFile(const std::string& folder, const std::string& job_id, std::string_view path,
                         const HttpRequest& request);

}  // namespace distill::web

#endif  // DISTILL_COORDINATOR_WEB_JOB_FILES_H_
