// V = B^T d B for a chunk of tiles: one thread for each tile and 1 to 8 channels.
//
// Neighbouring threads read and write neighbouring addresses: channels with channels last, tiles with channels first (where
// reads are m elements apart, and the cache serves the ones between to the same warp's next loads). Each thread has t * t
// independent loads before its first store. Input tiles overlap by two rows and columns, which the caches serve.
#include "kernel_launch.cuh"

namespace winograd::cuda {

template <int m, int lanes, class Storage>
__global__ void __launch_bounds__(kThreadsOfBlock) transform_input_kernel(const __grid_constant__ InputStage<Storage> stage) {
  const ThreadPlace thread = this_thread(stage.grid);
  wait_for_earlier_kernels();
  if (thread.inside) transform_input<m, lanes>(stage, thread);
  let_next_kernel_start();
}

}  // namespace winograd::cuda

extern "C" int winograd_cuda_transform_input(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t type,
                                             int32_t memory, const void* input, void* v, void* stream) {
  using namespace winograd::cuda;
  return guarded([&] {
    transform_input_stage(*problem, *chunk, type, memory, input, v, [&](auto variant, const auto& stage) {
      using V = decltype(variant);
      launch_kernel(transform_input_kernel<V::m, V::lanes, typename V::Storage>, stage, stream);
    });
  });
}
