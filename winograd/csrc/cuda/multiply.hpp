// M = V U^T of float32 numbers on tensor cores that take eleven bits of each factor: what is computed, and how it is cut up.
//
// Every factor is split into two numbers of eleven bits, x = high + low + an error of at most 2^-21 |x|, and a product is
// high high' + high low' + low high' (Markidis et al. 2018; "3xTF32"): three multiplications instead of one, several times as
// fast as the float32 units all the same. Tensor cores cut off instead of rounding when they add, so their sums are kept
// short: after 32 channels they are added to the rest by the float32 units.
//
// Host and device share these functions. A product is D[rows, columns] = A[rows, depth] B: A is V with channels last, U with
// channels first; B is the other one, [columns, depth] with channels last and [depth, columns] with channels first. Groups of warps
// take V for A in either order (with_tiles_as_rows in launches.hpp).
#pragma once

#include <cstdint>
#include <cstring>

#include "indexing.hpp"

namespace winograd::cuda {

struct MultiplyStage {
  const float *a, *b;
  float* d;
  int64_t a_matrix, b_matrix, d_matrix;  // distances between matrices
  int rows, columns, depth;
  uint32_t row_blocks, column_blocks;
  uint32_t blocks;  // of all matrices
  bool by_pairs;    // two neighbours of D are written at once
};

inline constexpr int kDepthOfStep = 32;  // channels that are fetched together, and summed by the tensor cores

// A block of threads makes `rows` x `columns` of a product, each of its warps `warp_rows` x `warp_columns`.
template <int rows_, int columns_, int warp_rows_, int warp_columns_, int steps_>
struct MultiplyTile {
  static constexpr int rows = rows_, columns = columns_, warp_rows = warp_rows_, warp_columns = warp_columns_;
  static constexpr int steps = steps_;  // in flight
  static constexpr int warps = rows / warp_rows * (columns / warp_columns), threads = 32 * warps;
};

// Made by groups of four warps, each of which makes 64 rows; others fetch for them.
inline constexpr int kThreadsOfGroup = 128;

// Registers are those of a thread of either kind; together they are what the threads begin with, so that none waits for ever.
template <int groups_, int columns_, int registers_, int fetching_groups_, int registers_to_fetch_>
struct WarpgroupTile {
  static constexpr int groups = groups_, rows = 64 * groups, columns = columns_, registers = registers_;
  static constexpr int fetching_threads = fetching_groups_ * kThreadsOfGroup, registers_to_fetch = registers_to_fetch_;
  static constexpr int multiplying_threads = groups * kThreadsOfGroup, threads = multiplying_threads + fetching_threads;
  static_assert(multiplying_threads * registers + fetching_threads * registers_to_fetch <= threads * (65536 / threads / 8 * 8));
};
using WideTile = WarpgroupTile<2, 128, 208, 2, 48>;
using HighTile = WarpgroupTile<3, 64, 144, 1, 80>;

template <class Tile>
inline constexpr bool is_of_warpgroups = false;
template <int... numbers>
inline constexpr bool is_of_warpgroups<WarpgroupTile<numbers...>> = true;

struct PlaceOfBlock {
  int64_t matrix;
  int first_row, first_column;
};

// Columns are fastest: blocks that run at the same time share rows of A in the L2 cache.
template <class Tile>
WINOGRAD_HOST_DEVICE PlaceOfBlock place_of_block(const MultiplyStage& stage, uint32_t block) {
  const uint32_t column = block % stage.column_blocks, rest = block / stage.column_blocks;
  const uint32_t row = rest % stage.row_blocks;
  return {static_cast<int64_t>(rest / stage.row_blocks), static_cast<int>(row) * Tile::rows, static_cast<int>(column) * Tile::columns};
}

// ---- Splitting ------------------------------------------------------------------------------------------------------------

inline constexpr uint32_t kDroppedBits = 0x1fff;  // 13 of the 24 bits of a float32 significand
inline constexpr uint32_t kHalfOfLastBit = 0x1000;

// Tensor cores read the upper 19 bits of each: eleven bits of `high`, rounded, and eleven of the rest.
struct Split {
  uint32_t high, low;
};

WINOGRAD_HOST_DEVICE inline uint32_t raw_bits(float number) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(number);
#else
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
#endif
}

WINOGRAD_HOST_DEVICE inline float from_raw_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
#endif
}

WINOGRAD_HOST_DEVICE inline Split split(float number) {
  const uint32_t high = (raw_bits(number) + kHalfOfLastBit) & ~kDroppedBits;
  const float rest = number - from_raw_bits(high);  // exact
  return {high, raw_bits(rest)};
}

}  // namespace winograd::cuda
