// The JSON behind the status page: read-only, below /api/v1/.
//
//   jobs?limit=N               {"jobs": [summary...]}, newest first; keys in docs/status-page.md
//   jobs/JOB                   the job as `distillctl describe -o json` prints it; JOB is an id or a name
//   jobs/JOB/history?from=N    {"points": [...], "next": N}: points of the curve from number N on, at most kPageSize
//   jobs/JOB/events?after=N    {"events": [...]}: events with a larger sequence, at most kPageSize
//   jobs/JOB/files             {"files": [...], "problem": ""}: what is on the disk; answered by status_page.cc
//   fleet                      workers as `distillctl fleet -o json` prints them
//
// Answers carry an ETag; If-None-Match with it gives 304. Errors: {"error": "..."} with 400, 404, 503 or 500.
#ifndef DISTILL_COORDINATOR_WEB_STATUS_API_H_
#define DISTILL_COORDINATOR_WEB_STATUS_API_H_

#include <string>
#include <string_view>

#include "common/http/http_server.h"
#include "coordinator/core/coordinator.h"

namespace distill::web {

inline constexpr size_t kPageSize = 500;

// `path` is what follows "/api/v1/". Reads the store: milliseconds.
HttpResponse AnswerApi(Coordinator* coordinator, std::string_view path, const HttpRequest& request);

// 200 with this document, or 304 when the request shows that the client has it.
HttpResponse JsonAnswer(std::string json, const HttpRequest& request);

// {"error": message} with this HTTP status.
HttpResponse JsonError(int status, std::string_view message);

}  // namespace distill::web

#endif  // DISTILL_COORDINATOR_WEB_STATUS_API_H_
