#include "coordinator/cli/repair_commands.h"

#include "common/str_cat.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/printing.h"
#include "coordinator/cli/text.h"
#include "coordinator/cli/watch.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {
namespace {

using Stub = v1::JobService::Stub;

}  // namespace

ExitCode RunResume(JobClient& client, const Options& options) {
  v1::ResumeJobRequest request;
  request.set_job(options.job);
  v1::ResumeJobResponse response;
  if (const Status status = client.Call(&Stub::ResumeJob, request, &response); !status.ok()) {
    const ExitCode code = Fail(status);
    return absl::IsFailedPrecondition(status) ? kExitUsage : code;  // a job that cannot be resumed is no fault of ours
  }
  const v1::Job& job = response.job();
  if (options.watch) return WatchJob(client, job, options);
  if (options.json()) {
    Print(ToJson(job, true));
  } else if (options.quiet) {
    Print(StrCat(Printable(job.id()), "\n"));
  } else {
    Print(StrCat("job ", Printable(job.id()), " (", Printable(job.name()), ") is ",
                 job.state() == v1::JOB_STATE_RUNNING ? "running" : "queued", " as generation ", job.generation(),
                 "\n"));
    PrintNote(StrCat("follow it: distillctl watch ", job.id()));
  }
  return kExitOk;
}

ExitCode RunUncordon(JobClient& client, const Options& options) {
  v1::UncordonWorkerRequest request;
  request.set_worker_id(options.worker);
  v1::UncordonWorkerResponse response;
  if (const Status status = client.Call(&Stub::UncordonWorker, request, &response); !status.ok()) return Fail(status);
  if (options.json()) {
    Print("{}\n");
  } else if (!options.quiet) {
    Print(StrCat("worker ", Printable(options.worker), " takes jobs again\n"));
  }
  return kExitOk;
}

}  // namespace distill::cli
