// The multiplication in the middle: M = V U, a register block of `rows` tiles times one panel of 32 filters.
//
// V lies in panels of tiles:   v[channel block][panel_rows][16]   so that a step reads one float of each row, and
// U in panels of filters:      u[channel][32]                     read as a stream, once for each panel of tiles.
// A block of 14 x 32 accumulators fills the registers of AVX-512 (28 of 32) and needs 14 broadcasts and two loads for 28
// multiply-adds; narrower vectors take the panel in several passes of two vectors, six rows at a time.
#pragma once

#include "vector.hpp"

namespace winograd::WINOGRAD_VARIANT {

inline constexpr int kMostRows = kLanes == 16 ? 14 : 6;
inline constexpr int kPrefetchedChannels = 24;  // how far ahead U is fetched

struct MultiplyOperands {
  const float *v;      // [ceil(channels / 16)][panel_rows][16]
  int64_t panel_rows;
  const float *u;      // [channels][32]
  int64_t channels;
  int64_t filters;     // of the panel's 32, those that exist
  float *products;     // row i at products + i * row_stride: 32 floats
  int64_t row_stride;
};

// `rows` tiles times `vectors` vectors of filters, the first of which stands `offset` into the panel.
template <int rows, int vectors, bool accumulate>
WINOGRAD_INLINE void multiply_registers(const MultiplyOperands &of, int64_t offset) {
  const float *v = of.v, *u = of.u + offset;
  float *const products = of.products + offset;
  Vector sums[rows][vectors];
  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part)
      sums[row][part] = accumulate ? load(products + row * of.row_stride + part * kLanes) : Vector{};

  const auto add_channel = [&](int channel) WINOGRAD_INLINE_LAMBDA {
    Vector weights[vectors];
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) {
      weights[part] = load(u + channel * kPanel + part * kLanes);
      __builtin_prefetch(u + (channel + kPrefetchedChannels) * kPanel + part * kLanes, 0, 3);
    }
    WINOGRAD_UNROLL
    for (int row = 0; row < rows; ++row) {
      const Vector value = broadcast(v[row * kChannelBlock + channel]);
      WINOGRAD_UNROLL
      for (int part = 0; part < vectors; ++part) sums[row][part] += value * weights[part];
    }
  };
  int64_t left = of.channels;
  for (; left >= kChannelBlock; left -= kChannelBlock) {
#pragma GCC unroll 4
    for (int channel = 0; channel < kChannelBlock; ++channel) add_channel(channel);
    v += of.panel_rows * kChannelBlock;
    u += kChannelBlock * kPanel;
  }
  for (int channel = 0; channel < left; ++channel) add_channel(channel);

  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) store(products + row * of.row_stride + part * kLanes, sums[row][part]);
}

template <int rows, bool accumulate>
__attribute__((noinline)) void multiply_rows(const MultiplyOperands &of) {
  int64_t offset = 0;
  for (; offset + kLanes < of.filters; offset += 2 * kLanes) multiply_registers<rows, 2, accumulate>(of, offset);
  if (offset < of.filters) multiply_registers<rows, 1, accumulate>(of, offset);
}

using MultiplyRows = void (*)(const MultiplyOperands &);

template <bool accumulate>
WINOGRAD_INLINE MultiplyRows multiply_of(int rows) {
  static constexpr MultiplyRows of_rows[] = {
      nullptr,
      multiply_rows<1, accumulate>, multiply_rows<2, accumulate>, multiply_rows<3, accumulate>,
      multiply_rows<4, accumulate>, multiply_rows<5, accumulate>, multiply_rows<6, accumulate>,
#if WINOGRAD_LANES == 16
      multiply_rows<7, accumulate>, multiply_rows<8, accumulate>, multiply_rows<9, accumulate>,
      multiply_rows<10, accumulate>, multiply_rows<11, accumulate>, multiply_rows<12, accumulate>,
      multiply_rows<13, accumulate>, multiply_rows<14, accumulate>,
#endif
  };
  return of_rows[rows];
}

}  // namespace winograd::WINOGRAD_VARIANT
