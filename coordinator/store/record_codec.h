// Between the coordinator's plain types and the messages of job.proto and fleet.proto. Pure functions, any thread.
#ifndef DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_
#define DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_

#include "coordinator/store/job_record.h"

namespace distill {
namespace v1 {
class Artifacts;
class Job;
class JobEvent;
class Progress;
class ServedModel;
class StageResult;
class StudentAssignment;
class TapInfo;
}  // namespace v1

void Encode(const JobProgress& progress, v1::Progress* proto);
JobProgress Decode(const v1::Progress& proto);
void Encode(const StageRecord& stage, v1::StageResult* proto);
StageRecord Decode(const v1::StageResult& proto);
void Encode(const JobArtifacts& artifacts, v1::Artifacts* proto);
JobArtifacts Decode(const v1::Artifacts& proto);
// `ranks` stays empty unless the job runs.
void Encode(const JobRecord& job, v1::Job* proto);
void Encode(const EventRecord& event, v1::JobEvent* proto);
// The proto's sequence is the worker's own numbering.
EventRecord DecodeWorkerEvent(const v1::JobEvent& proto);
void Encode(const ServedTap& tap, v1::TapInfo* proto);
void Encode(const ServedModelInfo& model, v1::ServedModel* proto);
ServedModelInfo Decode(const v1::ServedModel& proto);
void Encode(const StudentAssignment& assignment, v1::StudentAssignment* proto);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_
