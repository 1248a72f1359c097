// From the C interface to launches: checks, sizes of grids, and the choice of a compiled variant. Host code without CUDA.
//
// Each stage ends in launch(Variant, stage), once for every 64 groups of filters. `launch` is a kernel launch in the *.cu
// files and a loop over all threads in host_check.cpp, so that everything else here is tested without a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "../winograd_cuda.h"
#include "multiply.hpp"
#include "stages.hpp"

namespace winograd::cuda {

inline constexpr int64_t kLargestCoordinate = int64_t{1} << 30;  // leaves room for padding and for the last tile
inline constexpr int64_t kLargestCount = std::numeric_limits<int32_t>::max();
inline constexpr uint32_t kThreadsOfBlock = 128;
inline constexpr uint32_t kThreadsOfWarp = 32;
inline constexpr int64_t kFewestTilesOfChunk = 64;
inline constexpr int64_t kTilesMultiple = 8;  // 16 bytes of halves: what tensor cores want rows of V and M to be aligned to

// ---- Errors ---------------------------------------------------------------------------------------------------------

struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* sentence) {
  if (!holds) throw Refusal(sentence);
}

// `sentence` makes it: putting it together takes longer than the rest of a call.
template <class Sentence>
void require(bool holds, const Sentence& sentence) {
  if (!holds) throw Refusal(sentence());
}

inline std::string& last_error() {
  thread_local std::string sentence;
  return sentence;
}

// Runs `body` at the border of the C interface: 0, or 1 and last_error().
template <class Body>
int guarded(const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

// ---- Checks and sizes -------------------------------------------------------------------------------------------------

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t size_of(int32_t type) {
  switch (type) {
    case WINOGRAD_FLOAT32: return 4;
    case WINOGRAD_FLOAT16:
    case WINOGRAD_BFLOAT16: return 2;
    default: throw Refusal("type " + std::to_string(type) + " is unknown: pass one of enum winograd_cuda_type.");
  }
}

inline void check_positions(const winograd_problem& problem) {
  const int32_t positions = (problem.m + 2) * (problem.m + 2);
  require(problem.kept >= 1 && problem.kept <= positions, [&] {
    return std::to_string(problem.kept) + " positions are kept: keep between 1 and " + std::to_string(positions) + ".";
  });
  for (int64_t group = 0; group < problem.kernel_groups; ++group) {
    int32_t previous = -1;
    for (int32_t i = 0; i < problem.kept; ++i) {
      const int32_t position = problem.positions[group * problem.kept + i];
      require(position > previous && position < positions, [&] {
        return "positions must ascend from 0 to at most " + std::to_string(positions - 1) + " in each group of filters.";
      });
      previous = position;
    }
  }
}

inline Geometry geometry_of(const winograd_problem& problem) {
  require(problem.m == 2 || problem.m == 4 || problem.m == 6 || problem.m == 7, "m must be 2, 4, 6 or 7.");
  require(problem.batch >= 0 && problem.batch <= kLargestCount, "the batch must have between 0 and 2^31 - 1 images.");
  require(problem.channels >= 1 && problem.channels <= kLargestCount && problem.filters >= 1 && problem.filters <= kLargestCount,
          "there must be between 1 and 2^31 - 1 channels and filters.");
  require(problem.groups >= 1 && problem.kernel_groups >= 1 && problem.channels % problem.groups == 0 &&
              problem.filters % problem.groups == 0 && problem.filters % problem.kernel_groups == 0,
          "groups must divide channels and filters, kernel_groups must divide filters.");
  require(problem.groups % problem.kernel_groups == 0 || problem.kernel_groups % problem.groups == 0,
          "one of groups and kernel_groups must divide the other.");
  check_positions(problem);
  require(problem.pad_height >= 0 && problem.pad_width >= 0, "padding must not be negative.");
  const int64_t output_height = problem.height + 2 * int64_t{problem.pad_height} - (kFilterSize - 1);
  const int64_t output_width = problem.width + 2 * int64_t{problem.pad_width} - (kFilterSize - 1);
  require(problem.height >= 1 && problem.width >= 1 && output_height >= 1 && output_width >= 1,
          "the padded input must be at least 3 x 3.");
  require(output_height <= kLargestCoordinate && output_width <= kLargestCoordinate,
          "rows and columns must number at most 2^30, padding included.");

  Geometry geometry{};
  geometry.height = static_cast<int>(problem.height);
  geometry.width = static_cast<int>(problem.width);
  geometry.output_height = static_cast<int>(output_height);
  geometry.output_width = static_cast<int>(output_width);
  geometry.pad_height = problem.pad_height;
  geometry.pad_width = problem.pad_width;
  geometry.tile_rows = static_cast<int>(ceil_div(output_height, problem.m));
  geometry.tile_columns = static_cast<int>(ceil_div(output_width, problem.m));
  geometry.channels = static_cast<int>(problem.channels);
  geometry.filters = static_cast<int>(problem.filters);
  geometry.blocks = static_cast<int>(std::max<int64_t>(problem.groups, problem.kernel_groups));
  geometry.channels_per_group = static_cast<int>(problem.channels / problem.groups);
  geometry.filters_per_block = geometry.filters / geometry.blocks;
  geometry.blocks_per_group = static_cast<int>(geometry.blocks / problem.groups);
  geometry.blocks_per_kernel_group = geometry.blocks / problem.kernel_groups;
  return geometry;
}

// Compared by division: the product of three numbers of 31 bits doesn't fit into 64.
inline int64_t count_tiles(const winograd_problem& problem, const Geometry& geometry) {
  const int64_t of_image = int64_t{geometry.tile_rows} * geometry.tile_columns;
  require(problem.batch == 0 || of_image <= kLargestCount / problem.batch,
          "the batch has more than 2^31 - 1 tiles: convolve parts of it.");
  return problem.batch * of_image;
}

inline winograd_cuda_plan make_plan(const winograd_problem& problem, int32_t type, int64_t workspace_bytes) {
  const Geometry geometry = geometry_of(problem);
  const int64_t tiles = count_tiles(problem, geometry);
  // Division again: kept * (blocks * C/g + K) * bytes of a huge layer still fits, times tiles it need not.
  const int64_t width = int64_t{geometry.blocks} * geometry.channels_per_group + geometry.filters;
  require(width <= std::numeric_limits<int64_t>::max() / 1024, "kernel_groups * channels is too large.");
  const int64_t fitting = workspace_bytes / (problem.kept * width * size_of(type));
  const int64_t largest = std::max(fitting, kFewestTilesOfChunk);
  if (tiles <= largest) return {tiles, tiles, geometry.blocks};
  const int64_t equal = ceil_div(tiles, ceil_div(tiles, largest));
  return {tiles, std::min(tiles, ceil_div(equal, kTilesMultiple) * kTilesMultiple), geometry.blocks};
}

inline ThreadGrid thread_grid(int64_t fast_count, int64_t slow_count) {
  uint32_t fast_threads = 1;
  while (fast_threads < kThreadsOfWarp && fast_threads < fast_count) fast_threads *= 2;
  const uint32_t slow_threads = kThreadsOfBlock / fast_threads;
  const int64_t fast_blocks = ceil_div(fast_count, fast_threads), slow_blocks = ceil_div(slow_count, slow_threads);
  require(fast_count <= kLargestCount && slow_count <= kLargestCount && slow_blocks <= kLargestCount / fast_blocks,
          "a chunk of this many tiles and channels needs more than 2^31 - 1 blocks of threads: make it smaller.");
  return {static_cast<uint32_t>(fast_count), static_cast<uint32_t>(slow_count), fast_threads, slow_threads,
          static_cast<uint32_t>(fast_blocks), static_cast<uint32_t>(fast_blocks * slow_blocks)};
}

inline KeptPositions kept_positions(const winograd_problem& problem, const Geometry& geometry, int first_group) {
  const int t = problem.m + 2;
  const int end_group = std::min(first_group + kKernelGroupsOfLaunch, problem.kernel_groups);
  KeptPositions kept{};
  kept.first_block = first_group * geometry.blocks_per_kernel_group;
  kept.end_block = end_group * geometry.blocks_per_kernel_group;
  for (int group = first_group; group < end_group; ++group) {
    KeptRows& rows = kept.group[group - first_group];
    const int32_t* positions = problem.positions + int64_t{group} * problem.kept;
    for (int i = 0; i < problem.kept; ++i) rows.columns[positions[i] / t] |= static_cast<uint16_t>(1 << positions[i] % t);
    for (int row = 0, before = 0; row < t; ++row) {
      rows.before[row] = static_cast<uint16_t>(before);
      for (int column = 0; column < t; ++column) before += rows.columns[row] >> column & 1;
    }
  }
  return kept;
}

// ---- Variants ---------------------------------------------------------------------------------------------------------

// Channels of a thread: at most 16 bytes, and as many as leave room for its t * t (or m * t) numbers of each in at most 170
// registers, so that three blocks of threads share a multiprocessor.
template <int m, class Storage>
inline constexpr int kInputLanes = m == 2 ? 16 / sizeof(Storage) : m == 4 ? 8 / sizeof(Storage) : m == 6 ? 4 / sizeof(Storage) : 1;
template <int m, class Storage>
inline constexpr int kOutputLanes = m == 2 ? 16 / sizeof(Storage) : m == 4 ? 4 : 4 / sizeof(Storage);

template <int outputs, class Element, int lane_count, int run_length = 1>
struct Variant {
  static constexpr int m = outputs, lanes = lane_count;
  static constexpr int run = run_length;  // outputs of a row that are written at once
  using Storage = Element;
};

// With channels first, the m outputs of a row are neighbours: 4, 2, or 1 of them go together.
template <int m>
inline constexpr int kLongestRun = m % 4 == 0 ? 4 : m % 2 == 0 ? 2 : 1;

template <int longest, class Body>
void with_run(int64_t multiple_of, const Body& body) {
  if constexpr (longest == 4) {
    if (multiple_of % 4 == 0) return body(Constant<4>{});
  }
  if constexpr (longest >= 2) {
    if (multiple_of % 2 == 0) return body(Constant<2>{});
  }
  return body(Constant<1>{});
}

template <class Body>
void with_m(int32_t m, const Body& body) {
  if (m == 2) return body(Constant<2>{});
  if (m == 4) return body(Constant<4>{});
  if (m == 6) return body(Constant<6>{});
  return body(Constant<7>{});
}

template <class Body>
void with_storage(int32_t type, const Body& body) {
  size_of(type);  // refuses unknown ones
  if (type == WINOGRAD_FLOAT32) return body(float{});
  if (type == WINOGRAD_FLOAT16) return body(Half{});
  return body(Bfloat16{});
}

inline bool is_aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// ---- Stages -------------------------------------------------------------------------------------------------------------

inline bool is_channels_last(int32_t memory) {
  require(memory == WINOGRAD_CHANNELS_FIRST || memory == WINOGRAD_CHANNELS_LAST, "memory must be one of enum winograd_memory.");
  return memory == WINOGRAD_CHANNELS_LAST;
}

inline void check_chunk(const winograd_cuda_chunk& chunk, int64_t tiles) {
  require(chunk.first_tile >= 0 && chunk.tiles >= 0 && chunk.first_tile <= tiles && chunk.tiles <= tiles - chunk.first_tile,
          [&] { return "the chunk must lie inside the " + std::to_string(tiles) + " tiles of the batch."; });
}

template <class Launch>
void transform_input_stage(const winograd_problem& problem, const winograd_cuda_chunk& chunk, int32_t type, int32_t memory,
                           const void* input, void* v, const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  const bool last = is_channels_last(memory);
  check_chunk(chunk, count_tiles(problem, geometry));
  if (chunk.tiles == 0) return;
  with_m(problem.m, [&](auto m) {
    with_storage(type, [&](auto storage) {
      using Storage = decltype(storage);
      constexpr int vector = kInputLanes<m.value, Storage>;
      InputStage<Storage> stage{};
      stage.geometry = geometry;
      stage.image = image_strides(last, geometry.channels, geometry.height, geometry.width);
      stage.matrix = matrix_strides(last, geometry.blocks, chunk.tiles, geometry.channels_per_group);
      stage.channel_is_fast = last;
      stage.first_tile = static_cast<int>(chunk.first_tile);
      stage.input = static_cast<const Storage*>(input);
      stage.v = static_cast<Storage*>(v);
      const int64_t bytes = sizeof(Storage) * vector;
      const bool by_vector =
          last && geometry.channels_per_group % vector == 0 && is_aligned(input, bytes) && is_aligned(v, bytes);
      const int64_t channel_threads = geometry.channels / (by_vector ? vector : 1);
      stage.grid = last ? thread_grid(channel_threads, chunk.tiles) : thread_grid(chunk.tiles, channel_threads);
      for (int first = 0; first < problem.kernel_groups; first += kKernelGroupsOfLaunch) {
        stage.kept = kept_positions(problem, geometry, first);
        if (by_vector) {
          launch(Variant<m.value, Storage, vector>{}, stage);
        } else {
          launch(Variant<m.value, Storage, 1>{}, stage);
        }
      }
    });
  });
}

template <class Launch>
void transform_output_stage(const winograd_problem& problem, const winograd_cuda_chunk& chunk, int32_t type, int32_t memory,
                            const void* products, const winograd_cuda_epilogue& epilogue, void* output,
                            const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  const bool last = is_channels_last(memory);
  check_chunk(chunk, count_tiles(problem, geometry));
  require(epilogue.activation == WINOGRAD_NONE || epilogue.activation == WINOGRAD_RELU,
          "activation must be one of enum winograd_activation.");
  if (chunk.tiles == 0) return;
  with_m(problem.m, [&](auto m) {
    with_storage(type, [&](auto storage) {
      using Storage = decltype(storage);
      constexpr int vector = kOutputLanes<m.value, Storage>;
      OutputStage<Storage> stage{};
      stage.geometry = geometry;
      stage.image = image_strides(last, geometry.filters, geometry.output_height, geometry.output_width);
      stage.matrix = matrix_strides(last, geometry.blocks, chunk.tiles, geometry.filters_per_block);
      stage.channel_is_fast = last;
      stage.relu = epilogue.activation == WINOGRAD_RELU;
      stage.first_tile = static_cast<int>(chunk.first_tile);
      stage.products = static_cast<const Storage*>(products);
      stage.bias = static_cast<const Storage*>(epilogue.bias);
      stage.residual = static_cast<const Storage*>(epilogue.residual);
      stage.output = static_cast<Storage*>(output);
      const int64_t bytes = sizeof(Storage) * vector;
      const bool by_vector = last && geometry.filters_per_block % vector == 0 && is_aligned(products, bytes) &&
                             is_aligned(epilogue.bias, bytes) && is_aligned(epilogue.residual, bytes) && is_aligned(output, bytes);
      // Runs are as long as the width, and where output and residual begin, are multiples of.
      const int64_t begin = static_cast<int64_t>(reinterpret_cast<uintptr_t>(output) | reinterpret_cast<uintptr_t>(epilogue.residual));
      const int64_t run_divides = geometry.output_width | begin / static_cast<int64_t>(sizeof(Storage));
      for (int first = 0; first < problem.kernel_groups; first += kKernelGroupsOfLaunch) {
        stage.kept = kept_positions(problem, geometry, first);
        stage.first_filter = stage.kept.first_block * geometry.filters_per_block;
        const int64_t filters = int64_t{stage.kept.end_block - stage.kept.first_block} * geometry.filters_per_block;
        const int64_t filter_threads = filters / (by_vector ? vector : 1);
        stage.grid = last ? thread_grid(filter_threads, chunk.tiles) : thread_grid(chunk.tiles, filter_threads);
        if (by_vector) {
          launch(Variant<m.value, Storage, vector>{}, stage);
        } else if (last) {
          launch(Variant<m.value, Storage, 1>{}, stage);
        } else {
          with_run<kLongestRun<m.value>>(run_divides, [&](auto run) { launch(Variant<m.value, Storage, 1, run.value>{}, stage); });
        }
      }
    });
  });
}

template <class Launch>
void transform_filters_stage(const winograd_problem& problem, int32_t type, const void* filters, void* weights,
                             const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  with_m(problem.m, [&](auto m) {
    with_storage(type, [&](auto storage) {
      using Storage = decltype(storage);
      FilterStage<Storage> stage{};
      stage.geometry = geometry;
      stage.filters = static_cast<const Storage*>(filters);
      stage.weights = static_cast<Storage*>(weights);
      for (int first = 0; first < problem.kernel_groups; first += kKernelGroupsOfLaunch) {
        stage.kept = kept_positions(problem, geometry, first);
        stage.first_filter = stage.kept.first_block * geometry.filters_per_block;
        const int64_t count = int64_t{stage.kept.end_block - stage.kept.first_block} * geometry.filters_per_block;
        stage.grid = thread_grid(geometry.channels_per_group, count);
        launch(Variant<m.value, Storage, 1>{}, stage);
      }
    });
  });
}

// ---- Multiplication -------------------------------------------------------------------------------------------------------

template <class Tile_, bool channels_last_>
struct MultiplyVariant {
  using Tile = Tile_;
  static constexpr bool channels_last = channels_last_;
};

inline constexpr int kLargestDepth = 1 << 24;

// What a device has, as far as the choice of a tile depends on it.
struct Processors {
  int count;
  bool have_warpgroups;  // sm_90 alone
};

using TallTile = MultiplyTile<128, 64, 64, 32, 3>;
using SquareTile = MultiplyTile<64, 64, 32, 32, 4>;
using FlatTile = MultiplyTile<32, 64, 16, 32, 4>;
using NarrowTile = MultiplyTile<64, 32, 32, 16, 4>;

// Of one tile: how many blocks share a multiprocessor, how fast they are beside the tallest, and what a wave of them costs
// beyond its multiplications, in multiplications per channel. Fitted to 206 matrix multiplications on an H100, of which
// the chosen tile takes 1.0 % longer than the best one, in the geometric mean, and 29 % at most (docs/winograd.md).
struct TileSpeed {
  int resident;
  double efficiency, wave;
};

template <class Tile>
double estimated_time(const MultiplyStage& stage, int64_t matrices, int processors, TileSpeed speed) {
  const int64_t blocks = matrices * ceil_div(stage.rows, Tile::rows) * ceil_div(stage.columns, Tile::columns);
  const int64_t of_processor = ceil_div(blocks, processors), waves = ceil_div(of_processor, speed.resident);
  return static_cast<double>(of_processor * Tile::rows * Tile::columns) / speed.efficiency + static_cast<double>(waves) * speed.wave;
}

// Groups of warps take the tiles of the image for rows in either order of memory.
template <bool channels_last>
MultiplyStage with_tiles_as_rows(MultiplyStage stage) {
  if constexpr (!channels_last) {
    std::swap(stage.a, stage.b);
    std::swap(stage.a_matrix, stage.b_matrix);
    std::swap(stage.rows, stage.columns);
  }
  return stage;
}

// Calls body(tile, stage) with the tile of that number, or, for WINOGRAD_CUDA_ANY_TILE, with the one that takes least time.
template <bool channels_last, class Body>
void with_tile(int32_t number, const MultiplyStage& stage, int64_t matrices, Processors processors, const Body& body) {
  const MultiplyStage by_tiles = with_tiles_as_rows<channels_last>(stage);
  const auto time = [&](auto tile, const MultiplyStage& of, TileSpeed speed) {
    return estimated_time<decltype(tile)>(of, matrices, processors.count, speed);
  };
  if (number == WINOGRAD_CUDA_ANY_TILE) {
    constexpr double never = std::numeric_limits<double>::infinity();
    const std::array<double, WINOGRAD_CUDA_TILES> times{
        time(TallTile{}, stage, {2, 1.0, 4000}),
        time(SquareTile{}, stage, {3, 0.95, 3000}),
        time(FlatTile{}, stage, {4, 0.8, 2000}),
        time(NarrowTile{}, stage, {4, 0.8, 2000}),
        processors.have_warpgroups ? time(WideTile{}, by_tiles, {1, 1.3, 0}) : never,
        processors.have_warpgroups ? time(HighTile{}, by_tiles, {1, 1.3, 2000}) : never,
    };
    number = 1 + static_cast<int32_t>(std::min_element(times.begin(), times.end()) - times.begin());
  }
  require(number <= 4 || processors.have_warpgroups, "this device has no multiplication by groups of warps: only sm_90 has.");
  switch (number) {
    case 1: return body(TallTile{}, stage);
    case 2: return body(SquareTile{}, stage);
    case 3: return body(FlatTile{}, stage);
    case 4: return body(NarrowTile{}, stage);
    case 5: return body(WideTile{}, by_tiles);
    case 6: return body(HighTile{}, by_tiles);
    default: throw Refusal("tile must be between 0 and " + std::to_string(WINOGRAD_CUDA_TILES) + ".");
  }
}

// What was multiplied.
struct Multiplied {
  int64_t gemms, multiplications;
};

template <bool channels_last, class Launch>
void multiply_matrices(int32_t tile_number, MultiplyStage stage, int64_t matrices, Processors processors, const Launch& launch) {
  stage.a_matrix = int64_t{stage.rows} * stage.depth;
  stage.b_matrix = int64_t{stage.columns} * stage.depth;
  stage.d_matrix = int64_t{stage.rows} * stage.columns;
  with_tile<channels_last>(tile_number, stage, matrices, processors, [&](auto tile, MultiplyStage of) {
    using Tile = decltype(tile);
    of.row_blocks = static_cast<uint32_t>(ceil_div(of.rows, Tile::rows));
    of.column_blocks = static_cast<uint32_t>(ceil_div(of.columns, Tile::columns));
    require(matrices <= kLargestCount / (int64_t{of.row_blocks} * of.column_blocks),
            "a chunk of this many tiles and filters needs more than 2^31 - 1 blocks of threads: make it smaller.");
    of.blocks = static_cast<uint32_t>(matrices * of.row_blocks * of.column_blocks);
    launch(MultiplyVariant<Tile, channels_last>{}, of);
  });
}

template <class Launch>
Multiplied multiply_stage(const winograd_problem& problem, const winograd_cuda_chunk& chunk, int32_t memory, int32_t tile,
                          const void* weights, const void* v, void* m, Processors processors, const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  const bool last = is_channels_last(memory);
  check_chunk(chunk, count_tiles(problem, geometry));
  if (chunk.tiles == 0) return {0, 0};
  require(chunk.tiles <= kLargestCount - 3, "a chunk must have fewer than 2^31 - 4 tiles.");
  const auto tiles = static_cast<int>(last ? chunk.tiles : padded_tiles(chunk.tiles));
  const int64_t matrices = int64_t{problem.kept} * geometry.blocks;
  MultiplyStage stage{};
  stage.a = static_cast<const float*>(last ? v : weights);
  stage.b = static_cast<const float*>(last ? weights : v);
  stage.d = static_cast<float*>(m);
  stage.rows = last ? tiles : geometry.filters_per_block;
  stage.columns = last ? geometry.filters_per_block : tiles;
  stage.depth = geometry.channels_per_group;
  stage.by_pairs = stage.columns % 2 == 0 && is_aligned(m, 2 * sizeof(float));
  require(stage.depth % 4 == 0 && stage.depth <= kLargestDepth && is_aligned(v, 16) && is_aligned(weights, 16),
          "winograd_cuda_multiply takes a multiple of four channels of a group, 2^24 at most, and V and weights at multiples of 16 bytes.");
  if (last) {
    multiply_matrices<true>(tile, stage, matrices, processors, launch);
  } else {
    multiply_matrices<false>(tile, stage, matrices, processors, launch);
  }
  return {matrices, matrices * chunk.tiles * geometry.filters_per_block * stage.depth};
}

}  // namespace winograd::cuda
