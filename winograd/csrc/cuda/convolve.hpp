// The whole convolution of float32: all stages of one chunk of tiles after the other, through the C interface.
#pragma once

#include "launches.hpp"

namespace winograd::cuda {

inline constexpr int64_t kWorkspaceAlignment = 64;  // floats: V and M begin where a cache line does

// Where M begins in the workspace, and where it ends.
struct Workspace {
  int64_t of_v, floats;
};

inline Workspace workspace_of(const winograd_problem& problem, int64_t chunk_tiles) {
  const Geometry geometry = geometry_of(problem);
  const int64_t tiles = padded_tiles(std::min(chunk_tiles, count_tiles(problem, geometry)));
  require(tiles >= 0, "a chunk must have at least one tile.");
  const int64_t matrices = int64_t{problem.kept} * geometry.blocks;
  const int64_t of_tile = matrices * std::max(geometry.channels_per_group, geometry.filters_per_block);
  require(tiles == 0 || of_tile <= std::numeric_limits<int64_t>::max() / 8 / tiles, "a chunk of this many tiles fits no memory.");
  const int64_t of_v = ceil_div(matrices * geometry.channels_per_group * tiles, kWorkspaceAlignment) * kWorkspaceAlignment;
  return {of_v, of_v + matrices * geometry.filters_per_block * tiles};
}

inline void succeed(int code) {
  if (code != 0) throw Refusal(last_error());
}

// multiply(chunk, V, M) returns what it has multiplied.
template <class Multiply>
Multiplied convolve_in_chunks(const winograd_problem& problem, int64_t chunk_tiles, int32_t memory, const void* input,
                              const winograd_cuda_epilogue& epilogue, float* workspace, void* output, void* stream,
                              const Multiply& multiply) {
  require(chunk_tiles >= 1, "a chunk must have at least one tile.");
  const int64_t tiles = count_tiles(problem, geometry_of(problem));
  float* v = workspace;
  float* m = workspace + workspace_of(problem, chunk_tiles).of_v;
  Multiplied all{0, 0};
  for (int64_t first = 0; first < tiles; first += chunk_tiles) {
    const winograd_cuda_chunk chunk{first, std::min(chunk_tiles, tiles - first)};
    succeed(winograd_cuda_transform_input(&problem, &chunk, WINOGRAD_FLOAT32, memory, input, v, stream));
    const Multiplied done = multiply(chunk, v, m);
    all = {all.gemms + done.gemms, all.multiplications + done.multiplications};
    succeed(winograd_cuda_transform_output(&problem, &chunk, WINOGRAD_FLOAT32, memory, m, &epilogue, output, stream));
  }
  return all;
}

}  // namespace winograd::cuda
