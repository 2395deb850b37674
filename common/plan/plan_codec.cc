#include "common/plan/plan_codec.h"

#include "distill/v1/plan.pb.h"

namespace distill {
namespace {

template <typename T, typename Field>
std::vector<T> ToVector(const Field& field) {
  return std::vector<T>(field.begin(), field.end());
}

void ToProto(const TransformPlan& transform, v1::Transform* proto) {
  proto->set_type(transform.type);
  for (const auto& [name, values] : transform.values) {
    v1::Transform::Knob* const knob = proto->add_knobs();
    knob->set_name(name);
    knob->mutable_values()->Assign(values.begin(), values.end());
  }
}

TransformPlan FromProto(const v1::Transform& proto) {
  TransformPlan transform{.type = proto.type()};
  for (const v1::Transform::Knob& knob : proto.knobs()) {
    transform.values[knob.name()] = {knob.values().begin(), knob.values().end()};
  }
  return transform;
}

void ToProto(const SplitFiles& pairs, v1::SplitFiles* proto) {
  proto->set_images(pairs.images);
  proto->set_labels(pairs.labels);
  proto->set_list(pairs.list);
}

SplitFiles FromProto(const v1::SplitFiles& proto) {
  return {.images = proto.images(), .labels = proto.labels(), .list = proto.list()};
}

void ToProto(const LossPlan& loss, v1::LossPlan* proto) {
  proto->set_name(loss.name);
  proto->set_type(loss.type);
  proto->set_weight(loss.weight);
  proto->set_student_tap(loss.student_tap);
  proto->set_teacher_tap(loss.teacher_tap);
  proto->set_needs_teacher(loss.needs_teacher);
  proto->set_adapter(loss.adapter);
  proto->set_student_channels(loss.student_channels);
  proto->set_teacher_channels(loss.teacher_channels);
  for (const auto& [name, value] : loss.knobs) {
    v1::Knob* knob = proto->add_knobs();
    knob->set_name(name);
    if (const double* number = std::get_if<double>(&value)) {
      knob->set_number(*number);
    } else if (const bool* flag = std::get_if<bool>(&value)) {
      knob->set_flag(*flag);
    } else {
      knob->set_text(std::get<std::string>(value));
    }
  }
  v1::WeightSchedulePlan* schedule = proto->mutable_weight_schedule();
  schedule->set_type(loss.weight_schedule.type);
  schedule->set_warmup(loss.weight_schedule.warmup);
  schedule->set_start(loss.weight_schedule.start);
  schedule->set_stop(loss.weight_schedule.stop);
  v1::OwnParametersPlan* own = proto->mutable_own();
  own->set_lr_mult(loss.own.lr_mult);
  own->set_constant_lr(loss.own.constant_lr);
  own->set_weight_decay(loss.own.weight_decay);
  proto->set_student_height(loss.student_height);
  proto->set_student_width(loss.student_width);
  proto->set_teacher_height(loss.teacher_height);
  proto->set_teacher_width(loss.teacher_width);
}

LossPlan FromProto(const v1::LossPlan& proto) {
  LossPlan loss;
  loss.name = proto.name();
  loss.type = proto.type();
  loss.weight = proto.weight();
  loss.student_tap = proto.student_tap();
  loss.teacher_tap = proto.teacher_tap();
  loss.needs_teacher = proto.needs_teacher();
  loss.adapter = proto.adapter();
  loss.student_channels = proto.student_channels();
  loss.teacher_channels = proto.teacher_channels();
  for (const v1::Knob& knob : proto.knobs()) {
    switch (knob.value_case()) {
      case v1::Knob::kNumber:
        loss.knobs[knob.name()] = knob.number();
        break;
      case v1::Knob::kFlag:
        loss.knobs[knob.name()] = knob.flag();
        break;
      case v1::Knob::kText:
        loss.knobs[knob.name()] = knob.text();
        break;
      case v1::Knob::VALUE_NOT_SET:
        break;  // a knob without a value is no knob
    }
  }
  const v1::WeightSchedulePlan& schedule = proto.weight_schedule();
  loss.weight_schedule = {schedule.type(), schedule.warmup(), schedule.start(), schedule.stop()};
  loss.own = {proto.own().lr_mult(), proto.own().constant_lr(), proto.own().weight_decay()};
  loss.student_height = proto.student_height();
  loss.student_width = proto.student_width();
  loss.teacher_height = proto.teacher_height();
  loss.teacher_width = proto.teacher_width();
  return loss;
}

void ToProto(const StagePlan& stage, v1::StagePlan* proto) {
  proto->set_name(stage.name);
  for (const std::string& path : stage.trainable) proto->add_trainable(path);
  proto->set_student_until(stage.student_until);
  for (const LossPlan& loss : stage.losses) ToProto(loss, proto->add_losses());
  v1::OptimizerPlan* optimizer = proto->mutable_optimizer();
  optimizer->set_type(stage.optimizer.type);
  optimizer->set_lr(stage.optimizer.lr);
  optimizer->set_momentum(stage.optimizer.momentum);
  optimizer->set_weight_decay(stage.optimizer.weight_decay);
  optimizer->set_nesterov(stage.optimizer.nesterov);
  optimizer->set_clip_norm(stage.optimizer.clip_norm);
  optimizer->set_beta1(stage.optimizer.beta1);
  optimizer->set_beta2(stage.optimizer.beta2);
  optimizer->set_eps(stage.optimizer.eps);
  optimizer->set_decay_norms_and_biases(stage.optimizer.decay_norms_and_biases);
  for (const LrMultPlan& mult : stage.optimizer.lr_mult) {
    v1::LrMultPlan* out = optimizer->add_lr_mult();
    for (const std::string& path : mult.modules) out->add_modules(path);
    out->set_factor(mult.factor);
  }
  optimizer->set_ema_decay(stage.optimizer.ema_decay);
  v1::SchedulePlan* schedule = proto->mutable_schedule();
  schedule->set_type(stage.schedule.type);
  schedule->set_warmup(stage.schedule.warmup);
  for (double milestone : stage.schedule.milestones) schedule->add_milestones(milestone);
  schedule->set_gamma(stage.schedule.gamma);
  schedule->set_begin(stage.schedule.begin);
  schedule->set_end(stage.schedule.end);
  schedule->set_power(stage.schedule.power);
  schedule->set_min_factor(stage.schedule.min_factor);
  schedule->set_pct_start(stage.schedule.pct_start);
  schedule->set_div_factor(stage.schedule.div_factor);
  schedule->set_final_div_factor(stage.schedule.final_div_factor);
  proto->set_steps(stage.steps);
  proto->set_uses_labels(stage.uses_labels);
  proto->set_needs_teacher(stage.needs_teacher);
  for (const std::string& glob : stage.trainable_globs) proto->add_trainable_globs(glob);
  proto->set_teacher_input(stage.teacher_input);
  proto->set_student_input(stage.student_input);
  proto->set_frozen_bn(stage.frozen_bn);
  proto->set_select(stage.select);
  proto->set_patience(stage.patience);
  proto->set_unlabelled_ok(stage.unlabelled_ok);
  proto->set_select_by(stage.select_by);
}

StagePlan FromProto(const v1::StagePlan& proto) {
  StagePlan stage;
  stage.name = proto.name();
  stage.trainable = ToVector<std::string>(proto.trainable());
  stage.student_until = proto.student_until();
  for (const v1::LossPlan& loss : proto.losses()) stage.losses.push_back(FromProto(loss));
  stage.optimizer.type = proto.optimizer().type();
  stage.optimizer.lr = proto.optimizer().lr();
  stage.optimizer.momentum = proto.optimizer().momentum();
  stage.optimizer.weight_decay = proto.optimizer().weight_decay();
  stage.optimizer.nesterov = proto.optimizer().nesterov();
  stage.optimizer.clip_norm = proto.optimizer().clip_norm();
  stage.optimizer.beta1 = proto.optimizer().beta1();
  stage.optimizer.beta2 = proto.optimizer().beta2();
  stage.optimizer.eps = proto.optimizer().eps();
  stage.optimizer.decay_norms_and_biases = proto.optimizer().decay_norms_and_biases();
  for (const v1::LrMultPlan& mult : proto.optimizer().lr_mult()) {
    stage.optimizer.lr_mult.push_back({ToVector<std::string>(mult.modules()), mult.factor()});
  }
  stage.optimizer.ema_decay = proto.optimizer().ema_decay();
  stage.schedule.type = proto.schedule().type();
  stage.schedule.warmup = proto.schedule().warmup();
  stage.schedule.milestones = ToVector<double>(proto.schedule().milestones());
  stage.schedule.gamma = proto.schedule().gamma();
  stage.schedule.begin = proto.schedule().begin();
  stage.schedule.end = proto.schedule().end();
  stage.schedule.power = proto.schedule().power();
  stage.schedule.min_factor = proto.schedule().min_factor();
  stage.schedule.pct_start = proto.schedule().pct_start();
  stage.schedule.div_factor = proto.schedule().div_factor();
  stage.schedule.final_div_factor = proto.schedule().final_div_factor();
  stage.steps = proto.steps();
  stage.uses_labels = proto.uses_labels();
  stage.needs_teacher = proto.needs_teacher();
  stage.trainable_globs = ToVector<std::string>(proto.trainable_globs());
  stage.teacher_input = proto.teacher_input();
  stage.student_input = proto.student_input();
  stage.frozen_bn = proto.frozen_bn();
  stage.select = proto.select();
  stage.patience = proto.patience();
  stage.unlabelled_ok = proto.unlabelled_ok();
  stage.select_by = proto.select_by();
  return stage;
}

}  // namespace

void ToProto(const ModelSpec& spec, v1::ModelSpec* proto) {
  proto->Clear();
  proto->set_arch(spec.arch);
  proto->set_width(spec.width);
  proto->set_num_classes(spec.num_classes);
  proto->set_in_channels(spec.in_channels);
  proto->set_image_height(spec.image_height);
  proto->set_image_width(spec.image_width);
  proto->set_weights(spec.weights);
  for (float v : spec.mean) proto->add_mean(v);
  for (float v : spec.std) proto->add_std(v);
  for (const std::string& path : spec.weights_modules) proto->add_weights_modules(path);
  proto->set_weights_of_teacher(spec.weights_of_teacher);
}

ModelSpec FromProto(const v1::ModelSpec& proto) {
  ModelSpec spec;
  spec.arch = proto.arch();
  spec.width = proto.width();
  spec.num_classes = proto.num_classes();
  spec.in_channels = proto.in_channels();
  spec.image_height = proto.image_height();
  spec.image_width = proto.image_width();
  spec.weights = proto.weights();
  spec.mean = ToVector<float>(proto.mean());
  spec.std = ToVector<float>(proto.std());
  spec.weights_modules = ToVector<std::string>(proto.weights_modules());
  spec.weights_of_teacher = proto.weights_of_teacher();
  return spec;
}

void ToProto(const JobPlan& plan, v1::JobPlan* proto) {
  proto->Clear();
  proto->set_name(plan.name);
  proto->set_seed(plan.seed);
  proto->set_students(plan.students);
  proto->set_threads(plan.threads);
  proto->set_batch_size(plan.batch_size);
  ToProto(plan.student, proto->mutable_student());
  for (const TeacherRef& teacher : plan.teachers) {
    v1::TeacherRef* ref = proto->add_teachers();
    ref->set_model(teacher.model);
    ref->set_digest(teacher.digest);
    ref->set_parameters(teacher.parameters);
    ref->set_bytes(teacher.bytes);
    ToProto(teacher.spec, ref->mutable_spec());
  }
  v1::DataPlan* data = proto->mutable_data();
  data->set_format(plan.data.format);
  data->set_path(plan.data.path);
  data->set_train_limit(plan.data.train_limit);
  data->set_test_limit(plan.data.test_limit);
  data->set_holdout(plan.data.holdout);
  data->set_unlabelled(plan.data.unlabelled);
  // Defaults are left out: a plan that an older program stored keeps its digest.
  if (plan.data.ignore_label != DataPlan().ignore_label) data->set_ignore_label(plan.data.ignore_label);
  if (plan.data.shrink != DataPlan().shrink) data->set_shrink(plan.data.shrink);
  if (plan.data.train_size) data->set_train_size(*plan.data.train_size);
  if (plan.data.unlabelled_size) data->set_unlabelled_size(*plan.data.unlabelled_size);
  for (const TransformPlan& transform : plan.data.train_transforms) ToProto(transform, data->add_train_transforms());
  for (const TransformPlan& transform : plan.data.test_transforms) ToProto(transform, data->add_test_transforms());
  if (plan.data.on_bad_image != DataPlan().on_bad_image) data->set_on_bad_image(plan.data.on_bad_image);
  if (plan.data.bad_image_limit != DataPlan().bad_image_limit) data->set_bad_image_limit(plan.data.bad_image_limit);
  if (plan.data.split) {
    data->mutable_split()->set_test(plan.data.split->test);
    data->mutable_split()->set_by(plan.data.split->by);
    data->mutable_split()->set_seed(plan.data.split->seed);
  }
  if (plan.data.train_files) ToProto(*plan.data.train_files, data->mutable_train_files());
  if (plan.data.test_files) ToProto(*plan.data.test_files, data->mutable_test_files());
  for (const auto& [id, label] : plan.data.label_map) {
    v1::LabelOfId* entry = data->add_label_map();
    entry->set_id(id);
    entry->set_label(label);
  }
  data->set_reduce_zero_label(plan.data.reduce_zero_label);
  for (const StagePlan& stage : plan.stages) ToProto(stage, proto->add_stages());
  proto->set_checkpoint_every(plan.checkpoint_every);
  proto->set_log_every(plan.log_every);
  proto->set_deterministic(plan.deterministic);
  proto->set_prefetch_bytes(plan.prefetch_bytes);
  proto->set_wire_dtype(plan.wire_dtype);
  proto->set_preset(plan.preset);
  proto->set_device(plan.device);
  proto->set_evaluate_teacher(plan.evaluate_teacher);
  proto->set_evaluate_every(plan.evaluate_every);
  proto->set_evaluate_flip(plan.evaluate_flip);
  proto->set_accumulate(plan.accumulate);
  proto->set_autocast(plan.autocast);
  proto->set_sync_batch_norm(plan.sync_batch_norm);
  proto->mutable_evaluate_scales()->Add(plan.evaluate_scales.begin(), plan.evaluate_scales.end());
  proto->mutable_evaluate_window()->Add(plan.evaluate_window.begin(), plan.evaluate_window.end());
  proto->mutable_evaluate_stride()->Add(plan.evaluate_stride.begin(), plan.evaluate_stride.end());
}

JobPlan FromProto(const v1::JobPlan& proto) {
  JobPlan plan;
  plan.name = proto.name();
  plan.seed = proto.seed();
  plan.students = proto.students();
  plan.threads = proto.threads();
  plan.batch_size = proto.batch_size();
  plan.student = FromProto(proto.student());
  for (const v1::TeacherRef& ref : proto.teachers()) {
    plan.teachers.push_back({.model = ref.model(),
                             .digest = ref.digest(),
                             .spec = FromProto(ref.spec()),
                             .parameters = ref.parameters(),
                             .bytes = ref.bytes()});
  }
  plan.data.format = proto.data().format();
  plan.data.path = proto.data().path();
  plan.data.train_limit = proto.data().train_limit();
  plan.data.test_limit = proto.data().test_limit();
  plan.data.holdout = proto.data().holdout();
  plan.data.unlabelled = proto.data().unlabelled();
  if (proto.data().has_ignore_label()) plan.data.ignore_label = proto.data().ignore_label();
  if (proto.data().has_shrink()) plan.data.shrink = proto.data().shrink();
  if (proto.data().has_train_size()) plan.data.train_size = proto.data().train_size();
  if (proto.data().has_unlabelled_size()) plan.data.unlabelled_size = proto.data().unlabelled_size();
  for (const v1::Transform& transform : proto.data().train_transforms()) {
    plan.data.train_transforms.push_back(FromProto(transform));
  }
  for (const v1::Transform& transform : proto.data().test_transforms()) {
    plan.data.test_transforms.push_back(FromProto(transform));
  }
  if (proto.data().has_on_bad_image()) plan.data.on_bad_image = proto.data().on_bad_image();
  if (proto.data().has_bad_image_limit()) plan.data.bad_image_limit = proto.data().bad_image_limit();
  if (proto.data().has_split()) {
    const v1::DataSplit& split = proto.data().split();
    plan.data.split = SplitPlan{.test = split.test(), .by = split.by(), .seed = split.seed()};
  }
  if (proto.data().has_train_files()) plan.data.train_files = FromProto(proto.data().train_files());
  if (proto.data().has_test_files()) plan.data.test_files = FromProto(proto.data().test_files());
  for (const v1::LabelOfId& entry : proto.data().label_map()) plan.data.label_map[entry.id()] = entry.label();
  plan.data.reduce_zero_label = proto.data().reduce_zero_label();
  for (const v1::StagePlan& stage : proto.stages()) plan.stages.push_back(FromProto(stage));
  plan.checkpoint_every = proto.checkpoint_every();
  plan.log_every = proto.log_every();
  plan.deterministic = proto.deterministic();
  plan.prefetch_bytes = proto.prefetch_bytes();
  plan.wire_dtype = proto.wire_dtype();
  plan.preset = proto.preset();
  plan.device = proto.device();
  plan.evaluate_teacher = proto.evaluate_teacher();
  plan.evaluate_every = proto.evaluate_every();
  plan.evaluate_flip = proto.evaluate_flip();
  plan.accumulate = proto.accumulate();
  plan.autocast = proto.autocast();
  plan.sync_batch_norm = proto.sync_batch_norm();
  plan.evaluate_scales.assign(proto.evaluate_scales().begin(), proto.evaluate_scales().end());
  plan.evaluate_window.assign(proto.evaluate_window().begin(), proto.evaluate_window().end());
  plan.evaluate_stride.assign(proto.evaluate_stride().begin(), proto.evaluate_stride().end());
  return plan;
}

}  // namespace distill
