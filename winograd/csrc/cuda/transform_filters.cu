// U = G w G^T: one thread for each filter and channel, in double, rounded once. Weights change rarely, so this is kept plain.
#include "kernel_launch.cuh"

namespace winograd::cuda {

template <int m, class Storage>
__global__ void __launch_bounds__(kThreadsOfBlock) transform_filters_kernel(const __grid_constant__ FilterStage<Storage> stage) {
  const ThreadPlace thread = this_thread(stage.grid);
  wait_for_earlier_kernels();
  if (thread.inside) transform_filter<m>(stage, thread);
}

}  // namespace winograd::cuda

extern "C" int winograd_cuda_transform_filters(const winograd_problem* problem, int32_t type, const void* filters,
                                               void* weights, void* stream) {
  using namespace winograd::cuda;
  return guarded([&] {
    transform_filters_stage(*problem, type, filters, weights, [&](auto variant, const auto& stage) {
      using V = decltype(variant);
      launch_kernel(transform_filters_kernel<V::m, typename V::Storage>, stage, stream);
    });
  });
}
