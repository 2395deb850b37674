// Between the plain types of fleet_client.h and their protobuf form. Only fleet_codec.cc and fleet_client.cc include
// *.pb.h.
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
}  // namespace v1

void ToProto(const ServedModelInfo& model, v1::ServedModel* proto);
void ToProto(const JobProgress& progress, v1::Progress* proto);
void ToProto(const JobStageResult& result, v1::StageResult* proto);
void ToProto(const JobArtifacts& artifacts, v1::Artifacts* proto);
StudentAssignment FromProto(const v1::StudentAssignment& proto);
// The jobs that need a teacher; empty also when the answer says nothing of them.
std::vector<TeacherJob> TeacherJobsOf(const v1::HeartbeatResponse& response);

}  // namespace distill

#endif  // DISTILL_COMMON_FLEET_FLEET_CODEC_H_
