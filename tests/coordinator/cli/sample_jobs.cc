#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {
namespace {

void SetNetwork(v1::ModelSpec* spec, const char* arch, uint32_t width) {
  spec->set_arch(arch);
  spec->set_width(width);
  spec->set_num_classes(10);
  spec->set_in_channels(1);
  spec->set_image_height(28);
  spec->set_image_width(28);
}

v1::StagePlan* AddStage(v1::JobPlan* plan, const char* name, uint64_t steps, const char* globs, bool teacher) {
  v1::StagePlan* stage = plan->add_stages();
  stage->set_name(name);
  stage->set_steps(steps);
  stage->add_trainable("conv1");
  stage->add_trainable_globs(globs);
  stage->set_needs_teacher(teacher);
  stage->mutable_optimizer()->set_type("sgd");
  stage->mutable_optimizer()->set_lr(0.1);
  stage->mutable_schedule()->set_type("cosine");
  stage->mutable_schedule()->set_warmup(0.05);
  return stage;
}

v1::LossPlan* AddLoss(v1::StagePlan* stage, const char* type, double weight) {
  v1::LossPlan* loss = stage->add_losses();
  loss->set_name(type);
  loss->set_type(type);
  loss->set_weight(weight);
  loss->set_adapter("none");
  return loss;
}

void AddTerm(v1::Progress* progress, const char* name, double value) {
  v1::NamedValue* term = progress->add_terms();
  term->set_name(name);
  term->set_value(value);
}

}  // namespace

void SetScore(std::initializer_list<std::pair<const char*, double>> metrics, v1::Score* score) {
  score->Clear();
  for (const auto& [name, value] : metrics) {
    v1::NamedValue* metric = score->add_metrics();
    metric->set_name(name);
    metric->set_value(value);
  }
}

v1::JobPlan SamplePlan() {
  v1::JobPlan plan;
  plan.set_name("fashion");
  plan.set_seed(7);
  plan.set_students(2);
  plan.set_threads(1);
  plan.set_batch_size(100);
  plan.set_preset("sskd");
  plan.set_device("cpu");
  plan.set_wire_dtype("f32");
  plan.set_prefetch_bytes(64 << 20);
  plan.set_deterministic(true);
  SetNetwork(plan.mutable_student(), "cifar_resnet8", 16);
  v1::TeacherRef* teacher = plan.add_teachers();
  teacher->set_model("fashion-teacher");
  teacher->set_digest("0123456789abcdef0123456789abcdef");
  SetNetwork(teacher->mutable_spec(), "cifar_resnet20", 16);
  plan.mutable_data()->set_format("idx");
  plan.mutable_data()->set_path("fashion-mnist");
  plan.mutable_data()->set_test_limit(1000);
  v1::Transform* const flip = plan.mutable_data()->add_train_transforms();
  flip->set_type("horizontal_flip");
  flip->add_knobs()->set_name("p");
  flip->mutable_knobs(0)->add_values(0.5);

  v1::LossPlan* l2 = AddLoss(AddStage(&plan, "mimic", 300, "layer1", true), "l2", 1);
  l2->set_student_tap("layer1");
  l2->set_teacher_tap("layer1");
  l2->set_needs_teacher(true);
  l2->set_adapter("conv1x1");
  l2->set_student_channels(16);
  l2->set_teacher_channels(32);
  v1::StagePlan* whole = AddStage(&plan, "whole", 1050, "**", true);
  AddLoss(whole, "cross_entropy", 0.1);
  v1::LossPlan* kd = AddLoss(whole, "kd", 0.9);
  kd->set_needs_teacher(true);
  v1::Knob* temperature = kd->add_knobs();
  temperature->set_name("temperature");
  temperature->set_number(4);
  AddLoss(AddStage(&plan, "head", 200, "fc", false), "cross_entropy", 1);
  return plan;
}

v1::Job QueuedJob() {
  v1::Job job;
  job.set_id("j-1");
  job.set_name("fashion");
  job.set_state(v1::JOB_STATE_QUEUED);
  job.set_reason("waiting for 2 students; 1 is idle");
  job.set_submitted_time(kSubmitted);
  *job.mutable_plan() = SamplePlan();
  return job;
}

v1::Job RunningJob() {
  v1::Job job = QueuedJob();
  job.set_state(v1::JOB_STATE_RUNNING);
  job.clear_reason();
  job.set_started_time(kSubmitted + 10);
  job.set_generation(1);
  job.add_ranks("student-0");
  job.add_ranks("student-1");
  v1::StageResult* mimic = job.add_stages_done();
  mimic->set_stage(0);
  mimic->set_checkpoint("/work/j-1/stage-0");
  mimic->set_loss(0.1234);
  mimic->set_seconds(32);
  mimic->set_committed_time(kSubmitted + 42);
  v1::Progress* progress = job.mutable_progress();
  progress->set_stage(1);
  progress->set_step(420);
  progress->set_total_step(720);
  progress->set_loss(0.5432);
  AddTerm(progress, "cross_entropy", 0.31);
  AddTerm(progress, "kd", 1.2);
  progress->set_learning_rate(0.05);
  progress->set_images_per_second(2100);
  SetScore({{"top1", 0.8812}}, progress->mutable_score());
  SetScore({{"top1", 0.9375}}, progress->mutable_teacher_score());
  progress->set_time(kSubmitted + 100);
  progress->set_phase("training");
  v1::NamedValue* seconds = progress->add_step_seconds();
  seconds->set_name("forward");
  seconds->set_value(0.0125);
  return job;
}

v1::Job SucceededJob() {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_SUCCEEDED);
  job.set_finished_time(kSubmitted + 200);
  for (uint32_t stage = 1; stage < 3; ++stage) {
    v1::StageResult* result = job.add_stages_done();
    result->set_stage(stage);
    SetScore({{"top1", 0.9 + 0.01 * stage}}, result->mutable_score());
    result->set_loss(0.3);
    result->set_seconds(60);
  }
  job.mutable_progress()->set_stage(2);
  job.mutable_progress()->set_step(200);
  v1::Artifacts* files = job.mutable_artifacts();
  files->set_safetensors("/work/j-1/student.safetensors");
  files->set_torchscript("/work/j-1/student.pt");
  files->set_safetensors_bytes(319488);
  files->set_torchscript_bytes(425984);
  files->set_student_parameters(77360);
  files->set_teacher_parameters(272474);
  files->set_teacher_bytes(1'122'304);
  SetScore({{"top1", 0.9152}}, files->mutable_student_score());
  SetScore({{"top1", 0.9375}}, files->mutable_teacher_score());
  return job;
}

}  // namespace distill::cli
