#include "coordinator/services/fleet_service.h"

#include "coordinator/services/rpc_answer.h"
#include "coordinator/services/worker_pool.h"
#include "coordinator/store/record_codec.h"
#include "distill/v1/fleet.grpc.pb.h"

namespace distill {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;

template <typename Request>
WorkerIdentity SenderOf(const Request& request) {
  return {request.worker_id(), request.incarnation(), request.coordinator_epoch()};
}

// A kind of a newer version is not taken for the job's fault: that would end the job.
FailureKind KindOf(v1::FailureKind kind) {
  switch (kind) {
    case v1::FAILURE_KIND_JOB:
      return FailureKind::kJob;
    case v1::FAILURE_KIND_WORKER:
      return FailureKind::kWorker;
    default:
      return FailureKind::kPassing;
  }
}

class FleetService : public v1::FleetService::CallbackService {
 public:
  explicit FleetService(Coordinator* coordinator) : coordinator_(coordinator) {}

  Reactor* Register(Context* context, const v1::RegisterRequest* request, v1::RegisterResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      RegisterInput input;
      input.from = SenderOf(*request);
      if (request->kind() != v1::WORKER_KIND_TEACHER && request->kind() != v1::WORKER_KIND_STUDENT) {
        return absl::InvalidArgumentError(
            StrCat("worker kind ", static_cast<int>(request->kind()), " is unknown to this coordinator"));
      }
      input.kind = request->kind() == v1::WORKER_KIND_TEACHER ? WorkerKind::kTeacher : WorkerKind::kStudent;
      input.address = request->address();
      for (const v1::ServedModel& model : request->models()) input.models.push_back(FromProto(model));
      input.device = request->device();
      input.version = request->version();
      input.current_job = request->current_job();
      input.current_generation = request->current_generation();
      input.displaced = request->displaced();
      DISTILL_ASSIGN_OR_RETURN(const RegisterResult result, coordinator_->Register(input));
      response->set_coordinator_epoch(result.epoch);
      response->set_heartbeat_seconds(result.heartbeat_seconds);
      response->set_lease_seconds(result.lease_seconds);
      return OkStatus();
    });
  }

  Reactor* Heartbeat(Context* context, const v1::HeartbeatRequest* request, v1::HeartbeatResponse* response) override {
    return AnswerUnary(context, [&]() -> Status {
      HeartbeatInput input;
      input.from = SenderOf(*request);
      input.job_id = request->job_id();
      input.generation = request->generation();
      input.has_plan = request->has_plan();
      for (const v1::Progress& progress : request->progress()) input.progress.push_back(FromProto(progress));
      for (const v1::JobEvent& event : request->events()) input.events.push_back(WorkerEventFromProto(event));
      input.draining = request->draining();
      input.queue_length = request->queue_length();
      DISTILL_ASSIGN_OR_RETURN(const HeartbeatResult result, coordinator_->Heartbeat(input));
      response->set_coordinator_epoch(result.epoch);
      response->set_events_stored(result.events_stored);
      response->set_soon(result.soon);
      if (result.student) ToProto(*result.student, response->mutable_student());
      for (const TeacherJob& job : result.teacher_jobs) {
        v1::TeacherJob* added = response->mutable_teacher()->add_jobs();
        added->set_job_id(job.job_id);
        added->set_model(job.model);
        for (const std::string& tap : job.taps) added->add_taps(tap);
      }
      response->set_cancel(result.cancel);
      return OkStatus();
    });
  }

  Reactor* ReportResume(Context* context, const v1::ReportResumeRequest* request, v1::ReportResumeResponse*) override {
    return AnswerLater(&pool_, context, [this, request] {
      return coordinator_->ReportResume(SenderOf(*request), request->job_id(), request->generation(), request->stage(),
                                        request->step(), request->checkpoint_digest());
    });
  }

  Reactor* CommitStage(Context* context, const v1::CommitStageRequest* request, v1::CommitStageResponse*) override {
    return AnswerLater(&pool_, context, [this, request] {
      return coordinator_->CommitStage(SenderOf(*request), request->job_id(), request->generation(),
                                       FromProto(request->result()));
    });
  }

  Reactor* FinishJob(Context* context, const v1::FinishJobRequest* request, v1::FinishJobResponse*) override {
    return AnswerLater(&pool_, context, [this, request] {
      return coordinator_->FinishJob(SenderOf(*request), request->job_id(), request->generation(),
                                     FromProto(request->artifacts()));
    });
  }

  Reactor* ReportFailure(Context* context, const v1::ReportFailureRequest* request,
                         v1::ReportFailureResponse*) override {
    return AnswerLater(&pool_, context, [this, request] {
      return coordinator_->ReportFailure(SenderOf(*request), request->job_id(), request->generation(),
                                         KindOf(request->kind()), request->message());
    });
  }

 private:
  Coordinator* const coordinator_;  // not owned: outlives the service
  WorkerPool pool_{"fleet-io", 4};  // for what waits for the disk: registrations and heartbeats do not
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFleetService(Coordinator* coordinator) {
  return std::make_unique<FleetService>(coordinator);
}

}  // namespace distill
