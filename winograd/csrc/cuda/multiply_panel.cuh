// Operands of a multiplication in shared memory: copied there several steps ahead (cp.async), and read without bank conflicts.
//
// Rows of 32 channels take 128 bytes, and their eight pieces of 16 bytes are permuted by the number of the row, so that
// ldmatrix, which reads the same piece of eight rows, meets every bank once; wgmma calls it the swizzle of 128 bytes. [depth,
// columns] lies as it is, eight floats apart from a multiple of 32, for the same reason.
#pragma once

#include "multiply.hpp"

namespace winograd::cuda {

inline constexpr int kPieces = kDepthOfStep / 4;  // of 16 bytes
inline constexpr int kPadding = 8;

__device__ inline uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// Zeros where nothing is to be read.
__device__ inline void copy_16(uint32_t to, const float* from, bool exists) {
  const int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ inline void close_group() { asm volatile("cp.async.commit_group;"); }
template <int allowed>
__device__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(allowed));
}

__device__ inline void load_matrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// One step of an operand in shared memory: lines of 16-byte pieces, which are `size` rows or columns of 32 channels, or 32
// channels of `size` columns.
template <int size, bool depth_is_fast, int threads>
struct Panel {
  static constexpr int lines = depth_is_fast ? size : kDepthOfStep;
  static constexpr int pieces = (depth_is_fast ? kDepthOfStep : size) / 4;
  static constexpr int stride = depth_is_fast ? kDepthOfStep : size + kPadding;  // floats
  static constexpr int bytes = lines * stride * 4;
  static constexpr int lines_at_once = threads / pieces, rounds = lines / lines_at_once;
  static_assert(threads % pieces == 0 && lines % lines_at_once == 0 && (!depth_is_fast || lines_at_once % kPieces == 0));

  // What this thread copies: one piece of every `lines_at_once`-th line.
  const float* from;
  uint32_t to;
  int line, piece, line_count, piece_floats, distance;  // distance: of lines, in memory

  // `first` of `count` rows or columns; `depth` channels; `thread` of those that copy together.
  __device__ Panel(const float* matrix, int first, int count, int depth, int thread) {
    line = thread / pieces;
    piece = thread % pieces;
    if constexpr (depth_is_fast) {
      from = matrix + int64_t{first + line} * depth + piece * 4;
      to = place(line, piece);
      line_count = count - first, piece_floats = depth, distance = depth;
    } else {
      from = matrix + int64_t{line} * count + first + piece * 4;
      to = static_cast<uint32_t>(line * stride + piece * 4) * 4;
      line_count = depth, piece_floats = count - first, distance = count;
    }
  }

  // Copies 32 channels into the memory at `shared`, of rows or columns that are `further` on; zeros where there are no more.
  __device__ void copy(uint32_t shared, int further = 0) const {
    WINOGRAD_UNROLL for (int round = 0; round < rounds; ++round) {
      if constexpr (depth_is_fast) {
        const int at = further + round * lines_at_once;
        const bool exists = piece * 4 < piece_floats && line + at < line_count;
        copy_16(shared + to + round * (lines_at_once * stride * 4), from + at * int64_t{distance}, exists);
      } else {
        const bool exists = piece * 4 + further < piece_floats && line + round * lines_at_once < line_count;
        copy_16(shared + to + round * (lines_at_once * stride * 4), from + round * lines_at_once * int64_t{distance} + further, exists);
      }
    }
  }

  // The next 32 channels.
  __device__ void advance() {
    if constexpr (depth_is_fast) {
      from += kDepthOfStep, piece_floats -= kDepthOfStep;
    } else {
      from += int64_t{kDepthOfStep} * distance, line_count -= kDepthOfStep;
    }
  }

  // Where 16 bytes of 32 channels are, in bytes.
  static __device__ uint32_t place(int row, int piece) { return row * (kDepthOfStep * 4) + (piece ^ (row & (kPieces - 1))) * 16; }
};

}  // namespace winograd::cuda
