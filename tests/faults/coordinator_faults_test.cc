// The real coordinator in trouble: stopped, its store held by somebody else, restarted. Its workers are FleetClients in
// this process that do as students do, without a network to train: what is tried here is who keeps its rank.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"
#include "common/rpc/channel.h"
#include "common/str_cat.h"
#include "coordinator/store/sqlite_database.h"
#include "distill/v1/job.grpc.pb.h"
#include "tests/harness/process.h"

namespace distill::testing {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

// A student that takes its ranks and reports steps; rank 0 commits nothing, so its job never ends by itself.
class FakeStudent {
 public:
  FakeStudent(const std::string& coordinator, const std::string& id) {
    FleetClient::Options options;
    options.coordinator = coordinator;
    options.worker_id = id;
    options.address = "127.0.0.1";
    FleetClient::Callbacks callbacks;
    callbacks.on_student_assignment = [this](std::optional<StudentAssignment> assignment) {
      absl::MutexLock lock(&mutex_);
      next_ = std::move(assignment);
      changed_ = true;
    };
    callbacks.on_cancel = [this] {
      absl::MutexLock lock(&mutex_);
      next_.reset();
      changed_ = true;
    };
    client_ = FleetClient::Start(options, callbacks).value();
    trainer_ = std::thread([this] { Train(); });
  }
  // The process dies: nothing is said any more.
  ~FakeStudent() {
    stop_ = true;
    trainer_.join();
    client_->Stop();
  }
  void Drain() { client_->Drain(); }
  // From now on its data is missing: it fails every job by its own fault.
  void LoseData() { no_data_ = true; }

 private:
  void Train() {
    std::optional<StudentAssignment> job;
    uint64_t step = 0;
    while (!stop_) {
      bool changed = false;
      {
        absl::MutexLock lock(&mutex_);
        changed = std::exchange(changed_, false);
        if (changed) job = next_;
      }
      if (changed) client_->SetCurrent(job ? job->job_id : "", job ? job->generation : 0);
      if (job && no_data_) {
        (void)client_->ReportFailure(job->job_id, job->generation, FailureKind::kWorker, "the data is not here");
        job.reset();
        client_->SetCurrent("", 0);
      }
      if (job && job->rank == 0) {
        ++step;
        client_->ReportProgress({.step = step, .total_step = step, .loss = 1, .time = static_cast<double>(step)});
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  std::unique_ptr<FleetClient> client_;
  std::atomic<bool> stop_{false}, no_data_{false};
  absl::Mutex mutex_;
  std::optional<StudentAssignment> next_ ABSL_GUARDED_BY(mutex_);
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread trainer_;
};

class CoordinatorFaultTest : public ::testing::Test {
 protected:
  // The defaults of --heartbeat and --lease: they are what is promised.
  void StartCoordinator(const std::vector<std::string>& flags = {}) {
    const std::string ready = dir_ / "ready";
    std::remove(ready.c_str());
    std::vector<std::string> argv = {std::string(DISTILL_BIN_DIR) + "/distill-coordinator",
                                     "--state-dir",
                                     dir_ / "state",
                                     "--listen",
                                     address_.empty() ? "127.0.0.1:0" : address_,
                                     "--http-listen",
                                     "off",
                                     "--ready-file",
                                     ready};
    argv.insert(argv.end(), flags.begin(), flags.end());
    coordinator_ = std::make_unique<Process>(argv, Process::Options{.log = dir_ / "coordinator.log"});
    AwaitFor([&] { return ReadFileOrEmpty(ready).find("address=") != std::string::npos; }, "the coordinator is ready");
    const std::string text = ReadFileOrEmpty(ready);
    const size_t begin = text.find("address=") + 8;
    address_ = text.substr(begin, text.find('\n', begin) - begin);
    jobs_ = v1::JobService::NewStub(MakeChannel(address_, {}).value());
  }
  void AddStudents(int count) {
    for (int i = 0; i < count; ++i) {
      const std::string id = StrCat("s", students_.size());
      students_[id] = std::make_unique<FakeStudent>(address_, id);
    }
  }
  std::string Submit(const std::string& name, int students) {
    v1::SubmitJobRequest request;
    request.set_request_id(name);
    request.set_file_name("job.yaml");
    request.set_yaml(StrCat("name: ", name, "\nstudents: ", students, "\nbatch_size: ", 8 * students,
                            "\nstudent: {arch: cifar_resnet8, num_classes: 10, in_channels: 1, image: [28, 28]}\n"
                            "data: {path: fashion-mnist, train_size: 60000}\npreset: scratch\nbudget: {steps: 100}\n"));
    v1::SubmitJobResponse response;
    grpc::ClientContext context;
    const grpc::Status status = jobs_->SubmitJob(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job_id();
  }
  v1::Job Job(const std::string& id) {
    v1::GetJobRequest request;
    request.set_job(id);
    v1::GetJobResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    (void)jobs_->GetJob(&context, request, &response);
    return response.job();
  }
  bool Runs(const std::string& id) {
    const v1::Job job = Job(id);
    return job.state() == v1::JOB_STATE_RUNNING && job.progress().total_step() > 0;
  }
  // Its ranks go on and report.
  void ExpectGoesOn(const std::string& id, uint64_t generation) {
    const uint64_t before = Job(id).progress().total_step();
    AwaitFor([&] { return Job(id).progress().total_step() > before; }, "new steps arrive");
    const v1::Job job = Job(id);
    EXPECT_EQ(job.state(), v1::JOB_STATE_RUNNING) << job.reason();
    EXPECT_EQ(job.generation(), generation) << ReadFileOrEmpty(dir_ / "coordinator.log");
    EXPECT_EQ(job.restarts(), generation - 1);
  }
  template <typename Condition>
  void AwaitFor(const Condition& condition, const char* what) {
    const auto end = Clock::now() + std::chrono::seconds(90);
    while (!condition()) {
      ASSERT_LT(Clock::now(), end) << "never: " << what << "\n" << ReadFileOrEmpty(dir_ / "coordinator.log");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  TempDir dir_;
  std::string address_;
  std::unique_ptr<Process> coordinator_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::map<std::string, std::unique_ptr<FakeStudent>> students_;  // ended before the coordinator
};

class StoppedCoordinatorTest : public CoordinatorFaultTest, public ::testing::WithParamInterface<int> {};

TEST_P(StoppedCoordinatorTest, NoGroupIsLost) {
  StartCoordinator();
  AddStudents(4);
  const std::string a = Submit("a", 2), b = Submit("b", 2);
  AwaitFor([&] { return Runs(a) && Runs(b); }, "both jobs run");
  coordinator_->Signal(SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(GetParam()));
  coordinator_->Signal(SIGCONT);
  std::this_thread::sleep_for(std::chrono::seconds(7));  // a lease and more
  ExpectGoesOn(a, 1);
  ExpectGoesOn(b, 1);
}
INSTANTIATE_TEST_SUITE_P(Seconds, StoppedCoordinatorTest, ::testing::Values(6, 30),
                         [](const auto& info) { return std::to_string(info.param); });

TEST_F(CoordinatorFaultTest, NoGroupIsLostWhileSomebodyHoldsTheStore) {
  StartCoordinator();
  AddStudents(4);
  const std::string a = Submit("a", 2), b = Submit("b", 2);
  AwaitFor([&] { return Runs(a) && Runs(b); }, "both jobs run");
  const uint64_t before = Job(a).progress().total_step();
  {
    auto other = SqliteDatabase::Open(dir_ / "state/coordinator.db").value();
    ASSERT_TRUE(other->Execute("BEGIN IMMEDIATE").ok());
    std::this_thread::sleep_for(std::chrono::seconds(12));
    ASSERT_TRUE(other->Execute("ROLLBACK").ok());
  }
  ExpectGoesOn(a, 1);
  ExpectGoesOn(b, 1);
  EXPECT_GT(Job(a).progress().total_step(), before + 100) << "what was reported meanwhile arrived";
}

TEST_F(CoordinatorFaultTest, ARestartEndsNoLease) {
  StartCoordinator();
  AddStudents(2);
  const std::string job = Submit("a", 2);
  AwaitFor([&] { return Runs(job); }, "the job runs");
  coordinator_->Signal(SIGKILL);
  (void)coordinator_->Wait(std::chrono::seconds(10));
  std::this_thread::sleep_for(std::chrono::seconds(2));
  StartCoordinator();
  std::this_thread::sleep_for(std::chrono::seconds(7));
  ExpectGoesOn(job, 1);
}

// A rolling upgrade of a StatefulSet, a node drained after the other: no budget of restarts is for that.
TEST_F(CoordinatorFaultTest, TwelveRanksAreReplacedOneByOne) {
  StartCoordinator({"--heartbeat", "0.1", "--lease", "5", "--max-restarts", "2"});
  AddStudents(12);
  const std::string job = Submit("big", 12);
  AwaitFor([&] { return Runs(job); }, "the job runs");
  uint64_t generation = 1;
  for (auto& [id, student] : students_) {
    student->Drain();
    student.reset();
    student = std::make_unique<FakeStudent>(address_, id);
    AwaitFor([&] { return Job(job).generation() > generation && Job(job).state() == v1::JOB_STATE_RUNNING; },
             "the group is formed again");
    generation = Job(job).generation();
  }
  EXPECT_EQ(Job(job).state(), v1::JOB_STATE_RUNNING) << Job(job).reason();
  EXPECT_GE(generation, 13u);
}

TEST_F(CoordinatorFaultTest, AStudentWithoutTheDataHurtsNoJob) {
  StartCoordinator({"--heartbeat", "0.1", "--lease", "5"});
  AddStudents(3);
  students_["s0"]->LoseData();
  std::vector<std::string> jobs;
  for (int i = 0; i < 8; ++i) jobs.push_back(Submit(StrCat("job", i), 1));
  const auto s0 = [&]() -> v1::WorkerInfo {
    v1::GetFleetResponse fleet;
    grpc::ClientContext context;
    (void)jobs_->GetFleet(&context, {}, &fleet);
    for (const v1::WorkerInfo& worker : fleet.workers()) {
      if (worker.id() == "s0") return worker;
    }
    return {};
  };
  // The others do all of them, two at a time.
  for (int ended = 0; ended < 8;) {
    for (const std::string& id : jobs) {
      const v1::Job job = Job(id);
      ASSERT_NE(job.state(), v1::JOB_STATE_FAILED) << job.reason();
      if (job.state() == v1::JOB_STATE_CANCELLED || !Runs(id)) continue;
      EXPECT_NE(job.ranks(0), "s0");
      v1::CancelJobRequest request;
      request.set_job(id);
      v1::CancelJobResponse response;
      grpc::ClientContext context;
      ASSERT_TRUE(jobs_->CancelJob(&context, request, &response).ok());
      AwaitFor([&] { return Job(id).state() == v1::JOB_STATE_CANCELLED; }, "the job ends");
      ++ended;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  AwaitFor([&] { return s0().state() == "cordoned"; }, "s0 is cordoned");
  EXPECT_THAT(s0().reason(), HasSubstr("the data is not here"));
}

// Two processes with one id: the newest start has it, the other comes back when that one is gone.
TEST_F(CoordinatorFaultTest, ADisplacedStudentComesBack) {
  StartCoordinator({"--heartbeat", "0.1", "--lease", "1"});
  FakeStudent first(address_, "s0");
  const std::string job = Submit("a", 1);
  AwaitFor([&] { return Runs(job); }, "the job runs");
  {
    FakeStudent second(address_, "s0");
    AwaitFor([&] { return Job(job).generation() == 2 && Runs(job); }, "the second has the rank");
    std::this_thread::sleep_for(std::chrono::seconds(4));
    EXPECT_EQ(Job(job).generation(), 2u) << "they take no turns";
  }
  AwaitFor([&] { return Job(job).generation() == 3 && Job(job).state() == v1::JOB_STATE_RUNNING; },
           "the first has it again");
}

}  // namespace
}  // namespace distill::testing
