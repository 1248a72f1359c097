// y = activation(A^T M A + bias + residual) for a chunk of tiles: one thread for each tile and 1 to 8 filters.
//
// The same mapping of threads as in transform_input.cu. With channels first a thread writes up to four neighbours of a row at
// once; without that, a warp would write every m-th element, m times over, which takes twice as long.
#include "kernel_launch.cuh"

namespace winograd::cuda {

template <int m, int lanes, int run, class Storage>
__global__ void __launch_bounds__(kThreadsOfBlock) transform_output_kernel(const __grid_constant__ OutputStage<Storage> stage) {
  const ThreadPlace thread = this_thread(stage.grid);
  wait_for_earlier_kernels();
  if (thread.inside) transform_output<m, lanes, run>(stage, thread);
  if constexpr (sizeof(Storage) == sizeof(float)) let_next_kernel_start();  // it makes two variants for halves spill
}

}  // namespace winograd::cuda

extern "C" int winograd_cuda_transform_output(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t type,
                                              int32_t memory, const void* m, const winograd_cuda_epilogue* epilogue,
                                              void* output, void* stream) {
  using namespace winograd::cuda;
  return guarded([&] {
    transform_output_stage(*problem, *chunk, type, memory, m, *epilogue, output, [&](auto variant, const auto& stage) {
      using V = decltype(variant);
      launch_kernel(transform_output_kernel<V::m, V::lanes, V::run, typename V::Storage>, stage, stream);
    });
  });
}
