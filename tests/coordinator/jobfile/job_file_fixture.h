// A complete job file, a fleet that serves its teacher, and short ways to change one line of it.
#ifndef DISTILL_TESTS_COORDINATOR_JOBFILE_JOB_FILE_FIXTURE_H_
#define DISTILL_TESTS_COORDINATOR_JOBFILE_JOB_FILE_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/status.h"
#include "coordinator/jobfile/job_file.h"

namespace distill {

// Line numbers matter to the tests: keep them.
inline constexpr const char* kExplicitJob = R"yaml(name: mimic-job
seed: 7
students: 2
batch_size: 128
student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}
teacher: fashion
data: {path: fashion-mnist, train_size: 60000}
optimizer: {lr: 0.05}
stages:
  - name: mimic
    trainable: [conv1, bn1, layer1]
    epochs: 0.25
    losses:
      - {type: l2, student: layer1, teacher: layer1}
  - name: full
    steps: 100
    losses:
      - {type: cross_entropy, weight: 0.1}
      - {type: kd, weight: 0.9, temperature: 4}
      - {type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3}
)yaml";

inline constexpr const char* kPresetJob = R"yaml(name: preset-job
students: 2
batch_size: 128
student: {arch: cifar_resnet8, width: 16, num_classes: 10, in_channels: 1, image: [28, 28]}
teacher: fashion
data: {path: fashion-mnist, train_size: 60000}
preset: sskd
budget: {steps: 402}
)yaml";

inline ModelSpec TeacherSpec() {
  ModelSpec spec;
  spec.arch = "cifar_resnet20";
  spec.width = 16;
  spec.num_classes = 10;
  spec.in_channels = 1;
  spec.image_height = spec.image_width = 28;
  return spec;
}

inline FleetView Fleet(const ModelSpec& teacher = TeacherSpec()) {
  FleetView fleet;
  fleet.models.push_back({"fashion", "d1d1d1d1d1d1d1d1", teacher, 1000, 4000, {}});
  return fleet;
}

// `text` with the one occurrence of `from` replaced.
inline std::string With(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << "the test's own job file has no '" << from << "'";
  EXPECT_EQ(text.find(from, at + 1), std::string::npos) << "'" << from << "' occurs twice";
  if (at == std::string::npos) return text;
  return text.replace(at, from.size(), to);
}

// As a status: kInvalidArgument when the file is wrong, kFailedPrecondition when the fleet is; a line a problem.
inline StatusOr<ExpandedJob> Expand(const std::string& yaml, const FleetView& fleet = Fleet(),
                                    std::vector<std::string> overrides = {}) {
  const JobFileInput input{yaml, "job.yaml", std::move(overrides)};
  ExpandedJob job = ExpandJobFile(input, fleet);
  if (job.problems.empty()) return job;
  std::string text;
  bool of_file = false;
  for (const JobProblem& problem : job.problems) {
    text += (text.empty() ? "" : "\n") + Describe(input, problem);
    of_file = of_file || !problem.of_fleet;
  }
  return Status(of_file ? StatusCode::kInvalidArgument : StatusCode::kFailedPrecondition, text);
}

inline std::vector<std::string> Texts(const std::vector<JobProblem>& problems) {
  std::vector<std::string> texts;
  for (const JobProblem& problem : problems) texts.push_back(Describe({"", "job.yaml", {}}, problem));
  return texts;
}

inline std::string Refusal(const std::string& yaml, const FleetView& fleet = Fleet(),
                           std::vector<std::string> overrides = {}) {
  const StatusOr<ExpandedJob> job = Expand(yaml, fleet, std::move(overrides));
  return job.ok() ? "accepted" : std::string(job.status().message());
}

}  // namespace distill

#endif  // DISTILL_TESTS_COORDINATOR_JOBFILE_JOB_FILE_FIXTURE_H_
