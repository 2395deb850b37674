// Whole jobs without a coordinator: ranks are threads, the coordinator's side is recorded. Data, network, group,
// checkpoints and exports are the real ones.
#include "student_worker/train/job_runner.h"

#include <nlohmann/json.hpp>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>

#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/metrics/metrics.h"
#include "common/safetensors/safetensors.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/training_images.h"
#include "student_worker/train/student_agent.h"
#include "student_worker/train/student_archives.h"
#include "tests/common/zoo/archive_fixture.h"
#include "tests/student_worker/train/temp_folder.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
namespace fs = std::filesystem;

// What a rank told the coordinator, in order; always acknowledged. `on_progress` runs on the training thread.
class RecordedFleet : public FleetClient {
 public:
  void SetCurrent(const std::string& job_id, uint64_t) override {
    absl::MutexLock lock(&mutex_);
    current_ = job_id;
  }
  void ReportProgress(const JobProgress& progress) override {
    if (on_progress) on_progress(progress);
    absl::MutexLock lock(&mutex_);
    progress_.push_back(progress);
  }
  void ReportEvent(const std::string&, EventLevel, EventType, const std::string& text) override {
    absl::MutexLock lock(&mutex_);
    events_.push_back(text);
  }
  WorkerIdentity identity() const override { return {"worker", "1", 1}; }
  Status ReportResume(const std::string&, uint64_t, uint32_t stage, uint64_t step, const std::string& digest) override {
    absl::MutexLock lock(&mutex_);
    resumes_.push_back({stage, step, digest});
    known_stages = std::min(known_stages, stage);
    return resume_status;
  }
  Status CommitStage(const std::string&, uint64_t, const JobStageResult& result) override {
    absl::MutexLock lock(&mutex_);
    if (forgets_before == result.stage) {
      forgets_before = 0;
      known_stages = 0;
    }
    if (result.stage > known_stages) {
      return absl::FailedPreconditionError("an earlier stage is not committed yet");
    }
    if (result.stage == known_stages && commit_status.ok()) ++known_stages;
    commits_.push_back(result);
    return commit_status;
  }
  Status FinishJob(const std::string&, uint64_t, const JobArtifacts& artifacts) override {
    absl::MutexLock lock(&mutex_);
    finished_.push_back(artifacts);
    return OkStatus();
  }
  Status ReportFailure(const std::string&, uint64_t, FailureKind, const std::string& message) override {
    absl::MutexLock lock(&mutex_);
    failures_.push_back(message);
    return OkStatus();
  }
  void Drain() override {}
  void Stop() override {}

  struct Resumed {
    uint32_t stage;
    uint64_t step;
    std::string digest;
  };

  std::function<void(const JobProgress&)> on_progress;
  Status resume_status;         // what ReportResume answers; set before the job starts
  Status commit_status;         // what CommitStage answers; set before the job starts
  uint32_t known_stages = 0;    // committed in earlier generations; set before the job starts
  uint32_t forgets_before = 0;  // all commits are forgotten when this stage's comes: a store restored from a copy

  std::vector<JobProgress> progress() const { return Copy(progress_); }
  std::vector<std::string> events() const { return Copy(events_); }
  std::vector<JobStageResult> commits() const { return Copy(commits_); }
  std::vector<JobArtifacts> finished() const { return Copy(finished_); }
  std::vector<std::string> failures() const { return Copy(failures_); }
  std::vector<Resumed> resumes() const { return Copy(resumes_); }
  // Waits until the worker is idle again after `jobs` jobs were finished or failed.
  void AwaitIdle(size_t jobs) const {
    absl::MutexLock lock(&mutex_);
    auto idle = [&] { return current_.empty() && finished_.size() + failures_.size() >= jobs; };
    mutex_.Await(absl::Condition(&idle));
  }

 private:
  template <typename T>
  T Copy(const T& value) const {
    absl::MutexLock lock(&mutex_);
    return value;
  }
  mutable absl::Mutex mutex_;
  std::string current_;
  std::vector<JobProgress> progress_;
  std::vector<std::string> events_;
  std::vector<JobStageResult> commits_;
  std::vector<JobArtifacts> finished_;
  std::vector<std::string> failures_;
  std::vector<Resumed> resumes_;
};

void AppendBigEndian(std::string* out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}

// MNIST-style files with the images of SyntheticSource.
void WriteIdx(const std::string& folder, const std::string& prefix, uint64_t seed, uint32_t images) {
  std::vector<uint8_t> pixels;
  std::vector<int64_t> labels;
  SyntheticSource::Batch(seed, images, &pixels, &labels);
  std::string image_file, label_file;
  for (uint32_t value : {0x803u, images, 12u, 12u}) AppendBigEndian(&image_file, value);
  image_file.append(pixels.begin(), pixels.end());
  for (uint32_t value : {0x801u, images}) AppendBigEndian(&label_file, value);
  for (int64_t label : labels) label_file.push_back(static_cast<char>(label));
  WriteAll(folder + "/" + prefix + "-images-idx3-ubyte", image_file);
  WriteAll(folder + "/" + prefix + "-labels-idx1-ubyte", label_file);
}

// The machine room of one test: data, a work folder that generations share, and rendezvous stores.
class JobRunnerTest : public testing::Test {
 protected:
  JobRunnerTest() {
    fs::create_directories(folder_ / "data/shapes");
    fs::create_directories(folder_ / "models");
    WriteIdx(folder_ / "data/shapes", "train", 1, 256);
    WriteIdx(folder_ / "data/shapes", "t10k", 2, 128);
  }

  JobPlan Plan(uint32_t ranks, uint64_t steps = 12) {
    StagePlan early = Stage("head", {"fc"}, {CrossEntropy()}, 6);
    StagePlan whole = Stage("whole", WholeNet(), {CrossEntropy()}, steps);
    JobPlan plan = SmallPlan({early, whole});
    plan.students = ranks;
    plan.data.path = "shapes";
    plan.data.train_transforms = {{"pad_crop", {{"padding", {1}}}}};
    plan.log_every = 1;
    plan.checkpoint_every = 5;
    return plan;
  }

  // The same stages for a network of the worker's model folder.
  JobPlan ArchivePlan(uint32_t ranks, double dropout = 0.0) {
    WriteOwnNetwork(folder_ / "models", "own", dropout);
    archives_ = std::make_shared<const StudentArchives>(Take(LoadStudentArchives(folder_ / "models")));
    EXPECT_THAT(archives_->left_out, IsEmpty());
    JobPlan plan = Plan(ranks);
    plan.student = archives_->descriptions.at(0).spec;
    plan.stages[0].trainable = {"scale", "fc"};
    plan.stages[1].trainable = {"scale", "conv1", "bn1", "layer1", "layer2", "fc"};
    return plan;
  }

  struct Ended {
    std::vector<JobOutcome> outcomes;
    std::vector<std::unique_ptr<RecordedFleet>> fleets;
  };
  // Runs one generation of a job on all ranks. `set_up` may install hooks.
  Ended Run(const JobPlan& plan, const std::string& work,
            const std::function<void(uint32_t, RecordedFleet*, JobControl*)>& set_up = nullptr,
            uint32_t first_stage = 0) {
    Ended ended;
    ++generation_;
    const std::shared_ptr<KvClient> store = MakeLocalKvClient();
    ended.outcomes.resize(plan.students);
    for (uint32_t rank = 0; rank < plan.students; ++rank) ended.fleets.push_back(std::make_unique<RecordedFleet>());
    std::vector<std::unique_ptr<JobControl>> controls;
    for (uint32_t rank = 0; rank < plan.students; ++rank)
      controls.push_back(std::make_unique<JobControl>(std::vector<TeacherEndpoint>()));
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < plan.students; ++rank) {
      ended.fleets[rank]->known_stages = first_stage;
      if (set_up) set_up(rank, ended.fleets[rank].get(), controls[rank].get());
      threads.emplace_back([&, rank] {
        MetricsRegistry registry;
        TrainMetrics metrics(&registry);
        JobEnvironment environment = Environment(work, &registry, &metrics);
        if (data_roots_.contains(rank)) environment.data_root = data_roots_.at(rank);
        environment.fleet = ended.fleets[rank].get();
        environment.make_store = [&store](const std::string&, uint64_t) {
          return StatusOr<std::shared_ptr<KvClient>>(store);
        };
        environment.wrap_group = wrap_group_;
        ended.outcomes[rank] = RunJob(Assignment(plan, rank, first_stage), environment, controls[rank].get());
      });
    }
    for (std::thread& thread : threads) thread.join();
    return ended;
  }
  StudentAssignment Assignment(const JobPlan& plan, uint32_t rank, uint32_t first_stage = 0) {
    StudentAssignment assignment;
    assignment.job_id = "job-1";
    assignment.generation = generation_;
    assignment.rank = rank;
    assignment.world_size = plan.students;
    assignment.plan = plan;
    assignment.first_stage = first_stage;
    if (first_stage > 0) assignment.checkpoint_digest = committed_digest_;
    return assignment;
  }
  JobEnvironment Environment(const std::string& work, MetricsRegistry* registry, TrainMetrics* metrics) {
    JobEnvironment environment;
    environment.metrics = metrics;
    environment.registry = registry;
    environment.worker_id = "s";
    environment.data_root = folder_ / "data";
    environment.work_dir = folder_ / work;
    environment.model_root = folder_ / "models";
    environment.device = "cpu";
    environment.collective_timeout = std::chrono::seconds(20);
    environment.write_patience = write_patience_;
    environment.archives = archives_;
    return environment;
  }
  std::string Student(const std::string& work) { return ReadAll(folder_ / (work + "/job-1/student.safetensors")); }
  // Stage and step of those in the work folder: "stage-1-step-40".
  std::vector<std::string> Checkpoints(const std::string& work) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_ / (work + "/job-1/checkpoints"))) {
      const std::string name = entry.path().filename();
      if (name != "generation") names.push_back(name.substr(0, name.find("-gen-")));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // The folder of one of them.
  std::string CheckpointPath(const std::string& work, const std::string& checkpoint) {
    for (const auto& entry : fs::directory_iterator(folder_ / (work + "/job-1/checkpoints"))) {
      if (entry.path().filename().string().starts_with(checkpoint + "-gen-")) return entry.path();
    }
    return "";
  }

  TempFolder folder_;
  uint64_t generation_ = 0;
  std::chrono::milliseconds write_patience_{300};
  std::map<uint32_t, std::string> data_roots_;  // of ranks that have one of their own
  std::string committed_digest_;                // as the coordinator knows it
  decltype(JobEnvironment::wrap_group) wrap_group_;
  std::shared_ptr<const StudentArchives> archives_;
};

// A group on GPUs that is aborted behind the job's back, by the watchdog of a communication library: from then on every
// operation returns at once as if it had succeeded, with numbers that nobody else had a part in. Only Check() tells.
class SilentlyAbortedGroup : public CollectiveGroup {
 public:
  SilentlyAbortedGroup(std::shared_ptr<CollectiveGroup> group, const std::atomic<bool>* aborted)
      : group_(std::move(group)), aborted_(aborted) {}
  Status Connect() override { return group_->Connect(); }
  uint32_t rank() const override { return group_->rank(); }
  uint32_t world_size() const override { return group_->world_size(); }
  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override {
    if (!*aborted_) return group_->AllReduceSum(tensors);
    for (torch::Tensor& tensor : tensors) tensor.mul_(world_size());
    return OkStatus();
  }
  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    return *aborted_ ? OkStatus() : group_->Broadcast(tensors, root);
  }
  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    return group_->MakeReducer(parameters);
  }
  Status Check() override {
    return *aborted_ ? absl::AbortedError("an operation did not end within its time-out") : group_->Check();
  }
  void Abort() override { group_->Abort(); }

 private:
  const std::shared_ptr<CollectiveGroup> group_;
  const std::atomic<bool>* const aborted_;  // of the test, which outlives the job
};

TEST_F(JobRunnerTest, TrainsCommitsEvaluatesAndExports) {
  const Ended ended = Run(Plan(1, 40), "work");
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  const RecordedFleet& fleet = *ended.fleets[0];
  ASSERT_EQ(fleet.commits().size(), 2u);
  EXPECT_EQ(fleet.commits()[0].stage, 0u);
  EXPECT_EQ(fleet.commits()[1].stage, 1u);
  EXPECT_THAT(fleet.commits()[1].checkpoint, testing::EndsWith("/job-1/checkpoints/stage-1-step-40-gen-1"));
  EXPECT_EQ(fleet.commits()[1].digest.size(), 64u);
  ASSERT_EQ(fleet.finished().size(), 1u);
  const JobArtifacts artifacts = fleet.finished()[0];
  // The classes are separable: a network that learns at all gets nearly all of them right.
  ASSERT_TRUE(artifacts.student_score.measured());
  EXPECT_GT(artifacts.student_score.metrics[0].value, 0.9);
  EXPECT_EQ(artifacts.student_score.metrics, fleet.commits()[1].score.metrics);
  EXPECT_FALSE(artifacts.teacher_score.measured());
  EXPECT_EQ(artifacts.safetensors_bytes, fs::file_size(artifacts.safetensors));
  EXPECT_EQ(artifacts.torchscript_bytes, fs::file_size(artifacts.torchscript));

  const auto result = nlohmann::json::parse(ReadAll(folder_ / "work/job-1/result.json"));
  EXPECT_DOUBLE_EQ(result.at("student_score").at("top1").get<double>(), artifacts.student_score.metrics[0].value);
  EXPECT_EQ(result.at("student_classes").at("labelled").size(), artifacts.student_score.by_class.classes());
  EXPECT_TRUE(result.at("teacher_score").is_null());
  EXPECT_EQ(result.at("student_parameters").get<uint64_t>(), artifacts.student_parameters);

  // Progress: every step of both stages, loss falling, parts of the step named.
  std::vector<uint64_t> steps;
  JobProgress last;
  for (const JobProgress& progress : fleet.progress()) {
    if (progress.phase != "training" || progress.terms.empty()) continue;
    if (steps.empty() || steps.back() != progress.total_step) steps.push_back(progress.total_step);
    last = progress;
  }
  EXPECT_EQ(steps.size(), 46u);
  EXPECT_EQ(steps.back(), 46u);
  EXPECT_LT(last.loss, 0.5);
  EXPECT_EQ(last.terms[0].name, "cross_entropy");
  std::vector<std::string> parts;
  for (const NamedNumber& part : last.step_seconds) parts.push_back(part.name);
  for (const char* part : {"data", "wait_features", "forward", "loss", "backward", "optimizer"})
    EXPECT_THAT(parts, Contains(part));
  // The newest two checkpoints and the stage boundaries.
  EXPECT_EQ(Checkpoints("work"), (std::vector<std::string>{"stage-0-step-6", "stage-1-step-35", "stage-1-step-40"}));
}

TEST_F(JobRunnerTest, PythonLoadsTheExportsAndMeasuresTheSameAccuracy) {
  const char* python = std::getenv("DISTILL_TEST_PYTHON");
  if (python == nullptr || !fs::exists(python)) GTEST_SKIP() << "DISTILL_TEST_PYTHON names no Python with torch";
  const Ended ended = Run(Plan(1, 40), "work");
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  WriteAll(folder_ / "check.py", R"(
import json, struct, sys, torch
folder, data = sys.argv[1], sys.argv[2]
images = torch.frombuffer(bytearray(open(data + '/t10k-images-idx3-ubyte', 'rb').read()[16:]), dtype=torch.uint8).view(-1, 1, 12, 12)
labels = torch.frombuffer(bytearray(open(data + '/t10k-labels-idx1-ubyte', 'rb').read()[8:]), dtype=torch.uint8).long()
student = torch.jit.load(folder + '/student.pt')
logits = student((images.float() / 255 - 0.4) / 0.3)
raw = open(folder + '/student.safetensors', 'rb').read()
n = struct.unpack('<Q', raw[:8])[0]
header = json.loads(raw[8:8 + n])
state = student.state_dict()
for name, entry in header.items():
    if name == '__metadata__': continue
    begin, end = entry['data_offsets']
    dtype = {'F32': torch.float32, 'I64': torch.int64}[entry['dtype']]
    tensor = torch.frombuffer(bytearray(raw[8 + n + begin:8 + n + end]), dtype=dtype).view(entry['shape'])
    assert torch.equal(tensor, state[name]), name
assert set(state) == set(header) - {'__metadata__'}
print('%.6f' % (logits.argmax(1) == labels).float().mean().item())
)");
  const std::string command = std::string(python) + " " + (folder_ / "check.py") + " " + (folder_ / "work/job-1") +
                              " " + (folder_ / "data/shapes") + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  char buffer[512];
  while (fgets(buffer, sizeof buffer, pipe) != nullptr) output += buffer;
  EXPECT_EQ(pclose(pipe), 0) << output;
  EXPECT_NEAR(std::atof(output.c_str()), ended.fleets[0]->finished()[0].student_score.metrics[0].value, 1e-6) << output;
}

// Stops the job when rank 0 reports step `step` of stage `stage`, by what `stop` does to the control.
std::function<void(uint32_t, RecordedFleet*, JobControl*)> StopAt(uint32_t stage, uint64_t step,
                                                                  const std::function<void(JobControl*)>& stop) {
  return [=](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank != 0) return;
    fleet->on_progress = [=](const JobProgress& progress) {
      if (progress.stage == stage && progress.step >= step && !progress.terms.empty()) stop(control);
    };
  };
}

class ResumedJobTest : public JobRunnerTest, public testing::WithParamInterface<uint32_t> {
 protected:
  void ExpectAnInterruptedJobEndsBitIdentical(const JobPlan& plan);
};

void ResumedJobTest::ExpectAnInterruptedJobEndsBitIdentical(const JobPlan& plan) {
  const Ended straight = Run(plan, "straight");
  ASSERT_EQ(straight.outcomes[0].end, JobEnd::kFinished) << straight.outcomes[0].status;

  // An orderly stop inside the second stage: all ranks checkpoint at the same step.
  const Ended first = Run(plan, "broken", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
  EXPECT_THAT(Checkpoints("broken"), Contains("stage-1-step-4"));
  // A revocation, which writes nothing: the steps since the last checkpoint (5) are trained again.
  const Ended second = Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Revoke(); }), 1);
  EXPECT_EQ(second.outcomes[0].end, JobEnd::kRevoked) << second.outcomes[0].status;
  EXPECT_THAT(second.fleets[0]->events(), Contains(HasSubstr("stage-1-step-4")));
  EXPECT_THAT(Checkpoints("broken"), Contains("stage-1-step-5"));
  const Ended third = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_THAT(third.fleets[0]->events(), Contains(HasSubstr("resuming from")));
  EXPECT_EQ(third.fleets[0]->commits().size(), 1u);

  EXPECT_EQ(Student("straight"), Student("broken"));
  EXPECT_EQ(straight.fleets[0]->finished()[0].student_score, third.fleets[0]->finished()[0].student_score);
}

TEST_P(ResumedJobTest, AnInterruptedJobEndsBitIdentical) { ExpectAnInterruptedJobEndsBitIdentical(Plan(GetParam())); }

TEST_P(ResumedJobTest, AnInterruptedJobOfAnArchiveEndsBitIdentical) {
  // Ranks of this test are threads, which share the generator that dropout draws from; those of a job are processes.
  ExpectAnInterruptedJobEndsBitIdentical(ArchivePlan(GetParam(), /*dropout=*/GetParam() == 1 ? 0.1 : 0.0));
}

TEST_P(ResumedJobTest, SoDoesOneWithAnAverageAndBatchesInParts) {
  JobPlan plan = Plan(GetParam());
  plan.accumulate = 2;
  plan.evaluate_every = 4;  // the average takes the weights' place meanwhile
  for (StagePlan& stage : plan.stages) {
    stage.optimizer.type = "adamw";
    stage.optimizer.lr = 0.01;
    stage.optimizer.ema_decay = 0.9;
    stage.optimizer.decay_norms_and_biases = false;
    stage.optimizer.lr_mult = {{{"fc"}, 2}};
  }
  const Ended straight = Run(plan, "straight");
  ASSERT_EQ(straight.outcomes[0].end, JobEnd::kFinished) << straight.outcomes[0].status;
  const Ended first = Run(plan, "broken", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
  const Ended second = Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Revoke(); }), 1);
  EXPECT_EQ(second.outcomes[0].end, JobEnd::kRevoked) << second.outcomes[0].status;
  const Ended third = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_EQ(Student("straight"), Student("broken"));

  for (StagePlan& stage : plan.stages) stage.optimizer.ema_decay = 0;
  ASSERT_EQ(Run(plan, "weights").outcomes[0].end, JobEnd::kFinished);
  EXPECT_NE(Student("weights"), Student("straight")) << "the average is not what the job leaves";
}

// Batch norms are frozen, so that parts and whole batches differ by rounding alone; nearly two epochs.
TEST_P(ResumedJobTest, PartsOfBatchesAreThoseOfTheSameImages) {
  JobPlan plan = Plan(GetParam());
  plan.data.train_transforms.clear();
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 30)};
  ASSERT_EQ(Run(plan, "whole").outcomes[0].end, JobEnd::kFinished);
  plan.accumulate = 4;
  ASSERT_EQ(Run(plan, "parts").outcomes[0].end, JobEnd::kFinished);
  const auto weights = [this](const std::string& work) {
    const auto net = Take(ZooNet::Create(SmallStudent()));
    EXPECT_TRUE(LoadWeights(Take(ReadSafetensors(folder_ / (work + "/job-1/student.safetensors"))), net.get()).ok());
    return net->named_parameters()["fc.weight"].detach().clone();
  };
  const torch::Tensor whole = weights("whole"), parts = weights("parts");
  EXPECT_LT((whole - parts).abs().max().item<double>(), 1e-4 * whole.abs().max().item<double>() + 1e-5);
}

TEST_F(JobRunnerTest, ABatchThatCannotBeDividedIsRefused) {
  JobPlan plan = Plan(2);
  plan.accumulate = 3;  // 16 images on 2 ranks
  const Ended ended = Run(plan, "work");
  EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr("a batch of 16 images in 3 parts"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, ResumedJobTest, testing::Values(1u, 2u));

TEST_F(JobRunnerTest, AnArchiveTrainsStageByStageAndIsExportedAsItself) {
  const JobPlan plan = ArchivePlan(1);
  const SafetensorsFile before = SaveWeights(*Take(MakeStudentNet(plan, archives_.get())));
  const Ended ended = Run(plan, "work");
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  const JobArtifacts made = ended.fleets[0]->finished().at(0);
  EXPECT_EQ(made.student_parameters, archives_->descriptions[0].parameters);
  const SafetensorsFile after = Take(ReadSafetensors(made.safetensors));
  ASSERT_EQ(after.tensors.size(), before.tensors.size());
  // Its classes are places in the picture, which this network's global pooling cannot tell: what counts is that all of
  // it trained.
  for (const auto& [name, tensor] : before.tensors) {
    if (tensor.dtype != "F32") continue;
    ASSERT_TRUE(after.tensors.contains(name)) << name;
    EXPECT_NE(0, std::memcmp(tensor.bytes.data, after.tensors.at(name).bytes.data, tensor.bytes.size)) << name;
  }
  EXPECT_NE(ReadAll(made.torchscript), "");
  const auto net = Take(TorchScriptNet::Load(made.torchscript, plan.student, {.training = true}));
  EXPECT_EQ(SaveWeights(*net).tensors.at("fc.weight").bytes.size, after.tensors.at("fc.weight").bytes.size);
  EXPECT_EQ(0, std::memcmp(SaveWeights(*net).tensors.at("fc.weight").bytes.data,
                           after.tensors.at("fc.weight").bytes.data, after.tensors.at("fc.weight").bytes.size));
  // Weights of one run start another one, module by module.
  fs::copy_file(made.safetensors, std::string(folder_ / "models/first.safetensors"));
  JobPlan next = plan;
  next.student.weights = "first.safetensors";
  EXPECT_EQ(Run(next, "next").outcomes[0].end, JobEnd::kFinished);
}

TEST_F(JobRunnerTest, AnArchiveThatIsMissingOrChangedIsTheWorkersFault) {
  const JobPlan plan = ArchivePlan(1);
  JobPlan other = plan;
  other.student.arch = "none@sha256:d1";
  Ended ended = Run(other, "missing");
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kWorker);
  EXPECT_THAT(std::string(ended.outcomes[0].status.message()), HasSubstr("which this student has not"));
  WriteOwnNetwork(folder_ / "models", "own", /*dropout=*/0.5);
  ended = Run(plan, "changed");
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kWorker);
  EXPECT_THAT(std::string(ended.outcomes[0].status.message()), HasSubstr("changed since the job was submitted"));
}

TEST(StudentArchivesTest, OneThatCannotBeTrainedDoesNotStopTheOthers) {
  TempFolder folder;
  WriteOwnNetwork(std::string(folder / ""), "good");
  WriteAll(folder / "bare.pt", "not an archive");
  WriteAll(folder / "bad.pt", "not an archive");
  WriteAll(folder / "bad.pt.yaml", "in_channels: 1\nimage: 12x12\n");
  const StudentArchives archives = Take(LoadStudentArchives(folder / ""));
  ASSERT_EQ(archives.descriptions.size(), 1u);
  EXPECT_EQ(archives.descriptions[0].name, "good");
  EXPECT_EQ(archives.descriptions[0].taps.back().path, "");
  EXPECT_THAT(archives.left_out, UnorderedElementsAre(HasSubstr("bare.pt.yaml"), HasSubstr("bad.pt")));
}

TEST_F(JobRunnerTest, ADamagedCheckpointFallsBackAndTheResultIsTheSame) {
  const JobPlan plan = Plan(1);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  ASSERT_EQ(Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Terminate(); })).outcomes[0].end,
            JobEnd::kTerminated);
  const std::string damaged = CheckpointPath("broken", "stage-1-step-9") + "/model.safetensors";
  std::string bytes = ReadAll(damaged);
  ASSERT_FALSE(bytes.empty());
  bytes[bytes.size() / 2] ^= 0x40;
  WriteAll(damaged, bytes);
  const Ended resumed = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(resumed.outcomes[0].end, JobEnd::kFinished) << resumed.outcomes[0].status;
  EXPECT_THAT(resumed.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("stage-1-step-9-gen-2/model.safetensors"), HasSubstr("sha256"))));
  EXPECT_THAT(resumed.fleets[0]->events(),
              Contains(HasSubstr("resuming from " + (folder_ / "broken/job-1/checkpoints/stage-1-step-5"))));
  EXPECT_EQ(Student("straight"), Student("broken"));
}

TEST_F(JobRunnerTest, AStoreRestoredFromAnOldCopyLearnsOfTheStagesAgain) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  // The coordinator knows of no stage; the newest checkpoint is inside the second.
  const Ended again = Run(plan, "work", nullptr, 0);
  ASSERT_EQ(again.outcomes[0].end, JobEnd::kFinished) << again.outcomes[0].status;
  ASSERT_EQ(again.fleets[0]->commits().size(), 2u);
  EXPECT_EQ(again.fleets[0]->commits()[0].stage, 0u);
  EXPECT_EQ(again.fleets[0]->commits()[1].stage, 1u);
  EXPECT_THAT(again.fleets[0]->events(), Contains(HasSubstr("does not know that stage 1 is done")));
}

TEST_F(JobRunnerTest, ALostCommitIsRepeatedAfterTheRestart) {
  const JobPlan plan = Plan(1);
  ASSERT_EQ(Run(plan, "work").outcomes[0].end, JobEnd::kFinished);
  // The coordinator knows of the first stage only; the folder holds both.
  const Ended again = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(again.outcomes[0].end, JobEnd::kFinished) << again.outcomes[0].status;
  ASSERT_EQ(again.fleets[0]->commits().size(), 1u);
  EXPECT_EQ(again.fleets[0]->commits()[0].stage, 1u);
  EXPECT_TRUE(again.fleets[0]->commits()[0].score.measured());
  EXPECT_EQ(again.fleets[0]->finished()[0].student_score.metrics, again.fleets[0]->commits()[0].score.metrics);
}

TEST_F(JobRunnerTest, AStoreRestoredWhileTheJobRunsLearnsOfAllStages) {
  const Ended ended =
      Run(Plan(1), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) { fleet->forgets_before = 1; });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  std::vector<uint32_t> stages;
  for (const JobStageResult& commit : ended.fleets[0]->commits()) stages.push_back(commit.stage);
  EXPECT_THAT(stages, testing::ElementsAre(0u, 0u, 1u));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("committing them again")));
}

TEST_F(JobRunnerTest, ANewerGenerationIsNotAFailure) {
  const Ended ended = Run(Plan(2), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->commit_status = absl::AbortedError("the job is at generation 2");
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kRevoked) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kPeerFailed) << ended.outcomes[1].status;
}

TEST_F(JobRunnerTest, CancellingLeavesACheckpointAndStopsAllRanks) {
  const JobPlan plan = Plan(2, 1000);
  // Rank 1 alone has been told so far.
  JobControl* second = nullptr;
  const Ended ended = Run(plan, "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank == 1) second = control;
    if (rank == 0) {
      fleet->on_progress = [&](const JobProgress& progress) {
        if (progress.stage == 1 && progress.step >= 2) second->Cancel();
      };
    }
  });
  for (const JobOutcome& outcome : ended.outcomes) EXPECT_EQ(outcome.end, JobEnd::kCancelled) << outcome.status;
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("cancelled; checkpoint")));
  EXPECT_TRUE(ended.fleets[0]->finished().empty());
  EXPECT_FALSE(fs::exists(folder_ / "work/job-1/student.safetensors"));
}

TEST_F(JobRunnerTest, NoCheckpointIsMadeOfAnAbortedAllReduce) {
  std::atomic<bool> aborted{false};
  wrap_group_ = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<SilentlyAbortedGroup>(std::move(group), &aborted);
  };
  // When rank 0 is about to write the one of step 5 of the second stage.
  const Ended ended = Run(Plan(2, 1000), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage == 1 && progress.phase == "checkpointing") aborted = true;
    };
  });
  EXPECT_TRUE(aborted);
  for (const JobOutcome& outcome : ended.outcomes) EXPECT_EQ(outcome.end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
  EXPECT_THAT(Checkpoints("work"),
              testing::AllOf(Contains("stage-0-step-6"), testing::Not(Contains(HasSubstr("stage-1")))));
}

TEST_F(JobRunnerTest, NoStepFollowsAnAbortedAllReduce) {
  std::atomic<bool> aborted{false};
  std::atomic<uint64_t> step{0};
  wrap_group_ = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<SilentlyAbortedGroup>(std::move(group), &aborted);
  };
  const Ended ended = Run(Plan(2, 1000), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1) return;
      step = progress.step;
      if (progress.step == 3) aborted = true;
    };
  });
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
  EXPECT_EQ(step, 3u);
}

TEST_F(JobRunnerTest, ALostRankEndsTheOthersWithAPassingFailure) {
  const JobPlan plan = Plan(2, 1000);
  JobControl* second = nullptr;
  const Ended ended = Run(plan, "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank == 1) second = control;
    if (rank == 0) {
      fleet->on_progress = [&](const JobProgress& progress) {
        if (progress.stage == 1 && progress.step == 3)
          second->Revoke();  // its group breaks off, like a process that dies
      };
    }
  });
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kRevoked) << ended.outcomes[1].status;
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kPassing) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
}

TEST_F(JobRunnerTest, AStopWhileTheDataIsLoadedEndsTheJobAtOnce) {
  for (const uint32_t ranks : {1u, 2u}) {
    for (const bool cancel : {true, false}) {
      bool trained = false;
      const Ended ended = Run(Plan(ranks), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
        fleet->on_progress = [=, &trained](const JobProgress& progress) {
          if (rank == 0 && progress.phase == "loading") cancel ? control->Cancel() : control->Terminate();
          if (progress.phase == "training") trained = true;
        };
      });
      EXPECT_EQ(ended.outcomes[0].end, cancel ? JobEnd::kCancelled : JobEnd::kTerminated) << ended.outcomes[0].status;
      EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr("stopped while the data set was loaded"));
      EXPECT_NE(ended.outcomes.back().end, JobEnd::kFailed) << ended.outcomes.back().status;
      EXPECT_FALSE(trained);
    }
  }
}

TEST_F(JobRunnerTest, MissingDataIsTheWorkersFaultAndOneReportIsEnough) {
  JobPlan plan = Plan(2);
  plan.data.path = "no-such-data";
  const Ended ended = Run(plan, "work");
  for (const JobOutcome& outcome : ended.outcomes) {
    ASSERT_TRUE(outcome.end == JobEnd::kFailed || outcome.end == JobEnd::kPeerFailed) << outcome.status;
    if (outcome.end == JobEnd::kFailed) {
      EXPECT_EQ(outcome.kind, FailureKind::kWorker) << outcome.status;
      EXPECT_THAT(outcome.status.ToString(), HasSubstr("no-such-data"));
    }
  }
}

TEST_F(JobRunnerTest, InitialWeightsAreReadBelowTheModelRootAndDamageIsNamed) {
  JobPlan plan = Plan(1);
  plan.student.weights = "start.safetensors";
  const Ended missing = Run(plan, "work");
  EXPECT_EQ(missing.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(missing.outcomes[0].kind, FailureKind::kWorker) << missing.outcomes[0].status;
  EXPECT_THAT(missing.outcomes[0].status.ToString(), HasSubstr("start.safetensors"));
  WriteAll(folder_ / "models/start.safetensors", "not a safetensors file");
  const Ended damaged = Run(plan, "work");
  EXPECT_EQ(damaged.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(damaged.outcomes[0].kind, FailureKind::kWorker) << damaged.outcomes[0].status;
  EXPECT_THAT(damaged.outcomes[0].status.ToString(), HasSubstr("start.safetensors"));

  ASSERT_EQ(Run(Plan(1), "teacher").outcomes[0].end, JobEnd::kFinished);
  fs::copy_file(folder_ / "teacher/job-1/student.safetensors", folder_ / "models/start.safetensors",
                fs::copy_options::overwrite_existing);
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 1)};
  plan.stages[0].optimizer.lr = 0;
  ASSERT_EQ(Run(plan, "copied").outcomes[0].end, JobEnd::kFinished);
  const auto start = Take(ReadSafetensors(folder_ / "models/start.safetensors"));
  const auto end = Take(ReadSafetensors(folder_ / "copied/job-1/student.safetensors"));
  for (const auto& [name, tensor] : start.tensors) {
    const Buffer& other = end.tensors.at(name).bytes;
    EXPECT_TRUE(
        std::equal(tensor.bytes.data, tensor.bytes.data + tensor.bytes.size, other.data, other.data + other.size))
        << name;
  }
}

TEST_F(JobRunnerTest, OnlyTheNamedModulesComeFromInitialWeights) {
  ASSERT_EQ(Run(Plan(1), "teacher").outcomes[0].end, JobEnd::kFinished);
  fs::copy_file(folder_ / "teacher/job-1/student.safetensors", folder_ / "models/start.safetensors");
  JobPlan plan = Plan(1);
  plan.seed = 77;
  plan.student.weights = "start.safetensors";
  plan.student.weights_modules = {"fc"};
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 1)};
  plan.stages[0].optimizer.lr = 0;
  ASSERT_EQ(Run(plan, "copied").outcomes[0].end, JobEnd::kFinished);
  const auto start = Take(ReadSafetensors(folder_ / "models/start.safetensors"));
  const auto end = Take(ReadSafetensors(folder_ / "copied/job-1/student.safetensors"));
  const auto equal = [&](const std::string& name) {
    const Buffer &a = start.tensors.at(name).bytes, &b = end.tensors.at(name).bytes;
    return std::equal(a.data, a.data + a.size, b.data, b.data + b.size);
  };
  EXPECT_TRUE(equal("fc.weight"));
  EXPECT_TRUE(equal("fc.bias"));
  EXPECT_FALSE(equal("conv1.weight"));
}

TEST_F(JobRunnerTest, ATeachersHeadComesFromTheFileThatTheTeachersServeAndNoOther) {
  ASSERT_EQ(Run(Plan(1), "teacher").outcomes[0].end, JobEnd::kFinished);
  fs::copy_file(folder_ / "teacher/job-1/student.safetensors", folder_ / "models/start.safetensors");
  JobPlan plan = Plan(1);
  plan.seed = 77;
  plan.student.weights = "start.safetensors";
  plan.student.weights_modules = {"fc"};
  plan.student.weights_of_teacher = true;
  plan.evaluate_teacher = false;  // no server here
  plan.teachers = {{.model = "shapes", .digest = "", .spec = SmallStudent()}};
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 1)};
  plan.stages[0].optimizer.lr = 0;
  plan.teachers[0].digest =
      Sha256Hex(CanonicalText(plan.teachers[0].spec) + ReadAll(folder_ / "models/start.safetensors"));
  const Ended right = Run(plan, "right");
  ASSERT_EQ(right.outcomes[0].end, JobEnd::kFinished) << right.outcomes[0].status;
  const auto start = Take(ReadSafetensors(folder_ / "models/start.safetensors")).tensors.at("fc.weight").bytes;
  const auto end = Take(ReadSafetensors(folder_ / "right/job-1/student.safetensors")).tensors.at("fc.weight").bytes;
  EXPECT_TRUE(std::equal(start.data, start.data + start.size, end.data, end.data + end.size));

  plan.teachers[0].digest = std::string(64, 'a');
  const Ended wrong = Run(plan, "wrong");
  EXPECT_EQ(wrong.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(wrong.outcomes[0].kind, FailureKind::kWorker) << wrong.outcomes[0].status;
  EXPECT_THAT(wrong.outcomes[0].status.ToString(),
              testing::AllOf(HasSubstr("start.safetensors' is not the file of the teacher 'shapes'"),
                             HasSubstr("sskd.head.init: random")));
}

TEST_F(JobRunnerTest, WithoutAnyLabelAStageThatReadsThemIsRefusedByNameBeforeAnythingRuns) {
  fs::rename(folder_ / "data/shapes/train-images-idx3-ubyte", folder_ / "data/shapes/extra-images-idx3-ubyte");
  fs::remove(folder_ / "data/shapes/train-labels-idx1-ubyte");
  JobPlan plan = Plan(1);
  plan.data.unlabelled = "extra";
  const Ended ended = Run(plan, "work");
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kJob) << ended.outcomes[0].status;
  EXPECT_THAT(ended.outcomes[0].status.ToString(),
              HasSubstr("stage 'head' reads labels, but no training image has one"));
  EXPECT_EQ(ended.fleets[0]->commits().size(), 0u);
}

TEST_F(JobRunnerTest, ImagesWithoutLabelsChangeNothingForStagesThatMayNotUseThem) {
  ASSERT_EQ(Run(Plan(2), "without").outcomes[0].end, JobEnd::kFinished);
  WriteIdx(folder_ / "data/shapes", "extra", 3, 64);
  JobPlan plan = Plan(2);
  plan.data.unlabelled = "extra";
  const Ended ended = Run(plan, "with");
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  EXPECT_EQ(Student("without"), Student("with"));
}

TEST_F(JobRunnerTest, AStageThatHasSettledEndsEarly) {
  JobPlan plan = Plan(2);
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 12), Stage("whole", WholeNet(), {CrossEntropy()}, 2)};
  plan.stages[0].optimizer.lr = 0;  // the held-out loss stays what it was
  plan.stages[0].patience = 2;
  plan.data.holdout = 32;
  plan.evaluate_every = 3;
  const Ended ended = Run(plan, "work");
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kFinished) << ended.outcomes[1].status;
  // Best at step 3, no better at 6 and 9.
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("stage 'head' ends at step 9 of 12")));
  EXPECT_EQ(ended.fleets[0]->commits().size(), 2u);
}

class BestWeightsTest : public JobRunnerTest, public testing::WithParamInterface<uint32_t> {};

TEST_P(BestWeightsTest, AreThoseWithTheLowestHeldOutLossAlsoAfterAResume) {
  constexpr uint64_t kSteps = 8;
  JobPlan plan = Plan(GetParam());
  plan.data.holdout = 64;
  plan.evaluate_every = 1;
  plan.checkpoint_every = 3;
  const auto stage = [&](uint64_t steps, const std::string& select) {
    plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, steps)};
    plan.stages[0].optimizer.lr = 8;  // so high that the loss goes up and down
    plan.stages[0].schedule.type = "constant";
    plan.stages[0].schedule.warmup = 0;
    plan.stages[0].select = select;
  };
  stage(kSteps, "best");
  const Ended best = Run(plan, "best");
  ASSERT_EQ(best.outcomes[0].end, JobEnd::kFinished) << best.outcomes[0].status;
  std::vector<std::string> after;  // the student after each number of steps
  for (uint64_t steps = 1; steps <= kSteps; ++steps) {
    stage(steps, "last");
    const std::string work = "last-" + std::to_string(steps);
    ASSERT_EQ(Run(plan, work).outcomes[0].end, JobEnd::kFinished);
    after.push_back(Student(work));
  }
  const auto found = std::find(after.begin(), after.end(), Student("best"));
  ASSERT_NE(found, after.end()) << "the best weights are none of those that training passed through";

  // The objective of each on the held-out images, measured here by hand.
  const DataSplits data = Take(OpenDataset(plan.data, folder_ / "data", plan.seed, {.classes = 4}));
  const HeldOutSplit parts = Take(HoldOut(data.train, plan.data.holdout, plan.seed));
  std::vector<double> losses;
  for (uint64_t steps = 1; steps <= kSteps; ++steps) {
    const auto net = Take(ZooNet::Create(plan.student));
    ASSERT_TRUE(
        LoadWeights(Take(ReadSafetensors(folder_ / ("last-" + std::to_string(steps) + "/job-1/student.safetensors"))),
                    net.get())
            .ok());
    net->eval();
    torch::Tensor pixels = torch::empty({64, 1, 12, 12}, torch::kUInt8), labels = torch::empty({64}, torch::kInt64);
    for (int i = 0; i < 64; ++i) {
      Picture picture;
      ASSERT_TRUE(parts.held_out->Read(i, &picture).ok());
      std::copy(picture.pixels.begin(), picture.pixels.end(), pixels[i].data_ptr<uint8_t>());
      labels[i] = parts.held_out->label(i);
    }
    const torch::Tensor logits = Take(net->Forward(NormalizePixels(pixels, plan.student, true), {""}))[0];
    losses.push_back(torch::cross_entropy_loss(logits, labels).item<double>());
  }
  EXPECT_EQ(found - after.begin(), std::min_element(losses.begin(), losses.end()) - losses.begin())
      << testing::PrintToString(losses);

  stage(kSteps, "best");
  const Ended first = Run(plan, "broken", StopAt(0, 5, [](JobControl* control) { control->Terminate(); }));
  EXPECT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  ASSERT_EQ(Run(plan, "broken").outcomes[0].end, JobEnd::kFinished);
  EXPECT_EQ(Student("broken"), Student("best"));
}

TEST_P(BestWeightsTest, AMetricMayDecideInsteadAndAnAverageIsWhatIsJudged) {
  constexpr uint64_t kSteps = 6;
  JobPlan plan = Plan(GetParam());
  plan.data.holdout = 64;
  plan.evaluate_every = 1;
  plan.checkpoint_every = 2;
  const auto stage = [&](uint64_t steps, const std::string& select) {
    plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, steps)};
    plan.stages[0].optimizer.lr = 8;
    plan.stages[0].optimizer.ema_decay = 0.5;
    plan.stages[0].schedule.type = "constant";
    plan.stages[0].schedule.warmup = 0;
    plan.stages[0].select = select;
    plan.stages[0].select_by = "top1";
  };
  stage(kSteps, "best");
  ASSERT_EQ(Run(plan, "best").outcomes[0].end, JobEnd::kFinished);
  const DataSplits data = Take(OpenDataset(plan.data, folder_ / "data", plan.seed, {.classes = 4}));
  const HeldOutSplit parts = Take(HoldOut(data.train, plan.data.holdout, plan.seed));
  std::vector<std::string> after;  // the averages after each number of steps
  std::vector<int64_t> right;      // on the held-out images
  for (uint64_t steps = 1; steps <= kSteps; ++steps) {
    stage(steps, "last");
    const std::string work = "last-" + std::to_string(steps);
    ASSERT_EQ(Run(plan, work).outcomes[0].end, JobEnd::kFinished);
    after.push_back(Student(work));
    const auto net = Take(ZooNet::Create(plan.student));
    ASSERT_TRUE(LoadWeights(Take(ReadSafetensors(folder_ / (work + "/job-1/student.safetensors"))), net.get()).ok());
    net->eval();
    torch::Tensor pixels = torch::empty({64, 1, 12, 12}, torch::kUInt8), labels = torch::empty({64}, torch::kInt64);
    for (int i = 0; i < 64; ++i) {
      Picture picture;
      ASSERT_TRUE(parts.held_out->Read(i, &picture).ok());
      std::copy(picture.pixels.begin(), picture.pixels.end(), pixels[i].data_ptr<uint8_t>());
      labels[i] = parts.held_out->label(i);
    }
    const torch::Tensor logits = Take(net->Forward(NormalizePixels(pixels, plan.student, true), {""}))[0];
    right.push_back(logits.argmax(1).eq(labels).sum().item<int64_t>());
  }
  const auto found = std::find(after.begin(), after.end(), Student("best"));
  ASSERT_NE(found, after.end()) << "the best weights are none of those that training passed through";
  // The first of equals.
  EXPECT_EQ(found - after.begin(), std::max_element(right.begin(), right.end()) - right.begin())
      << testing::PrintToString(right);

  stage(kSteps, "best");
  const Ended first = Run(plan, "broken", StopAt(0, 3, [](JobControl* control) { control->Terminate(); }));
  EXPECT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  ASSERT_EQ(Run(plan, "broken").outcomes[0].end, JobEnd::kFinished);
  EXPECT_EQ(Student("broken"), Student("best"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, BestWeightsTest, testing::Values(1u, 2u));

// Fills a small disk to the last byte and gives it back.
class Ballast {
 public:
  explicit Ballast(const std::string& folder) : path_(folder + "/ballast") {
    std::ofstream out(path_, std::ios::binary);
    const std::string block(1 << 16, 'x');
    while (out.write(block.data(), static_cast<std::streamsize>(block.size())) && out.flush()) {
    }
  }
  void Remove() { fs::remove(path_); }

 private:
  const std::string path_;
};

TEST_F(JobRunnerTest, ADiskThatIsFullAtAStagesEndFailsTheRankAndNotTheJob) {
  const SmallDisk disk(folder_ / "disk", "24k");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  const Ended ended = Run(Plan(1), "disk");
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kWorker);
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kResourceExhausted) << ended.outcomes[0].status;
  EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr(folder_ / "disk"));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("tried again for")));
  EXPECT_THAT(Checkpoints("disk"), testing::IsEmpty());
}

TEST_F(JobRunnerTest, ADiskThatIsFullInsideAStageCostsACheckpointAndNothingElse) {
  JobPlan plan = Plan(2, 24);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  std::optional<Ballast> ballast;
  const Ended ended = Run(plan, "disk", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1) return;
      if (progress.step >= 7 && !ballast.has_value()) ballast.emplace(folder_ / "disk");  // 10 and 15 fail
      if (progress.step >= 17) ballast->Remove();
    };
  });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  std::vector<std::string> told;
  for (const std::string& event : ended.fleets[0]->events()) {
    if (event.find("No space left") != std::string::npos || event.find("written again") != std::string::npos) {
      told.push_back(event);
    }
  }
  ASSERT_EQ(told.size(), 2u) << testing::PrintToString(ended.fleets[0]->events());
  EXPECT_THAT(told[0],
              testing::AllOf(HasSubstr("stage 1 step 10"), HasSubstr("Training goes on"), HasSubstr("stage-1-step-5")));
  EXPECT_THAT(told[1], HasSubstr("stage-1-step-20"));
  EXPECT_EQ(Student("straight"), Student("disk"));
}

TEST_F(JobRunnerTest, ADiskThatIsFullForAMomentAtAStagesEndIsWaitedFor) {
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  write_patience_ = std::chrono::hours(1);
  std::optional<Ballast> ballast;
  JobPlan plan = Plan(2);
  plan.checkpoint_every = 0;
  const Ended ended = Run(plan, "disk", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage == 1 && progress.step >= 7 && !ballast.has_value()) ballast.emplace(folder_ / "disk");
      if (progress.phase == "waiting for the work folder") ballast->Remove();
    };
  });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  EXPECT_THAT(ended.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("No space left"), HasSubstr("tried again"))));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("written now")));
}

TEST_F(JobRunnerTest, ACancelledJobStopsThoughTheDiskIsFull) {
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  std::optional<Ballast> ballast;
  const Ended ended = Run(Plan(1, 1000), "disk", [&](uint32_t, RecordedFleet* fleet, JobControl* control) {
    fleet->on_progress = [&, control](const JobProgress& progress) {
      if (progress.stage != 1 || progress.step < 7 || ballast.has_value()) return;
      ballast.emplace(folder_ / "disk");
      control->Cancel();
    };
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kCancelled) << ended.outcomes[0].status;
  EXPECT_THAT(ended.fleets[0]->events(), Contains(testing::AllOf(HasSubstr("cancelled; "), HasSubstr("No space left"),
                                                                 HasSubstr("stage-1-step-5"))));
}

TEST_F(JobRunnerTest, TheCoordinatorLearnsFromWhereAJobReallyGoesOn) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  ASSERT_EQ(first.fleets[0]->resumes().size(), 1u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].stage, 0u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].step, 0u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].digest, "");
  const Ended second = Run(plan, "work", StopAt(1, 6, [](JobControl* control) { control->Terminate(); }), 1);
  ASSERT_EQ(second.fleets[0]->resumes().size(), 1u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].stage, 1u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].step, 4u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].digest.size(), 64u);
  // The work folder is lost: the first stage is trained and committed again.
  fs::remove_all(folder_ / "work");
  const Ended third = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_EQ(third.fleets[0]->resumes()[0].stage, 0u);
  EXPECT_THAT(third.fleets[0]->events(), Contains(HasSubstr("training starts over")));
  ASSERT_EQ(third.fleets[0]->commits().size(), 2u);
  EXPECT_EQ(third.fleets[0]->commits()[0].stage, 0u);
}

TEST_F(JobRunnerTest, AGenerationThatIsOverDoesNotTakeTheFolder) {
  const Ended ended = Run(Plan(1), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->resume_status = absl::AbortedError("the job is at generation 2");
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kRevoked) << ended.outcomes[0].status;
  EXPECT_FALSE(fs::exists(folder_ / "work/job-1/checkpoints/generation"));
}

TEST_F(JobRunnerTest, ACommittedCheckpointThatIsGoneIsTold) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 6, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.fleets[0]->commits().size(), 1u);
  committed_digest_ = first.fleets[0]->commits()[0].digest;
  const Ended fine = Run(plan, "work", StopAt(1, 8, [](JobControl* control) { control->Terminate(); }), 1);
  EXPECT_THAT(fine.fleets[0]->events(), testing::Not(Contains(HasSubstr("that was committed"))));
  fs::remove_all(CheckpointPath("work", "stage-0-step-6"));
  const Ended gone = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(gone.outcomes[0].end, JobEnd::kFinished) << gone.outcomes[0].status;
  EXPECT_THAT(gone.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("that was committed for stage 'head'"), HasSubstr("is gone on from"))));
}

// Rank 0 of an older generation that was stopped or cut off, and wakes up while the next one trains.
TEST_F(JobRunnerTest, AnOlderGenerationThatWakesUpEndsAtItsNextCheckpointAndSpoilsNothing) {
  const JobPlan plan = Plan(1, 40);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  Ended next;
  const Ended zombie = Run(plan, "work", [&](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1 || progress.step != 22 || !next.outcomes.empty()) return;
      // It stands still here until the next generation is past it.
      std::thread([&] { next = Run(plan, "work", StopAt(1, 28, [](JobControl* c) { c->Terminate(); }), 1); }).join();
    };
  });
  ASSERT_EQ(next.outcomes[0].end, JobEnd::kTerminated) << next.outcomes[0].status;
  EXPECT_EQ(zombie.outcomes[0].end, JobEnd::kRevoked) << zombie.outcomes[0].status;
  EXPECT_THAT(zombie.outcomes[0].status.ToString(), HasSubstr("generation 3"));
  EXPECT_EQ(Checkpoints("work"), (std::vector<std::string>{"stage-0-step-6", "stage-1-step-25", "stage-1-step-29"}));
  ASSERT_EQ(Run(plan, "work", nullptr, 1).outcomes[0].end, JobEnd::kFinished);
  EXPECT_EQ(Student("straight"), Student("work"));
}

TEST_F(JobRunnerTest, AStopDuringTheLastEvaluationOfAStageLosesNothing) {
  for (const uint32_t ranks : {1u, 2u}) {
    const std::string straight = "straight-" + std::to_string(ranks), broken = "broken-" + std::to_string(ranks);
    const JobPlan plan = Plan(ranks);
    ASSERT_EQ(Run(plan, straight).outcomes[0].end, JobEnd::kFinished);
    const Ended first = Run(plan, broken, [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
      if (rank != 0) return;
      fleet->on_progress = [=](const JobProgress& progress) {
        if (progress.stage == 1 && progress.phase == "evaluating") control->Terminate();
      };
    });
    for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
    EXPECT_EQ(first.fleets[0]->commits().size(), 1u);
    EXPECT_THAT(Checkpoints(broken), Contains("stage-1-step-12"));
    const Ended second = Run(plan, broken, nullptr, 1);
    ASSERT_EQ(second.outcomes[0].end, JobEnd::kFinished) << second.outcomes[0].status;
    ASSERT_EQ(second.fleets[0]->commits().size(), 1u);
    EXPECT_TRUE(second.fleets[0]->commits()[0].score.measured());
    EXPECT_EQ(Student(straight), Student(broken));
  }
}

TEST_F(JobRunnerTest, RanksWithOtherDataAreNamedBeforeTheFirstStep) {
  fs::create_directories(folder_ / "other/shapes");
  WriteIdx(folder_ / "other/shapes", "train", 1, 256);
  WriteIdx(folder_ / "other/shapes", "t10k", 2, 128);
  std::string labels = ReadAll(folder_ / "other/shapes/train-labels-idx1-ubyte");
  labels.back() = static_cast<char>((labels.back() + 1) % 4);  // one image has another label
  WriteAll(folder_ / "other/shapes/train-labels-idx1-ubyte", labels);
  data_roots_[1] = folder_ / "other";
  const Ended ended = Run(Plan(2), "work");
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kPeerFailed) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[1].kind, FailureKind::kWorker);
  EXPECT_THAT(ended.outcomes[1].status.ToString(), HasSubstr("this worker's data set is not that of rank 0"));
  EXPECT_TRUE(ended.fleets[0]->commits().empty());
}

TEST_F(JobRunnerTest, ImpossibleAssignmentsAreRefused) {
  JobPlan plan = Plan(1);
  plan.batch_size = 0;
  EXPECT_EQ(Run(plan, "work").outcomes[0].status.code(), StatusCode::kInvalidArgument);
  plan = Plan(1);
  plan.stages.clear();
  EXPECT_EQ(Run(plan, "work").outcomes[0].status.code(), StatusCode::kInvalidArgument);
  plan = Plan(1);
  plan.student.num_classes = 2;  // the data has four
  EXPECT_EQ(Run(plan, "work").outcomes[0].end, JobEnd::kFailed);
}

class StudentAgentTest : public JobRunnerTest {};

TEST_F(StudentAgentTest, RunsOneJobAfterTheOtherAndIgnoresRepetitions) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  JobPlan plan = Plan(1);
  generation_ = 1;
  const StudentAssignment first = Assignment(plan, 0);
  callbacks.on_student_assignment(first);
  fleet.AwaitIdle(1);
  callbacks.on_student_assignment(first);  // as after a restart of the coordinator
  callbacks.on_student_assignment(std::nullopt);
  StudentAssignment second = first;
  second.job_id = "job-2";
  second.plan.data.path = "no-such-data";
  callbacks.on_student_assignment(second);
  fleet.AwaitIdle(2);
  EXPECT_EQ(fleet.finished().size(), 1u);
  ASSERT_EQ(fleet.failures().size(), 1u);
  EXPECT_THAT(fleet.failures()[0], HasSubstr("rank 0: "));
  EXPECT_THAT(fleet.failures()[0], HasSubstr("no-such-data"));
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  const std::string text = registry.Serialize();
  EXPECT_THAT(text, HasSubstr("distill_student_steps_total 18"));
  EXPECT_THAT(text, HasSubstr("distill_student_jobs_total{outcome=\"finished\"} 1"));
  EXPECT_THAT(text, HasSubstr("distill_student_jobs_total{outcome=\"failed\"} 1"));
}

// As after an illegal address on a GPU: every later job would fail as well.
TEST_F(StudentAgentTest, AProcessThatCannotGoOnSaysSoAfterItsReport) {
  class DeadDevice : public SilentlyAbortedGroup {
   public:
    using SilentlyAbortedGroup::SilentlyAbortedGroup;
    StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>&) override {
      return WithEndOfProcess(absl::InternalError("CUDA error: an illegal memory access was encountered"));
    }
  };
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  JobEnvironment environment = Environment("work", &registry, &metrics);
  const std::atomic<bool> aborted{false};
  environment.wrap_group = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<DeadDevice>(std::move(group), &aborted);
  };
  std::vector<size_t> reports;  // how many there were by then
  environment.on_unusable = [&](const Status& why) {
    EXPECT_THAT(std::string(why.message()), HasSubstr("illegal memory access"));
    reports.push_back(fleet.failures().size());
  };
  environment.make_store = [](const std::string&, uint64_t) {
    return StatusOr<std::shared_ptr<KvClient>>(MakeLocalKvClient());
  };
  StudentAgent agent(environment);
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1), 0));
  fleet.AwaitIdle(1);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  EXPECT_THAT(reports, testing::ElementsAre(1u));
}

TEST_F(StudentAgentTest, CountsLossesThatAreNotFinite) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  JobPlan plan = Plan(1);
  for (StagePlan& stage : plan.stages) stage.optimizer.lr = 1e30;
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(plan, 0));
  fleet.AwaitIdle(1);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  ASSERT_EQ(fleet.failures().size(), 1u);
  EXPECT_THAT(fleet.failures()[0], HasSubstr("lower the learning rate"));
  EXPECT_THAT(registry.Serialize(), HasSubstr("distill_student_not_finite_losses_total 1"));
}

TEST_F(StudentAgentTest, ShutdownChecksPointAndANewGenerationReplacesTheOld) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  const JobPlan plan = Plan(1, 100000);
  generation_ = 1;
  absl::Mutex mutex;
  int phase = 0;  // 1: generation 1 trains; 2: generation 2 trains
  fleet.on_progress = [&](const JobProgress& progress) {
    if (progress.stage != 1 || progress.step < 7 || progress.terms.empty()) return;
    const int generations = static_cast<int>(fleet.resumes().size());  // those that have said where they start
    absl::MutexLock lock(&mutex);
    phase = generations;
  };
  const auto await = [&](int wanted) {
    absl::MutexLock lock(&mutex);
    auto reached = [&] { return phase >= wanted; };
    mutex.Await(absl::Condition(&reached));
  };
  callbacks.on_student_assignment(Assignment(plan, 0));
  await(1);
  generation_ = 2;
  callbacks.on_student_assignment(Assignment(plan, 0, 1));
  await(2);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(30)));
  EXPECT_THAT(fleet.events(), Contains(HasSubstr("resuming from")));
  EXPECT_THAT(fleet.events(), Contains(HasSubstr("shutting down; checkpoint")));
  EXPECT_TRUE(fleet.failures().empty());
}

// A trainer that is inside a call which does not return: here one to the coordinator.
class StuckTrainerTest : public StudentAgentTest {
 protected:
  ~StuckTrainerTest() override { Release(); }
  void Release() {
    absl::MutexLock lock(&stuck_mutex_);
    released_ = true;
  }
  void AwaitStuck() {
    absl::MutexLock lock(&stuck_mutex_);
    stuck_mutex_.Await(absl::Condition(&stuck_));
  }
  // Hangs when the job's second stage is under way.
  void Hang(RecordedFleet* fleet) {
    fleet->on_progress = [this](const JobProgress& progress) {
      if (progress.stage != 1) return;
      absl::MutexLock lock(&stuck_mutex_);
      stuck_ = true;
      stuck_mutex_.Await(absl::Condition(&released_));
    };
  }

 private:
  absl::Mutex stuck_mutex_;
  bool stuck_ = false, released_ = false;
};

TEST_F(StuckTrainerTest, ARevocationThatIsNotObeyedIsReportedOnceAndNotWhenItIs) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  Hang(&fleet);
  absl::Mutex mutex;
  std::vector<std::string> reasons;
  StudentAgent agent(Environment("work", &registry, &metrics),
                     {.unwind_limit = std::chrono::milliseconds(50), .on_stuck = [&](const std::string& reason) {
                        absl::MutexLock lock(&mutex);
                        reasons.push_back(reason);
                      }});
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1, 1000), 0));
  AwaitStuck();
  callbacks.on_student_assignment(std::nullopt);
  {
    absl::MutexLock lock(&mutex);
    auto told = [&] { return !reasons.empty(); };
    mutex.Await(absl::Condition(&told));
    EXPECT_THAT(reasons[0], HasSubstr("has not left job job-1"));
  }
  Release();
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(60)));
  absl::MutexLock lock(&mutex);
  EXPECT_EQ(reasons.size(), 1u);
}

TEST_F(StuckTrainerTest, ShutdownGivesUpOnATrainerThatHangs) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  Hang(&fleet);
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1, 1000), 0));
  AwaitStuck();
  EXPECT_FALSE(agent.Shutdown(std::chrono::milliseconds(10), std::chrono::milliseconds(10)));
  Release();
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(60)));
}

}  // namespace
}  // namespace distill
