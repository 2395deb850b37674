// The client against a real gRPC server on loopback, whose answers the test chooses.
#include "common/fleet/fleet_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <fstream>
#include <future>
#include <set>

#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_codec.h"
#include "common/plan/plan_codec.h"
#include "common/rpc/server.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "distill/v1/fleet.grpc.pb.h"
#include "tests/common/rpc/rpc_test_util.h"
#include "tests/harness/wall_clock.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr absl::Duration kLong = absl::Seconds(30);  // a test that waits so long has failed

// A coordinator's fleet service: keeps what it was told, answers what the test set.
class FakeCoordinator : public v1::FleetService::Service {
 public:
  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    absl::MutexLock lock(&mutex_);
    registrations_.push_back(*request);
    if (!register_answer_.ok()) return register_answer_;
    if (!owner_.empty() && owner_ != request->incarnation()) {
      if (request->displaced()) return {grpc::StatusCode::ABORTED, "used by another process"};
      owner_ = request->incarnation();
    }
    known_.insert(request->worker_id());
    response->set_coordinator_epoch(epoch_);
    response->set_heartbeat_seconds(heartbeat_seconds_);
    response->set_lease_seconds(lease_seconds_);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override {
    absl::MutexLock lock(&mutex_);
    ++beats_;
    if (!known_.contains(request->worker_id())) return {grpc::StatusCode::NOT_FOUND, "unknown worker"};
    if (!owner_.empty() && owner_ != request->incarnation()) {
      return {grpc::StatusCode::ABORTED, "used by another process"};
    }
    last_beat_ = *request;
    for (const v1::Progress& progress : request->progress()) progress_.push_back(progress);
    for (const v1::JobEvent& event : request->events()) {
      ++events_received_;
      if (event.sequence() <= highest_event_) continue;  // as the protocol asks
      highest_event_ = event.sequence();
      events_.push_back(event);
    }
    if (lose_answers_ > 0) {
      --lose_answers_;
      return {grpc::StatusCode::UNAVAILABLE, "answer lost"};
    }
    *response = answer_;
    response->set_events_stored(store_events_ ? highest_event_ : 0);
    response->set_coordinator_epoch(epoch_);
    return grpc::Status::OK;
  }
  grpc::Status ReportResume(grpc::ServerContext*, const v1::ReportResumeRequest* request,
                            v1::ReportResumeResponse*) override {
    absl::MutexLock lock(&mutex_);
    resumes_.push_back(*request);
    return NextReportAnswer();
  }
  grpc::Status CommitStage(grpc::ServerContext*, const v1::CommitStageRequest* request,
                           v1::CommitStageResponse*) override {
    absl::MutexLock lock(&mutex_);
    commits_.push_back(*request);
    return NextReportAnswer();
  }
  grpc::Status FinishJob(grpc::ServerContext*, const v1::FinishJobRequest* request, v1::FinishJobResponse*) override {
    absl::MutexLock lock(&mutex_);
    finishes_.push_back(*request);
    return NextReportAnswer();
  }
  grpc::Status ReportFailure(grpc::ServerContext*, const v1::ReportFailureRequest* request,
                             v1::ReportFailureResponse*) override {
    absl::MutexLock lock(&mutex_);
    failures_.push_back(*request);
    return NextReportAnswer();
  }

  // Runs `change` under the lock, then waits until `beats` whole heartbeats were answered after it.
  template <typename Change>
  void ChangeAndSettle(Change change, int beats = 3) {
    absl::MutexLock lock(&mutex_);
    change();
    const int target = beats_ + beats;
    const auto reached = [&] { return beats_ >= target; };
    EXPECT_TRUE(AwaitFor(&mutex_, absl::Condition(&reached), kLong)) << "heartbeats stopped";
  }
  template <typename Predicate>
  void Await(Predicate predicate, absl::Duration patience = kLong) {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(AwaitFor(&mutex_, absl::Condition(&predicate), patience)) << "the server waited in vain";
  }
  void Settle(int beats = 3) {
    ChangeAndSettle([] {}, beats);
  }

  absl::Mutex mutex_;
  // Guarded by mutex_; tests look at them when the client is stopped, or inside ChangeAndSettle/Await.
  uint64_t epoch_ = 1;
  double heartbeat_seconds_ = 0.01, lease_seconds_ = 5;
  bool store_events_ = true;
  std::string owner_;  // incarnation that has the id; "": whoever calls
  int beats_ = 0, lose_answers_ = 0, events_received_ = 0;
  grpc::Status register_answer_;
  v1::HeartbeatResponse answer_;
  std::set<std::string> known_;
  std::deque<grpc::Status> report_answers_;  // then OK
  std::vector<v1::RegisterRequest> registrations_;
  v1::HeartbeatRequest last_beat_;
  std::vector<v1::Progress> progress_;
  std::vector<v1::JobEvent> events_;
  uint64_t highest_event_ = 0;
  std::vector<v1::ReportResumeRequest> resumes_;
  std::vector<v1::CommitStageRequest> commits_;
  std::vector<v1::FinishJobRequest> finishes_;
  std::vector<v1::ReportFailureRequest> failures_;

 private:
  grpc::Status NextReportAnswer() {
    if (report_answers_.empty()) return grpc::Status::OK;
    const grpc::Status answer = report_answers_.front();
    report_answers_.pop_front();
    return answer;
  }
};

// What the callbacks were told, in order, as words.
class Told {
 public:
  FleetClient::Callbacks Callbacks() {
    FleetClient::Callbacks callbacks;
    callbacks.on_student_assignment = [this](std::optional<StudentAssignment> assignment) {
      Add(assignment ? StrCat("assigned ", assignment->job_id, " ", assignment->generation, " with ",
                              assignment->teachers.size())
                     : "revoked");
      absl::MutexLock lock(&mutex_);
      if (assignment) last_ = std::move(assignment);
    };
    callbacks.on_teachers = [this](std::vector<TeacherEndpoint> teachers) {
      Add(StrCat("teachers ", teachers.size()));
    };
    callbacks.on_teacher_jobs = [this](std::vector<TeacherJob> jobs) {
      std::string text = "jobs";
      for (const TeacherJob& job : jobs) StrAppend(&text, " ", job.job_id, "/", job.model, "/", job.taps.size());
      Add(text);
    };
    callbacks.on_cancel = [this] { Add("cancel"); };
    return callbacks;
  }
  std::vector<std::string> all() {
    absl::MutexLock lock(&mutex_);
    return all_;
  }
  std::optional<StudentAssignment> last() {
    absl::MutexLock lock(&mutex_);
    return last_;
  }
  void AwaitCount(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&] { return all_.size() >= count; };
    EXPECT_TRUE(AwaitFor(&mutex_, absl::Condition(&reached), kLong))
        << "told " << all_.size() << " things, not " << count;
  }

 private:
  void Add(const std::string& text) {
    absl::MutexLock lock(&mutex_);
    all_.push_back(text);
  }
  absl::Mutex mutex_;
  std::vector<std::string> all_ ABSL_GUARDED_BY(mutex_);
  std::optional<StudentAssignment> last_ ABSL_GUARDED_BY(mutex_);
};

class FleetClientTest : public testing::Test {
 protected:
  void SetUp() override { StartServer("127.0.0.1:0"); }
  void TearDown() override {
    if (client_) client_->Stop();
  }
  void StartServer(const std::string& listen) {
    auto server = RpcServer::Start({.listen = listen, .security = server_security_}, {&coordinator_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    address_ = server_->address();
  }
  void StartClient(WorkerKind kind = WorkerKind::kStudent) {
    auto client = FleetClient::Start(Options(kind), told_.Callbacks());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::move(*client);
  }
  // Where the server was: accepts so many connections and closes each at once.
  void RefuseConnections(int count) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    const timeval limit{.tv_sec = 30};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);  // of accept()
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(std::stoi(address_.substr(address_.rfind(':') + 1))));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at), 0) << address_;
    ASSERT_EQ(listen(listener, 4), 0);
    for (int i = 0; i < count; ++i) {
      const int connection = accept(listener, nullptr, nullptr);
      EXPECT_GE(connection, 0) << "the client does not try to connect";
      close(connection);
    }
    close(listener);
  }
  FleetClient::Options Options(WorkerKind kind = WorkerKind::kStudent) {
    FleetClient::Options options;
    options.coordinator = address_;
    options.security = client_security_;
    options.worker_id = "worker-0";
    options.kind = kind;
    options.address = "127.0.0.1:77";
    options.device = "cpu";
    return options;
  }
  // REQUIRES: inside ChangeAndSettle.
  v1::StudentAssignment* Assign(const std::string& job, uint64_t generation, int teachers) {
    v1::StudentAssignment* const student = coordinator_.answer_.mutable_student();
    student->Clear();
    student->set_job_id(job);
    student->set_generation(generation);
    student->set_world_size(2);
    student->set_rank(1);
    for (int i = 0; i < teachers; ++i) student->add_teachers()->set_worker_id(StrCat("t", i));
    return student;
  }

  FakeCoordinator coordinator_;
  RpcSecurity server_security_, client_security_;
  std::unique_ptr<RpcServer> server_;
  std::string address_;
  Told told_;
  std::unique_ptr<FleetClient> client_;
};

TEST_F(FleetClientTest, RegistersWithEverythingItServes) {
  FleetClient::Options options = Options(WorkerKind::kTeacher);
  options.device = "cuda:0";
  ServedModelInfo model;
  model.name = "fashion";
  model.digest = "abc";
  model.spec.arch = "cifar_resnet20";
  model.spec.num_classes = 10;
  model.spec.mean = {0.5f};
  model.parameters = 270000;
  model.bytes = 1080000;
  model.taps = {{"layer1", "Sequential", {16, 28, 28}, true, {0, 2}, true}};
  model.state = {{"fc.weight", {10, 3}, false, false}, {"seen", {}, true, true}};
  options.models = {model};
  auto client = FleetClient::Start(options, told_.Callbacks());
  ASSERT_TRUE(client.ok()) << client.status();
  (*client)->Stop();
  ASSERT_THAT(coordinator_.registrations_, SizeIs(1));
  const v1::RegisterRequest& request = coordinator_.registrations_[0];
  EXPECT_EQ(request.worker_id(), "worker-0");
  EXPECT_EQ(request.incarnation().size(), 32u);
  EXPECT_EQ(request.kind(), v1::WORKER_KIND_TEACHER);
  EXPECT_EQ(request.address(), "127.0.0.1:77");
  EXPECT_EQ(request.device(), "cuda:0");
  EXPECT_FALSE(request.version().empty());
  EXPECT_EQ(request.current_job(), "");
  ASSERT_EQ(request.models_size(), 1);
  EXPECT_EQ(request.models(0).name(), "fashion");
  EXPECT_EQ(request.models(0).digest(), "abc");
  EXPECT_EQ(FromProto(request.models(0).spec()), model.spec);
  EXPECT_EQ(request.models(0).parameters(), 270000u);
  EXPECT_EQ(request.models(0).bytes(), 1080000u);
  ASSERT_EQ(request.models(0).taps_size(), 1);
  EXPECT_EQ(request.models(0).taps(0).path(), "layer1");
  EXPECT_EQ(request.models(0).taps(0).type(), "Sequential");
  EXPECT_THAT(request.models(0).taps(0).shape(), ElementsAre(16, 28, 28));
  EXPECT_TRUE(request.models(0).taps(0).stage_end());
  const ServedModelInfo read = FromProto(request.models(0));  // as the coordinator does it
  EXPECT_THAT(read.taps.at(0).needs, ElementsAre(0, 2));
  EXPECT_TRUE(read.taps[0].is_cut);
  ASSERT_THAT(read.state, SizeIs(2));
  EXPECT_EQ(read.state[0].name, "fc.weight");
  EXPECT_THAT(read.state[0].shape, ElementsAre(10, 3));
  EXPECT_TRUE(read.state[1].is_buffer && read.state[1].is_integer);
}

TEST_F(FleetClientTest, AssignmentIsDeliveredWholeAndOnlyOnChange) {
  StartClient();
  coordinator_.ChangeAndSettle([&] {
    v1::StudentAssignment* const student = Assign("j1", 1, 0);
    v1::TeacherEndpoint* const teacher = student->add_teachers();
    teacher->set_worker_id("t0");
    teacher->set_address("127.0.0.1:5");
    teacher->set_model("m");
    teacher->set_digest("d");
    student->mutable_plan()->set_name("demo");
    student->mutable_plan()->set_seed(7);
    student->set_first_stage(2);
    student->set_checkpoint("/work/c");
    student->set_checkpoint_digest("cd");
  });
  coordinator_.ChangeAndSettle([&] { Assign("j1", 2, 1); });
  coordinator_.ChangeAndSettle([&] { Assign("j1", 2, 2); });
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.clear_student(); });
  coordinator_.ChangeAndSettle([&] { Assign("j1", 2, 2); });
  coordinator_.ChangeAndSettle([&] { Assign("j2", 2, 2); });
  client_->Stop();
  EXPECT_THAT(told_.all(), ElementsAre("assigned j1 1 with 1", "assigned j1 2 with 1", "teachers 2", "revoked",
                                       "assigned j1 2 with 2", "assigned j2 2 with 2"));
}

TEST_F(FleetClientTest, AssignmentHoldsEveryField) {
  StartClient();
  coordinator_.ChangeAndSettle([&] {
    v1::StudentAssignment* const student = Assign("j1", 3, 0);
    v1::TeacherEndpoint* const teacher = student->add_teachers();
    teacher->set_worker_id("t0");
    teacher->set_address("127.0.0.1:5");
    teacher->set_model("m");
    teacher->set_digest("d");
    student->mutable_plan()->set_name("demo");
    student->mutable_plan()->set_seed(7);
    student->set_first_stage(2);
    student->set_checkpoint("/work/c");
    student->set_checkpoint_digest("cd");
  });
  client_->Stop();
  ASSERT_TRUE(told_.last().has_value());
  const StudentAssignment assignment = *told_.last();
  EXPECT_EQ(assignment.job_id, "j1");
  EXPECT_EQ(assignment.generation, 3u);
  EXPECT_EQ(assignment.rank, 1u);
  EXPECT_EQ(assignment.world_size, 2u);
  EXPECT_EQ(assignment.plan.name, "demo");
  EXPECT_EQ(assignment.plan.seed, 7u);
  EXPECT_EQ(assignment.first_stage, 2u);
  EXPECT_THAT(assignment.teachers, ElementsAre(TeacherEndpoint{"t0", "127.0.0.1:5", "m", "d"}));
  EXPECT_EQ(assignment.checkpoint, "/work/c");
  EXPECT_EQ(assignment.checkpoint_digest, "cd");
}

TEST_F(FleetClientTest, CancelIsToldOncePerAssignment) {
  StartClient();
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.set_cancel(true); });  // nothing runs: nothing to tell
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.set_cancel(false); });
  coordinator_.ChangeAndSettle([&] { Assign("j1", 1, 1); });
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.set_cancel(true); });
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.Clear(); });
  coordinator_.ChangeAndSettle([&] { Assign("j2", 1, 1); });
  coordinator_.ChangeAndSettle([&] {
    coordinator_.answer_.clear_student();
    coordinator_.answer_.set_cancel(true);
  });
  client_->Stop();
  EXPECT_THAT(told_.all(),
              ElementsAre("assigned j1 1 with 1", "cancel", "revoked", "assigned j2 1 with 1", "cancel", "revoked"));
}

TEST_F(FleetClientTest, TeacherJobsAreToldOnChangeAndReleasedWhenNoneIsLeft) {
  StartClient(WorkerKind::kTeacher);
  const auto job = [&](const char* id, int taps) {
    v1::TeacherJob* const added = coordinator_.answer_.mutable_teacher()->add_jobs();
    added->set_job_id(id);
    added->set_model("m");
    for (int i = 0; i < taps; ++i) added->add_taps(StrCat("layer", i));
  };
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.mutable_teacher(); });
  coordinator_.ChangeAndSettle([&] { job("j1", 1); });
  coordinator_.ChangeAndSettle([&] { job("j2", 2); });
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.mutable_teacher()->mutable_jobs(0)->add_taps("layer1"); });
  coordinator_.ChangeAndSettle([&] { coordinator_.answer_.clear_teacher(); });
  client_->Stop();
  EXPECT_THAT(told_.all(), ElementsAre("jobs j1/m/1", "jobs j1/m/1 j2/m/2", "jobs j1/m/2 j2/m/2", "jobs"));
}

TEST_F(FleetClientTest, EachReportedStepIsDeliveredOnceAndInOrderBeforeTheJobIsFinished) {
  StartClient();
  client_->SetCurrent("job-1", 1);
  JobProgress progress;
  for (uint64_t step = 1; step <= 100; ++step) {
    progress.total_step = step;
    progress.phase = "training";
    client_->ReportProgress(progress);
    progress.phase = "checkpointing";  // of the same step
    client_->ReportProgress(progress);
  }
  ASSERT_TRUE(client_->FinishJob("job-1", 1, JobArtifacts()).ok());
  std::vector<uint64_t> steps;
  coordinator_.Await([&] {
    for (const v1::Progress& sent : coordinator_.progress_) {
      if (steps.empty() || steps.back() != sent.total_step()) steps.push_back(sent.total_step());
    }
    return true;
  });
  ASSERT_THAT(steps, SizeIs(100));
  for (uint64_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i], i + 1);
}

TEST_F(FleetClientTest, HeartbeatCarriesCurrentJobProgressAndQueueLength) {
  FleetClient::Callbacks callbacks = told_.Callbacks();
  callbacks.queue_length = [] { return 9u; };
  auto client = FleetClient::Start(Options(), callbacks);
  ASSERT_TRUE(client.ok()) << client.status();
  (*client)->SetCurrent("j1", 4);
  JobProgress progress;
  progress.stage = 1;
  progress.step = 20;
  progress.total_step = 120;
  progress.loss = 0.5;
  progress.terms = {{"ce", 0.25}, {"kd", 2}};
  progress.learning_rate = 0.1;
  progress.images_per_second = 1000;
  progress.step_seconds = {{"forward", 0.01}};
  progress.score.metrics = {{"mean_iou", 0.5}, {"pixel_accuracy", 0.75}};
  progress.time = 12;
  progress.phase = "training";
  (*client)->ReportProgress(progress);
  coordinator_.Await([&] { return !coordinator_.progress_.empty(); });
  coordinator_.Settle();
  (*client)->Stop();
  EXPECT_EQ(coordinator_.last_beat_.job_id(), "j1");
  EXPECT_EQ(coordinator_.last_beat_.generation(), 4u);
  EXPECT_EQ(coordinator_.last_beat_.queue_length(), 9u);
  EXPECT_EQ(coordinator_.last_beat_.coordinator_epoch(), 1u);
  ASSERT_THAT(coordinator_.progress_, SizeIs(1)) << "sent again without being newer";
  const v1::Progress& sent = coordinator_.progress_[0];
  EXPECT_EQ(sent.stage(), 1u);
  EXPECT_EQ(sent.step(), 20u);
  EXPECT_EQ(sent.total_step(), 120u);
  EXPECT_EQ(sent.loss(), 0.5);
  ASSERT_EQ(sent.terms_size(), 2);
  EXPECT_EQ(sent.terms(1).name(), "kd");
  EXPECT_EQ(sent.terms(1).value(), 2);
  EXPECT_EQ(sent.learning_rate(), 0.1);
  EXPECT_EQ(sent.images_per_second(), 1000);
  ASSERT_EQ(sent.step_seconds_size(), 1);
  EXPECT_EQ(sent.step_seconds(0).name(), "forward");
  ASSERT_EQ(sent.score().metrics_size(), 2);
  EXPECT_EQ(sent.score().metrics(0).name(), "mean_iou");
  EXPECT_EQ(sent.score().metrics(1).value(), 0.75);
  EXPECT_EQ(sent.teacher_score().metrics_size(), 0);
  EXPECT_EQ(sent.time(), 12);
  EXPECT_EQ(sent.phase(), "training");
}

TEST_F(FleetClientTest, UnknownWorkerRegistersAgainWithWhatItDoes) {
  StartClient();
  coordinator_.ChangeAndSettle([&] { Assign("j1", 5, 1); });
  client_->SetCurrent("j1", 5);
  coordinator_.Await([&] { return coordinator_.last_beat_.job_id() == "j1"; });
  coordinator_.ChangeAndSettle([&] {
    coordinator_.known_.clear();
    ++coordinator_.epoch_;
  });
  coordinator_.Await([&] { return coordinator_.last_beat_.coordinator_epoch() == 2; });
  client_->Stop();
  ASSERT_THAT(coordinator_.registrations_, SizeIs(2));
  EXPECT_EQ(coordinator_.registrations_[1].worker_id(), "worker-0");
  EXPECT_EQ(coordinator_.registrations_[1].incarnation(), coordinator_.registrations_[0].incarnation());
  EXPECT_EQ(coordinator_.registrations_[1].current_job(), "j1");
  EXPECT_EQ(coordinator_.registrations_[1].current_generation(), 5u);
  EXPECT_THAT(told_.all(), ElementsAre("assigned j1 5 with 1")) << "the same assignment was delivered twice";
}

TEST_F(FleetClientTest, OtherModelsAreRegisteredWhileItWorks) {
  StartClient();
  const auto names = [this](const v1::RegisterRequest& request) {
    std::vector<std::string> all;
    for (const v1::ServedModel& model : request.models()) all.push_back(model.name());
    return all;
  };
  coordinator_.ChangeAndSettle([&] { Assign("j1", 5, 1); });
  client_->SetCurrent("j1", 5);
  coordinator_.Await([&] { return coordinator_.last_beat_.job_id() == "j1"; });
  client_->SetModels({{.name = "new", .digest = "d"}});
  coordinator_.Await([&] { return coordinator_.registrations_.size() == 2; });
  // Refused: those before stay, and the worker lives on.
  coordinator_.ChangeAndSettle([&] {
    coordinator_.register_answer_ = {grpc::StatusCode::INVALID_ARGUMENT, "no such network"};
  });
  client_->SetModels({{.name = "refused", .digest = "d"}});
  coordinator_.Await([&] { return coordinator_.registrations_.size() == 3; });
  coordinator_.ChangeAndSettle([&] {
    coordinator_.register_answer_ = grpc::Status::OK;
    coordinator_.known_.clear();
  });
  coordinator_.Await([&] { return coordinator_.registrations_.size() == 4; });
  client_->Stop();
  EXPECT_THAT(names(coordinator_.registrations_[1]), ElementsAre("new"));
  EXPECT_EQ(coordinator_.registrations_[1].current_job(), "j1");
  EXPECT_THAT(names(coordinator_.registrations_[2]), ElementsAre("refused"));
  EXPECT_THAT(names(coordinator_.registrations_[3]), ElementsAre("new"));
  EXPECT_THAT(told_.all(), ElementsAre("assigned j1 5 with 1")) << "the same assignment was delivered twice";
}

TEST_F(FleetClientTest, SurvivesARestartOfTheCoordinatorOnTheSamePort) {
  StartClient();
  coordinator_.ChangeAndSettle([&] { Assign("j1", 1, 1); });
  client_->ReportEvent("j1", EventLevel::kInfo, EventType::kData, "before");
  coordinator_.Await([&] { return coordinator_.events_.size() == 1; });
  server_.reset();
  client_->ReportEvent("j1", EventLevel::kWarning, EventType::kData, "while away");
  auto commit =
      std::async(std::launch::async, [&] { return client_->CommitStage("j1", 1, {.stage = 3, .checkpoint = "/c"}); });
  {
    absl::MutexLock lock(&coordinator_.mutex_);
    coordinator_.known_.clear();
    ++coordinator_.epoch_;
  }
  StartServer(address_);
  EXPECT_TRUE(commit.get().ok());
  coordinator_.Await([&] { return coordinator_.events_.size() == 2; });
  coordinator_.ChangeAndSettle([&] { Assign("j1", 2, 1); });
  client_->Stop();
  EXPECT_THAT(told_.all(), ElementsAre("assigned j1 1 with 1", "assigned j1 2 with 1"));
  ASSERT_THAT(coordinator_.commits_, SizeIs(1));
  EXPECT_EQ(coordinator_.commits_[0].worker_id(), "worker-0");
  EXPECT_EQ(coordinator_.commits_[0].job_id(), "j1");
  EXPECT_EQ(coordinator_.commits_[0].generation(), 1u);
  EXPECT_EQ(coordinator_.commits_[0].result().stage(), 3u);
  EXPECT_EQ(coordinator_.commits_[0].result().checkpoint(), "/c");
  EXPECT_THAT(coordinator_.registrations_, SizeIs(2));
}

// gRPC works on a connection only while a call waits. Heartbeats that failed at once, seconds apart, gave a TLS
// handshake too few turns within its 5 s, and workers did not come back to a restarted coordinator, or by luck. The
// heartbeat is a slow one here: with those of the other tests they came back nevertheless.
TEST_F(FleetClientTest, ComesBackToARestartedCoordinatorOverTls) {
  const KeyAndCertificate made = MakeCertificate("coordinator");
  const TempFile certificate(made.certificate), key(made.key), token("secret\n");
  server_security_ = {.cert_file = certificate.path(), .key_file = key.path(), .token_file = token.path()};
  client_security_ = {.ca_file = certificate.path(), .token_file = token.path()};
  server_.reset();
  StartServer("127.0.0.1:0");
  coordinator_.heartbeat_seconds_ = 60;
  StartClient();
  server_.reset();
  client_->SetCurrent("j1", 1);  // is told with a heartbeat at once, which fails
  RefuseConnections(6);          // by which the client surely knows that the coordinator is away, and has slowed down
  {
    absl::MutexLock lock(&coordinator_.mutex_);
    coordinator_.known_.clear();
    ++coordinator_.epoch_;
  }
  StartServer(address_);
  // It is back within a second or two; by luck it would be with one of the next heartbeats, 13 and 26 s apart by now.
  coordinator_.Await([&] { return coordinator_.registrations_.size() == 2; }, absl::Seconds(12));
  coordinator_.Await([&] { return coordinator_.last_beat_.job_id() == "j1"; });
  client_->Stop();
}

TEST_F(FleetClientTest, AnswersOfAnOlderCoordinatorAreIgnored) {
  coordinator_.epoch_ = 5;
  StartClient();
  coordinator_.ChangeAndSettle([&] { Assign("j1", 1, 1); });
  coordinator_.ChangeAndSettle([&] {
    coordinator_.epoch_ = 4;
    Assign("old", 9, 1);
  });
  coordinator_.ChangeAndSettle([&] {
    coordinator_.epoch_ = 6;
    Assign("j2", 1, 1);
  });
  client_->Stop();
  EXPECT_THAT(told_.all(), ElementsAre("assigned j1 1 with 1", "assigned j2 1 with 1"));
}

// The first failure is not the last word: a coordinator that could not be reached may come back as an older one.
TEST_F(FleetClientTest, TheLogNamesAnOlderCoordinatorAlsoAfterAnotherFailure) {
  coordinator_.epoch_ = 5;
  StartClient();
  coordinator_.Settle();
  testing::internal::CaptureStderr();
  coordinator_.ChangeAndSettle(
      [&] {
        coordinator_.lose_answers_ = 2;
        coordinator_.epoch_ = 4;
      },
      5);
  client_->Stop();
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, testing::HasSubstr("answer lost"));
  EXPECT_THAT(log, testing::HasSubstr("of epoch 4, older than 5"));
  EXPECT_THAT(log, testing::HasSubstr("restart this worker"));
}

TEST_F(FleetClientTest, EventsArriveOnceInOrderThoughAnswersAreLost) {
  StartClient();
  coordinator_.ChangeAndSettle([&] { coordinator_.lose_answers_ = 3; }, 1);
  for (int i = 0; i < 5; ++i)
    client_->ReportEvent(StrCat("j", i), i == 0 ? EventLevel::kError : EventLevel::kInfo, EventType::kData,
                         StrCat("event ", i));
  coordinator_.Await([&] { return coordinator_.events_.size() == 5 && coordinator_.lose_answers_ == 0; });
  coordinator_.Settle();
  int received = 0;
  coordinator_.ChangeAndSettle([&] { received = coordinator_.events_received_; });
  client_->Stop();
  EXPECT_EQ(coordinator_.events_received_, received) << "events are sent again after they were accepted";
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(coordinator_.events_[i].text(), StrCat("event ", i));
    EXPECT_EQ(coordinator_.events_[i].job_id(), StrCat("j", i));
    EXPECT_EQ(coordinator_.events_[i].sequence(), static_cast<uint64_t>(i + 1));
    EXPECT_EQ(coordinator_.events_[i].source(), "worker-0");
    EXPECT_EQ(coordinator_.events_[i].level(), i == 0 ? v1::EVENT_LEVEL_ERROR : v1::EVENT_LEVEL_INFO);
    EXPECT_GT(coordinator_.events_[i].time(), 1e9);
  }
}

TEST_F(FleetClientTest, EventsAreKeptUntilTheyAreStored) {
  coordinator_.store_events_ = false;
  StartClient();
  client_->ReportEvent("j", EventLevel::kInfo, EventType::kData, "one");
  coordinator_.Await([&] { return coordinator_.events_received_ >= 3; });
  coordinator_.ChangeAndSettle([&] { coordinator_.store_events_ = true; });
  int received = 0;
  coordinator_.ChangeAndSettle([&] { received = coordinator_.events_received_; });
  client_->Stop();
  EXPECT_EQ(coordinator_.events_received_, received) << "stored, and sent no more";
  EXPECT_THAT(coordinator_.events_, SizeIs(1));
}

TEST_F(FleetClientTest, EveryReportOfProgressArrivesOnce) {
  coordinator_.heartbeat_seconds_ = 0.05;
  StartClient();
  client_->SetCurrent("j1", 1);
  for (uint64_t step = 1; step <= 100; ++step) client_->ReportProgress({.step = step, .total_step = step});
  coordinator_.Await([&] { return coordinator_.progress_.size() >= 100; });
  coordinator_.Settle();
  client_->Stop();
  ASSERT_THAT(coordinator_.progress_, SizeIs(100));
  EXPECT_EQ(coordinator_.progress_[0].step(), 1u);
  EXPECT_EQ(coordinator_.progress_[99].step(), 100u);
}

TEST_F(FleetClientTest, APlanIsAskedForOnlyOnce) {
  v1::StudentAssignment* const student = coordinator_.answer_.mutable_student();
  student->set_job_id("j1");
  student->set_generation(3);
  StartClient();
  coordinator_.Settle();
  EXPECT_FALSE(coordinator_.last_beat_.has_plan()) << "it acts on nothing yet";
  client_->SetCurrent("j1", 3);
  coordinator_.Settle();
  client_->Stop();
  EXPECT_TRUE(coordinator_.last_beat_.has_plan());
}

// Another process has taken the id: the work is given up, and the id comes back within a lease of the other's end.
TEST_F(FleetClientTest, ADisplacedWorkerComesBackWhenTheOtherIsGone) {
  coordinator_.lease_seconds_ = 0.05;
  coordinator_.answer_.mutable_student()->set_job_id("j1");
  StartClient();
  coordinator_.Settle();
  size_t registrations = 0;
  {
    absl::MutexLock lock(&coordinator_.mutex_);
    coordinator_.owner_ = "the other";
    registrations = coordinator_.registrations_.size();
  }
  coordinator_.Await([&] { return coordinator_.registrations_.size() >= registrations + 3; });
  {
    absl::MutexLock lock(&coordinator_.mutex_);
    EXPECT_EQ(coordinator_.owner_, "the other") << "no turns are taken";
    for (size_t i = registrations; i < coordinator_.registrations_.size(); ++i) {
      EXPECT_TRUE(coordinator_.registrations_[i].displaced());
    }
    coordinator_.owner_.clear();  // it is lost
  }
  coordinator_.Settle();
  client_->Stop();
  EXPECT_THAT(told_.all(), testing::Contains("revoked"));
}

TEST_F(FleetClientTest, ItCallsAgainSoonWhenADecisionIsDue) {
  coordinator_.heartbeat_seconds_ = 10;
  coordinator_.answer_.set_soon(true);
  StartClient();
  coordinator_.Settle(3);  // within 30 s at 10 s a heartbeat only because it was asked to hurry
  client_->Stop();
}

TEST_F(FleetClientTest, EventsAreBoundedAndMadeValid) {
  StartClient();
  server_.reset();
  for (int i = 0; i < 1200; ++i) client_->ReportEvent("j", EventLevel::kInfo, EventType::kData, StrCat(i));
  client_->ReportEvent("j", EventLevel::kInfo, EventType::kData, "bad \xFF byte");
  client_->ReportEvent("j", EventLevel::kInfo, EventType::kData, std::string(4095, 'x') + "\xC3\xBC tail");
  StartServer(address_);
  coordinator_.Await([&] { return coordinator_.events_.size() == 1000; });
  client_->Stop();
  EXPECT_EQ(coordinator_.events_.front().text(), "202");  // 202 oldest dropped of 1202
  EXPECT_EQ(coordinator_.events_[998].text(), "bad \xEF\xBF\xBD byte");
  EXPECT_EQ(coordinator_.events_[999].text(), std::string(4095, 'x'));
}

TEST_F(FleetClientTest, ReportsRetryUntilAnsweredAndGiveTheAnswer) {
  StartClient();
  const grpc::Status away(grpc::StatusCode::UNAVAILABLE, "starting"),
      unknown(grpc::StatusCode::NOT_FOUND, "unknown worker"),
      aborted(grpc::StatusCode::ABORTED, "generation 2 is over"),
      refused(grpc::StatusCode::FAILED_PRECONDITION, "no such stage");
  const auto answers = [&](std::deque<grpc::Status> statuses) {
    absl::MutexLock lock(&coordinator_.mutex_);
    coordinator_.report_answers_ = std::move(statuses);
  };
  answers({away, unknown, away});
  EXPECT_TRUE(client_
                  ->CommitStage("j1", 2,
                                {.stage = 1,
                                 .digest = "d",
                                 .score = {.metrics = {{"top1", 0.5}}, .by_class = {}},
                                 .loss = 2,
                                 .seconds = 3})
                  .ok());
  answers({away, aborted});
  const Status status = client_->CommitStage("j1", 2, {});
  EXPECT_EQ(status.code(), StatusCode::kAborted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("generation 2 is over"));
  answers({refused});
  EXPECT_EQ(client_->FinishJob("j1", 2, {}).code(), StatusCode::kFailedPrecondition);
  answers({away});
  JobArtifacts artifacts{.safetensors = "s",
                         .torchscript = "t",
                         .safetensors_bytes = 1,
                         .torchscript_bytes = 2,
                         .student_parameters = 3,
                         .teacher_parameters = 4,
                         .teacher_bytes = 5,
                         .student_score = {.metrics = {{"top1", 0.25}},
                                           .by_class = {.labelled = {2, 1},
                                                        .answered = {1, 2},
                                                        .right = {1, 1},
                                                        .confusion = {1, 1, 0, 1}}},
                         .teacher_score = {.metrics = {{"top1", 0.5}}, .by_class = {}}};
  EXPECT_TRUE(client_->FinishJob("j1", 2, artifacts).ok());
  answers({away});
  EXPECT_TRUE(client_->ReportResume("j1", 2, 3, 40, "d").ok());
  EXPECT_TRUE(client_->ReportFailure("j1", 2, FailureKind::kWorker, "no data \xFF").ok());
  client_->Stop();
  ASSERT_THAT(coordinator_.commits_, SizeIs(6));
  EXPECT_EQ(coordinator_.commits_[3].result().digest(), "d");
  EXPECT_EQ(coordinator_.commits_[3].result().score().metrics(0).value(), 0.5);
  EXPECT_EQ(coordinator_.commits_[5].result().score().metrics_size(), 0);
  EXPECT_EQ(coordinator_.commits_[3].result().loss(), 2);
  EXPECT_EQ(coordinator_.commits_[3].result().seconds(), 3);
  ASSERT_THAT(coordinator_.finishes_, SizeIs(3));
  const v1::Artifacts& sent = coordinator_.finishes_[2].artifacts();
  EXPECT_EQ(sent.safetensors(), "s");
  EXPECT_EQ(sent.torchscript(), "t");
  EXPECT_EQ(sent.safetensors_bytes() * 10000 + sent.torchscript_bytes() * 1000 + sent.student_parameters() * 100 +
                sent.teacher_parameters() * 10 + sent.teacher_bytes(),
            12345u);
  EXPECT_EQ(sent.student_score().metrics(0).value(), 0.25);
  EXPECT_EQ(sent.teacher_score().metrics(0).value(), 0.5);
  EXPECT_EQ(sent.student_classes().labelled(0), 2u);
  EXPECT_EQ(sent.student_classes().confusion_size(), 4);
  EXPECT_EQ(sent.teacher_classes().labelled_size(), 0);
  ASSERT_THAT(coordinator_.resumes_, SizeIs(2));
  EXPECT_EQ(coordinator_.resumes_[1].stage(), 3u);
  EXPECT_EQ(coordinator_.resumes_[1].step(), 40u);
  EXPECT_EQ(coordinator_.resumes_[1].checkpoint_digest(), "d");
  // Every message says who speaks.
  const auto signed_by_me = [&](const auto& request) {
    EXPECT_EQ(request.worker_id(), coordinator_.registrations_[0].worker_id());
    EXPECT_EQ(request.incarnation(), coordinator_.registrations_[0].incarnation());
    EXPECT_EQ(request.coordinator_epoch(), 1u);
  };
  signed_by_me(coordinator_.last_beat_);
  signed_by_me(coordinator_.resumes_[1]);
  signed_by_me(coordinator_.commits_[0]);
  signed_by_me(coordinator_.finishes_[0]);
  signed_by_me(coordinator_.failures_.back());
  EXPECT_EQ(coordinator_.registrations_[0].coordinator_epoch(), 0u) << "none heard of yet";
  ASSERT_THAT(coordinator_.failures_, SizeIs(1));
  EXPECT_EQ(coordinator_.failures_[0].message(), "no data \xEF\xBF\xBD");
  EXPECT_EQ(coordinator_.failures_[0].kind(), v1::FAILURE_KIND_WORKER);
}

TEST_F(FleetClientTest, StopUnblocksAReportAndIsIdempotent) {
  StartClient();
  server_.reset();
  auto commit = std::async(std::launch::async, [&] { return client_->CommitStage("j1", 1, {}); });
  client_->Stop();
  client_->Stop();
  EXPECT_EQ(commit.get().code(), StatusCode::kCancelled);
  EXPECT_EQ(client_->FinishJob("j1", 1, {}).code(), StatusCode::kCancelled);
}

TEST_F(FleetClientTest, DrainIsAnsweredBeforeItReturns) {
  StartClient();
  client_->Drain();
  bool draining = false;
  {
    absl::MutexLock lock(&coordinator_.mutex_);
    draining = coordinator_.last_beat_.draining();
  }
  EXPECT_TRUE(draining);
}

// A process that ends asks twice (when its job does not stop, and at the end): all its time is bounded together.
TEST_F(FleetClientTest, DrainGivesUpWithoutACoordinatorAndDoesNotWaitAgain) {
  StartClient();
  server_.reset();
  const absl::Duration start = SteadyNow();
  client_->Drain();
  const absl::Duration first = SteadyNow() - start;
  EXPECT_LT(first, kLong);
  client_->Drain();
  EXPECT_LT(SteadyNow() - start - first, first / 2);
}

// NTP corrects a clock that was an hour ahead: leases must not end for it. In a process of its own, because gRPC's
// timers (which no heartbeat needs as long as there is an answer) do believe the clock.
TEST_F(FleetClientTest, AWallClockThatIsSetBackDelaysNoHeartbeat) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto beat = [this] {
    const WallClockAhead ahead(std::chrono::hours(1));  // of what the kernel waits for
    StartClient();
    coordinator_.Settle();
    std::_Exit(HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(beat(), testing::ExitedWithCode(0), "");
}

TEST_F(FleetClientTest, StartSaysWhereNobodyListens) {
  server_.reset();
  FleetClient::Options options = Options();
  options.connect_timeout = std::chrono::milliseconds(300);
  const Status status = FleetClient::Start(options, {}).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(address_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--coordinator"));
}

TEST_F(FleetClientTest, StartWaitsForACoordinatorThatComesUpLater) {
  server_.reset();
  auto starting = std::async(std::launch::async, [&] { return FleetClient::Start(Options(), {}); });
  StartServer(address_);
  auto client = starting.get();
  EXPECT_TRUE(client.ok()) << client.status();
}

TEST_F(FleetClientTest, StartGivesARefusalAtOnce) {
  coordinator_.register_answer_ = {grpc::StatusCode::INVALID_ARGUMENT, "worker id is empty"};
  const Status status = FleetClient::Start(Options(), {}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker id is empty"));

  const std::string token = testing::TempDir() + "fleet_test_token_" + std::to_string(getpid());
  std::ofstream(token) << "s3cret";
  auto guarded = RpcServer::Start({.security = {.token_file = token}}, {&coordinator_});
  ASSERT_TRUE(guarded.ok()) << guarded.status();
  FleetClient::Options options = Options();
  options.coordinator = (*guarded)->address();
  EXPECT_EQ(FleetClient::Start(options, {}).status().code(), StatusCode::kUnauthenticated);
  std::remove(token.c_str());

  options.coordinator = "nonsense";
  EXPECT_EQ(FleetClient::Start(options, {}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
