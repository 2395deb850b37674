#include "coordinator/store/record_codec.h"

#include <algorithm>

#include "common/plan/plan_codec.h"
#include "distill/v1/job.pb.h"

namespace distill {

void ToProto(const StageRecord& stage, v1::StageResult* proto) {
  ToProto(stage.result, proto);
  proto->set_committed_time(stage.committed_time);
}

StageRecord StageFromProto(const v1::StageResult& proto) { return {FromProto(proto), proto.committed_time()}; }

void ToProto(const JobRecord& job, v1::Job* proto) {
  proto->set_id(job.id);
  proto->set_name(job.name);
  proto->set_state(static_cast<v1::JobState>(job.status.state));
  proto->set_reason(job.damage.empty() ? job.status.reason : job.damage);
  proto->set_submitted_time(job.submitted_time);
  proto->set_started_time(job.status.started_time);
  proto->set_finished_time(job.status.finished_time);
  ToProto(job.plan, proto->mutable_plan());
  if (job.has_progress) ToProto(job.progress, proto->mutable_progress());
  for (const StageRecord& stage : job.stages) ToProto(stage, proto->add_stages_done());
  if (job.has_artifacts) ToProto(job.artifacts, proto->mutable_artifacts());
  proto->set_generation(job.status.generation);
  proto->set_restarts(job.status.restarts);
  proto->set_wait(static_cast<v1::JobWait>(job.status.wait));
  proto->set_file_name(job.file_name);
  proto->mutable_overrides()->Assign(job.overrides.begin(), job.overrides.end());
  if (job.status.state == JobState::kQueued) return;
  for (const RankMember& member : job.status.ranks) proto->add_ranks(member.worker_id);
}

void ToProto(const EventRecord& event, v1::JobEvent* proto) {
  proto->set_sequence(event.sequence);
  proto->set_time(event.time);
  proto->set_level(static_cast<v1::EventLevel>(static_cast<int>(event.level) + 1));
  proto->set_type(static_cast<v1::EventType>(event.type));
  proto->set_generation(event.generation);
  proto->set_source(event.source);
  proto->set_text(event.text);
}

EventRecord WorkerEventFromProto(const v1::JobEvent& proto) {
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

}  // namespace distill
