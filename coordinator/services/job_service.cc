#include "coordinator/services/job_service.h"

#include <algorithm>
#include <deque>

#include "common/plan/plan_codec.h"
#include "coordinator/services/feed_stream.h"
#include "coordinator/services/fleet_codec.h"
#include "coordinator/services/rpc_answer.h"
#include "coordinator/services/worker_pool.h"
#include "coordinator/store/record_codec.h"
#include "distill/v1/job.grpc.pb.h"

namespace distill {
namespace {

using Context = grpc::CallbackServerContext;
using Reactor = grpc::ServerUnaryReactor;

constexpr uint32_t kListDefault = 100;
constexpr uint32_t kListMost = 1000;
constexpr size_t kEventsPerRead = 256;

void ToProto(const JobProblem& problem, v1::JobFileProblem* proto) {
  proto->set_line(std::max(problem.mark.line, 1));
  proto->set_column(std::max(problem.mark.column, 1));
  proto->set_text(problem.text);
  if (problem.mark.override_index >= 0) proto->set_override_index(problem.mark.override_index);
  proto->set_of_fleet(problem.of_fleet);
}

// The job now, then at each change, until it ends.
class WatchStream : public FeedStream<v1::JobUpdate> {
 public:
  WatchStream(Coordinator* coordinator, WorkerPool* pool, std::string job)
      : FeedStream(&coordinator->feed(), pool), coordinator_(coordinator), job_(std::move(job)) {}

 private:
  StatusOr<std::string> Find() override {
    DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Get(job_));
    return job_ = job.id;
  }
  StatusOr<Next> NextMessage(v1::JobUpdate* update) override {
    if (ended_) return Next::kEnd;
    DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Get(job_));
    ToProto(job, update->mutable_job());
    ended_ = IsEnded(job.status.state);
    std::string bytes = update->SerializeAsString();
    if (bytes == last_) return ended_ ? Next::kEnd : Next::kNothing;
    last_ = std::move(bytes);
    return Next::kMessage;
  }

  Coordinator* const coordinator_;  // not owned: outlives the server
  std::string job_;                 // as asked for, then its id
  std::string last_;                // as sent
  bool ended_ = false;
};

// Stored events, and with `follow` the new ones until the job ends.
class EventStream : public FeedStream<v1::JobEvent> {
 public:
  EventStream(Coordinator* coordinator, WorkerPool* pool, std::string job, uint64_t after, bool follow)
      : FeedStream(&coordinator->feed(), pool),
        coordinator_(coordinator),
        job_(std::move(job)),
        after_(after),
        follow_(follow) {}

 private:
  StatusOr<std::string> Find() override {
    DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Get(job_));
    return job_ = job.id;
  }
  StatusOr<Next> NextMessage(v1::JobEvent* message) override {
    if (ready_.empty()) {
      // The state is read before the events: an ended job has all its own events stored.
      DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Get(job_));
      DISTILL_ASSIGN_OR_RETURN(std::vector<EventRecord> events, coordinator_->Events(job_, after_, kEventsPerRead));
      ready_.assign(std::make_move_iterator(events.begin()), std::make_move_iterator(events.end()));
      if (ready_.empty()) return follow_ && !IsEnded(job.status.state) ? Next::kNothing : Next::kEnd;
    }
    ToProto(ready_.front(), message);
    after_ = ready_.front().sequence;
    ready_.pop_front();
    return Next::kMessage;
  }

  Coordinator* const coordinator_;  // not owned: outlives the server
  std::string job_;                 // as asked for, then its id
  uint64_t after_;
  const bool follow_;
  std::deque<EventRecord> ready_;
};

class JobService : public v1::JobService::CallbackService {
 public:
  explicit JobService(Coordinator* coordinator) : coordinator_(coordinator) {}

  Reactor* SubmitJob(Context* context, const v1::SubmitJobRequest* request, v1::SubmitJobResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      SubmitRequest submit;
      submit.request_id = request->request_id();
      submit.file = {request->yaml(), request->file_name(), {request->overrides().begin(), request->overrides().end()}};
      submit.dry_run = request->dry_run();
      DISTILL_ASSIGN_OR_RETURN(const SubmitResult result, coordinator_->Submit(submit));
      response->set_job_id(result.job_id);
      if (result.problems.empty()) ToProto(result.plan, response->mutable_plan());
      response->set_existed(result.existed);
      for (const JobProblem& problem : result.problems) ToProto(problem, response->add_problems());
      for (const JobProblem& warning : result.warnings) ToProto(warning, response->add_warnings());
      return OkStatus();
    });
  }

  Reactor* ListJobs(Context* context, const v1::ListJobsRequest* request, v1::ListJobsResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      if (request->limit() > kListMost) {
        return absl::InvalidArgumentError(
            StrCat("limit: ", request->limit(), " jobs; at most ", kListMost, " are listed"));
      }
      std::vector<JobState> states;
      for (const int state : request->states()) states.push_back(static_cast<JobState>(state));
      DISTILL_ASSIGN_OR_RETURN(const std::vector<JobRecord> jobs,
                               coordinator_->List(request->limit() == 0 ? kListDefault : request->limit(), states));
      for (const JobRecord& job : jobs) ToProto(job, response->add_jobs());
      return OkStatus();
    });
  }

  Reactor* GetJob(Context* context, const v1::GetJobRequest* request, v1::GetJobResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Get(request->job()));
      ToProto(job, response->mutable_job());
      return OkStatus();
    });
  }

  Reactor* GetJobFile(Context* context, const v1::GetJobFileRequest* request,
                      v1::GetJobFileResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->GetWithFile(request->job()));
      response->set_job_id(job.id);
      response->set_file_name(job.file_name);
      response->set_yaml(job.yaml);
      response->mutable_overrides()->Assign(job.overrides.begin(), job.overrides.end());
      return OkStatus();
    });
  }

  Reactor* CancelJob(Context* context, const v1::CancelJobRequest* request, v1::CancelJobResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Cancel(request->job(), request->reason()));
      ToProto(job, response->mutable_job());
      return OkStatus();
    });
  }

  Reactor* ResumeJob(Context* context, const v1::ResumeJobRequest* request, v1::ResumeJobResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      DISTILL_ASSIGN_OR_RETURN(const JobRecord job, coordinator_->Resume(request->job()));
      ToProto(job, response->mutable_job());
      return OkStatus();
    });
  }

  grpc::ServerWriteReactor<v1::JobUpdate>* WatchJob(Context*, const v1::WatchJobRequest* request) override {
    return WatchStream::Start(std::make_shared<WatchStream>(coordinator_, &pool_, request->job()));
  }

  grpc::ServerWriteReactor<v1::JobEvent>* StreamEvents(Context*, const v1::StreamEventsRequest* request) override {
    return EventStream::Start(
        std::make_shared<EventStream>(coordinator_, &pool_, request->job(), request->after(), request->follow()));
  }

  Reactor* UncordonWorker(Context* context, const v1::UncordonWorkerRequest* request,
                          v1::UncordonWorkerResponse*) override {
    return AnswerLater(&pool_, context, [this, request] { return coordinator_->Uncordon(request->worker_id()); });
  }

  Reactor* GetFleet(Context* context, const v1::GetFleetRequest*, v1::GetFleetResponse* response) override {
    return AnswerLater(&pool_, context, [this, response]() -> Status {
      *response = DescribeFleet(coordinator_);
      return OkStatus();
    });
  }

  Reactor* ListTaps(Context* context, const v1::ListTapsRequest* request, v1::ListTapsResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      ModelSpec spec;
      spec.arch = request->model();
      spec.width = request->width();
      spec.num_classes = request->num_classes();
      spec.in_channels = request->in_channels();
      spec.image_height = request->image_height();
      spec.image_width = request->image_width();
      DISTILL_ASSIGN_OR_RETURN(const TapListing listing, coordinator_->ListTaps(spec));
      ToProto(listing.spec, response->mutable_spec());
      for (const ServedTap& tap : listing.taps) ToProto(tap, response->add_taps());
      return OkStatus();
    });
  }

  Reactor* GetHistory(Context* context, const v1::GetHistoryRequest* request,
                      v1::GetHistoryResponse* response) override {
    return AnswerLater(&pool_, context, [this, request, response]() -> Status {
      DISTILL_ASSIGN_OR_RETURN(const std::vector<JobProgress> points, coordinator_->History(request->job()));
      for (const JobProgress& point : points) ToProto(point, response->add_points());
      return OkStatus();
    });
  }

 private:
  Coordinator* const coordinator_;  // not owned: outlives the service
  WorkerPool pool_{"job-io", 4};    // all calls may wait for the disk
};

}  // namespace

std::unique_ptr<grpc::Service> MakeJobService(Coordinator* coordinator) {
  return std::make_unique<JobService>(coordinator);
}

}  // namespace distill
