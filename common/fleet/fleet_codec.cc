#include "common/fleet/fleet_codec.h"

#include "common/plan/plan_codec.h"
#include "common/score/score_codec.h"
#include "distill/v1/fleet.pb.h"
#include "distill/v1/job.pb.h"
#include "distill/v1/plan.pb.h"

namespace distill {
namespace {

void ToProto(const std::vector<NamedNumber>& values, google::protobuf::RepeatedPtrField<v1::NamedValue>* out) {
  for (const NamedNumber& value : values) {
    v1::NamedValue* added = out->Add();
    added->set_name(value.name);
    added->set_value(value.value);
  }
}

std::vector<NamedNumber> FromProto(const google::protobuf::RepeatedPtrField<v1::NamedValue>& values) {
  std::vector<NamedNumber> out;
  for (const v1::NamedValue& value : values) out.push_back({value.name(), value.value()});
  return out;
}

}  // namespace

void ToProto(const ServedTap& tap, v1::TapInfo* proto) {
  proto->set_path(tap.path);
  proto->set_type(tap.type);
  proto->mutable_shape()->Add(tap.shape.begin(), tap.shape.end());
  proto->set_stage_end(tap.stage_end);
  proto->mutable_needs()->Add(tap.needs.begin(), tap.needs.end());
  proto->set_is_cut(tap.is_cut);
}

void ToProto(const ServedModelInfo& model, v1::ServedModel* proto) {
  proto->set_name(model.name);
  proto->set_digest(model.digest);
  ToProto(model.spec, proto->mutable_spec());
  proto->set_parameters(model.parameters);
  proto->set_bytes(model.bytes);
  for (const ServedTap& tap : model.taps) ToProto(tap, proto->add_taps());
  for (const ServedState& entry : model.state) {
    v1::StateInfo* const info = proto->add_state();
    info->set_name(entry.name);
    info->mutable_shape()->Add(entry.shape.begin(), entry.shape.end());
    info->set_is_buffer(entry.is_buffer);
    info->set_is_integer(entry.is_integer);
  }
}

ServedModelInfo FromProto(const v1::ServedModel& proto) {
  ServedModelInfo model;
  model.name = proto.name();
  model.digest = proto.digest();
  model.spec = FromProto(proto.spec());
  model.parameters = proto.parameters();
  model.bytes = proto.bytes();
  for (const v1::TapInfo& tap : proto.taps()) {
    model.taps.push_back({.path = tap.path(),
                          .type = tap.type(),
                          .shape = {tap.shape().begin(), tap.shape().end()},
                          .stage_end = tap.stage_end(),
                          .needs = {tap.needs().begin(), tap.needs().end()},
                          .is_cut = tap.is_cut()});
  }
  for (const v1::StateInfo& entry : proto.state()) {
    model.state.push_back({.name = entry.name(),
                           .shape = {entry.shape().begin(), entry.shape().end()},
                           .is_buffer = entry.is_buffer(),
                           .is_integer = entry.is_integer()});
  }
  return model;
}

void ToProto(const JobProgress& progress, v1::Progress* proto) {
  proto->set_stage(progress.stage);
  proto->set_step(progress.step);
  proto->set_total_step(progress.total_step);
  proto->set_skipped_steps(progress.skipped_steps);
  proto->set_loss(progress.loss);
  proto->set_learning_rate(progress.learning_rate);
  proto->set_images_per_second(progress.images_per_second);
  ToProto(progress.terms, proto->mutable_terms());
  ToProto(progress.step_seconds, proto->mutable_step_seconds());
  ToProto(progress.score, proto->mutable_score());
  ToProto(progress.teacher_score, proto->mutable_teacher_score());
  proto->set_time(progress.time);
  proto->set_phase(progress.phase);
}

JobProgress FromProto(const v1::Progress& proto) {
  JobProgress progress;
  progress.stage = proto.stage();
  progress.step = proto.step();
  progress.total_step = proto.total_step();
  progress.skipped_steps = proto.skipped_steps();
  progress.loss = proto.loss();
  progress.learning_rate = proto.learning_rate();
  progress.images_per_second = proto.images_per_second();
  progress.terms = FromProto(proto.terms());
  progress.step_seconds = FromProto(proto.step_seconds());
  progress.score = FromProto(proto.score());
  progress.teacher_score = FromProto(proto.teacher_score());
  progress.time = proto.time();
  progress.phase = proto.phase();
  return progress;
}

void ToProto(const JobStageResult& result, v1::StageResult* proto) {
  proto->set_stage(result.stage);
  proto->set_checkpoint(result.checkpoint);
  proto->set_digest(result.digest);
  ToProto(result.score, proto->mutable_score());
  proto->set_loss(result.loss);
  proto->set_seconds(result.seconds);
  proto->set_skipped_steps(result.skipped_steps);
}

JobStageResult FromProto(const v1::StageResult& proto) {
  JobStageResult result;
  result.stage = proto.stage();
  result.checkpoint = proto.checkpoint();
  result.digest = proto.digest();
  result.score = FromProto(proto.score());
  result.loss = proto.loss();
  result.seconds = proto.seconds();
  result.skipped_steps = proto.skipped_steps();
  return result;
}

void ToProto(const JobArtifacts& artifacts, v1::Artifacts* proto) {
  proto->set_safetensors(artifacts.safetensors);
  proto->set_torchscript(artifacts.torchscript);
  proto->set_safetensors_bytes(artifacts.safetensors_bytes);
  proto->set_torchscript_bytes(artifacts.torchscript_bytes);
  proto->set_student_parameters(artifacts.student_parameters);
  proto->set_teacher_parameters(artifacts.teacher_parameters);
  proto->set_teacher_bytes(artifacts.teacher_bytes);
  ToProto(artifacts.student_score, proto->mutable_student_score());
  ToProto(artifacts.teacher_score, proto->mutable_teacher_score());
  ToProto(artifacts.student_score.by_class, proto->mutable_student_classes());
  ToProto(artifacts.teacher_score.by_class, proto->mutable_teacher_classes());
}

JobArtifacts FromProto(const v1::Artifacts& proto) {
  JobArtifacts artifacts;
  artifacts.safetensors = proto.safetensors();
  artifacts.torchscript = proto.torchscript();
  artifacts.safetensors_bytes = proto.safetensors_bytes();
  artifacts.torchscript_bytes = proto.torchscript_bytes();
  artifacts.student_parameters = proto.student_parameters();
  artifacts.teacher_parameters = proto.teacher_parameters();
  artifacts.teacher_bytes = proto.teacher_bytes();
  artifacts.student_score = FromProto(proto.student_score());
  artifacts.student_score.by_class = FromProto(proto.student_classes());
  artifacts.teacher_score = FromProto(proto.teacher_score());
  artifacts.teacher_score.by_class = FromProto(proto.teacher_classes());
  return artifacts;
}

void ToProto(const StudentAssignment& assignment, v1::StudentAssignment* proto) {
  proto->set_job_id(assignment.job_id);
  proto->set_generation(assignment.generation);
  proto->set_rank(assignment.rank);
  proto->set_world_size(assignment.world_size);
  ToProto(assignment.plan, proto->mutable_plan());
  proto->set_first_stage(assignment.first_stage);
  for (const TeacherEndpoint& teacher : assignment.teachers) {
    v1::TeacherEndpoint* added = proto->add_teachers();
    added->set_worker_id(teacher.worker_id);
    added->set_address(teacher.address);
    added->set_model(teacher.model);
    added->set_digest(teacher.digest);
  }
  proto->set_checkpoint(assignment.checkpoint);
  proto->set_checkpoint_digest(assignment.checkpoint_digest);
}

StudentAssignment FromProto(const v1::StudentAssignment& proto) {
  StudentAssignment assignment;
  assignment.job_id = proto.job_id();
  assignment.generation = proto.generation();
  assignment.rank = proto.rank();
  assignment.world_size = proto.world_size();
  assignment.plan = FromProto(proto.plan());
  assignment.first_stage = proto.first_stage();
  for (const v1::TeacherEndpoint& teacher : proto.teachers()) {
    assignment.teachers.push_back({teacher.worker_id(), teacher.address(), teacher.model(), teacher.digest()});
  }
  assignment.checkpoint = proto.checkpoint();
  assignment.checkpoint_digest = proto.checkpoint_digest();
  return assignment;
}

std::vector<TeacherJob> TeacherJobsOf(const v1::HeartbeatResponse& response) {
  std::vector<TeacherJob> jobs;
  for (const v1::TeacherJob& job : response.teacher().jobs()) {
    jobs.push_back({job.job_id(), job.model(), {job.taps().begin(), job.taps().end()}});
  }
  return jobs;
}

}  // namespace distill
