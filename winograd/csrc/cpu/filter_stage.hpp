// From packed filters to U inside of a call: one panel of filters, a slab of channels at a time, into the second-level cache.
//
// Fewer bytes come from memory than with packed weights (9 floats instead of t^2), for arithmetic that few tiles don't repay.
#pragma once

#include "geometry.hpp"

namespace winograd::WINOGRAD_VARIANT {

inline constexpr int64_t kSlabChannels = 64;
inline constexpr int kTaps = kFilterSize * kFilterSize;

template <int m>
int64_t slab_stride(const Geometry<m> &geometry) {
  return smaller(geometry.runs.channels, kSlabChannels) * kPanel + 48;
}

// filters [channels][9][32] -> slab [slot][channels][32]
template <int m, bool dense>
void transform_slab(const float *filters, int64_t channels, const RunSlots<m> &slots, int64_t stride, float *slab) {
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int offset = 0; offset < kPanel; offset += kLanes) {
      const float *const from = filters + channel * kTaps * kPanel + offset;
      float *const to = slab + channel * kPanel + offset;
      WINOGRAD_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) __builtin_prefetch(from + (8 * kTaps + tap) * kPanel, 0, 3);
      transform_filters<m>(
          [&](int row, int column) WINOGRAD_INLINE_LAMBDA { return load(from + (row * kFilterSize + column) * kPanel); },
          [&](int row, int column, Vector value) WINOGRAD_INLINE_LAMBDA {
            if constexpr (dense)
              store(to + (row * Matrices<m>::t + column) * stride, value);
            else if (slots.kept.at(row, column))
              store(to + slots.product_slot[row][column] * stride, value);
          });
    }
}

}  // namespace winograd::WINOGRAD_VARIANT
