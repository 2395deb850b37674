// A student's steps with features from a remote teacher whose compute is free (free_teacher.cc), beside the steps of
// the same student with the same losses on features that lie in its memory already, in the layout it computes in.
//
// Both are in this process and alternate: the same StageRunner, the same pipeline of pixels, one thread of torch. One
// asks the real pool for each step's features; the other is handed one of kCopies tensors of its own. Checked first: a
// few steps of both give bitwise equal losses, for the free teacher answers every request with the same numbers.
// bench/step.sh runs it.
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/hash/sha256.h"
#include "common/service/memory.h"
#include "common/str_cat.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/data/sample_reader.h"
#include "student_worker/feature/teacher_pool.h"
#include "student_worker/pipeline/step_pipeline.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/stage_runner.h"

namespace distill {
namespace {

// Steps from features that were fetched ahead while the other one had its turn; not timed.
constexpr int kWarmSteps = 12;
// Sets of local features, taken in turn: as in the pool, the next step's were not read just now.
constexpr size_t kCopies = 4;
constexpr uint64_t kImages = 512;  // in the data set

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

template <typename T>
T Value(StatusOr<T> result) {
  if (!result.ok()) Die(result.status().ToString());
  return *std::move(result);
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

// Random pictures with random labels.
class NoiseDataset final : public Dataset {
 public:
  explicit NoiseDataset(const ModelSpec& spec) : spec_(spec), noise_(2 * ImageBytes()) {
    uint32_t state = 1;
    for (uint8_t& pixel : noise_) pixel = (state = state * 1664525u + 1013904223u) >> 24;
  }
  uint64_t size() const override { return kImages; }
  uint32_t channels() const override { return spec_.in_channels; }
  uint32_t height() const override { return spec_.image_height; }
  uint32_t width() const override { return spec_.image_width; }
  uint32_t classes() const override { return spec_.num_classes; }
  int64_t label(uint64_t index) const override { return static_cast<int64_t>(index * 7 % spec_.num_classes); }
  bool has_label_maps() const override { return false; }
  std::string Where(uint64_t index) const override { return StrCat("noise ", index); }
  Status Read(uint64_t index, Picture* out) const override {
    out->channels = channels(), out->height = height(), out->width = width();
    const auto first = noise_.begin() + static_cast<std::ptrdiff_t>(ImageBytes() * index / kImages);
    out->pixels.assign(first, first + static_cast<std::ptrdiff_t>(ImageBytes()));
    out->label_map.clear();
    return OkStatus();
  }

 private:
  size_t ImageBytes() const { return size_t{spec_.in_channels} * spec_.image_height * spec_.image_width; }
  const ModelSpec spec_;
  std::vector<uint8_t> noise_;  // two pictures long: each begins at a place of its own
};

struct Case {
  std::string name;
  std::string served;  // the model's name at the free teacher
  ModelSpec student, teacher;
  std::vector<std::string> modules;  // all of the student's
  std::vector<std::string> maps;     // compared by CWD
  uint32_t batch = 0;
  int steps = 0;  // timed in a turn
};

Case DemoTaps() {
  const auto spec = [](const char* arch) {
    return ModelSpec{.arch = arch,
                     .width = 16,
                     .num_classes = 10,
                     .in_channels = 1,
                     .image_height = 28,
                     .image_width = 28,
                     .mean = {0.286f},
                     .std = {0.353f}};
  };
  return {.name = "demo",
          .served = "free",
          .student = spec("cifar_resnet8"),
          .teacher = spec("cifar_resnet20"),
          .modules = {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"},
          .maps = {"layer1", "layer2", "layer3"},
          .batch = 64,
          .steps = 40};
}

Case ResNet18At224() {
  const ModelSpec spec{.arch = "resnet18",
                       .num_classes = 10,
                       .in_channels = 3,
                       .image_height = 224,
                       .image_width = 224,
                       .mean = {0.485f, 0.456f, 0.406f},
                       .std = {0.229f, 0.224f, 0.225f}};
  return {.name = "resnet18_224",
          .served = "free224",
          .student = spec,
          .teacher = spec,
          .modules = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
          .maps = {"layer1", "layer2", "layer3", "layer4"},
          .batch = 8,
          .steps = 6};
}

// As bench/step.sh's jobs: the labels, KD on the logits, CWD on each map.
JobPlan PlanOf(const Case& wanted) {
  JobPlan plan;
  plan.name = wanted.name;
  plan.seed = 5;
  plan.batch_size = wanted.batch;
  plan.student = wanted.student;
  plan.device = "cpu";
  plan.prefetch_bytes = 256ull << 20;
  StagePlan stage;
  stage.name = "whole";
  stage.trainable = wanted.modules;
  stage.steps = 1 << 20;  // the learning rate hardly moves
  stage.uses_labels = stage.needs_teacher = true;
  LossPlan labels;
  labels.name = labels.type = "cross_entropy";
  labels.weight = 0.1;
  LossPlan kd;
  kd.name = kd.type = "kd";
  kd.weight = 0.9;
  kd.needs_teacher = true;
  stage.losses = {labels, kd};
  const Architecture student = Value(Architecture::Create(wanted.student)),
                     teacher = Value(Architecture::Create(wanted.teacher));
  for (const std::string& map : wanted.maps) {
    LossPlan cwd;
    cwd.name = StrCat("cwd-", map);
    cwd.type = "cwd";
    cwd.weight = 2;
    cwd.needs_teacher = true;
    cwd.student_tap = cwd.teacher_tap = map;
    cwd.student_channels = student.FindTap(map)->shape[0];
    cwd.teacher_channels = teacher.FindTap(map)->shape[0];
    if (cwd.student_channels != cwd.teacher_channels) cwd.adapter = "conv1x1";
    cwd.knobs["temperature"] = 1.0;
    stage.losses.push_back(cwd);
  }
  plan.stages = {stage};
  return plan;
}

std::unique_ptr<TeacherPool> Connect(const Case& wanted, const JobPlan& plan, const std::vector<TapRequest>& taps,
                                     const std::string& address) {
  TeacherPool::Options options;
  options.model = wanted.served;
  options.digest = Sha256Hex("free teacher");
  options.taps = taps;
  const Architecture teacher = Value(Architecture::Create(wanted.teacher));
  for (const TapRequest& tap : taps) options.tap_shapes.push_back(teacher.FindTap(tap.tap)->shape);
  options.client = "local_step";
  options.window_bytes = plan.prefetch_bytes;
  std::unique_ptr<TeacherPool> pool = Value(TeacherPool::Create(std::move(options)));
  pool->SetTeachers({{"free-teacher", address, wanted.served, Sha256Hex("free teacher")}});
  return pool;
}

// The pipeline's inputs; with `local`, its features are these in turn.
class Source final : public StepSource {
 public:
  Source(StepPipeline* pipeline, std::vector<FeatureBatch> local) : pipeline_(pipeline), local_(std::move(local)) {}
  StatusOr<StepInput> Next(std::chrono::milliseconds timeout) override {
    DISTILL_ASSIGN_OR_RETURN(StepInput input, pipeline_->Next(timeout));
    if (!local_.empty()) input.features = local_[next_++ % local_.size()];
    return input;
  }

 private:
  StepPipeline* const pipeline_;  // not owned: Student keeps it
  const std::vector<FeatureBatch> local_;
  size_t next_ = 0;
};

// One student with everything that it needs. With `address`, its features come from there.
class Student {
 public:
  Student(const Case& wanted, const std::string& address, std::vector<FeatureBatch> local)
      : plan_(PlanOf(wanted)), control_({}) {
    group_ = Value(CollectiveGroup::Create({}, nullptr));
    if (const Status connected = group_->Connect(); !connected.ok()) Die(connected.ToString());
    lockstep_ = std::make_unique<Lockstep>(group_.get(), &control_, torch::kCPU);
    net_ = Value(ZooNet::Create(plan_.student));
    net_->InitWeights(plan_.seed);
    runner_ = Value(StageRunner::Create({.plan = &plan_, .stage = 0, .net = net_.get(), .lockstep = lockstep_.get()}));
    if (const Status joined = runner_->JoinRanks(); !joined.ok()) Die(joined.ToString());
    if (!address.empty()) pool_ = Connect(wanted, plan_, runner_->teacher_taps(), address);
    StepPipeline::Options options;
    options.samples = Value(SampleReader::Create({.dataset = std::make_shared<NoiseDataset>(plan_.student)}));
    options.sampler.seed = plan_.seed;
    options.sampler.batch_size = plan_.batch_size;
    options.pool = pool_.get();
    options.end_step = plan_.stages[0].steps;
    pipeline_ = Value(StepPipeline::Create(std::move(options)));
    source_ = std::make_unique<Source>(pipeline_.get(), std::move(local));
  }

  const std::vector<TapRequest>& taps() const { return runner_->teacher_taps(); }

  double Step() {
    const StepResult result = Value(runner_->Step(source_.get(), step_++));
    if (!result.stepped || result.skipped) Die("a step was not taken");
    return result.loss;
  }
  // Seconds of a step, over `steps` of them, after the warm ones.
  double Turn(int steps) {
    for (int i = 0; i < kWarmSteps; ++i) Step();
    const double start = Now();
    for (int i = 0; i < steps; ++i) Step();
    return (Now() - start) / steps;
  }

 private:
  const JobPlan plan_;
  JobControl control_;
  std::unique_ptr<CollectiveGroup> group_;
  std::unique_ptr<Lockstep> lockstep_;
  std::shared_ptr<ZooNet> net_;
  std::unique_ptr<StageRunner> runner_;
  std::unique_ptr<TeacherPool> pool_;
  std::unique_ptr<StepPipeline> pipeline_;  // before its pool goes
  std::unique_ptr<Source> source_;
  uint64_t step_ = 0;
};

// What the free teacher sends, kCopies times, each in memory of its own.
std::vector<FeatureBatch> FetchCopies(const Case& wanted, const std::string& address) {
  const JobPlan plan = PlanOf(wanted);
  const StatusOr<Objective> objective = Objective::Create(plan, plan.stages[0]);
  if (!objective.ok()) Die(objective.status().ToString());
  const auto pool = Connect(wanted, plan, objective->teacher_taps(), address);
  const ModelSpec& spec = wanted.student;
  const size_t bytes = size_t{wanted.batch} * spec.in_channels * spec.image_height * spec.image_width;
  const ImageBatch images{wanted.batch, spec.in_channels, spec.image_height, spec.image_width,
                          Buffer::FromVector(std::vector<uint8_t>(bytes))};
  std::promise<StatusOr<FeatureBatch>> promise;
  pool->Fetch(0, images, [&](StatusOr<FeatureBatch> features) { promise.set_value(std::move(features)); });
  const FeatureBatch first = Value(promise.get_future().get());
  std::vector<FeatureBatch> copies(kCopies, first);
  for (FeatureBatch& copy : copies) {
    for (WireTensor& tensor : copy.taps) {
      // As aligned as torch's own.
      auto memory =
          std::make_shared<torch::Tensor>(torch::empty({static_cast<int64_t>(tensor.bytes.size)}, torch::kUInt8));
      std::memcpy(memory->data_ptr(), tensor.bytes.data, tensor.bytes.size);
      tensor.bytes = Buffer{static_cast<const uint8_t*>(memory->const_data_ptr()), tensor.bytes.size, memory};
    }
  }
  return copies;
}

void Run(const Case& wanted, const std::string& address, int rounds) {
  std::vector<FeatureBatch> copies = FetchCopies(wanted, address);
  uint64_t bytes = 0;
  for (const WireTensor& tensor : copies[0].taps) bytes += tensor.bytes.size;
  Student remote(wanted, address, {}), local(wanted, "", std::move(copies));
  for (int i = 0; i < 5; ++i) {
    const double a = remote.Step(), b = local.Step();
    if (a != b) Die(StrCat(wanted.name, ": step ", i, " has loss ", a, " with remote features and ", b, " with local"));
  }
  std::vector<double> remote_s, local_s, ratios;
  for (int round = 0; round < rounds; ++round) {
    local_s.push_back(local.Turn(wanted.steps));
    remote_s.push_back(remote.Turn(wanted.steps));
    ratios.push_back(local_s.back() / remote_s.back());
  }
  std::printf("%s: %.1f MB of features a step; ratios %.3f to %.3f\n", wanted.name.c_str(),
              static_cast<double>(bytes) / 1e6, *std::min_element(ratios.begin(), ratios.end()),
              *std::max_element(ratios.begin(), ratios.end()));
  std::printf("RESULT step_%s_remote %.1f images/s baseline=%.1f ratio=%.3f\n", wanted.name.c_str(),
              wanted.batch / Median(remote_s), wanted.batch / Median(local_s), Median(ratios));
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  CLI::App app("A student fed by a free remote teacher beside one fed from its memory.");
  const std::map<std::string, Case> cases = {{"demo", DemoTaps()}, {"resnet18_224", ResNet18At224()}};
  std::string name = "demo", address;
  int rounds = 9, threads = 1;
  app.add_option("--case", name, "demo (the demo's taps) or resnet18_224")
      ->capture_default_str()
      ->check(CLI::IsMember({"demo", "resnet18_224"}));
  app.add_option("--teacher", address, "host:port of the free_teacher that serves the case (bench/step.sh)")
      ->required();
  app.add_option("--rounds", rounds, "turns of each")->capture_default_str()->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads, "of torch")->capture_default_str()->check(CLI::Range(1, 256));
  CLI11_PARSE(app, argc, argv);
  KeepFreedMemory();  // as students do
  at::set_num_threads(threads);
  Run(cases.at(name), address, rounds);
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
