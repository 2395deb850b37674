// Between the plain types of fleet_client.h and the messages of job.proto and fleet.proto, for workers and coordinator
// alike. Pure functions, any thread. Callers include the *.pb.h of the messages they name.
#ifndef DISTILL_COMMON_FLEET_FLEET_CODEC_H_
#define DISTILL_COMMON_FLEET_FLEET_CODEC_H_

#include <vector>

#include "common/fleet/fleet_client.h"

namespace distill {
namespace v1 {
class Artifacts;
class HeartbeatResponse;
class Progress;
class ServedModel;
class StageResult;
class StudentAssignment;
class TapInfo;
}  // namespace v1

void ToProto(const ServedTap& tap, v1::TapInfo* proto);
void ToProto(const ServedModelInfo& model, v1::ServedModel* proto);
ServedModelInfo FromProto(const v1::ServedModel& proto);
void ToProto(const JobProgress& progress, v1::Progress* proto);
JobProgress FromProto(const v1::Progress& proto);
void ToProto(const JobStageResult& result, v1::StageResult* proto);
JobStageResult FromProto(const v1::StageResult& proto);
void ToProto(const JobArtifacts& artifacts, v1::Artifacts* proto);
JobArtifacts FromProto(const v1::Artifacts& proto);
void ToProto(const StudentAssignment& assignment, v1::StudentAssignment* proto);
StudentAssignment FromProto(const v1::StudentAssignment& proto);
// The jobs that need a teacher; empty also when the answer says nothing of them.
std::vector<TeacherJob> TeacherJobsOf(const v1::HeartbeatResponse& response);

}  // namespace distill

#endif  // DISTILL_COMMON_FLEET_FLEET_CODEC_H_
