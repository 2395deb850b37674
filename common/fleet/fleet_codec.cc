#include "common/fleet/fleet_codec.h"

#include "common/plan/plan_codec.h"
#include "distill/v1/fleet.pb.h"
#include "distill/v1/job.pb.h"
#include "distill/v1/plan.pb.h"

namespace distill {

void ToProto(const ServedModelInfo& model, v1::ServedModel* proto) {
  proto->set_name(model.name);
  proto->set_digest(model.digest);
  ToProto(model.spec, proto->mutable_spec());
  proto->set_parameters(model.parameters);
  proto->set_bytes(model.bytes);
  for (const ServedTap& tap : model.taps) {
    v1::TapInfo* const info = proto->add_taps();
    info->set_path(tap.path);
    info->set_type(tap.type);
    info->mutable_shape()->Add(tap.shape.begin(), tap.shape.end());
    info->set_stage_end(tap.stage_end);
  }
}

void ToProto(const JobProgress& progress, v1::Progress* proto) {
  proto->set_stage(progress.stage);
  proto->set_step(progress.step);
  proto->set_loss(progress.loss);
  for (const NamedNumber& term : progress.terms) {
    v1::NamedValue* const value = proto->add_terms();
    value->set_name(term.name);
    value->set_value(term.value);
  }
  proto->set_learning_rate(progress.learning_rate);
  proto->set_images_per_second(progress.images_per_second);
  for (const NamedNumber& part : progress.step_seconds) {
    v1::NamedValue* const value = proto->add_step_seconds();
    value->set_name(part.name);
    value->set_value(part.value);
  }
  proto->set_accuracy(progress.accuracy);
  proto->set_teacher_accuracy(progress.teacher_accuracy);
  if (progress.mean_iou >= 0) proto->set_mean_iou(progress.mean_iou);
  if (progress.teacher_mean_iou >= 0) proto->set_teacher_mean_iou(progress.teacher_mean_iou);
  proto->set_time(progress.time);
  proto->set_total_step(progress.total_step);
  proto->set_skipped_steps(progress.skipped_steps);
  proto->set_phase(progress.phase);
}

void ToProto(const JobStageResult& result, v1::StageResult* proto) {
  proto->set_stage(result.stage);
  proto->set_checkpoint(result.checkpoint);
  proto->set_digest(result.digest);
  proto->set_accuracy(result.accuracy);
  if (result.mean_iou >= 0) proto->set_mean_iou(result.mean_iou);
  proto->set_loss(result.loss);
  proto->set_seconds(result.seconds);
  proto->set_skipped_steps(result.skipped_steps);
}

void ToProto(const JobArtifacts& artifacts, v1::Artifacts* proto) {
  proto->set_safetensors(artifacts.safetensors);
  proto->set_torchscript(artifacts.torchscript);
  proto->set_safetensors_bytes(artifacts.safetensors_bytes);
  proto->set_torchscript_bytes(artifacts.torchscript_bytes);
  proto->set_student_parameters(artifacts.student_parameters);
  proto->set_teacher_parameters(artifacts.teacher_parameters);
  proto->set_teacher_bytes(artifacts.teacher_bytes);
  proto->set_student_accuracy(artifacts.student_accuracy);
  proto->set_teacher_accuracy(artifacts.teacher_accuracy);
  if (artifacts.student_mean_iou >= 0) proto->set_student_mean_iou(artifacts.student_mean_iou);
  if (artifacts.teacher_mean_iou >= 0) proto->set_teacher_mean_iou(artifacts.teacher_mean_iou);
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
