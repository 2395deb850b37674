// Between the plain plan (plan.h) and its protobuf form. FromProto(ToProto(x)) == x. Only plan_codec.cc includes
// *.pb.h.
//
// Checkpoints carry a digest of the message (student_worker/train/plan_digest.h), which an upgrade must not change:
// what a program has added to it, a plan that was stored before does not hold. So its absence means what was before,
// and ToProto writes it, a message too, only where it says something else.
#ifndef DISTILL_COMMON_PLAN_PLAN_CODEC_H_
#define DISTILL_COMMON_PLAN_PLAN_CODEC_H_

#include "common/plan/plan.h"

namespace distill {
namespace v1 {
class JobPlan;
class ModelSpec;
}  // namespace v1

void ToProto(const JobPlan& plan, v1::JobPlan* proto);
JobPlan FromProto(const v1::JobPlan& proto);
void ToProto(const ModelSpec& spec, v1::ModelSpec* proto);
ModelSpec FromProto(const v1::ModelSpec& proto);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_PLAN_CODEC_H_
