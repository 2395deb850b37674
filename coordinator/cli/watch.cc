#include "coordinator/cli/watch.h"

#include <unistd.h>

#include <string>

#include "common/str_cat.h"
#include "common/wall_clock.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/follow.h"
#include "coordinator/cli/job_progress.h"
#include "coordinator/cli/job_view.h"
#include "coordinator/cli/printing.h"
#include "coordinator/cli/progress_view.h"
#include "coordinator/cli/stop_signal.h"
#include "coordinator/cli/terminal.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

constexpr double kPlainInterval = 5;  // seconds between plain progress lines

// "distillctl --coordinator host:port watch ID", so that the line can be pasted.
std::string CommandLine(const Options& options, std::string_view command, const std::string& job) {
  const std::string coordinator =
      options.coordinator == kDefaultCoordinator ? "" : StrCat(" --coordinator ", options.coordinator);
  return StrCat("distillctl", coordinator, " ", command, " ", job);
}

std::string LostText(const Status& why, const Options& options) {
  return StrCat("lost the coordinator at ", options.coordinator, "; the job goes on; trying again for ",
                FormatDuration(static_cast<double>(options.timeout.count()) / 1000), " (", why.message(), ")");
}

// Handlers shared by all follows of a job's state.
FollowHandlers<v1::JobUpdate> JobHandlers(const std::string& id, v1::Job* job) {
  FollowHandlers<v1::JobUpdate> handlers;
  handlers.open = [id](v1::JobService::Stub* stub, grpc::ClientContext* context) {
    v1::WatchJobRequest request;
    request.set_job(id);
    return stub->WatchJob(context, request);
  };
  // A coordinator that stops in order may end the stream without an error while the job goes on.
  handlers.on_end = [job] { return IsEnded(job->state()); };
  return handlers;
}

// Where progress goes, and in which form.
class ProgressPrinter {
 public:
  explicit ProgressPrinter(const Options& options)
      : color_(options.color),
        to_(options.json() ? stderr : stdout),
        silent_(options.quiet),
        live_(!silent_ && !options.json() && CanRedraw(STDOUT_FILENO)),
        text_(DetectText(fileno(to_), color_)),
        plain_(kPlainInterval) {}

  void Show(const v1::Job& job, bool resized) {
    if (silent_) return;
    const double now = Now();
    if (!live_) {
      for (const std::string& line : plain_.Update(job, now)) Print(StrCat(line, "\n"), to_);
      return;
    }
    if (resized) text_ = DetectText(STDOUT_FILENO, color_);
    Print(screen_.Draw(RenderProgress(job, now, notice_, text_), text_.width), to_);
  }
  // Empty: all is well again.
  void Notice(const std::string& notice) {
    if (live_) {
      notice_ = notice;
    } else if (!silent_) {
      PrintNote(notice.empty() ? "connected to the coordinator again" : notice);
    }
  }
  void End(const v1::Job& job) {
    notice_.clear();
    Show(job, false);
    if (!silent_) Print(RenderOutcome(job, text_), to_);
  }
  void Warnings(const std::vector<v1::JobEvent>& events, const std::string& logs_command) {
    if (!silent_) Print(RenderWarnings(events, logs_command, text_), to_);
  }

 private:
  const std::string color_;
  std::FILE* const to_;
  const bool silent_;
  const bool live_;
  TextOptions text_;
  PlainProgress plain_;
  LiveScreen screen_;
  std::string notice_;
};

}  // namespace

double Now() { return WallClock(); }

ExitCode EndFollow(const Status& status, const v1::Job& job, const Options& options) {
  if (absl::IsCancelled(status)) {
    if (!options.quiet) {
      PrintNote(StrCat("interrupted; job ", job.id(), " goes on"));
      PrintNote(StrCat("  watch it:  ", CommandLine(options, "watch", job.id())));
      PrintNote(StrCat("  stop it:   ", CommandLine(options, "cancel", job.id())));
    }
    return kExitInterrupted;
  }
  PrintError(status);
  if (absl::IsUnavailable(status) && !options.quiet) {
    PrintNote(StrCat("what job ", job.id(),
                     " does now is not known; follow it later: ", CommandLine(options, "watch", job.id())));
  }
  return ExitCodeFor(status, /*submitting=*/false);
}

ExitCode WatchJob(JobClient& client, const v1::Job& first, const Options& options) {
  StopSignal signal;
  v1::Job job = first;
  ProgressPrinter printer(options);
  FollowHandlers<v1::JobUpdate> handlers = JobHandlers(job.id(), &job);
  handlers.on_message = [&](const v1::JobUpdate& update) {
    job = update.job();
    if (IsEnded(job.state())) return true;
    printer.Show(job, false);
    return false;
  };
  handlers.on_tick = [&](bool resized) { printer.Show(job, resized); };
  handlers.on_lost = [&](const Status& why) { printer.Notice(LostText(why, options)); };
  handlers.on_back = [&] { printer.Notice(""); };
  if (!IsEnded(job.state())) {
    printer.Show(job, false);
    const Status status = FollowStream(client, signal, handlers);
    if (!status.ok()) return EndFollow(status, job, options);
  }
  printer.End(job);
  std::vector<v1::JobEvent> events;
  if (const Status status = FetchEvents(client, job.id(), &events); status.ok()) {
    printer.Warnings(events, CommandLine(options, "logs", job.id()));
  } else if (!options.quiet) {
    PrintNote(StrCat("the job's warnings are not known: ", status.message()));
  }
  if (options.json()) Print(ToJson(job, /*pretty=*/true));
  if (job.state() == v1::JOB_STATE_FAILED) return kExitJobFailed;
  return job.state() == v1::JOB_STATE_CANCELLED ? kExitJobCancelled : kExitOk;
}

ExitCode FollowEvents(JobClient& client, const v1::Job& job, const Options& options) {
  StopSignal signal;
  const TextOptions text = DetectText(STDOUT_FILENO, options.color);
  uint64_t after = options.after;
  FollowHandlers<v1::JobEvent> handlers;
  handlers.open = [&](v1::JobService::Stub* stub, grpc::ClientContext* context) {
    v1::StreamEventsRequest request;
    request.set_job(job.id());
    request.set_follow(true);
    request.set_after(after);
    return stub->StreamEvents(context, request);
  };
  handlers.on_message = [&](const v1::JobEvent& event) {
    after = event.sequence();
    Print(options.json() ? StrCat(ToJson(event, /*pretty=*/false), "\n") : RenderEvent(event, text));
    return false;
  };
  handlers.on_end = [&] {
    v1::GetJobRequest request;
    request.set_job(job.id());
    v1::GetJobResponse response;
    return client.Call(&v1::JobService::Stub::GetJob, request, &response).ok() && IsEnded(response.job().state());
  };
  handlers.on_tick = [](bool) {};
  handlers.on_lost = [&](const Status& why) {
    if (!options.quiet) PrintNote(LostText(why, options));
  };
  handlers.on_back = [&] {
    if (!options.quiet) PrintNote("connected to the coordinator again");
  };
  const Status status = FollowStream(client, signal, handlers);
  return status.ok() ? kExitOk : EndFollow(status, job, options);
}

Status WaitForEnd(JobClient& client, v1::Job* job, const Options& options) {
  StopSignal signal;
  FollowHandlers<v1::JobUpdate> handlers = JobHandlers(job->id(), job);
  handlers.on_message = [&](const v1::JobUpdate& update) {
    *job = update.job();
    return IsEnded(job->state());
  };
  handlers.on_tick = [](bool) {};
  handlers.on_lost = [&](const Status& why) {
    if (!options.quiet) PrintNote(LostText(why, options));
  };
  handlers.on_back = [&] {
    if (!options.quiet) PrintNote("connected to the coordinator again");
  };
  if (IsEnded(job->state())) return OkStatus();
  return FollowStream(client, signal, handlers);
}

}  // namespace distill::cli
