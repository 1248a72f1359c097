// Where things are: thread -> tile and channel, tile -> rows and columns of the image, offsets in every layout.
//
// Host and device share these functions; host_check.cpp runs them over whole grids. Coordinates fit into 31 bits (launches.hpp
// refuses what doesn't), offsets of elements are 64-bit.
#pragma once

#include <cstdint>

#include "../matrices.hpp"

namespace winograd::cuda {

// A convolution in the numbers that kernels need. B = blocks: see winograd_cuda.h.
struct Geometry {
  int height, width, output_height, output_width;
  int pad_height, pad_width;
  int tile_rows, tile_columns;
  int channels, filters;
  int channels_per_group, filters_per_block;
  int blocks, blocks_per_group, blocks_per_kernel_group;
};

// Distances between neighbours in an image, in elements.
struct ImageStrides {
  int64_t image, row, column, channel;

  WINOGRAD_HOST_DEVICE int64_t at(int image_index, int row_index, int column_index, int channel_index) const {
    return image_index * image + row_index * row + column_index * column + channel_index * channel;
  }
};

WINOGRAD_HOST_DEVICE inline ImageStrides image_strides(bool channels_last, int64_t channels, int64_t height, int64_t width) {
  if (channels_last) return {height * width * channels, width * channels, channels, 1};
  return {channels * height * width, width, 1, height * width};
}

// With channels first, the rows of V and M, which are tiles, are as long as the next multiple of four: 16 bytes of float32.
WINOGRAD_HOST_DEVICE inline int64_t padded_tiles(int64_t tiles) { return (tiles + 3) / 4 * 4; }

// Distances in V or M of a chunk: matrices [tiles, width] with channels last, [width, padded tiles] with channels first.
struct MatrixStrides {
  int64_t position, block, tile, channel;
};

WINOGRAD_HOST_DEVICE inline MatrixStrides matrix_strides(bool channels_last, int64_t blocks, int64_t tiles, int64_t width) {
  const int64_t length = channels_last ? tiles : padded_tiles(tiles), matrix = length * width;
  if (channels_last) return {blocks * matrix, matrix, width, 1};
  return {blocks * matrix, matrix, 1, length};
}

struct TilePlace {
  int image, row, column;  // row and column count tiles
};

WINOGRAD_HOST_DEVICE inline TilePlace place_of_tile(const Geometry& geometry, int tile) {
  const int line = tile / geometry.tile_columns;
  const int image = line / geometry.tile_rows;
  return {image, line - image * geometry.tile_rows, tile - line * geometry.tile_columns};
}

// Negative numbers become huge ones: one comparison does for both ends.
WINOGRAD_HOST_DEVICE inline bool is_inside(int index, int size) {
  return static_cast<uint32_t>(index) < static_cast<uint32_t>(size);
}

// Kept positions of one group of filters: a bit for each column of a row, and how many are kept in the rows before.
struct KeptRows {
  uint16_t columns[kLargestTile];
  uint16_t before[kLargestTile];
};

// Kernel parameters have room for 4096 bytes on every architecture; more groups of filters take more launches.
inline constexpr int kKernelGroupsOfLaunch = 64;

struct KeptPositions {
  KeptRows group[kKernelGroupsOfLaunch];  // of kernel groups first .. first + 63
  int first_block, end_block;             // the blocks with these positions

  WINOGRAD_HOST_DEVICE const KeptRows& of_block(const Geometry& geometry, int block) const {
    return group[(block - first_block) / geometry.blocks_per_kernel_group];
  }
};

// A grid over two counts, of which the fast one is that of neighbours in memory. One dimension of blocks, because the others
// end at 65535.
struct ThreadGrid {
  uint32_t fast_count, slow_count;
  uint32_t fast_threads, slow_threads;  // of a block
  uint32_t fast_blocks;
  uint32_t blocks;
};

struct ThreadPlace {
  bool inside;
  int fast, slow;
};

WINOGRAD_HOST_DEVICE inline ThreadPlace place_of_thread(const ThreadGrid& grid, uint32_t block, uint32_t fast_thread,
                                                        uint32_t slow_thread) {
  const uint32_t slow_block = block / grid.fast_blocks;
  const uint32_t fast = (block - slow_block * grid.fast_blocks) * grid.fast_threads + fast_thread;
  const uint32_t slow = slow_block * grid.slow_threads + slow_thread;
  return {fast < grid.fast_count && slow < grid.slow_count, static_cast<int>(fast), static_cast<int>(slow)};
}

}  // namespace winograd::cuda
