// Whole jobs without a coordinator: ranks are threads, the coordinator's side is recorded. Data, network, group,
// checkpoints and exports are the real ones.
#ifndef DISTILL_TESTS_STUDENT_WORKER_TRAIN_JOB_RUNNER_FIXTURE_H_
#define DISTILL_TESTS_STUDENT_WORKER_TRAIN_JOB_RUNNER_FIXTURE_H_

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/metrics/metrics.h"
#include "student_worker/train/job_runner.h"
#include "student_worker/train/student_archives.h"
#include "tests/common/zoo/archive_fixture.h"
#include "tests/student_worker/train/recorded_fleet.h"
#include "tests/student_worker/train/temp_folder.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {

inline void AppendBigEndian(std::string* out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}

// MNIST-style files with the images of SyntheticSource.
inline void WriteIdx(const std::string& folder, const std::string& prefix, uint64_t seed, uint32_t images) {
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
    std::filesystem::create_directories(folder_ / "data/shapes");
    std::filesystem::create_directories(folder_ / "models");
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
    EXPECT_THAT(archives_->left_out, testing::IsEmpty());
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
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / (work + "/job-1/checkpoints"))) {
      const std::string name = entry.path().filename();
      if (name != "generation") names.push_back(name.substr(0, name.find("-gen-")));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // The folder of one of them.
  std::string CheckpointPath(const std::string& work, const std::string& checkpoint) {
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / (work + "/job-1/checkpoints"))) {
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

// Stops the job when rank 0 reports step `step` of stage `stage`, by what `stop` does to the control.
inline std::function<void(uint32_t, RecordedFleet*, JobControl*)> StopAt(uint32_t stage, uint64_t step,
                                                                         const std::function<void(JobControl*)>& stop) {
  return [=](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank != 0) return;
    fleet->on_progress = [=](const JobProgress& progress) {
      if (progress.stage == stage && progress.step >= step && !progress.terms.empty()) stop(control);
    };
  };
}

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_TRAIN_JOB_RUNNER_FIXTURE_H_
