#include "coordinator/web/status_api.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "common/proto_json.h"
#include "common/str_cat.h"
#include "coordinator/services/fleet_codec.h"
#include "coordinator/store/record_codec.h"
#include "coordinator/web/assets.h"
#include "distill/v1/job.pb.h"

namespace distill::web {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kJobsDefault = 100;
constexpr uint64_t kJobsMost = 1000;
constexpr size_t kMaxNameBytes = 128;

std::string Dump(const ordered_json& json) {
  // Texts of workers are checked to be UTF-8 on the way in; should one slip through, the page still comes.
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// kInvalidArgument: not a whole number of at most `most`.
StatusOr<uint64_t> NumberIn(const HttpRequest& request, const std::string& name, uint64_t fallback, uint64_t most) {
  const auto found = request.query.find(name);
  if (found == request.query.end()) return fallback;
  const std::string& text = found->second;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > most) {
    return absl::InvalidArgumentError(
        StrCat("?", name, "=", text.substr(0, 40), ": expected a whole number from 0 to ", most));
  }
  return value;
}

bool IsJobName(std::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_';
  });
}

// Where the job is: its stage, and steps done over all stages. Rank 0's report may be a stage behind the commits.
ordered_json Summary(const JobRecord& job) {
  const size_t stages = job.plan.stages.size();
  size_t stage = job.status.state == JobState::kSucceeded ? stages : std::min(job.stages.size(), stages);
  if (stage < stages && job.has_progress && job.progress.stage < stages) {
    stage = std::max<size_t>(stage, job.progress.stage);
  }
  uint64_t done = 0, total = 0;
  for (size_t i = 0; i < stages; ++i) {
    const uint64_t steps = job.plan.stages[i].steps;
    total += steps;
    if (i < stage) done += steps;
    if (i == stage && job.has_progress && job.progress.stage == i) done += std::min(job.progress.step, steps);
  }
  const Score& score = job.has_artifacts ? job.artifacts.student_score : job.progress.score;
  ordered_json out;
  out["id"] = job.id;
  out["name"] = job.name;
  out["state"] = std::string(Name(job.status.state));
  out["reason"] = job.status.reason;
  out["submitted_time"] = job.submitted_time;
  out["started_time"] = job.status.started_time;
  out["finished_time"] = job.status.finished_time;
  out["generation"] = job.status.generation;
  out["restarts"] = job.status.restarts;
  out["stage"] = stage;
  out["stages"] = stages;
  out["stage_name"] = stage < stages ? job.plan.stages[stage].name : "";
  out["done_steps"] = done;
  out["total_steps"] = total;
  // As in the messages: {"metrics": [{"name": "top1", "value": 0.88}, ...]}, the headline first.
  ordered_json metrics = ordered_json::array();
  for (const NamedNumber& metric : score.metrics) metrics.push_back({{"name", metric.name}, {"value", metric.value}});
  out["score"] = {{"metrics", metrics}};
  return out;
}

StatusOr<std::string> Jobs(Coordinator* coordinator, const HttpRequest& request) {
  DISTILL_ASSIGN_OR_RETURN(const uint64_t limit, NumberIn(request, "limit", kJobsDefault, kJobsMost));
  std::vector<JobState> states;
  if (const auto asked = request.query.find("state"); asked != request.query.end()) {
    for (const JobState state :
         {JobState::kQueued, JobState::kRunning, JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
      if (Name(state) == asked->second) states.push_back(state);
    }
    if (states.empty()) {
      return absl::InvalidArgumentError(
          StrCat("?state=", asked->second.substr(0, 40), ": expected queued, running, succeeded, failed or cancelled"));
    }
  }
  DISTILL_ASSIGN_OR_RETURN(const std::vector<JobRecord> jobs, coordinator->List(limit, states));
  ordered_json list = ordered_json::array();
  for (const JobRecord& job : jobs) list.push_back(Summary(job));
  return Dump({{"jobs", list}});
}

StatusOr<std::string> OneJob(const JobRecord& job) {
  v1::Job proto;
  ToProto(job, &proto);
  // The page asks every two seconds and shows none of it; with 256 classes it is half a megabyte.
  if (proto.has_artifacts()) {
    proto.mutable_artifacts()->clear_student_classes();
    proto.mutable_artifacts()->clear_teacher_classes();
  }
  return ToJson(proto, /*pretty=*/false);
}

// Messages as the elements of a JSON array.
template <typename Message, typename Records, typename Fill>
StatusOr<std::string> Array(const Records& records, const Fill& fill) {
  std::string out = "[";
  for (const auto& record : records) {
    Message message;
    fill(record, &message);
    DISTILL_ASSIGN_OR_RETURN(const std::string json, ToJson(message, /*pretty=*/false));
    StrAppend(&out, out.size() > 1 ? "," : "", json);
  }
  return out + "]";
}

StatusOr<std::string> History(Coordinator* coordinator, const std::string& job_id, const HttpRequest& request) {
  DISTILL_ASSIGN_OR_RETURN(const uint64_t from, NumberIn(request, "from", 0, INT64_MAX));
  DISTILL_ASSIGN_OR_RETURN(const std::vector<CurvePoint> points, coordinator->Curve(job_id, from, kPageSize));
  DISTILL_ASSIGN_OR_RETURN(
      const std::string array,
      Array<v1::Progress>(points, [](const CurvePoint& point, v1::Progress* out) { ToProto(point.progress, out); }));
  return StrCat("{\"points\":", array, ",\"next\":", points.empty() ? from : points.back().number + 1, "}");
}

StatusOr<std::string> Events(Coordinator* coordinator, const std::string& job_id, const HttpRequest& request) {
  DISTILL_ASSIGN_OR_RETURN(const uint64_t after, NumberIn(request, "after", 0, INT64_MAX));
  DISTILL_ASSIGN_OR_RETURN(const std::vector<EventRecord> events, coordinator->Events(job_id, after, kPageSize));
  DISTILL_ASSIGN_OR_RETURN(
      const std::string array,
      Array<v1::JobEvent>(events, [](const EventRecord& event, v1::JobEvent* out) { ToProto(event, out); }));
  return StrCat("{\"events\":", array, "}");
}

StatusOr<std::string> Answer(Coordinator* coordinator, std::string_view path, const HttpRequest& request) {
  if (path == "jobs") return Jobs(coordinator, request);
  if (path == "fleet") return ToJson(DescribeFleet(coordinator), /*pretty=*/false);
  constexpr std::string_view kJobs = "jobs/";
  if (!path.starts_with(kJobs)) return absl::NotFoundError("no such document; see docs/status-page.md");
  path.remove_prefix(kJobs.size());
  const size_t slash = path.find('/');
  const std::string name(path.substr(0, slash));
  const std::string_view part = slash == std::string_view::npos ? "" : path.substr(slash + 1);
  if (!IsJobName(name)) return absl::InvalidArgumentError("a job's id or name has letters, digits, '-', '.' and '_'");
  if (slash != std::string_view::npos && part != "history" && part != "events") {
    return absl::NotFoundError("no such document; a job has history, events and files");
  }
  DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator->Get(name));
  if (part == "history") return History(coordinator, job.id, request);
  if (part == "events") return Events(coordinator, job.id, request);
  return OneJob(job);
}

int HttpCode(const Status& status) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
      return 400;
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kUnavailable:
    case StatusCode::kAborted:
      return 503;
    default:
      return 500;
  }
}

}  // namespace

HttpResponse JsonError(int status, std::string_view message) {
  return {.status = status,
          .content_type = "application/json",
          .body = Dump({{"error", std::string(message)}}) + "\n",
          .headers = {{"Cache-Control", "no-store"}}};
}

HttpResponse JsonAnswer(std::string json, const HttpRequest& request) {
  HttpResponse response{.content_type = "application/json", .headers = {{"Cache-Control", "no-store"}}};
  const std::string& etag = response.headers["ETag"] = EntityTag(json);
  const auto known = request.headers.find("if-none-match");
  if (known != request.headers.end() && known->second == etag) {
    response.status = 304;
  } else {
    response.body = std::move(json);
  }
  return response;
}

HttpResponse AnswerApi(Coordinator* coordinator, std::string_view path, const HttpRequest& request) {
  StatusOr<std::string> json = Answer(coordinator, path, request);
  if (!json.ok()) return JsonError(HttpCode(json.status()), ToStd(json.status().message()));
  return JsonAnswer(*std::move(json), request);
}

}  // namespace distill::web
