// Between the plain plan (plan.h) and its protobuf form. FromProto(ToProto(x)) == x. Only plan_codec.cc includes
// *.pb.h.
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
