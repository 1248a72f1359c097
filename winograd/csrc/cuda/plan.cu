// The functions of the C interface that launch nothing.
#include "convolve.hpp"

extern "C" const char* winograd_cuda_last_error(void) { return winograd::cuda::last_error().c_str(); }

extern "C" int winograd_cuda_make_plan(const winograd_problem* problem, int32_t type, int64_t workspace_bytes,
                                       winograd_cuda_plan* plan) {
  return winograd::cuda::guarded([&] { *plan = winograd::cuda::make_plan(*problem, type, workspace_bytes); });
}

extern "C" int winograd_cuda_workspace_floats(const winograd_problem* problem, int64_t chunk_tiles, int64_t* floats) {
  return winograd::cuda::guarded([&] { *floats = winograd::cuda::workspace_of(*problem, chunk_tiles).floats; });
}
