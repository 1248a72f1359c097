// Launching a kernel of a stage: on the caller's stream, and checked.
#pragma once

#include <cuda_runtime.h>

#include "launches.hpp"

namespace winograd::cuda {

struct Device {
  int number, processors;
  int major;  // of its architecture

  bool has_dependent_launches() const { return major >= 9; }
};

inline void require_success(cudaError_t error, const char* what) {
  require(error == cudaSuccess, [&] { return std::string("CUDA did not ") + what + ": " + cudaGetErrorString(error) + "."; });
}

// The current device; what is asked about it is remembered, for each thread.
inline Device this_device() {
  thread_local Device known{-1, 0, 0};
  int number = 0;
  require_success(cudaGetDevice(&number), "start a Winograd kernel");
  if (number != known.number) {
    int processors = 0, major = 0;
    require_success(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, number), "tell its processors");
    require_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number), "tell its version");
    known = {number, processors, major};
  }
  return known;
}

// Lets the kernel be scheduled before the one ahead of it in the stream has ended, where the device can: it begins with
// wait_for_earlier_kernels(). What that saves is the time between two kernels, which is as long as a small layer takes.
template <class Stage>
void launch_kernel(void (*kernel)(const Stage), const Stage& stage, dim3 blocks, dim3 threads, size_t shared_bytes, void* stream) {
  static_assert(sizeof(Stage) <= 4096, "kernel parameters end at 4096 bytes");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = this_device().has_dependent_launches() ? 1 : 0;
  require_success(cudaLaunchKernelEx(&config, kernel, stage), "start a Winograd kernel");
}

template <class Stage>
void launch_kernel(void (*kernel)(const Stage), const Stage& stage, void* stream) {
  launch_kernel(kernel, stage, dim3(stage.grid.blocks), dim3(stage.grid.fast_threads, stage.grid.slow_threads), 0, stream);
}

// More than 48 KB of shared memory have to be asked for, once for each kernel and device.
template <auto kernel>
void allow_shared_memory(int bytes) {
  thread_local int allowed_on = -1;
  const int device = this_device().number;
  if (allowed_on == device) return;
  require_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "give a kernel shared memory");
  allowed_on = device;
}

// Before the first access to memory that another kernel may have written or may still read.
__device__ inline void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// When the work is almost done: blocks of the next kernel that come earlier crowd together where there is room.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline ThreadPlace this_thread(const ThreadGrid& grid) {
  return place_of_thread(grid, blockIdx.x, threadIdx.x, threadIdx.y);
}

}  // namespace winograd::cuda
