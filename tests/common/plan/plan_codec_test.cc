#include "common/plan/plan_codec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "distill/v1/plan.pb.h"

namespace distill {
namespace {

// Every field differs from its default, so that a field the codec forgets shows up.
JobPlan FullPlan() {
  JobPlan plan;
  plan.name = "fashion";
  plan.seed = (1ull << 63) + 5;
  plan.students = 2;
  plan.threads = 3;
  plan.batch_size = 64;
  plan.student = {.arch = "cifar_resnet8",
                  .width = 8,
                  .num_classes = 10,
                  .in_channels = 1,
                  .image_height = 28,
                  .image_width = 29,
                  .weights = "start.safetensors",
                  .mean = {0.25f},
                  .std = {0.5f},
                  .weights_modules = {"fc"},
                  .weights_of_teacher = true};
  plan.teachers = {{.model = "big", .digest = "abc", .spec = plan.student, .parameters = 5, .bytes = 21},
                   {.model = "other"}};
  plan.data = {
      .format = "image_folder",
      .path = "cats",
      .train_limit = 100,
      .test_limit = 50,
      .train_transforms = {{"pad_crop", {{"fill", {0}}, {"padding", {4}}}}, {"horizontal_flip", {{"p", {0.5}}}}},
      .test_transforms = {{"center_crop", {{"fill", {0}}, {"size", {8, 9}}}}},
      .on_bad_image = "skip",
      .bad_image_limit = 0.25,
      .holdout = 10,
      .unlabelled = "more",
      .ignore_label = 11,
      .shrink = 4,
      .train_size = 1000,
      .unlabelled_size = 200,
      .split = SplitPlan{.test = 0.125, .by = "image", .seed = 3},
      .train_files = SplitFiles{.images = "a/*.jpg", .labels = "b/*.png", .list = "train.txt"},
      .test_files = SplitFiles{.images = "c/*.jpg", .labels = "d/*.png", .list = "test.txt"},
      .label_map = {{7, 1}, {8, 2}, {33, 18}},
      .reduce_zero_label = true};
  StagePlan stage;
  stage.name = "layer1";
  stage.trainable = {"conv1", "layer1"};
  stage.student_until = "layer1";
  stage.losses = {{.name = "cwd1",
                   .type = "cwd",
                   .weight = 50,
                   .student_tap = "layer1",
                   .teacher_tap = "layer2.0.add",
                   .needs_teacher = true,
                   .adapter = "conv1x1",
                   .student_channels = 8,
                   .teacher_channels = 16,
                   .knobs = {{"temperature", 4.5}, {"scale_t2", true}, {"reduction", std::string("sum")}},
                   .weight_schedule = {.type = "linear", .warmup = 0.25, .start = 0.125, .stop = 0.75},
                   .own = {.lr_mult = 3, .constant_lr = true, .weight_decay = 0.5},
                   .student_height = 7,
                   .student_width = 8,
                   .teacher_height = 9,
                   .teacher_width = 10}};
  stage.optimizer = {.type = "adam",
                     .lr = 0.01,
                     .momentum = 0.5,
                     .weight_decay = 0.25,
                     .nesterov = true,
                     .clip_norm = 35,
                     .beta1 = 0.8,
                     .beta2 = 0.98,
                     .eps = 1e-6,
                     .decay_norms_and_biases = false,
                     .lr_mult = {{.modules = {"fc"}, .factor = 10}, {.modules = {"conv1", "bn1"}, .factor = 0.1}},
                     .ema_decay = 0.99};
  stage.schedule = {.type = "step",
                    .warmup = 0.125,
                    .milestones = {0.5, 0.75},
                    .gamma = 0.2,
                    .begin = 0.25,
                    .end = 0.5,
                    .power = 2,
                    .min_factor = 0.01,
                    .pct_start = 0.4,
                    .div_factor = 10,
                    .final_div_factor = 100};
  stage.steps = 77;
  stage.uses_labels = true;
  stage.needs_teacher = true;
  stage.trainable_globs = {"*1"};
  stage.teacher_input = "layer3";
  stage.student_input = "layer2";
  stage.frozen_bn = "train";
  stage.select = "best";
  stage.patience = 3;
  stage.unlabelled_ok = true;
  stage.select_by = "top1";
  plan.stages = {stage, StagePlan{}};
  plan.checkpoint_every = 11;
  plan.log_every = 7;
  plan.deterministic = false;
  plan.prefetch_bytes = 123;
  plan.wire_dtype = "bf16";
  plan.preset = "cwd";
  plan.device = "cuda";
  plan.evaluate_teacher = false;
  plan.evaluate_every = 9;
  plan.evaluate_flip = true;
  plan.sync_batch_norm = true;
  plan.evaluate_scales = {0.5, 1};
  plan.evaluate_window = {512, 640};
  plan.evaluate_stride = {342, 427};
  return plan;
}

TEST(PlanCodecTest, RoundTripKeepsEveryField) {
  const JobPlan plan = FullPlan();
  v1::JobPlan proto;
  ToProto(plan, &proto);
  EXPECT_EQ(FromProto(proto), plan);
  EXPECT_EQ(FromProto(v1::JobPlan()).stages.size(), 0u);

  v1::JobPlan parsed;
  ASSERT_TRUE(parsed.ParseFromString(proto.SerializeAsString()));
  EXPECT_EQ(FromProto(parsed), plan);
}

// Booleans that default to true are false in FullPlan and so not "set"; all else must be.
void ExpectAllFieldsSet(const google::protobuf::Message& message, const std::set<std::string>& except) {
  const auto* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (except.contains(field->name()) || field->real_containing_oneof() != nullptr) continue;
    const auto* reflection = message.GetReflection();
    const bool set =
        field->is_repeated() ? reflection->FieldSize(message, field) > 0 : reflection->HasField(message, field);
    EXPECT_TRUE(set) << descriptor->name() << "." << field->name() << " is not written by the codec";
    if (set && field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) {
      ExpectAllFieldsSet(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, 0)
                                              : reflection->GetMessage(message, field),
                         except);
    }
  }
}

TEST(PlanCodecTest, EveryFieldOfTheMessageIsWritten) {
  v1::JobPlan proto;
  ToProto(FullPlan(), &proto);
  ExpectAllFieldsSet(proto, {"deterministic", "evaluate_teacher", "decay_norms_and_biases"});
}

TEST(PlanCodecTest, ToProtoReplacesWhatWasThere) {
  v1::JobPlan proto;
  ToProto(FullPlan(), &proto);
  ToProto(JobPlan{}, &proto);
  EXPECT_EQ(FromProto(proto), JobPlan{});
}

TEST(PlanCodecTest, APlanThatAnOlderProgramStoredIsWrittenAsItWas) {
  // All messages that the first version always wrote, each at what its absence from an older plan would give.
  const std::string text =
      "student {} teachers { spec {} } data {} stages { losses { weight_schedule {} own {} } optimizer {} schedule {} "
      "}";
  v1::JobPlan stored, again;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &stored));
  ToProto(FromProto(stored), &again);
  EXPECT_EQ(again.DebugString(), stored.DebugString()) << "its checkpoints would be thrown away: see plan_codec.h";
}

TEST(PlanCodecTest, KnobWithoutValueIsDropped) {
  v1::JobPlan proto;
  proto.add_stages()->add_losses()->add_knobs()->set_name("temperature");
  EXPECT_TRUE(FromProto(proto).stages[0].losses[0].knobs.empty());
}

}  // namespace
}  // namespace distill
