#include "student_worker/train/plan_digest.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include "common/hash/sha256.h"
#include "common/plan/plan_codec.h"
#include "distill/v1/plan.pb.h"

namespace distill {

std::string PlanDigest(const JobPlan& plan) {
  v1::JobPlan proto;
  ToProto(plan, &proto);
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    proto.SerializeWithCachedSizes(&coded);
  }
  return Sha256Hex(bytes);
}

}  // namespace distill
