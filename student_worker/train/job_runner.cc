#include "student_worker/train/job_runner.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "common/cuda/cuda_environment.h"
#include "common/cuda/cuda_runtime.h"
#include "common/hash/sha256.h"
#include "common/log.h"
#include "common/metrics/process_metrics.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/torch_log.h"
#include "common/zoo/weights.h"
#include "common/zoo/weights_file.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/data/training_images.h"
#include "student_worker/train/artifacts.h"
#include "student_worker/train/best_weights.h"
#include "student_worker/train/checkpoint_store.h"
#include "student_worker/train/evaluate.h"
#include "student_worker/train/form_group.h"
#include "student_worker/train/objective.h"
#include "student_worker/train/plan_digest.h"
#include "student_worker/train/stage_runner.h"
#include "student_worker/train/teacher_score.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

// After this long a rank that still waits for others says so in the job's event log.
constexpr std::chrono::seconds kLongWaitForRanks{30};

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double WallClock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Inputs from the pipeline, following changes of the list of teachers while it waits.
class PipelineSource : public StepSource {
 public:
  PipelineSource(StepPipeline* pipeline, TeacherPool* pool, const JobControl* control)
      : pipeline_(pipeline), pool_(pool), control_(control) {}

  StatusOr<StepInput> Next(std::chrono::milliseconds timeout) override {
    const auto deadline = Clock::now() + timeout;
    while (true) {
      if (control_->revoked()) return absl::CancelledError("the assignment was revoked");
      FollowTeachers();
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      const auto slice = std::clamp(left, std::chrono::milliseconds(1), std::chrono::milliseconds(200));
      auto input = pipeline_->Next(slice);
      if (input.status().code() != StatusCode::kDeadlineExceeded || left <= slice) return input;
    }
  }

 private:
  void FollowTeachers() {
    std::vector<TeacherEndpoint> teachers;
    if (pool_ != nullptr && control_->TeachersChanged(&teachers_version_, &teachers))
      pool_->SetTeachers(std::move(teachers));
  }

  StepPipeline* const pipeline_;  // not owned: the stage owns all three and outlives this
  TeacherPool* const pool_;       // null: no teacher
  const JobControl* const control_;
  uint64_t teachers_version_ = 0;
};

// The worker's flag decides unless it is "auto"; then the plan does.
StatusOr<torch::Device> JobDevice(const std::string& flag, const std::string& plan_device) {
  std::string wanted = flag == "auto" || flag.empty() ? plan_device : flag;
  if (wanted.empty()) wanted = "auto";
  DISTILL_ASSIGN_OR_RETURN(const std::string chosen, ChooseDevice(wanted));
  return torch::Device(chosen);
}

// The coordinator's kAborted: a newer generation exists, whose assignment is on its way. That is a revocation, not a
// failure.
Status EndedIfAborted(const Status& status) {
  return status.code() == StatusCode::kAborted ? absl::CancelledError(status.message()) : status;
}

// Job ids become folder names.
Status CheckJobId(const std::string& job_id) {
  const bool plain = !job_id.empty() && job_id.size() <= 200 && job_id[0] != '.' &&
                     std::all_of(job_id.begin(), job_id.end(),
                                 [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
  if (!plain) return absl::InvalidArgumentError(StrCat("the job id '", job_id, "' cannot be a folder's name"));
  return OkStatus();
}

// That `path` is the file which the job's teachers serve.
Status CheckIsTeachersFile(const JobPlan& plan, const std::string& path) {
  if (plan.teachers.empty()) return absl::InvalidArgumentError("the student starts as its teacher, but there is none");
  const TeacherRef& teacher = plan.teachers[0];
  std::ifstream in(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (!in) return absl::DataLossError(StrCat("'", path, "' cannot be read"));
  const std::string digest = Sha256Hex(CanonicalText(teacher.spec) + bytes.str());
  if (digest == teacher.digest) return OkStatus();
  return absl::FailedPreconditionError(StrCat("'", path, "' is not the file of the teacher '", teacher.model,
                                              "': with it the digest is ", digest.substr(0, 12), ", the teacher's is ",
                                              teacher.digest.substr(0, 12),
                                              "; put a copy of the file there that distill-teacher serves, or use "
                                              "sskd.head.init: random"));
}

bool TrainsHead(const Architecture& architecture, const StagePlan& stage) {
  for (const std::string& head : architecture.HeadModules()) {
    for (const std::string& path : stage.trainable) {
      if (IsUnder(head, path) || IsUnder(path, head)) return true;
    }
  }
  return false;
}

std::vector<std::pair<std::string, double>> Parts(const StepSeconds& s) {
  return {{"data", s.data}, {"wait_features", s.wait_features}, {"forward", s.forward},    {"loss", s.loss},
          {"sync", s.sync}, {"backward", s.backward},           {"optimizer", s.optimizer}};
}

// Where the job stands; equal on all ranks.
struct Position {
  uint32_t stage = 0;  // the next stage to run or continue
  uint64_t step = 0;   // steps done in it
  Score score;         // of the student, the newest
  Score teacher_score;
};

class Job {
 public:
  Job(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control)
      : assignment_(assignment), plan_(assignment.plan), environment_(environment), control_(control) {}
  ~Job() { control_->SetAbort(nullptr); }

  // OK: `*end` says how it ended.
  Status Run(JobEnd* end);
  bool peer_failed() const { return lockstep_ != nullptr && lockstep_->peer_failed(); }

 private:
  bool leader() const { return assignment_.rank == 0; }
  std::string job_folder() const { return StrCat(environment_.work_dir, "/", assignment_.job_id); }
  uint64_t StepsBefore(uint32_t stage) const {
    uint64_t steps = 0;
    for (uint32_t s = 0; s < stage; ++s) steps += plan_.stages[s].steps;
    return steps;
  }

  Status SetUp();
  Status FormGroup();
  Status Load();
  Status LoadInitialWeights();
  Status Resume();
  Status MeasureTeacher();
  // Runs the rest of a stage. `*end` is set when the job stops inside it.
  Status RunStage(uint32_t stage, std::optional<JobEnd>* end);
  // Measures the objective on held-out images and keeps the best weights. True when the stage has settled (patience).
  StatusOr<bool> MeasureHeldOut(uint32_t stage, uint64_t step, StageRunner* runner);
  // Gives all ranks the best weights.
  Status TakeBest();
  Status FinishStage(uint32_t stage, double seconds);
  StatusOr<std::unique_ptr<TeacherPool>> MakePool(const std::vector<TapRequest>& taps);
  Status WriteCheckpoint(uint32_t stage, uint64_t step, StageRunner* runner);
  Status Commit(uint32_t stage, double seconds);
  Status Evaluate(uint32_t stage);
  Status Export();

  // Work of rank 0 alone, which the others wait for in lock-step.
  Status LeaderDoes(const char* thread_name, const std::function<Status()>& work) {
    return lockstep_->Together(thread_name, leader() ? work : nullptr);
  }
  void Phase(const std::string& phase);
  void Event(EventLevel level, EventType type, const std::string& text);

  const StudentAssignment& assignment_;
  const JobPlan& plan_;
  const JobEnvironment& environment_;
  JobControl* const control_;  // not owned: the agent keeps it for as long as the job runs

  std::string plan_digest_;
  torch::Device device_ = torch::kCPU;
  std::optional<c10::DeviceGuard> on_device_;  // of the training thread, for as long as the job runs
  std::shared_ptr<CollectiveGroup>
      group_;  // shared with JobControl's abort function, which another thread may be inside of
  std::unique_ptr<Lockstep> lockstep_;
  TrainingImages images_;
  std::shared_ptr<const Dataset> test_;
  std::shared_ptr<ZooNet> net_;
  std::optional<CheckpointStore> store_;  // rank 0
  Position position_;
  SafetensorsFile resumed_optimizer_;  // rank 0, until the stage has taken it
  std::string last_checkpoint_, last_digest_;
  double last_loss_ = 0;
  BestWeights best_;  // rank 0
  JobProgress progress_;
};

void Job::Phase(const std::string& phase) {
  if (!leader()) return;
  progress_.phase = phase;
  progress_.time = WallClock();
  progress_.accuracy = position_.score.accuracy;
  progress_.mean_iou = position_.score.mean_iou;
  progress_.teacher_accuracy = position_.teacher_score.accuracy;
  progress_.teacher_mean_iou = position_.teacher_score.mean_iou;
  environment_.fleet->ReportProgress(progress_);
}

void Job::Event(EventLevel level, EventType type, const std::string& text) {
  Log(level == EventLevel::kInfo      ? LogLevel::kInfo
      : level == EventLevel::kWarning ? LogLevel::kWarning
                                      : LogLevel::kError,
      text, {{"job", assignment_.job_id}, {"generation", assignment_.generation}, {"rank", assignment_.rank}});
  environment_.fleet->ReportEvent(assignment_.job_id, level, type, text);
}

Status Job::Run(JobEnd* end) {
  DISTILL_RETURN_IF_ERROR(SetUp());
  DISTILL_RETURN_IF_ERROR(FormGroup());
  Phase("loading");
  DISTILL_RETURN_IF_ERROR(lockstep_->Together("job-load", [this] { return Load(); }));
  DISTILL_RETURN_IF_ERROR(Resume());
  DISTILL_RETURN_IF_ERROR(MeasureTeacher());
  while (position_.stage < plan_.stages.size()) {
    std::optional<JobEnd> stopped;
    DISTILL_RETURN_IF_ERROR(RunStage(position_.stage, &stopped));
    if (stopped.has_value()) {
      *end = *stopped;
      return OkStatus();
    }
  }
  DISTILL_RETURN_IF_ERROR(Export());
  *end = JobEnd::kFinished;
  return OkStatus();
}

Status Job::SetUp() {
  DISTILL_RETURN_IF_ERROR(CheckJobId(assignment_.job_id));
  if (assignment_.world_size == 0 || assignment_.rank >= assignment_.world_size ||
      plan_.batch_size % assignment_.world_size != 0) {
    return absl::InvalidArgumentError(StrCat("rank ", assignment_.rank, " of ", assignment_.world_size,
                                             " ranks with a batch of ", plan_.batch_size,
                                             " images: the batch must divide evenly"));
  }
  if (plan_.stages.empty()) return absl::InvalidArgumentError("the plan has no stages");
  SendTorchWarningsToLog();
  plan_digest_ = PlanDigest(plan_);
  DISTILL_ASSIGN_OR_RETURN(device_, JobDevice(environment_.device, plan_.device));
  on_device_.emplace(device_);
  SetDeviceNumerics();
  // Results repeat bit for bit only at a fixed number of threads, so the plan states it.
  at::set_num_threads(std::max<int>(1, static_cast<int>(plan_.threads)));
  torch::manual_seed(plan_.seed);
  at::globalContext().setDeterministicAlgorithms(plan_.deterministic, /*warn_only=*/true);
  // Filling fresh memory with NaN is for finding bugs and costs a pass over every tensor.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  at::globalContext().setDeterministicCuDNN(plan_.deterministic);
  at::globalContext().setBenchmarkCuDNN(!plan_.deterministic);
  return OkStatus();
}

Status Job::FormGroup() {
  std::shared_ptr<KvClient> store;
  if (assignment_.world_size > 1) {
    DISTILL_ASSIGN_OR_RETURN(store, environment_.make_store(assignment_.job_id, assignment_.generation));
  }
  FormGroupOptions options;
  options.rank = assignment_.rank;
  options.world_size = assignment_.world_size;
  options.self = {.worker_id = environment_.worker_id,
                  .host = environment_.host,
                  .device = device_.str(),
                  .device_id = device_.is_cuda() ? CudaDeviceId(device_.index()) : ""};
  options.collective_timeout = environment_.collective_timeout;
  bool told = false;
  options.on_waiting = [this, &told](const std::string& reason, double seconds) {
    Phase(reason);
    if (seconds < kLongWaitForRanks.count() || told) return;
    told = true;
    Event(EventLevel::kWarning, EventType::kGeneral,
          StrCat("rank ", assignment_.rank, " is ", reason, " since ", static_cast<int64_t>(seconds), " s"));
  };
  DISTILL_ASSIGN_OR_RETURN(group_, distill::FormGroup(options, store, control_));
  if (environment_.wrap_group) group_ = environment_.wrap_group(std::move(group_));
  lockstep_ = std::make_unique<Lockstep>(
      group_.get(), control_, device_,
      std::clamp(environment_.collective_timeout / 8, std::chrono::milliseconds(50), std::chrono::milliseconds(500)));
  return OkStatus();
}

Status Job::Load() {
  DISTILL_ASSIGN_OR_RETURN(const DataSplits data,
                           OpenDataset(plan_.data, environment_.data_root, plan_.seed, WantedBy(plan_.student)));
  DISTILL_ASSIGN_OR_RETURN(images_, PrepareTrainingImages(data, plan_.data.holdout, plan_.seed));
  test_ = data.test;
  // Now rather than when the stage begins, which may be days later.
  for (const StagePlan& stage : plan_.stages) {
    DISTILL_RETURN_IF_ERROR(ImagesOfStage(images_, stage, plan_.batch_size).status());
  }
  DISTILL_ASSIGN_OR_RETURN(net_, ZooNet::Create(plan_.student));
  DISTILL_RETURN_IF_ERROR(LoadInitialWeights());
  if (leader()) {
    DISTILL_ASSIGN_OR_RETURN(store_, CheckpointStore::Open(StrCat(job_folder(), "/checkpoints")));
  }
  return OkStatus();
}

Status Job::LoadInitialWeights() {
  net_->InitWeights(plan_.seed);
  if (plan_.student.weights.empty()) return OkStatus();
  if (environment_.model_root.empty()) {
    return absl::InvalidArgumentError(StrCat("the job starts from weights '", plan_.student.weights,
                                             "', but this student was started without --model-root"));
  }
  DISTILL_ASSIGN_OR_RETURN(const std::string path, ResolveBelow(environment_.model_root, plan_.student.weights));
  if (plan_.student.weights_of_teacher) DISTILL_RETURN_IF_ERROR(CheckIsTeachersFile(plan_, path));
  DISTILL_ASSIGN_OR_RETURN(const SafetensorsFile file, ReadWeightsFile(path, net_->architecture()));
  if (plan_.student.weights_modules.empty()) return Annotate(LoadWeights(file, net_.get()), path);
  SafetensorsFile mixed = SaveWeights(*net_);
  for (auto& [name, tensor] : mixed.tensors) {
    const bool wanted = std::any_of(plan_.student.weights_modules.begin(), plan_.student.weights_modules.end(),
                                    [&](const std::string& module) { return IsUnder(name, module); });
    if (!wanted) continue;
    const auto found = file.tensors.find(name);
    if (found == file.tensors.end()) {
      return absl::FailedPreconditionError(
          StrCat(path, " has no '", name, "', which student.weights_modules asks for"));
    }
    tensor = found->second;
  }
  return Annotate(LoadWeights(mixed, net_.get()), path);
}

Status Job::Resume() {
  std::optional<StoredCheckpoint> newest;
  const Status loaded = LeaderDoes("ckpt-load", [&]() -> Status {
    std::vector<std::string> skipped;
    DISTILL_ASSIGN_OR_RETURN(newest, store_->LoadNewest(assignment_.job_id, plan_digest_, &skipped));
    for (const std::string& reason : skipped) {
      Event(EventLevel::kWarning, EventType::kCheckpoint, StrCat("checkpoint not used: ", reason));
    }
    if (!newest.has_value()) return OkStatus();
    const CheckpointState& state = newest->checkpoint.state;
    if (state.stage >= plan_.stages.size() || state.step > plan_.stages[state.stage].steps) {
      return absl::DataLossError(
          StrCat(newest->path, " is at stage ", state.stage, " step ", state.step, ", which the plan does not have"));
    }
    return LoadWeights(newest->checkpoint.model, net_.get());
  });
  DISTILL_RETURN_IF_ERROR(loaded);
  if (newest.has_value()) {
    const CheckpointState& state = newest->checkpoint.state;
    position_ = {state.stage, state.step, state.score, state.teacher_score};
    last_checkpoint_ = newest->path;
    last_digest_ = newest->digest;
    last_loss_ = state.loss;
    resumed_optimizer_ = std::move(newest->checkpoint.optimizer);
    Event(EventLevel::kInfo, EventType::kCheckpoint, StrCat("resuming from ", newest->path));
  } else if (leader() && assignment_.first_stage > 0) {
    Event(EventLevel::kWarning, EventType::kCheckpoint,
          StrCat("no usable checkpoint in ", store_->root(), ", although ", assignment_.first_stage,
                 " stages are committed; training starts over"));
  }
  // Rank 0's position and net are everybody's.
  torch::Tensor numbers =
      torch::tensor({static_cast<double>(position_.stage), static_cast<double>(position_.step),
                     position_.score.accuracy, position_.score.mean_iou, position_.teacher_score.accuracy,
                     position_.teacher_score.mean_iou, newest.has_value() ? 1.0 : 0.0},
                    torch::kFloat64);
  net_->to(device_);
  if (group_->world_size() > 1) {
    std::vector<torch::Tensor> tensors = {numbers.to(device_)};
    DISTILL_RETURN_IF_ERROR(group_->Broadcast(tensors, 0));
    numbers = tensors[0].to(torch::kCPU);
    DISTILL_RETURN_IF_ERROR(group_->Check());
  }
  DISTILL_RETURN_IF_ERROR(BroadcastNet(group_.get(), net_.get(), /*buffers_only=*/false));
  const double* n = numbers.data_ptr<double>();
  position_ = {static_cast<uint32_t>(n[0]), static_cast<uint64_t>(n[1]), {n[2], n[3]}, {n[4], n[5]}};
  const bool resumed = n[6] > 0;
  // The coordinator's store may be older than the checkpoint, when it was restored from a copy.
  for (uint32_t stage = assignment_.first_stage; resumed && stage < position_.stage; ++stage) {
    if (leader()) {
      Event(EventLevel::kWarning, EventType::kCheckpoint,
            StrCat("the coordinator does not know that stage ", stage + 1, " is done; committing it again with ",
                   last_checkpoint_));
    }
    DISTILL_RETURN_IF_ERROR(Commit(stage, 0));
  }
  if (resumed && position_.step == plan_.stages[position_.stage].steps) {
    // The stage is complete. Its commit may have been lost with whoever was about to send it.
    const uint32_t done = position_.stage;
    if (done >= assignment_.first_stage) DISTILL_RETURN_IF_ERROR(Commit(done, 0));
    position_.stage = done + 1;
    position_.step = 0;
    resumed_optimizer_ = SafetensorsFile();
  }
  // A checkpoint may be gone after its stage was committed, and teachers released for it.
  return LeaderDoes("resume-report", [&] {
    return EndedIfAborted(environment_.fleet->ReportResume(assignment_.job_id, assignment_.generation, position_.stage,
                                                           position_.step, last_digest_));
  });
}

StatusOr<std::unique_ptr<TeacherPool>> Job::MakePool(const std::vector<TapRequest>& taps) {
  if (plan_.teachers.empty()) return absl::InvalidArgumentError("the stage reads a teacher, but the plan names none");
  const TeacherRef& teacher = plan_.teachers[0];
  TeacherPool::Options options;
  options.model = teacher.model;
  options.digest = teacher.digest;
  options.taps = taps;
  // Known shapes let the pool grant credit exactly from the first request on.
  if (auto architecture = Architecture::Create(teacher.spec); architecture.ok()) {
    for (const TapRequest& tap : taps) {
      const TapInfo* info = architecture->FindTap(tap.tap);
      if (info != nullptr) options.tap_shapes.push_back(info->shape);
    }
    if (options.tap_shapes.size() != taps.size()) options.tap_shapes.clear();
  }
  options.exclusive_batches = plan_.deterministic;
  options.security = environment_.security;
  options.client = StrCat(assignment_.job_id, "/", environment_.worker_id);
  options.window_bytes = plan_.prefetch_bytes;
  options.metrics = environment_.registry;
  options.on_event = [this](EventLevel level, const std::string& text) {
    Event(level, EventType::kTeacher, StrCat("rank ", assignment_.rank, ": ", text));
  };
  return TeacherPool::Create(std::move(options));
}

Status Job::MeasureTeacher() {
  if (!plan_.evaluate_teacher || plan_.teachers.empty() || position_.teacher_score.accuracy >= 0) return OkStatus();
  Phase("evaluating");
  Score score;
  const Status measured = LeaderDoes("teacher-eval", [&]() -> Status {
    DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<TeacherPool> pool, MakePool({{"", WireDtype::kF32, false}}));
    uint64_t version = 0;
    const auto tick = [&] {
      std::vector<TeacherEndpoint> teachers;
      if (control_->TeachersChanged(&version, &teachers)) pool->SetTeachers(std::move(teachers));
      return !control_->revoked() && !control_->cancelled() && !control_->terminating();
    };
    tick();
    const uint32_t batch = std::max<uint32_t>(1, plan_.batch_size / assignment_.world_size);
    auto result =
        MeasureTeacherScore(pool.get(), *test_, plan_.student.num_classes, batch, plan_.prefetch_bytes, tick);
    // Asked to stop: the stage's first step finds the ranks' common end.
    if (result.status().code() == StatusCode::kCancelled) return OkStatus();
    DISTILL_RETURN_IF_ERROR(result.status());
    score = *result;
    return OkStatus();
  });
  DISTILL_RETURN_IF_ERROR(measured);
  // Only rank 0 writes and reports it.
  position_.teacher_score = score;
  if (leader() && score.accuracy >= 0) {
    environment_.metrics->SetTeacherScore(score);
    std::string text = StrCat("teacher '", plan_.teachers[0].model, "' has test accuracy ", score.accuracy);
    if (score.mean_iou >= 0) StrAppend(&text, ", mean IoU ", score.mean_iou);
    Event(EventLevel::kInfo, EventType::kGeneral, text);
  }
  return OkStatus();
}

Status Job::RunStage(uint32_t stage_index, std::optional<JobEnd>* end) {
  const StagePlan& stage = plan_.stages[stage_index];
  const auto stage_start = Clock::now();
  environment_.metrics->SetPosition(assignment_.generation, stage_index);
  progress_ = JobProgress();
  progress_.stage = stage_index;
  progress_.step = position_.step;
  progress_.total_step = StepsBefore(stage_index) + position_.step;
  Phase("loading");

  // Set-up may fail on one rank alone; all ranks learn of it together.
  std::unique_ptr<StageRunner> runner;
  std::unique_ptr<TeacherPool> pool;
  std::unique_ptr<StepPipeline> pipeline;
  best_ = BestWeights();
  const auto set_up = [&]() -> Status {
    DISTILL_ASSIGN_OR_RETURN(
        runner,
        StageRunner::Create(
            {.plan = &plan_, .stage = stage_index, .net = net_.get(), .lockstep = lockstep_.get(), .device = device_}));
    if (position_.step > 0 && leader()) {
      best_ = BestWeights::TakeFrom(&resumed_optimizer_);
      DISTILL_RETURN_IF_ERROR(Annotate(runner->LoadState(resumed_optimizer_), last_checkpoint_));
      resumed_optimizer_ = SafetensorsFile();
    }
    if (!runner->teacher_taps().empty()) {
      DISTILL_ASSIGN_OR_RETURN(pool, MakePool(runner->teacher_taps()));
    }
    StepPipeline::Options options;
    DISTILL_ASSIGN_OR_RETURN(options.dataset, ImagesOfStage(images_, stage, plan_.batch_size));
    options.sampler.seed = plan_.seed;
    options.sampler.batch_size = plan_.batch_size;
    options.sampler.world_size = assignment_.world_size;
    options.sampler.rank = assignment_.rank;
    options.augment.crop_padding = plan_.data.crop_padding;
    options.augment.horizontal_flip = plan_.data.horizontal_flip;
    options.pool = pool.get();
    // Steps are counted over the whole job, so that a new stage goes on through the data instead of starting over.
    options.first_step = StepsBefore(stage_index) + position_.step;
    options.end_step = StepsBefore(stage_index) + stage.steps;
    DISTILL_ASSIGN_OR_RETURN(pipeline, StepPipeline::Create(std::move(options)));
    return OkStatus();
  };
  const Status ready = set_up();
  DISTILL_ASSIGN_OR_RETURN(const Lockstep::Round all_ready,
                           lockstep_->Meet({.failed = !ready.ok(), .waiting = false, .values = {}}));
  DISTILL_RETURN_IF_ERROR(ready);
  if (all_ready.failed > 0) return absl::AbortedError("another rank failed; it reports why");
  if (position_.step > 0) DISTILL_RETURN_IF_ERROR(runner->BroadcastState());
  PipelineSource source(pipeline.get(), pool.get(), control_);

  const uint32_t images_per_rank = plan_.batch_size / assignment_.world_size;
  const bool trains_head = TrainsHead(net_->architecture(), stage);
  const bool measures = images_.held_out != nullptr && (stage.select == "best" || stage.patience > 0);
  const uint64_t measure_every =
      plan_.evaluate_every > 0 ? plan_.evaluate_every : std::max<uint64_t>(1, stage.steps / 10);
  // Sums since the last report.
  uint64_t steps = 0;
  double loss = 0;
  std::vector<double> terms(runner->names().size(), 0.0);
  std::vector<std::pair<std::string, double>> seconds = Parts({});
  auto last_report = Clock::now();
  Phase("training");
  for (uint64_t step = position_.step; step < stage.steps;) {
    const StatusOr<StepResult> stepped = runner->Step(&source, step);
    if (IsNotFinite(stepped.status())) environment_.metrics->CountNotFiniteLoss();
    DISTILL_RETURN_IF_ERROR(stepped.status());
    for (const std::string& warning : runner->TakeWarnings()) {
      // Other ranks' maps are of the same teachers.
      if (leader()) Event(EventLevel::kWarning, EventType::kGeneral, warning);
    }
    const StepResult& result = *stepped;
    if (result.stepped) {
      position_.step = ++step;
      progress_.learning_rate = result.learning_rate;
      if (result.skipped) {
        environment_.metrics->CountSkippedStep();
      } else {
        last_loss_ = result.loss;
        ++steps;
        loss += result.loss;
        const auto parts = Parts(result.seconds);
        std::vector<std::pair<std::string, double>> named_terms;
        for (size_t i = 0; i < terms.size(); ++i) {
          terms[i] += result.terms[i];
          named_terms.emplace_back(runner->names()[i], result.terms[i]);
        }
        for (size_t i = 0; i < parts.size(); ++i) seconds[i].second += parts[i].second;
        environment_.metrics->ObserveStep(images_per_rank, result.loss, result.learning_rate, parts, named_terms);
      }
    }
    const bool stage_done = step == stage.steps;
    const bool report = plan_.log_every > 0 && step % plan_.log_every == 0;
    if (leader() && steps > 0 && (report || stage_done || SecondsSince(last_report) > 5)) {
      const double count = static_cast<double>(steps);
      progress_.step = step;
      progress_.total_step = StepsBefore(stage_index) + step;
      progress_.images_per_second = count * plan_.batch_size / std::max(1e-9, SecondsSince(last_report));
      progress_.terms.clear();
      progress_.step_seconds.clear();
      for (size_t i = 0; i < terms.size(); ++i) progress_.terms.push_back({runner->names()[i], terms[i] / count});
      progress_.loss = loss / count;
      for (const auto& [part, total] : seconds) progress_.step_seconds.push_back({part, total / count});
      Phase("training");
      steps = 0;
      loss = 0;
      std::fill(terms.begin(), terms.end(), 0.0);
      seconds = Parts({});
      last_report = Clock::now();
    }
    if (measures && result.stepped && (stage_done || step % measure_every == 0)) {
      DISTILL_ASSIGN_OR_RETURN(const bool settled, MeasureHeldOut(stage_index, step, runner.get()));
      last_report = Clock::now();
      if (settled) break;
    }
    if (stage_done) break;
    if (result.cancel || result.terminate) {
      DISTILL_RETURN_IF_ERROR(WriteCheckpoint(stage_index, step, runner.get()));
      *end = result.cancel ? JobEnd::kCancelled : JobEnd::kTerminated;
      if (leader()) {
        Event(EventLevel::kInfo, EventType::kCheckpoint,
              StrCat(result.cancel ? "cancelled" : "stopped for a rank that is shutting down", "; checkpoint ",
                     last_checkpoint_));
      }
      return OkStatus();
    }
    if (plan_.evaluate_every > 0 && trains_head && step % plan_.evaluate_every == 0) {
      DISTILL_RETURN_IF_ERROR(Evaluate(stage_index));
      last_report = Clock::now();
    }
    if (plan_.checkpoint_every > 0 && step % plan_.checkpoint_every == 0) {
      DISTILL_RETURN_IF_ERROR(WriteCheckpoint(stage_index, step, runner.get()));
      Phase("training");
      last_report = Clock::now();
    }
  }
  if (leader()) {
    LogInfo("stage trained", {{"stage", stage.name},
                              {"steps", position_.step},
                              {"loss", last_loss_},
                              {"learning_rate", progress_.learning_rate}});
  }
  // Teachers are let go before the evaluation: nothing more is read from them in this stage.
  pipeline.reset();
  pool.reset();
  runner.reset();
  if (stage.select == "best") DISTILL_RETURN_IF_ERROR(TakeBest());
  return FinishStage(stage_index, SecondsSince(stage_start));
}

StatusOr<bool> Job::MeasureHeldOut(uint32_t stage_index, uint64_t step, StageRunner* runner) {
  const StagePlan& stage = plan_.stages[stage_index];
  Phase("measuring");
  DISTILL_RETURN_IF_ERROR(BroadcastNet(group_.get(), net_.get(), /*buffers_only=*/true));
  const Status measured = LeaderDoes("held-out", [&]() -> Status {
    at::set_num_threads(std::max<int>(1, static_cast<int>(plan_.threads)));  // this may be a thread of its own
    std::unique_ptr<TeacherPool> pool;
    if (!runner->teacher_taps().empty()) {
      DISTILL_ASSIGN_OR_RETURN(pool, MakePool(runner->teacher_taps()));
    }
    StepPipeline::Options options;
    options.dataset = images_.held_out;
    options.sampler.seed = plan_.seed;
    options.sampler.batch_size = plan_.batch_size / assignment_.world_size;
    options.pool = pool.get();
    options.end_step = images_.held_out->size() / options.sampler.batch_size;
    const uint64_t batches = options.end_step;
    DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<StepPipeline> pipeline, StepPipeline::Create(std::move(options)));
    PipelineSource source(pipeline.get(), pool.get(), control_);
    const auto tick = [&] { return !control_->revoked() && !control_->cancelled() && !control_->terminating(); };
    const StatusOr<double> loss = runner->Measure(&source, batches, step, tick);
    // Asked to stop: the next step finds the ranks' common end.
    if (loss.status().code() == StatusCode::kCancelled) return OkStatus();
    DISTILL_RETURN_IF_ERROR(loss.status());
    const bool better = *loss < best_.loss;
    LogInfo("measured on held-out images", {{"stage", stage.name},
                                            {"step", step},
                                            {"loss", *loss},
                                            {"best", better},
                                            {"training_loss", last_loss_},
                                            {"learning_rate", progress_.learning_rate}});
    best_.since = better ? 0 : best_.since + 1;
    if (better) {
      best_.loss = *loss;
      best_.model = SaveWeights(*net_);
    }
    return OkStatus();
  });
  DISTILL_RETURN_IF_ERROR(measured);
  const bool settled = leader() && stage.patience > 0 && best_.since >= stage.patience;
  DISTILL_ASSIGN_OR_RETURN(const Lockstep::Round round,
                           lockstep_->Meet({.failed = false, .waiting = false, .values = {settled ? 1.0 : 0.0}}));
  if (leader() && settled && step < stage.steps) {
    Event(EventLevel::kInfo, EventType::kSteps,
          StrCat("stage '", stage.name, "' ends at step ", step, " of ", stage.steps,
                 ": no lower loss on held-out images in ", best_.since, " measurements"));
  }
  Phase("training");
  return round.sums[0] > 0;
}

Status Job::TakeBest() {
  const Status taken = LeaderDoes("take-best", [&]() -> Status {
    if (best_.model.tensors.empty()) return OkStatus();  // nothing finite was measured
    return LoadWeights(best_.model, net_.get());
  });
  DISTILL_RETURN_IF_ERROR(taken);
  return BroadcastNet(group_.get(), net_.get(), /*buffers_only=*/false);
}

Status Job::FinishStage(uint32_t stage, double seconds) {
  if (TrainsHead(net_->architecture(), plan_.stages[stage])) {
    DISTILL_RETURN_IF_ERROR(Evaluate(stage));
  } else {
    position_.score = Score();
  }
  position_.step = plan_.stages[stage].steps;
  DISTILL_RETURN_IF_ERROR(WriteCheckpoint(stage, position_.step, nullptr));
  DISTILL_RETURN_IF_ERROR(Commit(stage, seconds));
  position_.stage = stage + 1;
  position_.step = 0;
  return OkStatus();
}

Status Job::Evaluate(uint32_t stage) {
  Phase("evaluating");
  DISTILL_RETURN_IF_ERROR(BroadcastNet(group_.get(), net_.get(), /*buffers_only=*/true));
  DISTILL_ASSIGN_OR_RETURN(position_.score,
                           distill::Evaluate(net_.get(), *test_, plan_.student, lockstep_.get(), *control_, device_));
  environment_.metrics->SetScore(position_.score);
  if (leader()) {
    LogInfo("evaluated", {{"job", assignment_.job_id},
                          {"stage", stage},
                          {"step", position_.step},
                          {"accuracy", position_.score.accuracy},
                          {"mean_iou", position_.score.mean_iou}});
  }
  Phase("training");
  return OkStatus();
}

Status Job::WriteCheckpoint(uint32_t stage, uint64_t step, StageRunner* runner) {
  Phase("checkpointing");
  DISTILL_RETURN_IF_ERROR(BroadcastNet(group_.get(), net_.get(), /*buffers_only=*/true));
  const auto start = Clock::now();
  const Status status = LeaderDoes("ckpt-write", [&]() -> Status {
    Checkpoint checkpoint;
    CheckpointState& state = checkpoint.state;
    state.job_id = assignment_.job_id;
    state.plan_digest = plan_digest_;
    state.stage = stage;
    state.step = step;
    state.total_step = StepsBefore(stage) + step;
    state.stage_end = step == plan_.stages[stage].steps;
    state.seed = plan_.seed;
    state.world_size = assignment_.world_size;
    state.threads = plan_.threads;
    state.generation = assignment_.generation;
    state.score = position_.score;
    state.teacher_score = position_.teacher_score;
    state.loss = last_loss_;
    checkpoint.model = SaveWeights(*net_);
    if (runner != nullptr) {
      checkpoint.optimizer = runner->State();
      best_.AddTo(&checkpoint.optimizer);
    }
    // A revoked rank must not touch the folder any more: the next generation's rank 0 owns it. And of a step whose
    // all-reduce was aborted on the GPU nothing may be kept: the weights, which are on the CPU by now, are not of all
    // ranks then.
    if (control_->revoked()) return absl::CancelledError("the assignment was revoked");
    DISTILL_RETURN_IF_ERROR(group_->Check());
    DISTILL_ASSIGN_OR_RETURN(const StoredCheckpoint stored, store_->Write(checkpoint));
    last_checkpoint_ = stored.path;
    last_digest_ = stored.digest;
    MeasureFolder("work", environment_.work_dir, environment_.registry);
    return OkStatus();
  });
  if (leader()) {
    if (status.ok()) {
      environment_.metrics->ObserveCheckpoint(SecondsSince(start));
    } else if (!control_->revoked()) {
      environment_.metrics->CountCheckpointFailure();
    }
  }
  return status;
}

Status Job::Commit(uint32_t stage, double seconds) {
  JobStageResult result;
  result.stage = stage;
  result.checkpoint = last_checkpoint_;
  result.digest = last_digest_;
  result.accuracy = position_.score.accuracy;
  result.mean_iou = position_.score.mean_iou;
  result.loss = last_loss_;
  result.seconds = seconds;
  return LeaderDoes("stage-commit", [&]() -> Status {
    const auto commit = [&] {
      return EndedIfAborted(environment_.fleet->CommitStage(assignment_.job_id, assignment_.generation, result));
    };
    const Status status = commit();
    if (status.code() != StatusCode::kFailedPrecondition || stage == 0) return status;
    // Stages are committed in order, and the coordinator does not know of an earlier one: its store was restored from a
    // copy while this job ran. The newest checkpoint holds their work too; those that are known are accepted as they
    // are.
    Event(EventLevel::kWarning, EventType::kCheckpoint,
          StrCat("the coordinator does not know all stages before ", stage + 1, "; committing them again with ",
                 last_checkpoint_));
    for (result.stage = 0; result.stage < stage; ++result.stage) DISTILL_RETURN_IF_ERROR(commit());
    return commit();
  });
}

Status Job::Export() {
  Phase("exporting");
  return LeaderDoes("job-export", [&]() -> Status {
    JobArtifacts artifacts;
    artifacts.safetensors = StrCat(job_folder(), "/student.safetensors");
    artifacts.torchscript = StrCat(job_folder(), "/student.pt");
    artifacts.student_accuracy = position_.score.accuracy;
    artifacts.student_mean_iou = position_.score.mean_iou;
    artifacts.teacher_accuracy = position_.teacher_score.accuracy;
    artifacts.teacher_mean_iou = position_.teacher_score.mean_iou;
    artifacts.student_parameters = net_->architecture().ParameterCount();
    if (!plan_.teachers.empty()) {
      artifacts.teacher_parameters = plan_.teachers[0].parameters;
      artifacts.teacher_bytes = plan_.teachers[0].bytes;
    }
    if (control_->revoked()) return absl::CancelledError("the assignment was revoked");
    DISTILL_RETURN_IF_ERROR(WriteSafetensors(artifacts.safetensors, SaveWeights(*net_)));
    DISTILL_RETURN_IF_ERROR(SaveTorchScript(*net_, artifacts.torchscript));
    DISTILL_RETURN_IF_ERROR(MeasureFiles(&artifacts));
    DISTILL_RETURN_IF_ERROR(
        WriteResult(StrCat(job_folder(), "/result.json"), assignment_.job_id, plan_, plan_digest_, artifacts));
    return EndedIfAborted(environment_.fleet->FinishJob(assignment_.job_id, assignment_.generation, artifacts));
  });
}

}  // namespace

bool IsRetryable(const Status& status) {
  switch (status.code()) {
    case StatusCode::kAborted:
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

StatusOr<std::string> DescribeJobDevice(const std::string& device) {
  DISTILL_ASSIGN_OR_RETURN(const torch::Device chosen, JobDevice(device, "auto"));
  return DescribeDevice(chosen.str());
}

namespace {

JobOutcome RunToItsEnd(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control) {
  JobOutcome outcome;
  try {
    Job job(assignment, environment, control);
    outcome.status = job.Run(&outcome.end);
    if (outcome.status.ok()) return outcome;
    const bool stopped = outcome.status.code() == StatusCode::kCancelled;
    if (control->revoked()) {
      outcome.end = JobEnd::kRevoked;
    } else if (control->cancelled() && stopped) {
      outcome.end = JobEnd::kCancelled;
    } else if (control->terminating()) {
      outcome.end = JobEnd::kTerminated;
    } else if (job.peer_failed()) {
      outcome.end = JobEnd::kPeerFailed;
    } else if (stopped) {
      outcome.end = JobEnd::kRevoked;
    }
  } catch (const std::exception& error) {
    outcome.status = TorchStatus(error, "unexpected exception");
  }
  outcome.retryable = IsRetryable(outcome.status);
  return outcome;
}

}  // namespace

JobOutcome RunJob(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control) {
  JobOutcome outcome = RunToItsEnd(assignment, environment, control);
  // An idle worker keeps nothing that a teacher or another rank on this GPU could use.
  ReleaseDeviceMemory();
  return outcome;
}

}  // namespace distill
