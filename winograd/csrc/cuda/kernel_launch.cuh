// Launching a kernel of a stage: on the caller's stream, and checked.
#pragma once

#include <cuda_runtime.h>

#include "launches.hpp"

namespace winograd::cuda {

template <class Stage>
void launch_kernel(void (*kernel)(const Stage), const Stage& stage, void* stream) {
  static_assert(sizeof(Stage) <= 4096, "kernel parameters end at 4096 bytes");
  const dim3 threads(stage.grid.fast_threads, stage.grid.slow_threads);
  kernel<<<stage.grid.blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(stage);
  const cudaError_t error = cudaGetLastError();
  require(error == cudaSuccess, std::string("CUDA did not start a Winograd kernel: ") + cudaGetErrorString(error) + ".");
}

__device__ inline ThreadPlace this_thread(const ThreadGrid& grid) {
  return place_of_thread(grid, blockIdx.x, threadIdx.x, threadIdx.y);
}

}  // namespace winograd::cuda
