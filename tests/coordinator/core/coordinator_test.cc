// The coordinator with a real store and a clock that the test moves.
#include "coordinator/core/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "common/str_cat.h"
#include "coordinator/store/sqlite_database.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"
#include "tests/coordinator/store/store_fixture.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;

class FakeClock : public Clock {
 public:
  double Monotonic() const override { return now; }
  double Wall() const override { return 1e9 + now; }
  std::atomic<double> now{100};
};

class CoordinatorTest : public testing::Test {
 protected:
  // That of s1's process.
  static RendezvousStore::Scope Scope(const std::string& job, uint64_t generation,
                                      const std::string& incarnation = "1") {
    return {job, generation, {"s1", incarnation}};
  }
  static WorkerIdentity Id(const std::string& worker_id, uint64_t epoch = 0) { return {worker_id, "1", epoch}; }
  void SetUp() override { Start(); }
  void Start() {
    coordinator_.reset();
    StatusOr<std::unique_ptr<JobStore>> store = OpenSqliteJobStore(dir_.File("jobs.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    StatusOr<std::unique_ptr<Coordinator>> made = Coordinator::Create({}, *std::move(store), clock_, &metrics_);
    ASSERT_TRUE(made.ok()) << made.status();
    coordinator_ = *std::move(made);
  }
  // Time passes while the coordinator looks.
  void Pass(double seconds) {
    for (const double end = clock_.now + seconds; clock_.now < end;) {
      clock_.now = std::min<double>(end, clock_.now + 0.25);
      coordinator_->Tick();
    }
  }
  Status Register(const std::string& id, WorkerKind kind = WorkerKind::kStudent, const std::string& incarnation = "1",
                  const std::string& job = "", uint64_t generation = 0, bool displaced = false) {
    RegisterInput input;
    input.from.worker_id = id;
    input.from.incarnation = incarnation;
    input.kind = kind;
    input.address = "127.0.0.1:1";
    if (kind == WorkerKind::kTeacher) input.models = Fleet().models;
    input.current_job = job;
    input.current_generation = generation;
    input.displaced = displaced;
    const Status status = coordinator_->Register(input).status();
    coordinator_->Tick();  // which the registration asks for
    return status;
  }
  StatusOr<HeartbeatResult> Beat(const std::string& id, const std::string& job = "", uint64_t generation = 0,
                                 const std::string& incarnation = "1") {
    HeartbeatInput input;
    input.from.worker_id = id;
    input.from.incarnation = incarnation;
    input.job_id = job;
    input.generation = generation;
    return Beat(input);
  }
  // As the client does it: again when a decision is due.
  StatusOr<HeartbeatResult> Beat(const HeartbeatInput& input) {
    StatusOr<HeartbeatResult> result = coordinator_->Heartbeat(input);
    if (!result.ok() || !result->soon) return result;
    coordinator_->Tick();
    return coordinator_->Heartbeat(input);
  }
  StatusOr<SubmitResult> Submit(const std::string& request_id = "r1", const std::string& yaml = kExplicitJob,
                                bool dry_run = false) {
    return coordinator_->Submit({request_id, {yaml, "job.yaml", {}}, dry_run});
  }
  // A teacher, two students, and the job running on them.
  std::string RunJob() {
    EXPECT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
    EXPECT_TRUE(Register("s0").ok());
    EXPECT_TRUE(Register("s1").ok());
    const std::string job = Submit()->job_id;
    EXPECT_EQ(coordinator_->Get(job)->status.state, JobState::kRunning);
    EXPECT_TRUE(Beat("s0", job, 1).ok());
    EXPECT_TRUE(Beat("s1", job, 1).ok());
    return job;
  }
  std::vector<std::string> EventTexts(const std::string& job) {
    std::vector<std::string> texts;
    for (const std::vector<EventRecord> events = coordinator_->Events(job, 0, 1000).value();
         const EventRecord& event : events) {
      texts.push_back(event.text);
    }
    return texts;
  }
  JobStatus StatusOf(const std::string& job) { return coordinator_->Get(job)->status; }

  TempDir dir_;
  FakeClock clock_;
  MetricsRegistry metrics_;
  std::unique_ptr<Coordinator> coordinator_;
};

TEST_F(CoordinatorTest, SubmitIsIdempotentByRequestId) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  const StatusOr<SubmitResult> first = Submit();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->existed);
  clock_.now = clock_.now + 3600;  // the teacher is long gone: the same request is still answered
  const StatusOr<SubmitResult> second = Submit();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(second->existed);
  EXPECT_EQ(second->job_id, first->job_id);
  EXPECT_EQ(second->plan, first->plan);
  EXPECT_EQ(Submit("r1", With(kExplicitJob, "seed: 7", "seed: 8")).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(coordinator_->List(10)->size(), 1u);
  Start();
  EXPECT_TRUE(Submit()->existed) << "also after a restart";
}

TEST_F(CoordinatorTest, ADryRunStoresNothing) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  const StatusOr<SubmitResult> result = Submit("", kExplicitJob, true);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->job_id, "");
  EXPECT_EQ(result->plan.stages.size(), 2u);
  EXPECT_THAT(coordinator_->List(10).value(), IsEmpty());
}

TEST_F(CoordinatorTest, BadRequestsAreRefused) {
  EXPECT_EQ(Submit("").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Submit(std::string(129, 'x')).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Submit("a\nb").status().code(), StatusCode::kInvalidArgument);
  StatusOr<SubmitResult> refused = Submit();
  ASSERT_TRUE(refused.ok()) << refused.status();
  ASSERT_EQ(refused->problems.size(), 1u);
  EXPECT_TRUE(refused->problems[0].of_fleet) << "no teacher";
  EXPECT_EQ(refused->job_id, "");
  refused = Submit("r", "name: [");
  ASSERT_TRUE(refused.ok()) << refused.status();
  ASSERT_EQ(refused->problems.size(), 1u);
  EXPECT_FALSE(refused->problems[0].of_fleet);
  EXPECT_THAT(coordinator_->List(10).value(), IsEmpty());
  for (const auto& spoil : std::vector<std::function<void(RegisterInput*)>>{
           [](RegisterInput* r) { r->from.worker_id = ""; },
           [](RegisterInput* r) { r->from.worker_id = "coordinator"; },
           [](RegisterInput* r) { r->from.worker_id = std::string(129, 'x'); },
           [](RegisterInput* r) { r->from.worker_id = "a\nb"; }, [](RegisterInput* r) { r->from.incarnation = ""; },
           [](RegisterInput* r) { r->address = ""; }, [](RegisterInput* r) { r->models.clear(); },
           [](RegisterInput* r) { r->models[0].name = "../x"; }, [](RegisterInput* r) { r->models[0].digest = ""; },
           [](RegisterInput* r) { r->models.resize(65, r->models[0]); }}) {
    RegisterInput input;
    input.from.worker_id = "t0";
    input.from.incarnation = "1";
    input.kind = WorkerKind::kTeacher;
    input.address = "h:1";
    input.models = Fleet().models;
    spoil(&input);
    EXPECT_EQ(coordinator_->Register(input).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST_F(CoordinatorTest, RunsAJobFromTheFirstStageToTheExport) {
  const std::string job = RunJob();
  StatusOr<HeartbeatResult> beat = Beat("s1", job, 1);
  ASSERT_TRUE(beat.ok() && beat->student);
  EXPECT_EQ(beat->student->rank, 1u);
  EXPECT_EQ(beat->student->world_size, 2u);
  EXPECT_EQ(beat->student->generation, 1u);
  EXPECT_EQ(beat->student->first_stage, 0u);
  EXPECT_EQ(beat->student->plan.name, "mimic-job");
  HeartbeatInput knows;
  knows.from = Id("s1");
  knows.job_id = job;
  knows.generation = 1;
  knows.has_plan = true;
  EXPECT_EQ(coordinator_->Heartbeat(knows)->student->plan.name, "") << "the worker has it";
  EXPECT_EQ(coordinator_->Heartbeat(knows)->student->teachers.size(), 1u);
  ASSERT_EQ(beat->student->teachers.size(), 1u);
  EXPECT_EQ(beat->student->teachers[0].worker_id, "t0");
  EXPECT_THAT(Beat("t0")->teacher_jobs[0].taps, ElementsAre("layer1", ""));

  EXPECT_EQ(coordinator_->FinishJob(Id("s0"), job, 1, {}).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 1}).code(),
            StatusCode::kFailedPrecondition);  // 0 comes first
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 7}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(coordinator_->CommitStage(Id("s1"), job, 1, {.stage = 0}).code(),
            StatusCode::kFailedPrecondition);  // not rank 0
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 2, {.stage = 0}).code(), StatusCode::kAborted);
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .checkpoint = "/w/0", .digest = "d0"}).ok());
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .checkpoint = "/w/0", .digest = "d0"}).ok())
      << "repeated report";
  EXPECT_EQ(coordinator_->Get(job)->stages.size(), 1u);
  beat = Beat("s0", job, 1);
  EXPECT_EQ(beat->student->first_stage, 1u);
  EXPECT_EQ(beat->student->checkpoint, "/w/0");
  EXPECT_EQ(beat->student->checkpoint_digest, "d0");
  EXPECT_THAT(Beat("t0")->teacher_jobs[0].taps, ElementsAre("", "layer3"));

  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 1, .score = {.metrics = {{"top1", 0.9}}}}).ok());
  EXPECT_THAT(Beat("t0")->teacher_jobs, IsEmpty()) << "released";
  EXPECT_THAT(EventTexts(job), Contains("teachers released: no later stage reads them"));
  ASSERT_TRUE(
      coordinator_
          ->FinishJob(Id("s0"), job, 1, {.safetensors = "s.safetensors", .student_score = {.metrics = {{"top1", 0.9}}}})
          .ok());
  EXPECT_TRUE(coordinator_->FinishJob(Id("s0"), job, 1, {.safetensors = "s.safetensors"}).ok()) << "repeated report";
  EXPECT_EQ(coordinator_->FinishJob(Id("s0"), job, 2, {}).code(), StatusCode::kAborted);
  const JobRecord record = coordinator_->Get(job).value();
  EXPECT_EQ(record.status.state, JobState::kSucceeded);
  EXPECT_EQ(record.artifacts.safetensors, "s.safetensors");
  EXPECT_GT(record.status.finished_time, 0);
  EXPECT_FALSE(Beat("s0", job, 1)->student) << "revoked";
}

// Two hosts without a common work folder, a lost volume, a damaged file: rank 0 finds less than was committed.
TEST_F(CoordinatorTest, StagesWhoseCheckpointIsGoneAreDroppedAndTheirTeachersOfferedAgain) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .digest = "old"}).ok());
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 1, .digest = "old"}).ok());
  ASSERT_THAT(Beat("t0")->teacher_jobs, IsEmpty()) << "released";
  EXPECT_THAT(Beat("s0", job, 1)->student->teachers, IsEmpty());
  EXPECT_TRUE(coordinator_->ReportResume(Id("s0"), job, 1, 2, 0, "old").ok()) << "all are there";
  EXPECT_EQ(coordinator_->Get(job)->stages.size(), 2u);
  EXPECT_EQ(coordinator_->ReportResume(Id("s1"), job, 1, 0, 0, "").code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(coordinator_->ReportResume(Id("s0"), job, 2, 0, 0, "").code(), StatusCode::kAborted);
  ASSERT_TRUE(coordinator_->ReportResume(Id("s0"), job, 1, 0, 5, "mid").ok());
  EXPECT_THAT(coordinator_->Get(job)->stages, IsEmpty());
  EXPECT_EQ(Beat("s0", job, 1)->student->first_stage, 0u);
  EXPECT_EQ(Beat("s0", job, 1)->student->teachers.size(), 1u);
  EXPECT_EQ(Beat("t0")->teacher_jobs.size(), 1u);
  EXPECT_THAT(StatusOf(job).reason, HasSubstr("stage 1 of 2"));
  EXPECT_THAT(EventTexts(job),
              Contains(HasSubstr("2 of 2 committed stage(s) are dropped, training goes on at step 5")));
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .digest = "new"}).ok());
  Start();
  ASSERT_EQ(coordinator_->Get(job)->stages.size(), 1u);
  EXPECT_EQ(coordinator_->Get(job)->stages[0].result.digest, "new");
}

TEST_F(CoordinatorTest, AWorkerThatHeardOfANewerCoordinatorIsNotCountedOn) {
  const std::string job = RunJob();
  Pass(4);
  ASSERT_TRUE(Beat("s1", job, 1).ok() && Beat("t0").ok());
  HeartbeatInput beat;
  beat.from = Id("s0", 7);
  beat.job_id = job;
  beat.generation = 1;
  EXPECT_EQ(coordinator_->Heartbeat(beat).status().code(), StatusCode::kFailedPrecondition);
  RegisterInput registration;
  registration.from = Id("s9", 7);
  EXPECT_EQ(coordinator_->Register(registration).status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(coordinator_->CommitStage(Id("s0", 7), job, 1, {.stage = 0}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(coordinator_->ReportFailure(Id("s0", 7), job, 1, FailureKind::kJob, "x").code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  Pass(2);
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued) << "s0's calls did not keep its lease";
}

TEST_F(CoordinatorTest, AnotherProcessOfTheIdReportsNothing) {
  const std::string job = RunJob();
  const WorkerIdentity other{"s0", "other", 0};
  EXPECT_EQ(coordinator_->CommitStage(other, job, 1, {.stage = 0}).code(), StatusCode::kAborted);
  EXPECT_EQ(coordinator_->ReportResume(other, job, 1, 0, 0, "").code(), StatusCode::kAborted);
  EXPECT_EQ(coordinator_->ReportFailure(other, job, 1, FailureKind::kJob, "x").code(), StatusCode::kAborted);
  EXPECT_EQ(coordinator_->FinishJob(other, job, 1, {}).code(), StatusCode::kAborted);
}

TEST_F(CoordinatorTest, ALostMemberBringsANewGeneration) {
  const std::string job = RunJob();
  Pass(4);
  ASSERT_TRUE(Beat("s0", job, 1).ok());
  Pass(2);  // s1 has been silent for 6 s
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued);
  EXPECT_EQ(StatusOf(job).generation, 2u);
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).code(), StatusCode::kAborted);
  EXPECT_EQ(coordinator_->rendezvous().Set(Scope(job, 1), "k", "v").code(), StatusCode::kAborted);
  Pass(0.5);
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  EXPECT_FALSE(Beat("s0", job, 1)->student) << "revoked until the group is complete";
  ASSERT_TRUE(Register("s1", WorkerKind::kStudent, "2").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  const StatusOr<HeartbeatResult> beat = Beat("s1", "", 0, "2");
  ASSERT_TRUE(beat->student);
  EXPECT_EQ(beat->student->generation, 2u);
  EXPECT_EQ(beat->student->rank, 1u);
  EXPECT_TRUE(coordinator_->rendezvous().Set(Scope(job, 2, "2"), "k", "v").ok());
  EXPECT_EQ(StatusOf(job).restarts, 1u);
}

TEST_F(CoordinatorTest, ReportedFailures) {
  const std::string job = RunJob();
  EXPECT_EQ(coordinator_->ReportFailure(Id("s0"), job, 9, FailureKind::kPassing, "x").code(), StatusCode::kAborted);
  EXPECT_EQ(coordinator_->ReportFailure(Id("stranger"), job, 1, FailureKind::kJob, "x").code(), StatusCode::kAborted);
  ASSERT_TRUE(coordinator_->ReportFailure(Id("s0"), job, 1, FailureKind::kPassing, "peer closed").ok());
  EXPECT_EQ(StatusOf(job).generation, 2u);
  EXPECT_EQ(coordinator_->ReportFailure(Id("s1"), job, 1, FailureKind::kPassing, "peer closed").code(),
            StatusCode::kAborted)
      << "the same break, said twice, counts once";
  EXPECT_EQ(StatusOf(job).restarts, 1u);
  Pass(1);
  ASSERT_TRUE(Beat("t0").ok() && Beat("s0", job, 1).ok() && Beat("s1", job, 1).ok());
  ASSERT_EQ(StatusOf(job).state, JobState::kRunning);
  ASSERT_TRUE(coordinator_->ReportFailure(Id("s1"), job, 2, FailureKind::kJob, "the loss does not fit").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kFailed);
  EXPECT_EQ(StatusOf(job).reason, "s1: the loss does not fit");
}

TEST_F(CoordinatorTest, CancelLetsRanksWriteACheckpointFirst) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->Cancel("mimic-job", "enough").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  StatusOr<HeartbeatResult> beat = Beat("s0", job, 1);
  EXPECT_TRUE(beat->cancel);
  EXPECT_TRUE(beat->student) << "not revoked: it is to stop by itself";
  beat = Beat("s0");
  EXPECT_FALSE(beat->student) << "it has stopped and must not be sent back";
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  ASSERT_TRUE(Beat("s1").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kCancelled);
  EXPECT_EQ(StatusOf(job).reason, "cancelled by a user: enough");
  EXPECT_EQ(coordinator_->Cancel(job, "again")->status.state, JobState::kCancelled);
  EXPECT_EQ(coordinator_->Cancel("nobody", "").status().code(), StatusCode::kNotFound);
}

TEST_F(CoordinatorTest, ProgressComesFromRankZeroOfThisGeneration) {
  const std::string job = RunJob();
  const auto report = [&](const std::string& id, uint64_t generation, uint64_t step) {
    HeartbeatInput input;
    input.from.worker_id = id;
    input.from.incarnation = "1";
    input.job_id = job;
    input.generation = generation;
    input.progress = {JobProgress{.step = step, .total_step = step, .time = static_cast<double>(step)}};
    ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
    coordinator_->Tick();
  };
  report("s1", 1, 5);
  report("s0", 7, 5);
  EXPECT_FALSE(coordinator_->Get(job)->has_progress);
  report("s0", 1, 10);
  report("s0", 1, 10);  // the same report in the next heartbeat
  report("s0", 1, 20);
  EXPECT_EQ(coordinator_->Get(job)->progress.step, 20u);
  EXPECT_EQ(coordinator_->History(job)->size(), 2u);
  // Several reports in one heartbeat are as many points.
  HeartbeatInput many;
  many.from = Id("s0");
  many.job_id = job;
  many.generation = 1;
  for (uint64_t step = 30; step <= 32; ++step) {
    many.progress.push_back(JobProgress{.step = step, .total_step = step, .time = static_cast<double>(step)});
  }
  ASSERT_TRUE(coordinator_->Heartbeat(many).ok());
  coordinator_->Tick();
  EXPECT_EQ(coordinator_->History(job)->size(), 5u);
}

TEST_F(CoordinatorTest, AllReportsOfAHeartbeatArePointsAndThoseThatComeAgainAreNot) {
  const std::string job = RunJob();
  HeartbeatInput input;
  input.from.worker_id = "s0";
  input.from.incarnation = "1";
  input.job_id = job;
  input.generation = 1;
  const auto report = [](uint64_t step) {
    return JobProgress{.step = step, .total_step = step, .time = static_cast<double>(step)};
  };
  input.progress = {report(1), report(2), report(3)};
  ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
  input.progress = {report(1), report(2), report(3), report(4)};  // the answer was lost
  ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
  ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
  coordinator_->Tick();
  std::vector<uint64_t> steps;
  const StatusOr<std::vector<JobProgress>> history = coordinator_->History(job);
  ASSERT_TRUE(history.ok()) << history.status();
  for (const JobProgress& point : *history) steps.push_back(point.step);
  EXPECT_EQ(steps, (std::vector<uint64_t>{1, 2, 3, 4}));
  EXPECT_EQ(coordinator_->Get(job)->progress.step, 4u);
}

TEST_F(CoordinatorTest, WorkersEventsAreStoredOnceAndCut) {
  const std::string job = RunJob();
  HeartbeatInput input;
  input.from.worker_id = "s0";
  input.from.incarnation = "1";
  input.job_id = "";  // idle by now; the event belongs to the job it names
  EventRecord event;
  event.text = std::string(10000, 'x');
  event.job_id = job;
  event.source_sequence = 1;
  EventRecord stray = event;
  stray.job_id = "no-such-job";
  event.source_sequence = 2;
  input.events = {stray, event};
  EXPECT_EQ(coordinator_->Heartbeat(input)->events_stored, 0u) << "not durable yet: the worker keeps them";
  EXPECT_EQ(coordinator_->Heartbeat(input)->events_stored, 0u);
  coordinator_->Tick();
  EXPECT_EQ(coordinator_->Heartbeat(input)->events_stored, 2u);
  coordinator_->Tick();
  HeartbeatInput stranger = input;  // a worker that never had a rank of the job
  ASSERT_TRUE(Register("s9").ok());
  stranger.from = Id("s9");
  ASSERT_TRUE(coordinator_->Heartbeat(stranger).ok());
  coordinator_->Tick();
  int found = 0;
  for (const std::vector<EventRecord> events = coordinator_->Events(job, 0, 100).value();
       const EventRecord& e : events) {
    EXPECT_NE(e.source, "s9");
    if (e.source != "s0") continue;
    ++found;
    EXPECT_EQ(e.text.size(), 4096u);
  }
  EXPECT_EQ(found, 1);
}

TEST_F(CoordinatorTest, LastEventsOfAnEndedJobAreKept) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->ReportFailure(Id("s0"), job, 1, FailureKind::kJob, "no").ok());
  HeartbeatInput input;
  input.from = Id("s1");
  EventRecord event;
  event.text = "checkpoint written";
  event.job_id = job;
  event.source_sequence = 1;
  input.events = {event};
  ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
  coordinator_->Tick();
  EXPECT_THAT(EventTexts(job), Contains("checkpoint written"));
  Start();
  ASSERT_TRUE(Register("s1").ok());
  event.text = "and said again after the coordinator's restart";
  event.source_sequence = 2;
  input.events = {event};
  ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
  coordinator_->Tick();
  EXPECT_THAT(EventTexts(job), Contains(event.text));
}

TEST_F(CoordinatorTest, WorkersAreTold) {
  EXPECT_EQ(Beat("nobody").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(Register("s0").ok());
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "2").ok());
  EXPECT_EQ(Beat("s0").status().code(), StatusCode::kAborted) << "the older process of that id";
  EXPECT_TRUE(Beat("s0", "", 0, "2").ok());
  EXPECT_EQ(Register("s0", WorkerKind::kTeacher).code(), StatusCode::kInvalidArgument);
  Pass(6);
  EXPECT_EQ(coordinator_->Fleet()[0].state, "lost");
  Pass(600);
  EXPECT_THAT(coordinator_->Fleet(), IsEmpty());
  EXPECT_EQ(Beat("s0", "", 0, "2").status().code(), StatusCode::kNotFound);
}

TEST_F(CoordinatorTest, WhoSaidGoodbyeIsStoppedAndOffersNothing) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  EXPECT_THAT(Submit("", kExplicitJob, true)->problems, IsEmpty());
  HeartbeatInput goodbye;
  goodbye.from.worker_id = "t0";
  goodbye.from.incarnation = "1";
  goodbye.draining = true;
  ASSERT_TRUE(coordinator_->Heartbeat(goodbye).ok());
  EXPECT_EQ(coordinator_->Fleet()[0].state, "draining");
  const StatusOr<SubmitResult> refused = Submit("", kExplicitJob, true);
  ASSERT_EQ(refused->problems.size(), 1u);
  EXPECT_THAT(refused->problems[0].text, HasSubstr("no live teacher serves 'fashion' (served now: nothing)"));
  Pass(6);
  EXPECT_EQ(coordinator_->Fleet()[0].state, "stopped");
}

TEST_F(CoordinatorTest, FleetSaysWhatEverybodyDoes) {
  const std::string job = RunJob();
  ASSERT_TRUE(Register("s2").ok());
  std::map<std::string, std::string> states;
  for (const WorkerStatus& status : coordinator_->Fleet()) states[status.worker.id] = status.state;
  EXPECT_THAT(states, ElementsAre(testing::Pair("s0", "training"), testing::Pair("s1", "training"),
                                  testing::Pair("s2", "idle"), testing::Pair("t0", "serving")));
}

TEST_F(CoordinatorTest, ARestartContinuesTheJobUnderTheSameGeneration) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .checkpoint = "/w/0", .digest = "d0"}).ok());
  Start();
  EXPECT_EQ(coordinator_->epoch(), 2u);
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  EXPECT_EQ(Beat("s0", job, 1).status().code(), StatusCode::kNotFound) << "register again";
  Pass(20);  // Kubernetes takes a while to send workers to the new pod
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "1", job, 1).ok());
  ASSERT_TRUE(Register("s1", WorkerKind::kStudent, "1", job, 1).ok());
  for (int i = 0; i < 40; ++i) {  // past the grace
    Pass(1);
    ASSERT_TRUE(Beat("s0", job, 1).ok() && Beat("s1", job, 1).ok());
  }
  ASSERT_TRUE(Beat("s0", job, 1).ok() && Beat("s1", job, 1).ok());
  const StatusOr<HeartbeatResult> beat = Beat("s0", job, 1);
  ASSERT_TRUE(beat->student);
  EXPECT_EQ(beat->student->generation, 1u);
  EXPECT_EQ(beat->student->first_stage, 1u);
  EXPECT_EQ(beat->student->checkpoint_digest, "d0");
  EXPECT_TRUE(coordinator_->rendezvous().Set(Scope(job, 1), "k", "v").ok());
  EXPECT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 1}).ok());
  EXPECT_EQ(StatusOf(job).restarts, 0u);
}

TEST_F(CoordinatorTest, ARestartNoticesMembersThatDoNotReturn) {
  const std::string job = RunJob();
  Start();
  Pass(300);
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning) << "nobody can reach this coordinator yet";
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "1", job, 1).ok());
  for (int i = 0; i < 29; ++i) {
    Pass(1);
    ASSERT_TRUE(Beat("s0", job, 1).ok());
  }
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  Pass(1.5);
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued);
  EXPECT_EQ(StatusOf(job).generation, 2u);
  EXPECT_THAT(EventTexts(job), Contains(HasSubstr("s1 did not return within 30 s of the coordinator's restart")));
}

TEST_F(CoordinatorTest, AMemberThatReturnsAsAnotherProcessIsLostAtOnce) {
  const std::string job = RunJob();
  Start();
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "2").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued);
  EXPECT_THAT(EventTexts(job), Contains(HasSubstr("group lost: s0 was restarted")));
}

// A stopped process, a paused machine, a starved host: nobody listened, so nobody was silent.
TEST_F(CoordinatorTest, ItsOwnSilenceIsNobodysDeath) {
  const std::string job = RunJob();
  for (const double pause : {6.0, 30.0, 3600.0}) {
    clock_.now = clock_.now + pause;
    coordinator_->Tick();
    Pass(4);  // the workers' connections need a moment
    EXPECT_EQ(StatusOf(job).state, JobState::kRunning) << pause;
    ASSERT_TRUE(Beat("s0", job, 1).ok() && Beat("s1", job, 1).ok() && Beat("t0").ok());
    EXPECT_THAT(coordinator_->Fleet(), Each(Field(&WorkerStatus::state, AnyOf("training", "serving"))));
  }
  EXPECT_EQ(StatusOf(job).generation, 1u);
  EXPECT_EQ(StatusOf(job).restarts, 0u);
  // A worker that is dead is found all the same, also by a coordinator that is late again and again.
  for (int i = 0; i < 12; ++i) {
    clock_.now = clock_.now + 4;
    coordinator_->Tick();
    Pass(0.5);
    (void)Beat("s0", job, 1);
  }
  EXPECT_EQ(StatusOf(job).generation, 2u);
}

// The store is held by somebody else: leases go on, reports wait.
TEST_F(CoordinatorTest, NobodysHeartbeatWaitsForTheStore) {
  const std::string job = RunJob();
  auto other = SqliteDatabase::Open(dir_.File("jobs.db")).value();
  ASSERT_TRUE(other->Execute("BEGIN IMMEDIATE").ok());
  std::atomic<bool> done{false};
  std::thread deciding([&] {  // a decision that wants to write, and a commit
    EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).code(), StatusCode::kUnavailable);
    done = true;
  });
  int beats = 0;
  while (!done) {
    HeartbeatInput input;
    input.from = Id("s0");
    input.job_id = job;
    input.generation = 1;
    ++beats;
    input.progress = {JobProgress{.step = 1, .time = static_cast<double>(beats)}};
    ASSERT_TRUE(coordinator_->Heartbeat(input).ok());
    ASSERT_TRUE(coordinator_->health().ok());
    ASSERT_FALSE(coordinator_->Fleet().empty());
    absl::SleepFor(absl::Milliseconds(5));
  }
  deciding.join();
  EXPECT_GT(beats, 10) << "the commit waited for about a second";
  coordinator_->Tick();
  EXPECT_FALSE(coordinator_->Get(job)->has_progress);
  ASSERT_TRUE(other->Execute("ROLLBACK").ok());
  coordinator_->Tick();
  EXPECT_EQ(coordinator_->History(job)->size(), static_cast<size_t>(beats)) << "nothing was lost meanwhile";
  EXPECT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).ok());
  EXPECT_EQ(StatusOf(job).generation, 1u);
}

TEST_F(CoordinatorTest, AFailureThatCouldNotBeStoredIsNotAcknowledged) {
  const std::string job = RunJob();
  auto other = SqliteDatabase::Open(dir_.File("jobs.db")).value();
  ASSERT_TRUE(other->Execute("BEGIN IMMEDIATE").ok());
  EXPECT_EQ(coordinator_->ReportFailure(Id("s0"), job, 1, FailureKind::kJob, "x").code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  ASSERT_TRUE(other->Execute("ROLLBACK").ok());
  EXPECT_TRUE(coordinator_->ReportFailure(Id("s0"), job, 1, FailureKind::kJob, "x").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kFailed);
}

// One bad student, many jobs.
TEST_F(CoordinatorTest, AWorkersFaultSetsItAsideAndAfterThreeJobsAltogether) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  for (const char* id : {"s0", "s1", "s2"}) ASSERT_TRUE(Register(id).ok());
  const std::string yaml = With(kExplicitJob, "students: 2", "students: 1");
  std::vector<std::string> jobs;
  for (int i = 0; i < 8; ++i) jobs.push_back(Submit("r" + std::to_string(i), yaml)->job_id);
  std::map<std::string, std::pair<std::string, uint64_t>> acts = {{"s0", {}}, {"s1", {}}, {"s2", {}}};
  int failures = 0;
  for (int i = 0; i < 200; ++i) {
    Pass(0.25);
    (void)Beat("t0");
    for (auto& [id, current] : acts) {
      const StatusOr<HeartbeatResult> beat = Beat(id, current.first, current.second);
      ASSERT_TRUE(beat.ok());
      if (!beat->student) {
        current = {};
        continue;
      }
      current = {beat->student->job_id, beat->student->generation};
      if (id == "s0") {
        ++failures;
        ASSERT_TRUE(coordinator_
                        ->ReportFailure(Id(id), current.first, current.second, FailureKind::kWorker,
                                        "the data folder is not here")
                        .ok());
        current = {};
      } else if (coordinator_->CommitStage(Id(id), current.first, current.second, {.stage = 0}).ok() &&
                 coordinator_->CommitStage(Id(id), current.first, current.second, {.stage = 1}).ok()) {
        ASSERT_TRUE(coordinator_->FinishJob(Id(id), current.first, current.second, {}).ok());
        current = {};
      }
    }
  }
  for (const std::string& job : jobs) EXPECT_EQ(StatusOf(job).state, JobState::kSucceeded) << StatusOf(job).reason;
  EXPECT_EQ(failures, 3);
  const auto fleet = coordinator_->Fleet();
  EXPECT_EQ(fleet[0].worker.id, "s0");
  EXPECT_EQ(fleet[0].state, "cordoned");
  EXPECT_THAT(fleet[0].reason, AllOf(HasSubstr("failed 3 jobs"), HasSubstr("the data folder is not here")));
  EXPECT_EQ(coordinator_->Uncordon("nobody").code(), StatusCode::kNotFound);
  ASSERT_TRUE(coordinator_->Uncordon("s0").ok());
  EXPECT_EQ(coordinator_->Fleet()[0].state, "idle");
}

TEST_F(CoordinatorTest, WhatFailsOnEveryStudentIsTheJobsFault) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  for (const char* id : {"s0", "s1"}) ASSERT_TRUE(Register(id).ok());
  const auto fail_everywhere = [this](const std::string& request) {
    const std::string job = Submit(request, With(kExplicitJob, "students: 2", "students: 1"))->job_id;
    for (int i = 0; i < 40 && !IsEnded(StatusOf(job).state); ++i) {
      Pass(0.25);
      (void)Beat("t0");
      for (const char* id : {"s0", "s1"}) {
        const auto beat = Beat(id);
        if (!beat->student) continue;
        EXPECT_TRUE(
            coordinator_
                ->ReportFailure(Id(id), job, beat->student->generation, FailureKind::kWorker, StrCat("no data at ", id))
                .ok());
      }
    }
    return job;
  };
  const std::string job = fail_everywhere("r");
  EXPECT_EQ(StatusOf(job).state, JobState::kFailed);
  EXPECT_EQ(StatusOf(job).reason, "every live student failed it: s0: no data at s0; s1: no data at s1");
  // More of the kind cordon nobody.
  for (const char* request : {"r2", "r3", "r4"}) {
    EXPECT_EQ(StatusOf(fail_everywhere(request)).state, JobState::kFailed) << request;
  }
  for (const auto& one : coordinator_->Fleet()) EXPECT_NE(one.state, "cordoned") << one.worker.id;
  Start();
  EXPECT_EQ(StatusOf(job).set_aside.size(), 2u);
}

TEST_F(CoordinatorTest, FaultsOfAllRanksCountThoughTheFirstReportEndsTheGroup) {
  const std::string job = RunJob();
  const auto report = [&](const char* id) {
    return coordinator_->ReportFailure(Id(id), job, 1, FailureKind::kWorker, StrCat("no data at ", id));
  };
  ASSERT_TRUE(report("s0").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued);
  EXPECT_EQ(coordinator_->ReportFailure(Id("s1"), job, 1, FailureKind::kPassing, "late").code(), StatusCode::kAborted);
  ASSERT_TRUE(report("s1").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kFailed);
  EXPECT_EQ(StatusOf(job).reason, "every live student failed it: s0: no data at s0; s1: no data at s1");
}

TEST_F(CoordinatorTest, AnEndedJobCanGoOn) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0, .digest = "d0"}).ok());
  EXPECT_EQ(coordinator_->Resume("nobody").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(coordinator_->Resume(job)->status.generation, 1u) << "it runs: no effect";
  ASSERT_TRUE(coordinator_->Cancel(job, "enough").ok());
  EXPECT_EQ(coordinator_->Resume(job).status().code(), StatusCode::kFailedPrecondition) << "ranks write a checkpoint";
  ASSERT_TRUE(Beat("s0").ok() && Beat("s1").ok());
  ASSERT_EQ(StatusOf(job).state, JobState::kCancelled);
  const StatusOr<JobRecord> resumed = coordinator_->Resume(job);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->status.state, JobState::kRunning);
  EXPECT_EQ(resumed->status.generation, 2u);
  EXPECT_FALSE(resumed->status.cancel_requested);
  EXPECT_EQ(coordinator_->Resume(job)->status.generation, 2u) << "said twice is said once";
  const StatusOr<HeartbeatResult> beat = Beat("s0");
  ASSERT_TRUE(beat->student);
  EXPECT_FALSE(beat->cancel);
  EXPECT_EQ(beat->student->first_stage, 1u);
  EXPECT_EQ(beat->student->checkpoint_digest, "d0");
  EXPECT_TRUE(coordinator_->rendezvous().Set(Scope(job, 2), "k", "v").ok()) << "its end must not block its second life";
  EXPECT_THAT(EventTexts(job),
              Contains("resumed by a user as generation 2; it was cancelled: cancelled by a user: enough"));
  Start();
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 2, {.stage = 1}).ok());
  ASSERT_TRUE(coordinator_->FinishJob(Id("s0"), job, 2, {}).ok());
  EXPECT_EQ(coordinator_->Resume(job).status().code(), StatusCode::kFailedPrecondition) << "it has succeeded";
}

TEST_F(CoordinatorTest, AResumedJobHasAFreshBudget) {
  const std::string job = RunJob();
  for (uint64_t generation = 1; StatusOf(job).state == JobState::kRunning && generation < 50; ++generation) {
    ASSERT_TRUE(coordinator_->ReportFailure(Id("s0"), job, generation, FailureKind::kPassing, "again").ok());
    Pass(0.5);
    ASSERT_TRUE(Beat("t0").ok() && Beat("s0").ok() && Beat("s1").ok());
  }
  ASSERT_EQ(StatusOf(job).state, JobState::kFailed);
  EXPECT_THAT(StatusOf(job).reason, HasSubstr("10 times in a row without any progress"));
  ASSERT_TRUE(coordinator_->Resume(job).ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kRunning);
  ASSERT_TRUE(
      coordinator_->ReportFailure(Id("s0"), job, StatusOf(job).generation, FailureKind::kPassing, "again").ok());
  EXPECT_EQ(StatusOf(job).state, JobState::kQueued);
}

// A process that another one has displaced from its id gets it back when that one is gone, and not before.
TEST_F(CoordinatorTest, TheNewestStartHasTheId) {
  ASSERT_TRUE(Register("s0").ok());
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "2").ok());
  EXPECT_EQ(Beat("s0").status().code(), StatusCode::kAborted);
  EXPECT_EQ(Register("s0", WorkerKind::kStudent, "1", "", 0, /*displaced=*/true).code(), StatusCode::kAborted);
  EXPECT_TRUE(Beat("s0", "", 0, "2").ok()) << "no turns are taken";
  Pass(5.5);
  EXPECT_TRUE(Register("s0", WorkerKind::kStudent, "1", "", 0, /*displaced=*/true).ok());
  EXPECT_TRUE(Beat("s0").ok());
}

// A trainer that hangs while its heartbeat lives.
TEST_F(CoordinatorTest, AStuckStudentHoldsUpNobody) {
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  ASSERT_TRUE(Register("s0", WorkerKind::kStudent, "1", "ghost", 1).ok());
  ASSERT_TRUE(Register("s1").ok());
  const std::string two = Submit()->job_id;
  const std::string one = Submit("r2", With(kExplicitJob, "students: 2", "students: 1"))->job_id;
  EXPECT_EQ(StatusOf(one).wait, JobWait::kLine);
  for (int i = 0; i < 62; ++i) {
    Pass(1);
    ASSERT_TRUE(Beat("t0").ok() && Beat("s0", "ghost", 1).ok() && Beat("s1").ok());
  }
  EXPECT_EQ(StatusOf(two).reason,
            "waiting for 2 students: 0 free, 1 alive; s0 is stuck in job ghost; start 1 more: distill-student "
            "--coordinator ADDRESS");
  EXPECT_EQ(StatusOf(one).state, JobState::kRunning);
  EXPECT_EQ(coordinator_->Fleet()[0].state, "stuck");
  coordinator_->Tick();
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("distill_coordinator_workers{kind=\"student\",state=\"stuck\"} 1"));
  EXPECT_THAT(coordinator_->Fleet()[0].reason, HasSubstr("has not left job ghost"));
}

TEST_F(CoordinatorTest, ACancelledJobEndsThoughAMemberHangs) {
  const std::string job = RunJob();
  ASSERT_TRUE(coordinator_->Cancel(job, "").ok());
  for (int i = 0; i < 61; ++i) {
    Pass(1);
    ASSERT_TRUE(Beat("t0").ok() && Beat("s0", job, 1).ok() && Beat("s1").ok());
  }
  EXPECT_EQ(StatusOf(job).state, JobState::kCancelled);
  EXPECT_EQ(StatusOf(job).reason,
            "cancelled by a user; s0 did not stop within 60 s and may have written no checkpoint");
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).code(), StatusCode::kAborted) << "fenced";
}

TEST_F(CoordinatorTest, ADamagedJobFailsAndTheOthersGoOn) {
  const std::string job = RunJob();
  const std::string other = Submit("r2")->job_id;
  coordinator_.reset();
  {
    auto db = SqliteDatabase::Open(dir_.File("jobs.db")).value();
    ASSERT_TRUE(db->Query("UPDATE jobs SET plan = X'FFFFFF' WHERE id = ?").Text(job).Run().ok());
  }
  Start();
  EXPECT_EQ(StatusOf(job).state, JobState::kFailed);
  EXPECT_THAT(StatusOf(job).reason, HasSubstr("its plan cannot be parsed"));
  EXPECT_EQ(StatusOf(other).state, JobState::kQueued);
  EXPECT_EQ(coordinator_->List(10)->size(), 2u);
  EXPECT_EQ(coordinator_->Resume(job).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(CoordinatorTest, ASecondCoordinatorTakesOverAndTheFirstStops) {
  const std::string job = RunJob();
  auto newer = OpenSqliteJobStore(dir_.File("jobs.db")).value();
  ASSERT_TRUE(coordinator_->health().ok());
  EXPECT_EQ(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).code(), StatusCode::kUnavailable)
      << "the worker is to try again, at the new one";
  EXPECT_EQ(coordinator_->health().code(), StatusCode::kAborted);
  EXPECT_EQ(Beat("s0", job, 1).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Submit("r2").status().code(), StatusCode::kUnavailable);
  Start();
  auto third = OpenSqliteJobStore(dir_.File("jobs.db")).value();
  coordinator_->Tick();  // an idle one notices too
  EXPECT_EQ(coordinator_->health().code(), StatusCode::kAborted);
  EXPECT_THAT(newer->Get(job)->stages, IsEmpty());
}

TEST_F(CoordinatorTest, WatchersAreToldOfChanges) {
  const std::string job = RunJob();
  int calls = 0;
  coordinator_->feed().Subscribe(job, [&] { ++calls; });
  ASSERT_TRUE(Beat("s0", job, 1).ok());
  coordinator_->Tick();
  EXPECT_EQ(calls, 0) << "nothing changed";
  ASSERT_TRUE(coordinator_->CommitStage(Id("s0"), job, 1, {.stage = 0}).ok());
  EXPECT_GE(calls, 1);
}

TEST_F(CoordinatorTest, ListsTapsOfZooAndServedModels) {
  ModelSpec spec;
  spec.arch = "cifar_resnet8";
  EXPECT_EQ(coordinator_->ListTaps(spec)->spec.image_height, 32u);
  spec.image_height = spec.image_width = 28;
  spec.in_channels = 1;
  const TapListing listing = coordinator_->ListTaps(spec).value();
  const auto layer1 =
      std::find_if(listing.taps.begin(), listing.taps.end(), [](const ServedTap& tap) { return tap.path == "layer1"; });
  ASSERT_NE(layer1, listing.taps.end());
  EXPECT_THAT(layer1->shape, ElementsAre(16u, 28u, 28u));
  EXPECT_TRUE(layer1->stage_end);
  spec.arch = "fashion";
  EXPECT_EQ(coordinator_->ListTaps(spec).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(Register("t0", WorkerKind::kTeacher).ok());
  EXPECT_EQ(coordinator_->ListTaps(spec)->spec.arch, "cifar_resnet20");
  spec.arch = "fashoin";
  EXPECT_THAT(std::string(coordinator_->ListTaps(spec).status().message()), HasSubstr("did you mean 'fashion'?"));
}

TEST_F(CoordinatorTest, MetricsTellOfAJobWithoutTeacher) {
  RunJob();
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("distill_coordinator_jobs_without_teacher 0"));
  Pass(6);  // a lease, in which nobody calls
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("distill_coordinator_jobs_without_teacher 1"));
}

TEST_F(CoordinatorTest, MetricsFollowTheCluster) {
  RunJob();
  (void)Submit("bad", "nonsense");
  const std::string text = metrics_.Serialize();
  for (const char* line :
       {"distill_coordinator_jobs{state=\"running\"} 1",
        "distill_coordinator_workers{kind=\"student\",state=\"alive\"} 2",
        "distill_coordinator_workers{kind=\"teacher\",state=\"alive\"} 1", "distill_coordinator_epoch 1",
        "distill_coordinator_submissions_total{result=\"accepted\"} 1",
        "distill_coordinator_submissions_total{result=\"refused\"} 1",
        "distill_coordinator_heartbeats_total{kind=\"student\"} 4", "distill_coordinator_generation_changes_total 1"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(CoordinatorTest, OptionsMustMakeSense) {
  Coordinator::Options options;
  options.lease_seconds = 1;
  const Status status =
      Coordinator::Create(options, OpenSqliteJobStore(":memory:").value(), clock_, &metrics_).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace distill
