#include "common/collective/c10d_group.h"
#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"

namespace distill {

C10dBackend MakeNcclBackend(const c10::intrusive_ptr<c10d::Store>& store, const CollectiveGroup::Options& options) {
  const CudaPlugin* plugin = LoadedCudaPlugin();
  TORCH_CHECK(plugin != nullptr, "MakeNcclBackend before LoadCudaRuntime");
  c10::intrusive_ptr<c10d::Backend> backend;
  plugin->make_nccl(store, static_cast<int>(options.rank), static_cast<int>(options.world_size), options.timeout,
                    &backend);
  return {.backend = backend,
          .device = c10::DeviceType::CUDA,
          .type = c10d::ProcessGroup::BackendType::NCCL,
          .abort = [plugin, backend] { plugin->abort_nccl(*backend); }};
}

}  // namespace distill
