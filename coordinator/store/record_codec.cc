#include "coordinator/store/record_codec.h"

#include <algorithm>

#include "common/plan/plan_codec.h"
#include "distill/v1/fleet.pb.h"
#include "distill/v1/job.pb.h"

namespace distill {
namespace {

void EncodeValues(const std::vector<NamedNumber>& values, google::protobuf::RepeatedPtrField<v1::NamedValue>* out) {
  for (const NamedNumber& value : values) {
    v1::NamedValue* added = out->Add();
    added->set_name(value.name);
    added->set_value(value.value);
  }
}

std::vector<NamedNumber> DecodeValues(const google::protobuf::RepeatedPtrField<v1::NamedValue>& values) {
  std::vector<NamedNumber> out;
  for (const v1::NamedValue& value : values) out.push_back({value.name(), value.value()});
  return out;
}

}  // namespace

std::string_view Name(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "queued";
    case JobState::kRunning:
      return "running";
    case JobState::kSucceeded:
      return "succeeded";
    case JobState::kFailed:
      return "failed";
    case JobState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

void Encode(const JobProgress& progress, v1::Progress* proto) {
  proto->set_stage(progress.stage);
  proto->set_step(progress.step);
  proto->set_total_step(progress.total_step);
  proto->set_skipped_steps(progress.skipped_steps);
  proto->set_loss(progress.loss);
  proto->set_learning_rate(progress.learning_rate);
  proto->set_images_per_second(progress.images_per_second);
  EncodeValues(progress.terms, proto->mutable_terms());
  EncodeValues(progress.step_seconds, proto->mutable_step_seconds());
  proto->set_accuracy(progress.accuracy);
  proto->set_teacher_accuracy(progress.teacher_accuracy);
  if (progress.mean_iou >= 0) proto->set_mean_iou(progress.mean_iou);
  if (progress.teacher_mean_iou >= 0) proto->set_teacher_mean_iou(progress.teacher_mean_iou);
  proto->set_time(progress.time);
  proto->set_phase(progress.phase);
}

JobProgress Decode(const v1::Progress& proto) {
  JobProgress progress;
  progress.stage = proto.stage();
  progress.step = proto.step();
  progress.total_step = proto.total_step();
  progress.skipped_steps = proto.skipped_steps();
  progress.loss = proto.loss();
  progress.learning_rate = proto.learning_rate();
  progress.images_per_second = proto.images_per_second();
  progress.terms = DecodeValues(proto.terms());
  progress.step_seconds = DecodeValues(proto.step_seconds());
  progress.accuracy = proto.accuracy();
  progress.teacher_accuracy = proto.teacher_accuracy();
  if (proto.has_mean_iou()) progress.mean_iou = proto.mean_iou();
  if (proto.has_teacher_mean_iou()) progress.teacher_mean_iou = proto.teacher_mean_iou();
  progress.time = proto.time();
  progress.phase = proto.phase();
  return progress;
}

void Encode(const StageRecord& stage, v1::StageResult* proto) {
  proto->set_stage(stage.result.stage);
  proto->set_checkpoint(stage.result.checkpoint);
  proto->set_digest(stage.result.digest);
  proto->set_accuracy(stage.result.accuracy);
  if (stage.result.mean_iou >= 0) proto->set_mean_iou(stage.result.mean_iou);
  proto->set_loss(stage.result.loss);
  proto->set_seconds(stage.result.seconds);
  proto->set_skipped_steps(stage.result.skipped_steps);
  proto->set_committed_time(stage.committed_time);
}

StageRecord Decode(const v1::StageResult& proto) {
  StageRecord stage;
  stage.result.stage = proto.stage();
  stage.result.checkpoint = proto.checkpoint();
  stage.result.digest = proto.digest();
  stage.result.accuracy = proto.accuracy();
  if (proto.has_mean_iou()) stage.result.mean_iou = proto.mean_iou();
  stage.result.loss = proto.loss();
  stage.result.seconds = proto.seconds();
  stage.result.skipped_steps = proto.skipped_steps();
  stage.committed_time = proto.committed_time();
  return stage;
}

void Encode(const JobArtifacts& artifacts, v1::Artifacts* proto) {
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

JobArtifacts Decode(const v1::Artifacts& proto) {
  JobArtifacts artifacts;
  artifacts.safetensors = proto.safetensors();
  artifacts.torchscript = proto.torchscript();
  artifacts.safetensors_bytes = proto.safetensors_bytes();
  artifacts.torchscript_bytes = proto.torchscript_bytes();
  artifacts.student_parameters = proto.student_parameters();
  artifacts.teacher_parameters = proto.teacher_parameters();
  artifacts.teacher_bytes = proto.teacher_bytes();
  artifacts.student_accuracy = proto.student_accuracy();
  artifacts.teacher_accuracy = proto.teacher_accuracy();
  if (proto.has_student_mean_iou()) artifacts.student_mean_iou = proto.student_mean_iou();
  if (proto.has_teacher_mean_iou()) artifacts.teacher_mean_iou = proto.teacher_mean_iou();
  return artifacts;
}

void Encode(const JobRecord& job, v1::Job* proto) {
  proto->set_id(job.id);
  proto->set_name(job.name);
  proto->set_state(static_cast<v1::JobState>(job.status.state));
  proto->set_reason(job.damage.empty() ? job.status.reason : job.damage);
  proto->set_submitted_time(job.submitted_time);
  proto->set_started_time(job.status.started_time);
  proto->set_finished_time(job.status.finished_time);
  ToProto(job.plan, proto->mutable_plan());
  if (job.has_progress) Encode(job.progress, proto->mutable_progress());
  for (const StageRecord& stage : job.stages) Encode(stage, proto->add_stages_done());
  if (job.has_artifacts) Encode(job.artifacts, proto->mutable_artifacts());
  proto->set_generation(job.status.generation);
  proto->set_restarts(job.status.restarts);
  proto->set_wait(static_cast<v1::JobWait>(job.status.wait));
  proto->set_file_name(job.file_name);
  proto->mutable_overrides()->Assign(job.overrides.begin(), job.overrides.end());
  if (job.status.state == JobState::kQueued) return;
  for (const RankMember& member : job.status.ranks) proto->add_ranks(member.worker_id);
}

void Encode(const EventRecord& event, v1::JobEvent* proto) {
  proto->set_sequence(event.sequence);
  proto->set_time(event.time);
  proto->set_level(static_cast<v1::EventLevel>(static_cast<int>(event.level) + 1));
  proto->set_type(static_cast<v1::EventType>(event.type));
  proto->set_generation(event.generation);
  proto->set_source(event.source);
  proto->set_text(event.text);
}

EventRecord DecodeWorkerEvent(const v1::JobEvent& proto) {
  EventRecord event;
  event.time = proto.time();
  event.level = static_cast<EventLevel>(std::clamp(static_cast<int>(proto.level()), 1, 3) - 1);
  // What only the coordinator can know, and what this version does not know, counts as text.
  const bool of_workers = proto.type() >= v1::EVENT_TYPE_CHECKPOINT && v1::EventType_IsValid(proto.type());
  event.type = of_workers ? static_cast<EventType>(proto.type()) : EventType::kGeneral;
  event.text = proto.text();
  event.job_id = proto.job_id();
  event.source_sequence = proto.sequence();
  return event;
}

void Encode(const ServedTap& tap, v1::TapInfo* proto) {
  proto->set_path(tap.path);
  proto->set_type(tap.type);
  for (uint32_t axis : tap.shape) proto->add_shape(axis);
  proto->set_stage_end(tap.stage_end);
}

void Encode(const ServedModelInfo& model, v1::ServedModel* proto) {
  proto->set_name(model.name);
  proto->set_digest(model.digest);
  ToProto(model.spec, proto->mutable_spec());
  proto->set_parameters(model.parameters);
  proto->set_bytes(model.bytes);
  for (const ServedTap& tap : model.taps) Encode(tap, proto->add_taps());
}

ServedModelInfo Decode(const v1::ServedModel& proto) {
  ServedModelInfo model;
  model.name = proto.name();
  model.digest = proto.digest();
  model.spec = FromProto(proto.spec());
  model.parameters = proto.parameters();
  model.bytes = proto.bytes();
  for (const v1::TapInfo& tap : proto.taps()) {
    model.taps.push_back({tap.path(), tap.type(), {tap.shape().begin(), tap.shape().end()}, tap.stage_end()});
  }
  return model;
}

void Encode(const StudentAssignment& assignment, v1::StudentAssignment* proto) {
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

}  // namespace distill
