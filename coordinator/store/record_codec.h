// Between the coordinator's plain types and the messages of job.proto; the types that workers know as well are in
// common/fleet/fleet_codec.h. Pure functions, any thread.
#ifndef DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_
#define DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_

#include "common/fleet/fleet_codec.h"
#include "coordinator/store/job_record.h"

namespace distill {
namespace v1 {
class Job;
class JobEvent;
}  // namespace v1

void ToProto(const StageRecord& stage, v1::StageResult* proto);
StageRecord StageFromProto(const v1::StageResult& proto);
// `ranks` stays empty unless the job runs.
void ToProto(const JobRecord& job, v1::Job* proto);
void ToProto(const EventRecord& event, v1::JobEvent* proto);
// The proto's sequence is the worker's own numbering.
EventRecord WorkerEventFromProto(const v1::JobEvent& proto);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_RECORD_CODEC_H_
