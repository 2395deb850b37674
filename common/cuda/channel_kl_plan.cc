#include <algorithm>

#include "common/cuda/channel_kl_cuda.h"
#include "common/cuda/channel_kl_shared.h"

namespace distill {

ChannelKlCudaPlan PlanChannelKlCuda(const ChannelKlMaps& maps, int64_t shared_limit, int team_limit) {
  using cuda_channel_kl::SharedBytes;
  ChannelKlCudaPlan plan;
  if (maps.layout == MapLayout::kChannelsLast) {
    plan.lanes = maps.student_type == ElementType::kFloat32 ? 8 : 16;  // a sector of 32 bytes
    plan.tiles = maps.n * ((maps.c + plan.lanes - 1) / plan.lanes);
  } else {
    plan.tiles = maps.n * maps.c;
  }
  // Half of the memory first, so that two blocks share a multiprocessor and one reads while the other computes.
  plan.fused = false;
  for (const int64_t limit : {shared_limit / 2, shared_limit}) {
    for (int64_t team = 1; team <= team_limit && !plan.fused; team *= 2) {
      plan.segment = (maps.hw + team - 1) / team;
      plan.segments = team;
      plan.fused = SharedBytes(plan.segment, plan.lanes) <= limit;
    }
  }
  if (!plan.fused) {
    plan.segment =
        (shared_limit / 2 - SharedBytes(0, plan.lanes)) / cuda_channel_kl::SharedBytesPerPosition(plan.lanes);
    plan.segments = (maps.hw + plan.segment - 1) / plan.segment;
  }
  plan.shared_bytes = SharedBytes(plan.segment, plan.lanes);
  plan.scratch_bytes = maps.n * maps.c * static_cast<int64_t>(sizeof(double));
  if (!plan.fused) plan.scratch_bytes += plan.tiles * plan.segments * plan.lanes * cuda_channel_kl::kStateBytes;
  return plan;
}

}  // namespace distill
