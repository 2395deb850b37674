#include "student_worker/train/job_runner.h"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstring>

#include "common/failure_kind.h"
#include "common/hash/sha256.h"
#include "common/safetensors/safetensors.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/torchscript_net.h"
#include "common/zoo/weights.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/training_images.h"
#include "tests/student_worker/train/job_runner_fixture.h"

namespace distill {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::UnorderedElementsAre;
namespace fs = std::filesystem;

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

TEST_F(JobRunnerTest, ABatchThatCannotBeDividedIsRefused) {
  JobPlan plan = Plan(2);
  plan.accumulate = 3;  // 16 images on 2 ranks
  const Ended ended = Run(plan, "work");
  EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr("a batch of 16 images in 3 parts"));
}

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

}  // namespace
}  // namespace distill
