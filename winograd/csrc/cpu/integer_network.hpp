// A network of integers, made ready to run: one block of memory without a pointer in it, so that a tensor can hold it.
//
// integer_prepare.cpp makes it from a program (winograd.h has the format) and integer_steps.hpp runs it, once for each
// instruction set. Tensors of the network lie as H W C. One of at most 256 different integers is held as bytes `x - lowest`,
// which makes one operand of a product unsigned, as processors multiply bytes; others are held as int32.
#pragma once

#include <cstdint>

#include "../winograd.h"
#include "prepared_block.hpp"

namespace winograd::integers {

inline constexpr int32_t kMagic = 0x4E494957;  // "WIIN", at the start of every program
inline constexpr int kLanes = 16;          // outputs that are computed together; arrays by output are filled up to a multiple
inline constexpr int kTogether = 4;        // inputs that one instruction multiplies and adds
inline constexpr int kMostTileRows = 16;   // of a tile register
inline constexpr int kMostTileBytes = 64;  // of one of its rows

enum Kind : int32_t {
  kConvolution = 1, kAddition, kMultiplication, kMaxPool, kAveragePool, kTable, kRequantization,
  kConcatenation, kSlice, kPadding, kNearestUpsample, kReshape, kPermutation,
  kInputTransform, kOutputTransform,
  // No program has this one: preparing makes it of an input transform, a convolution and an output transform. Three steps in
  // this order: it, which has of the output transform what it needs, then the input transform and the convolution.
  kWinogradConvolution,
};
inline constexpr int kStepsOfWinograd = 3;

struct Value {
  int32_t channels, height, width;
  int32_t lowest, highest;
  int32_t is_wide;  // int32 in memory, not bytes
  int64_t place;    // in the arena, in bytes
  int64_t numbers() const { return int64_t{channels} * height * width; }
};

// clamp(((x << left) + half) >> right, low, high) for each output; places of int32 arrays in the prepared block.
struct Rounding {
  int64_t left, half, right, low, high;
};

// Input bytes that lie side by side and belong to one window: those of a row of the kernel, or of one of its columns.
struct Run {
  int32_t offset;  // in bytes from the first byte of the window
  int32_t fours;
};

struct Step {
  int32_t kind, output, source, second;  // second: the other operand, a residual of a convolution, or -1
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int32_t groups, multiplier, rows;
  int32_t numbers[9];  // of slices, paddings, scales, permutations
  int64_t sources, source_count;  // of a concatenation
  Rounding rounding;
  int64_t left_second;       // of the second operand of an addition, or of the sum below
  // ---- Convolutions alone
  int64_t bias, weights, runs;
  int32_t run_count, fours;  // fours: of all runs together
  int32_t group_channels;    // of the input, as copied: filled up to a multiple of 4 unless is_depthwise
  int32_t group_filters, group_lanes;  // the latter filled up to kLanes
  int32_t is_depthwise, is_copied, shifts_left;
  Rounding sum;  // of the addition that follows at once, where `second` is not -1
  int32_t tile_rows, tile_fours;  // for tile registers: pixels and fours at a time
  int64_t multiplications;
  // ---- Tables
  int64_t table, row;
  // ---- Transforms of F(2x2, 3x3); shifts of an output transform's products are left_second
  int64_t positions;
  int32_t position_count;
  // ---- Winograd convolutions: arrays by position and channel, and shifts of products by position and filter, in lanes
  int32_t strip_rows;       // of tiles, at a time
  int32_t tile_channels;    // filled up to kLanes
  int32_t shifts_products, clamps_tiles;  // any of them
  int64_t strip_bytes;
  int64_t tile_halves, tile_factors, tile_lows, tile_highs, product_lefts;
};

struct Prepared {
  programs::BlockHead head;
  int32_t input, output, step_count, value_count;
  int64_t values, steps, input_lengths;
  int64_t scratch_bytes, arena_bytes;  // one after the other, for each image that is computed at the same time

  const Value &value(int32_t number) const { return at<Value>(values)[number]; }
  const Step &step(int32_t number) const { return at<Step>(steps)[number]; }
  template <class T>
  const T *at(int64_t place) const {
    return reinterpret_cast<const T *>(reinterpret_cast<const uint8_t *>(this) + place);
  }
};

// What an image is computed with, and by whom.
struct Image {
  const Prepared *network;
  uint8_t *scratch, *arena;
  const winograd_threads *threads;  // null: this one alone
};

struct Code {
  void (*image)(const Image &, const void *input, bool is_float, int32_t *output);
};

namespace avx512 { extern const Code kCode; }
namespace avx2 { extern const Code kCode; }
namespace portable { extern const Code kCode; }

// Whether processor and kernel let this process use tile registers of bytes.
bool has_tiles();

}  // namespace winograd::integers
