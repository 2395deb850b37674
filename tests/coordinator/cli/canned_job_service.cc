#include "tests/coordinator/cli/canned_job_service.h"

#include "coordinator/cli/job_progress.h"

namespace distill::cli {

using grpc::ServerContext;

void CannedJobService::Put(const v1::Job& job) {
  absl::MutexLock lock(&mutex_);
  ++version_;
  for (v1::Job& known : jobs_) {
    if (known.id() != job.id()) continue;
    known = job;
    return;
  }
  jobs_.push_back(job);
}

void CannedJobService::PutEvent(uint64_t sequence, const std::string& text) {
  absl::MutexLock lock(&mutex_);
  ++version_;
  v1::JobEvent& event = events_.emplace_back();
  event.set_sequence(sequence);
  event.set_time(1'800'000'000);
  event.set_level(v1::EVENT_LEVEL_INFO);
  event.set_source("coordinator");
  event.set_text(text);
}

void CannedJobService::Fail(grpc::Status status, int times) {
  absl::MutexLock lock(&mutex_);
  failure_ = std::move(status);
  failures_ = times;
}

void CannedJobService::EndStreams() {
  absl::MutexLock lock(&mutex_);
  end_streams_ = true;
}

void CannedJobService::AllowStreams() {
  absl::MutexLock lock(&mutex_);
  end_streams_ = false;
}

bool CannedJobService::WaitForStreams(int count) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return streams_ >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&reached), absl::Minutes(1));
}

std::vector<v1::SubmitJobRequest> CannedJobService::submitted() {
  absl::MutexLock lock(&mutex_);
  return submitted_;
}

std::vector<v1::CancelJobRequest> CannedJobService::cancelled() {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

v1::ListTapsRequest CannedJobService::taps_request() {
  absl::MutexLock lock(&mutex_);
  return taps_request_;
}

v1::ListJobsRequest CannedJobService::list_request() {
  absl::MutexLock lock(&mutex_);
  return list_request_;
}

grpc::Status CannedJobService::TakeFailure() {
  if (failures_ == 0) return grpc::Status::OK;
  if (failures_ > 0) --failures_;
  return failure_;
}

grpc::Status CannedJobService::Find(const std::string& name, v1::Job* job) {
  for (const v1::Job& known : jobs_) {
    if (known.id() != name && known.name() != name) continue;
    *job = known;
    return grpc::Status::OK;
  }
  return grpc::Status(grpc::StatusCode::NOT_FOUND, "no job '" + name + "'");
}

bool CannedJobService::AwaitChange(ServerContext* context, uint64_t seen) {
  const auto changed = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return version_ != seen || end_streams_; };
  // Cancellation wakes nobody: look for it now and then.
  while (!mutex_.AwaitWithTimeout(absl::Condition(&changed), absl::Milliseconds(50))) {
    if (context->IsCancelled()) return false;
  }
  return !end_streams_;
}

grpc::Status CannedJobService::SubmitJob(ServerContext*, const v1::SubmitJobRequest* request,
                                         v1::SubmitJobResponse* response) {
  absl::MutexLock lock(&mutex_);
  submitted_.push_back(*request);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  *response = submit_response;
  if (request->dry_run()) response->clear_job_id();
  return grpc::Status::OK;
}

grpc::Status CannedJobService::ListJobs(ServerContext*, const v1::ListJobsRequest* request,
                                        v1::ListJobsResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  list_request_ = *request;
  for (const v1::Job& job : jobs_) *response->add_jobs() = job;
  return grpc::Status::OK;
}

grpc::Status CannedJobService::GetJob(ServerContext*, const v1::GetJobRequest* request, v1::GetJobResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  return Find(request->job(), response->mutable_job());
}

grpc::Status CannedJobService::GetJobFile(ServerContext*, const v1::GetJobFileRequest* request,
                                          v1::GetJobFileResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  v1::Job job;
  if (grpc::Status found = Find(request->job(), &job); !found.ok()) return found;
  *response = file;
  response->set_job_id(job.id());
  return grpc::Status::OK;
}

grpc::Status CannedJobService::WatchJob(ServerContext* context, const v1::WatchJobRequest* request,
                                        grpc::ServerWriter<v1::JobUpdate>* writer) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  ++streams_;
  v1::JobUpdate update;
  do {
    if (grpc::Status status = Find(request->job(), update.mutable_job()); !status.ok()) return status;
    const uint64_t seen = version_;
    mutex_.Unlock();  // no call-out under the lock
    const bool written = writer->Write(update);
    mutex_.Lock();
    if (!written || IsEnded(update.job().state())) return grpc::Status::OK;
    if (!AwaitChange(context, seen)) break;
  } while (true);
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator is stopping");
}

grpc::Status CannedJobService::CancelJob(ServerContext*, const v1::CancelJobRequest* request,
                                         v1::CancelJobResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  cancelled_.push_back(*request);
  return Find(request->job(), response->mutable_job());
}

grpc::Status CannedJobService::ResumeJob(ServerContext*, const v1::ResumeJobRequest* request,
                                         v1::ResumeJobResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  if (grpc::Status found = Find(request->job(), response->mutable_job()); !found.ok()) return found;
  v1::Job& job = *response->mutable_job();
  if (job.state() == v1::JOB_STATE_SUCCEEDED) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it has succeeded: there is nothing left to do");
  }
  job.set_state(v1::JOB_STATE_QUEUED);
  job.set_generation(job.generation() + 1);
  return grpc::Status::OK;
}

grpc::Status CannedJobService::UncordonWorker(ServerContext*, const v1::UncordonWorkerRequest* request,
                                              v1::UncordonWorkerResponse*) {
  if (request->worker_id() == "s0") return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::NOT_FOUND, "no worker has the id '" + request->worker_id() + "'");
}

grpc::Status CannedJobService::StreamEvents(ServerContext* context, const v1::StreamEventsRequest* request,
                                            grpc::ServerWriter<v1::JobEvent>* writer) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  ++streams_;
  uint64_t after = request->after();
  do {
    v1::Job job;
    if (grpc::Status status = Find(request->job(), &job); !status.ok()) return status;
    const uint64_t seen = version_;
    const std::vector<v1::JobEvent> events = events_;
    mutex_.Unlock();
    for (const v1::JobEvent& event : events) {
      if (event.sequence() <= after) continue;
      writer->Write(event);
      after = event.sequence();
    }
    mutex_.Lock();
    if (!request->follow() || IsEnded(job.state())) return grpc::Status::OK;
    if (!AwaitChange(context, seen)) break;
  } while (true);
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator is stopping");
}

grpc::Status CannedJobService::GetFleet(ServerContext*, const v1::GetFleetRequest*, v1::GetFleetResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  *response = fleet;
  return grpc::Status::OK;
}

grpc::Status CannedJobService::ListTaps(ServerContext*, const v1::ListTapsRequest* request,
                                        v1::ListTapsResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  taps_request_ = *request;
  if (request->model() != "cifar_resnet8") {
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        "no model '" + request->model() + "'; did you mean 'cifar_resnet8'?");
  }
  *response = taps;
  return grpc::Status::OK;
}

grpc::Status CannedJobService::GetHistory(ServerContext*, const v1::GetHistoryRequest* request,
                                          v1::GetHistoryResponse* response) {
  absl::MutexLock lock(&mutex_);
  if (grpc::Status failure = TakeFailure(); !failure.ok()) return failure;
  v1::Job job;
  if (grpc::Status status = Find(request->job(), &job); !status.ok()) return status;
  *response = history;
  return grpc::Status::OK;
}

}  // namespace distill::cli
