// A JobService with canned data behind a real gRPC server, for the tests of distillctl: what the coordinator answers is
// up to the test, everything in between is real.
#ifndef DISTILL_TESTS_COORDINATOR_CLI_CANNED_JOB_SERVICE_H_
#define DISTILL_TESTS_COORDINATOR_CLI_CANNED_JOB_SERVICE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/server.h"
#include "distill/v1/job.grpc.pb.h"

namespace distill::cli {

// Thread-safe. Jobs are found by id or name; NOT_FOUND "no job 'x'" otherwise.
class CannedJobService : public v1::JobService::Service {
 public:
  // Adds the job, or replaces the one with its id; watchers get it.
  void Put(const v1::Job& job);
  // Adds an event; followers get it.
  void PutEvent(uint64_t sequence, const std::string& text);
  // All calls fail with this from now on, `times` times (negative: always).
  void Fail(grpc::Status status, int times = -1);
  // Streams end as they do when a coordinator stops; AllowStreams() undoes it.
  void EndStreams();
  void AllowStreams();
  // Waits until this many WatchJob and StreamEvents calls were accepted in all. False after a minute.
  bool WaitForStreams(int count);

  std::vector<v1::SubmitJobRequest> submitted();
  std::vector<v1::CancelJobRequest> cancelled();
  v1::ListTapsRequest taps_request();
  v1::ListJobsRequest list_request();

  // What SubmitJob answers; job_id is set from here too.
  v1::SubmitJobResponse submit_response;  // set before the server starts
  v1::GetFleetResponse fleet;             // likewise
  v1::ListTapsResponse taps;              // likewise
  v1::GetHistoryResponse history;         // likewise
  v1::GetJobFileResponse file;            // likewise

  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest*, v1::SubmitJobResponse*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsResponse*) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest*, v1::GetJobResponse*) override;
  grpc::Status GetJobFile(grpc::ServerContext*, const v1::GetJobFileRequest*, v1::GetJobFileResponse*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*, grpc::ServerWriter<v1::JobUpdate>*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest*, v1::CancelJobResponse*) override;
  // Puts the job back into the queue; refuses a succeeded one.
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest*, v1::ResumeJobResponse*) override;
  // Knows the worker "s0" alone.
  grpc::Status UncordonWorker(grpc::ServerContext*, const v1::UncordonWorkerRequest*,
                              v1::UncordonWorkerResponse*) override;
  grpc::Status StreamEvents(grpc::ServerContext*, const v1::StreamEventsRequest*,
                            grpc::ServerWriter<v1::JobEvent>*) override;
  grpc::Status GetFleet(grpc::ServerContext*, const v1::GetFleetRequest*, v1::GetFleetResponse*) override;
  grpc::Status ListTaps(grpc::ServerContext*, const v1::ListTapsRequest*, v1::ListTapsResponse*) override;
  grpc::Status GetHistory(grpc::ServerContext*, const v1::GetHistoryRequest*, v1::GetHistoryResponse*) override;

 private:
  grpc::Status TakeFailure() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  grpc::Status Find(const std::string& name, v1::Job* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until the version differs from `seen`, streams end or the client has gone. False: the stream is over.
  bool AwaitChange(grpc::ServerContext* context, uint64_t seen) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::vector<v1::Job> jobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;  // grows with each change
  bool end_streams_ ABSL_GUARDED_BY(mutex_) = false;
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::Status failure_ ABSL_GUARDED_BY(mutex_);
  int failures_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<v1::SubmitJobRequest> submitted_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::CancelJobRequest> cancelled_ ABSL_GUARDED_BY(mutex_);
  v1::ListTapsRequest taps_request_ ABSL_GUARDED_BY(mutex_);
  v1::ListJobsRequest list_request_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill::cli

#endif  // DISTILL_TESTS_COORDINATOR_CLI_CANNED_JOB_SERVICE_H_
