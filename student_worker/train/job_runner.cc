#include "student_worker/train/job_runner.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "common/cuda/cuda_environment.h"
#include "common/cuda/cuda_runtime.h"
#include "common/log.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/torch_log.h"
#include "student_worker/train/data_agreement.h"
#include "student_worker/train/failure_class.h"
#include "student_worker/train/form_group.h"
#include "student_worker/train/initial_weights.h"
#include "student_worker/train/job_checkpoints.h"
#include "student_worker/train/job_context.h"
#include "student_worker/train/plan_digest.h"
#include "student_worker/train/stage_loop.h"
#include "student_worker/train/teacher_score.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

// After this long a rank that still waits for others says so in the job's event log.
constexpr std::chrono::seconds kLongWaitForRanks{30};

// The worker's flag decides unless it is "auto"; then the plan does.
StatusOr<torch::Device> JobDevice(const std::string& flag, const std::string& plan_device) {
  std::string wanted = flag == "auto" || flag.empty() ? plan_device : flag;
  if (wanted.empty()) wanted = "auto";
  DISTILL_ASSIGN_OR_RETURN(const std::string chosen, ChooseDevice(wanted));
  return torch::Device(chosen);
}

// Job ids become folder names.
Status CheckJobId(const std::string& job_id) {
  const bool plain = !job_id.empty() && job_id.size() <= 200 && job_id[0] != '.' &&
                     std::all_of(job_id.begin(), job_id.end(),
                                 [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
  if (!plain) return absl::InvalidArgumentError(StrCat("the job id '", job_id, "' cannot be a folder's name"));
  return OkStatus();
}

class Job {
 public:
  Job(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control)
      : job_(assignment, environment, control), checkpoints_(&job_) {}
  ~Job() { job_.control->SetAbort(nullptr); }

  StatusOr<JobEnd> Run();
  bool peer_failed() const { return job_.lockstep != nullptr && job_.lockstep->peer_failed(); }

 private:
  Status SetUp();
  Status FormGroup();
  Status Load();
  Status LoadData();
  Status MeasureTeacher();
  Status MeasureTeacherAlone(Score* score);
  // What follows a stage's last step. nullopt: the next stage may begin.
  StatusOr<std::optional<JobEnd>> FinishStage(double seconds);

  std::optional<c10::DeviceGuard> on_device_;  // of the training thread, for as long as the job runs
  JobContext job_;
  JobCheckpoints checkpoints_;
  DataIndex data_index_;
  std::vector<std::string> data_warnings_;
};

StatusOr<JobEnd> Job::Run() {
  DISTILL_RETURN_IF_ERROR(SetUp());
  DISTILL_RETURN_IF_ERROR(FormGroup());
  job_.reporter.Phase("loading");
  DISTILL_RETURN_IF_ERROR(job_.lockstep->Together("job-load", [this] { return Load(); }));
  DISTILL_RETURN_IF_ERROR(AgreeOnData(data_index_, job_.lockstep.get()));
  DISTILL_ASSIGN_OR_RETURN(const std::vector<std::string> news,
                           NotSaidByLeader(data_warnings_, job_.environment.data_root, job_.lockstep.get()));
  for (const std::string& warning : job_.leader() ? data_warnings_ : news) {
    const std::string who = job_.leader() ? "" : StrCat("rank ", job_.assignment.rank, ": ");
    job_.reporter.Event(EventLevel::kWarning, EventType::kData, who + warning);
  }
  DISTILL_RETURN_IF_ERROR(checkpoints_.Resume());
  DISTILL_RETURN_IF_ERROR(MeasureTeacher());
  while (job_.position.stage < job_.plan.stages.size()) {
    const auto start = Clock::now();
    if (!job_.position.trained) {
      StageLoop stage(&job_, &checkpoints_);
      DISTILL_ASSIGN_OR_RETURN(const std::optional<JobEnd> stopped, stage.Run());
      if (stopped.has_value()) return *stopped;
    }
    DISTILL_ASSIGN_OR_RETURN(const std::optional<JobEnd> stopped,
                             FinishStage(std::chrono::duration<double>(Clock::now() - start).count()));
    if (stopped.has_value()) return *stopped;
  }
  DISTILL_RETURN_IF_ERROR(checkpoints_.Export());
  return JobEnd::kFinished;
}

Status Job::SetUp() {
  const StudentAssignment& assignment = job_.assignment;
  const JobPlan& plan = job_.plan;
  DISTILL_RETURN_IF_ERROR(CheckJobId(assignment.job_id));
  if (assignment.world_size == 0 || assignment.rank >= assignment.world_size || plan.accumulate == 0 ||
      plan.batch_size % (uint64_t{assignment.world_size} * plan.accumulate) != 0) {
    return absl::InvalidArgumentError(StrCat("rank ", assignment.rank, " of ", assignment.world_size,
                                             " ranks with a batch of ", plan.batch_size, " images in ", plan.accumulate,
                                             " parts: the batch must divide evenly"));
  }
  if (plan.stages.empty()) return absl::InvalidArgumentError("the plan has no stages");
  SendTorchWarningsToLog();
  job_.plan_digest = PlanDigest(plan);
  const StatusOr<torch::Device> device = JobDevice(job_.environment.device, plan.device);
  if (!device.ok()) return WithKind(device.status(), FailureKind::kWorker);
  job_.device = *device;
  on_device_.emplace(job_.device);
  SetDeviceNumerics();
  // Results repeat bit for bit only at a fixed number of threads, so the plan states it.
  at::set_num_threads(std::max<int>(1, static_cast<int>(plan.threads)));
  torch::manual_seed(plan.seed);
  at::globalContext().setDeterministicAlgorithms(plan.deterministic, /*warn_only=*/true);
  // Filling fresh memory with NaN is for finding bugs and costs a pass over every tensor.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  at::globalContext().setDeterministicCuDNN(plan.deterministic);
  at::globalContext().setBenchmarkCuDNN(!plan.deterministic);
  return OkStatus();
}

Status Job::FormGroup() {
  const StudentAssignment& assignment = job_.assignment;
  std::shared_ptr<KvClient> store;
  if (assignment.world_size > 1) {
    DISTILL_ASSIGN_OR_RETURN(store, job_.environment.make_store(assignment.job_id, assignment.generation));
  }
  FormGroupOptions options;
  options.rank = assignment.rank;
  options.world_size = assignment.world_size;
  options.self = {.worker_id = job_.environment.worker_id,
                  .host = job_.environment.host,
                  .device = job_.device.str(),
                  .device_id = job_.device.is_cuda() ? CudaDeviceId(job_.device.index()) : ""};
  options.collective_timeout = job_.environment.collective_timeout;
  bool told = false;
  options.on_waiting = [this, &told](const std::string& reason, double seconds) {
    job_.reporter.Phase(reason);
    if (seconds < kLongWaitForRanks.count() || told) return;
    told = true;
    job_.reporter.Event(
        EventLevel::kWarning, EventType::kGeneral,
        StrCat("rank ", job_.assignment.rank, " is ", reason, " since ", static_cast<int64_t>(seconds), " s"));
  };
  auto group = distill::FormGroup(options, store, job_.control);
  if (!group.ok()) {
    // Its device does not go with those of the others.
    const bool odd = group.status().code() == StatusCode::kFailedPrecondition;
    return odd ? WithKind(group.status(), FailureKind::kWorker) : group.status();
  }
  job_.group = std::move(*group);
  if (job_.environment.wrap_group) job_.group = job_.environment.wrap_group(std::move(job_.group));
  job_.lockstep = std::make_unique<Lockstep>(job_.group.get(), job_.control, job_.device,
                                             std::clamp(job_.environment.collective_timeout / 8,
                                                        std::chrono::milliseconds(50), std::chrono::milliseconds(500)));
  return OkStatus();
}

Status Job::LoadData() {
  const JobPlan& plan = job_.plan;
  DISTILL_ASSIGN_OR_RETURN(DataSplits data,
                           OpenDataset(plan.data, job_.environment.data_root, plan.seed, WantedBy(plan),
                                       job_.environment.data, [this] { return job_.lockstep->stopping(); }));
  data_index_ = IndexOf(data);
  data_warnings_ = std::move(data.warnings);
  DISTILL_ASSIGN_OR_RETURN(job_.images, PrepareTrainingImages(data, plan.data.holdout, plan.seed));
  DISTILL_ASSIGN_OR_RETURN(job_.readers, SampleReaders::Create(plan, data));
  DISTILL_ASSIGN_OR_RETURN(job_.test, job_.readers.ForMeasuring(data.test));
  // Now rather than when the stage begins, which may be days later.
  for (const StagePlan& stage : plan.stages) {
    DISTILL_ASSIGN_OR_RETURN(auto images, ImagesOfStage(job_.images, stage, plan.batch_size));
    DISTILL_RETURN_IF_ERROR(job_.readers.ForTraining(std::move(images)).status());
  }
  if (job_.images.held_out != nullptr) {
    DISTILL_RETURN_IF_ERROR(job_.readers.ForMeasuring(job_.images.held_out).status());
  }
  return OkStatus();
}

Status Job::Load() {
  const JobPlan& plan = job_.plan;
  DISTILL_RETURN_IF_ERROR(LoadData());
  DISTILL_ASSIGN_OR_RETURN(job_.net, MakeStudentNet(plan, job_.environment.archives.get()));
  DISTILL_RETURN_IF_ERROR(LoadInitialWeights(plan, job_.environment.model_root, job_.net.get()));
  return job_.leader() ? checkpoints_.Open() : OkStatus();
}

Status Job::MeasureTeacherAlone(Score* score) {
  DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<TeacherPool> pool,
                           ConnectTeachers(job_, {{"", WireDtype::kF32, false}}));
  uint64_t version = 0;
  const auto tick = [&] {
    std::vector<TeacherEndpoint> teachers;
    if (job_.control->TeachersChanged(&version, &teachers)) pool->SetTeachers(std::move(teachers));
    return !job_.lockstep->stopping();
  };
  tick();
  at::set_num_threads(std::max<int>(1, static_cast<int>(job_.plan.threads)));  // this may be a thread of its own
  auto result = MeasureTeacherScore(pool.get(), *job_.test, job_.plan, tick);
  // Asked to stop: the stage's first step finds the ranks' common end.
  if (result.status().code() == StatusCode::kCancelled && !job_.control->revoked()) return OkStatus();
  DISTILL_RETURN_IF_ERROR(result.status());
  *score = *result;
  return OkStatus();
}

Status Job::MeasureTeacher() {
  const JobPlan& plan = job_.plan;
  if (!plan.evaluate_teacher || plan.teachers.empty()) return OkStatus();
  job_.reporter.Phase("evaluating");
  // Only rank 0 knows whether it was done before, measures, writes and reports.
  Score& score = job_.position.teacher_score;
  const bool before = score.measured();
  DISTILL_RETURN_IF_ERROR(
      job_.LeaderDoes("teacher-eval", [&] { return before ? OkStatus() : MeasureTeacherAlone(&score); }));
  if (!job_.leader() || !score.measured()) return OkStatus();
  job_.reporter.SetScores(job_.position.score, score);
  job_.environment.metrics->SetTeacherScore(score);
  if (before) return OkStatus();
  job_.reporter.Event(EventLevel::kInfo, EventType::kGeneral,
                      StrCat("teacher '", plan.teachers[0].model, "' has on the test set ", DescribeScore(score)));
  return OkStatus();
}

StatusOr<std::optional<JobEnd>> Job::FinishStage(double seconds) {
  Position& position = job_.position;
  const uint32_t stage = position.stage;
  position.score = Score();
  if (!job_.TrainsHead(stage)) {
    job_.reporter.SetScores(position.score, position.teacher_score);
  } else {
    DISTILL_ASSIGN_OR_RETURN(const bool measured, MeasureStudent(&job_));
    if (!measured) {
      // The next generation measures it, and goes on from there.
      const bool cancelled = job_.lockstep->cancel_asked();
      DISTILL_RETURN_IF_ERROR(checkpoints_.WriteAtStop(
          nullptr, nullptr, cancelled ? "cancelled" : "stopped for a rank that is shutting down"));
      return std::optional<JobEnd>(cancelled ? JobEnd::kCancelled : JobEnd::kTerminated);
    }
  }
  DISTILL_RETURN_IF_ERROR(checkpoints_.WriteStageEnd());
  DISTILL_RETURN_IF_ERROR(checkpoints_.Commit(stage, seconds));
  position.stage = stage + 1;
  position.step = 0;
  position.skipped_steps = 0;
  position.trained = false;
  return std::optional<JobEnd>();
}

// How a job that returned `status` has ended.
JobEnd EndOf(const Status& status, const JobControl& control, bool peer_failed) {
  const bool stopped = status.code() == StatusCode::kCancelled;
  if (control.revoked()) return JobEnd::kRevoked;
  if (control.cancelled() && stopped) return JobEnd::kCancelled;
  if (control.terminating()) return JobEnd::kTerminated;
  if (peer_failed) return JobEnd::kPeerFailed;
  return stopped ? JobEnd::kRevoked : JobEnd::kFailed;
}

JobOutcome RunToItsEnd(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control) {
  JobOutcome outcome;
  bool peer_failed = false;
  try {
    Job job(assignment, environment, control);
    const StatusOr<JobEnd> end = job.Run();
    if (end.ok()) {
      outcome.end = *end;
      return outcome;
    }
    outcome.status = end.status();
    peer_failed = job.peer_failed();
  } catch (const std::exception& error) {
    outcome.status = TorchStatus(error, "unexpected exception");
  }
  outcome.end = EndOf(outcome.status, *control, peer_failed);
  outcome.kind = ClassOf(outcome.status);
  return outcome;
}

}  // namespace

StatusOr<std::string> DescribeJobDevice(const std::string& device) {
  DISTILL_ASSIGN_OR_RETURN(const torch::Device chosen, JobDevice(device, "auto"));
  return DescribeDevice(chosen.str());
}

JobOutcome RunJob(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control) {
  JobOutcome outcome = RunToItsEnd(assignment, environment, control);
  // An idle worker keeps nothing that a teacher or another rank on this GPU could use.
  ReleaseDeviceMemory();
  return outcome;
}

}  // namespace distill
