#include "coordinator/cli/commands.h"

#include <fnmatch.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "absl/strings/str_format.h"
#include "common/plan/plan_codec.h"
#include "common/service/service_flags.h"
#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "coordinator/cli/completion.h"
#include "coordinator/cli/fleet_view.h"
#include "coordinator/cli/job_client.h"
#include "coordinator/cli/job_file.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/job_view.h"
#include "coordinator/cli/model_view.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/printing.h"
#include "coordinator/cli/progress_view.h"
#include "coordinator/cli/repair_commands.h"
#include "coordinator/cli/report.h"
#include "coordinator/cli/results_view.h"
#include "coordinator/cli/terminal.h"
#include "coordinator/cli/units.h"
#include "coordinator/cli/watch.h"

namespace distill::cli {
namespace {

using Stub = v1::JobService::Stub;

TextOptions OutputText(const Options& options) { return DetectText(STDOUT_FILENO, options.color); }

StatusOr<v1::Job> FetchJob(JobClient& client, const std::string& job) {
  v1::GetJobRequest request;
  request.set_job(job);
  v1::GetJobResponse response;
  DISTILL_RETURN_IF_ERROR(client.Call(&Stub::GetJob, request, &response));
  return std::move(*response.mutable_job());
}

// A random (version 4) UUID.
std::string RandomUuid() {
  std::random_device random;
  uint32_t words[4];
  for (uint32_t& word : words) word = random();
  words[1] = (words[1] & 0xffff0fff) | 0x4000;
  words[2] = (words[2] & 0x3fffffff) | 0x80000000;
  return absl::StrFormat("%08x-%04x-%04x-%04x-%04x%08x", words[0], words[1] >> 16, words[1] & 0xffff, words[2] >> 16,
                         words[2] & 0xffff, words[3]);
}

// "job.yaml:3:5: ...", as editors understand it, or "override 'seed=x': ...".
std::string ProblemText(const v1::JobFileProblem& problem, const v1::SubmitJobRequest& request) {
  if (!problem.has_override_index()) {
    return StrCat(request.file_name(), ":", problem.line(), ":", problem.column(), ": ", problem.text());
  }
  const int index = static_cast<int>(problem.override_index());
  return StrCat("override '", index < request.overrides_size() ? request.overrides(index) : "?", "': ", problem.text());
}

// What is wrong with the file and how much of it.
void PrintRefusal(const v1::SubmitJobRequest& request, const v1::SubmitJobResponse& response) {
  for (const v1::JobFileProblem& problem : response.problems()) PrintNote(ProblemText(problem, request));
  PrintNote(StrCat("error: ", request.file_name(), " was refused (", response.problems_size(),
                   response.problems_size() == 1 ? " problem" : " problems", "); nothing was submitted"));
}

ExitCode RunSubmit(JobClient& client, const Options& options) {
  const StatusOr<JobFile> file = ReadJobFile(options.file);
  if (!file.ok()) {
    PrintError(file.status());
    return absl::IsNotFound(file.status()) ? kExitUsage : kExitInvalidJob;
  }
  v1::SubmitJobRequest request;
  request.set_request_id(options.request_id.empty() ? RandomUuid() : options.request_id);
  request.set_yaml(file->content);
  request.set_file_name(file->name);
  request.set_dry_run(options.dry_run);
  for (const std::string& item : options.overrides) request.add_overrides(item);
  if (!options.name.empty()) request.add_overrides(StrCat("name=", options.name));
  for (const std::string& item : request.overrides()) {
    if (!FindInvalidUtf8(item).has_value()) continue;
    PrintError(absl::InvalidArgumentError(StrCat("'", item, "' is not UTF-8")));
    return kExitUsage;
  }
  if (FindInvalidUtf8(request.request_id()).has_value() || FindInvalidUtf8(request.file_name()).has_value()) {
    PrintError(absl::InvalidArgumentError(
        StrCat("the request id or the file name is not UTF-8: ", request.request_id(), ", ", request.file_name())));
    return kExitUsage;
  }
  if (options.verbose) PrintNote(StrCat("request id: ", request.request_id()));

  v1::SubmitJobResponse response;
  bool told = false;
  const Status status = client.CallWithRetry(&Stub::SubmitJob, request, &response, [&](const Status& why) {
    if (options.quiet || (told && !options.verbose)) return;
    PrintNote(StrCat(why.message(), "; trying again"));
    told = true;
  });
  if (!status.ok()) {
    PrintError(status);
    return ExitCodeFor(status, /*submitting=*/true);
  }
  for (const v1::JobFileProblem& warning : response.warnings()) {
    PrintNote(StrCat("warning: ", ProblemText(warning, request)));
  }
  if (response.problems_size() > 0) {
    PrintRefusal(request, response);
    if (options.json()) Print(ToJson(response, true));
    return kExitInvalidJob;
  }
  if (options.dry_run) {
    Print(options.json() ? ToJson(response, true) : RenderPlan(response.plan(), OutputText(options)));
    return kExitOk;
  }
  if (options.quiet && !options.json()) {
    Print(StrCat(Printable(response.job_id()), "\n"));
  } else if (!options.json()) {
    Print(StrCat(response.existed() ? "this request was submitted before: job " : "submitted job ",
                 Printable(response.job_id()), " (", Printable(response.plan().name()), ")\n"));
    if (!options.watch) PrintNote(StrCat("follow it: distillctl watch ", response.job_id()));
  } else if (!options.watch) {
    Print(ToJson(response, true));
  }
  if (!options.watch) return kExitOk;
  v1::Job job;
  job.set_id(response.job_id());
  job.set_name(response.plan().name());
  job.set_state(v1::JOB_STATE_QUEUED);
  *job.mutable_plan() = response.plan();
  job.set_submitted_time(Now());
  return WatchJob(client, job, options);
}

ExitCode RunList(JobClient& client, const Options& options) {
  v1::ListJobsRequest request;
  request.set_limit(options.limit);
  for (const std::string& state : options.states) request.add_states(StateOf(state));
  v1::ListJobsResponse response;
  if (const Status status = client.Call(&Stub::ListJobs, request, &response); !status.ok()) return Fail(status);
  if (options.json()) {
    Print(ToJson(response, true));
  } else if (options.quiet) {
    for (const v1::Job& job : response.jobs()) Print(StrCat(Printable(job.id()), "\n"));
  } else {
    Print(RenderJobList(response, Now(), OutputText(options)));
  }
  return kExitOk;
}

ExitCode RunDescribe(JobClient& client, const Options& options) {
  const StatusOr<v1::Job> job = FetchJob(client, options.job);
  if (!job.ok()) return Fail(job.status());
  Print(options.json() ? ToJson(*job, true) : RenderJob(*job, Now(), OutputText(options)));
  return kExitOk;
}

ExitCode RunFile(JobClient& client, const Options& options) {
  v1::GetJobFileRequest request;
  request.set_job(options.job);
  v1::GetJobFileResponse response;
  if (const Status status = client.Call(&Stub::GetJobFile, request, &response); !status.ok()) return Fail(status);
  if (options.json()) {
    Print(ToJson(response, true));
    return kExitOk;
  }
  std::string text;
  for (const std::string& item : response.overrides()) StrAppend(&text, "# --set ", Printable(item), "\n");
  StrAppend(&text, response.yaml(), response.yaml().ends_with('\n') ? "" : "\n");
  Print(text);
  return kExitOk;
}

ExitCode RunWatch(JobClient& client, const Options& options) {
  // By id from here on: a newer job of the same name must not take over after a reconnect.
  const StatusOr<v1::Job> job = FetchJob(client, options.job);
  if (!job.ok()) return Fail(job.status());
  return WatchJob(client, *job, options);
}

ExitCode RunLogs(JobClient& client, const Options& options) {
  const StatusOr<v1::Job> job = FetchJob(client, options.job);
  if (!job.ok()) return Fail(job.status());
  if (options.follow) return FollowEvents(client, *job, options);

  const StatusOr<JobClient::Connection> connection = client.Connect();
  if (!connection.ok()) return Fail(connection.status());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + client.timeout());
  v1::StreamEventsRequest request;
  request.set_job(job->id());
  request.set_after(options.after);
  const auto reader = connection->stub->StreamEvents(&context, request);
  const TextOptions text = OutputText(options);
  std::string array;  // JSON: one document, so it is printed once all is known to be there
  v1::JobEvent event;
  while (reader->Read(&event)) {
    if (options.json()) {
      StrAppend(&array, array.empty() ? "\n " : ",\n ", ToJson(event, false));
    } else {
      Print(RenderEvent(event, text));
    }
  }
  const Status status = client.Translate(reader->Finish(), connection->channel.get());
  if (!status.ok()) return Fail(status);
  if (options.json()) Print(StrCat("{\"events\": [", array, "]}\n"));
  return kExitOk;
}

ExitCode RunCancel(JobClient& client, const Options& options) {
  v1::CancelJobRequest request;
  request.set_job(options.job);
  request.set_reason(options.reason);
  v1::CancelJobResponse response;
  if (const Status status = client.Call(&Stub::CancelJob, request, &response); !status.ok()) return Fail(status);
  v1::Job& job = *response.mutable_job();
  if (options.wait) {
    if (!IsEnded(job.state()) && !options.quiet) PrintNote(StrCat("waiting until job ", job.id(), " has stopped"));
    if (const Status status = WaitForEnd(client, &job, options); !status.ok()) {
      if (absl::IsCancelled(status)) {
        if (!options.quiet) PrintNote(StrCat("interrupted; job ", job.id(), " is asked to stop all the same"));
        return kExitInterrupted;
      }
      return EndFollow(status, job, options);
    }
  }
  if (options.json()) {
    Print(ToJson(job, true));
  } else if (IsEnded(job.state())) {
    Print(RenderOutcome(job, OutputText(options)));
  } else if (!options.quiet) {
    Print(StrCat("job ", Printable(job.id()), " (", Printable(job.name()), ") is asked to stop\n"));
  }
  return kExitOk;
}

ExitCode RunFleet(JobClient& client, const Options& options) {
  v1::GetFleetResponse response;
  if (const Status status = client.Call(&Stub::GetFleet, v1::GetFleetRequest(), &response); !status.ok())
    return Fail(status);
  Print(options.json() ? ToJson(response, true) : RenderFleet(response, OutputText(options)));
  return kExitOk;
}

StatusOr<v1::ListTapsResponse> FetchTaps(JobClient& client, const Options& options) {
  v1::ListTapsRequest request;
  request.set_model(options.model);
  request.set_width(options.width);
  request.set_num_classes(options.classes);
  request.set_in_channels(options.channels);
  uint32_t height = 0, width = 0;
  if (!options.image.empty() && ParseImageSize(options.image, &height, &width)) {
    request.set_image_height(height);
    request.set_image_width(width);
  }
  v1::ListTapsResponse response;
  DISTILL_RETURN_IF_ERROR(client.Call(&Stub::ListTaps, request, &response));
  return response;
}

ExitCode RunTaps(JobClient& client, const Options& options) {
  const StatusOr<v1::ListTapsResponse> taps = FetchTaps(client, options);
  if (!taps.ok()) return Fail(taps.status());
  Print(options.json() ? ToJson(*taps, true) : RenderTaps(*taps, OutputText(options)));
  return kExitOk;
}

ExitCode RunModel(JobClient& client, const Options& options) {
  const StatusOr<v1::ListTapsResponse> taps = FetchTaps(client, options);
  if (!taps.ok()) return Fail(taps.status());
  if (taps->spec().arch() == "torchscript") {
    return Fail(absl::FailedPreconditionError(StrCat(
        "'", options.model, "' is a TorchScript archive, of which nobody knows what it computes; distillctl taps ",
        options.model, " lists its taps")));
  }
  const StatusOr<Architecture> network = Architecture::Create(FromProto(taps->spec()));
  if (!network.ok()) return Fail(network.status());
  Print(options.json() ? ModelJson(*network) : RenderModel(*network, OutputText(options)));
  return kExitOk;
}

ExitCode RunHistory(JobClient& client, const Options& options) {
  const StatusOr<v1::Job> job = FetchJob(client, options.job);
  if (!job.ok()) return Fail(job.status());
  v1::GetHistoryRequest request;
  request.set_job(job->id());
  v1::GetHistoryResponse response;
  if (const Status status = client.Call(&Stub::GetHistory, request, &response); !status.ok()) return Fail(status);
  if (options.csv) {
    Print(HistoryCsv(*job, response, options.limit));
  } else if (options.json()) {
    const int extra = options.limit == 0 ? 0 : response.points_size() - static_cast<int>(options.limit);
    if (extra > 0) response.mutable_points()->DeleteSubrange(0, extra);
    Print(ToJson(response, true));
  } else {
    Print(RenderHistory(*job, response, options.limit, OutputText(options)));
  }
  return kExitOk;
}

// Jobs whose id or name matches the pattern, in the order they were submitted.
StatusOr<std::vector<v1::Job>> FetchMatching(JobClient& client, const std::string& pattern) {
  constexpr uint32_t kNewest = 1000;  // as many as a coordinator lists
  v1::ListJobsRequest request;
  request.set_limit(kNewest);
  v1::ListJobsResponse response;
  DISTILL_RETURN_IF_ERROR(client.Call(&Stub::ListJobs, request, &response));
  std::vector<v1::Job> jobs;
  for (auto job = response.jobs().rbegin(); job != response.jobs().rend(); ++job) {
    const bool matches =
        fnmatch(pattern.c_str(), job->name().c_str(), 0) == 0 || fnmatch(pattern.c_str(), job->id().c_str(), 0) == 0;
    if (matches) jobs.push_back(*job);
  }
  if (jobs.empty()) {
    return absl::NotFoundError(StrCat("none of the newest ", kNewest, " jobs has an id or name like '", pattern, "'"));
  }
  return jobs;
}

ExitCode RunResults(JobClient& client, const Options& options) {
  std::vector<v1::Job> jobs;
  std::set<std::string> ids;
  for (const std::string& name : options.jobs) {
    StatusOr<std::vector<v1::Job>> found = std::vector<v1::Job>();
    if (name.find_first_of("*?[") != std::string::npos) {
      found = FetchMatching(client, name);
    } else {
      StatusOr<v1::Job> job = FetchJob(client, name);
      if (job.ok()) {
        found->push_back(*std::move(job));
      } else {
        found = job.status();
      }
    }
    if (!found.ok()) return Fail(found.status());
    for (v1::Job& job : *found) {
      if (ids.insert(job.id()).second) jobs.push_back(std::move(job));
    }
  }
  Print(options.json() ? ResultsJson(jobs) : RenderResults(jobs, OutputText(options)));
  return kExitOk;
}

StatusOr<ReportInput> FetchReport(JobClient& client, const std::string& job) {
  ReportInput input;
  DISTILL_ASSIGN_OR_RETURN(input.job, FetchJob(client, job));
  v1::GetHistoryRequest history;
  history.set_job(input.job.id());
  DISTILL_RETURN_IF_ERROR(client.Call(&Stub::GetHistory, history, &input.history));
  DISTILL_RETURN_IF_ERROR(FetchEvents(client, input.job.id(), &input.events));
  DISTILL_RETURN_IF_ERROR(client.Call(&Stub::GetFleet, v1::GetFleetRequest(), &input.fleet));
  input.now = Now();
  input.plan_json = ToJson(input.job.plan(), true);
  input.cli_version = VersionString();
  return input;
}

ExitCode RunReport(JobClient& client, const Options& options) {
  const StatusOr<ReportInput> input = FetchReport(client, options.job);
  if (!input.ok()) return Fail(input.status());
  const std::string html = RenderReport(*input);
  if (options.out == "-") {
    Print(html);
    return kExitOk;
  }
  const StatusOr<std::string> path = options.out.empty() ? ReportFileName(input->job) : options.out;
  const Status written = path.ok() ? WriteReport(*path, html, options.force) : path.status();
  if (!written.ok()) {
    PrintError(written);
    return absl::IsUnavailable(written) ? kExitInternal : kExitUsage;
  }
  if (options.json()) {
    Print(StrCat(nlohmann::json{{"file", *path}, {"bytes", html.size()}}.dump(), "\n"));
  } else if (options.quiet) {
    Print(StrCat(Printable(*path), "\n"));
  } else {
    Print(StrCat("wrote ", Printable(*path), " (", FormatBytes(html.size()), ")\n"));
  }
  return kExitOk;
}

struct Command {
  std::string_view name;
  ExitCode (*run)(JobClient& client, const Options& options);
};
constexpr Command kCommands[] = {
    {"submit", RunSubmit},   {"list", RunList},         {"describe", RunDescribe}, {"file", RunFile},
    {"watch", RunWatch},     {"logs", RunLogs},         {"cancel", RunCancel},     {"resume", RunResume},
    {"fleet", RunFleet},     {"uncordon", RunUncordon}, {"taps", RunTaps},         {"model", RunModel},
    {"history", RunHistory}, {"results", RunResults},   {"report", RunReport},
};

}  // namespace

ExitCode ExitCodeFor(const Status& status, bool submitting) {
  switch (status.code()) {
    case StatusCode::kOk:
      return kExitOk;
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
      return kExitUnreachable;
    case StatusCode::kUnauthenticated:
      return kExitUnauthenticated;
    // The coordinator refuses what the file says, a model that nobody serves, or a request id used for another file.
    case StatusCode::kInvalidArgument:
    case StatusCode::kOutOfRange:
      return submitting ? kExitInvalidJob : kExitUsage;
    case StatusCode::kNotFound:
      return submitting ? kExitInvalidJob : kExitNotFound;
    case StatusCode::kFailedPrecondition:
    case StatusCode::kAlreadyExists:
      return submitting ? kExitInvalidJob : kExitInternal;
    default:
      return kExitInternal;
  }
}

ExitCode Fail(const Status& status) {
  PrintError(status);
  return ExitCodeFor(status, /*submitting=*/false);
}

ExitCode RunCommand(const std::string& name, const Options& options, const CLI::App& app) {
  if (name == "completion") {
    Print(BashCompletion(app));
    return kExitOk;
  }
  for (const Command& command : kCommands) {
    if (command.name != name) continue;
    const StatusOr<std::unique_ptr<JobClient>> client =
        JobClient::Create(options.coordinator, options.security, options.timeout);
    if (!client.ok()) {
      PrintError(client.status());
      return kExitUsage;
    }
    return command.run(**client, options);
  }
  PrintError(absl::InternalError(StrCat("command '", name, "' is declared but not implemented")));
  return kExitInternal;
}

}  // namespace distill::cli
