// Runs the steps of a prepared network of integers, with one instruction set (see vector.hpp for how one source serves all).
//
// What is multiplied: sums over (x - lowest) * w, bytes without a sign times bytes with one, to which the bias adds
// lowest * (sum of w). Sums wrap at 32 bits, so that they may leave it on the way and come back.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../matrices.hpp"
#include "integer_network.hpp"

#define WINOGRAD_INLINE inline __attribute__((always_inline))
#define WINOGRAD_INLINE_LAMBDA __attribute__((always_inline))
#define WINOGRAD_UNROLL _Pragma("GCC unroll 16")

namespace winograd::integers::WINOGRAD_VARIANT {
namespace {

#if defined(__AVX512F__)
constexpr int kPartBytes = 64;
#elif defined(__AVX2__)
constexpr int kPartBytes = 32;
#else
constexpr int kPartBytes = 16;
#endif
constexpr int kParts = 64 / kPartBytes, kPartLanes = kLanes / kParts;

typedef int32_t Part __attribute__((vector_size(kPartBytes)));
typedef uint32_t UnsignedPart __attribute__((vector_size(kPartBytes)));
typedef int32_t LoosePart __attribute__((vector_size(kPartBytes), aligned(1), may_alias));

// 16 integers, in as many registers as they take. Sums wrap, which those of signed integers don't.
struct Ints {
  Part parts[kParts];
};

template <class Make>
WINOGRAD_INLINE Ints by_part(const Make &make) {
  Ints made;
  WINOGRAD_UNROLL
  for (int part = 0; part < kParts; ++part) made.parts[part] = make(part);
  return made;
}
WINOGRAD_INLINE Ints load(const int32_t *from) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return Part(*reinterpret_cast<const LoosePart *>(from + part * kPartLanes)); });
}
WINOGRAD_INLINE Ints load(const uint8_t *from) {
#if defined(__AVX512F__)
  return {{Part(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))))}};
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
  return {{Part(_mm256_cvtepu8_epi32(bytes)), Part(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))}};
#elif defined(__SSE2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)), zero = _mm_setzero_si128();
  const __m128i low = _mm_unpacklo_epi8(bytes, zero), high = _mm_unpackhi_epi8(bytes, zero);
  return {{Part(_mm_unpacklo_epi16(low, zero)), Part(_mm_unpackhi_epi16(low, zero)), Part(_mm_unpacklo_epi16(high, zero)),
           Part(_mm_unpackhi_epi16(high, zero))}};
#else
  int32_t all[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) all[lane] = from[lane];
  return load(all);
#endif
}
WINOGRAD_INLINE void store(int32_t *to, const Ints &x) {
  for (int part = 0; part < kParts; ++part) *reinterpret_cast<LoosePart *>(to + part * kPartLanes) = x.parts[part];
}
// Of integers from 0 to 255, so that packing with saturation changes nothing. GCC's own conversion takes them one by one.
WINOGRAD_INLINE void store(uint8_t *to, const Ints &x) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_cvtepi32_epi8(__m512i(x.parts[0]));
#elif defined(__AVX2__)
  const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(__m256i(x.parts[0]), __m256i(x.parts[1])), 0xD8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
#elif defined(__SSE2__)
  const __m128i bytes = _mm_packus_epi16(_mm_packs_epi32(__m128i(x.parts[0]), __m128i(x.parts[1])),
                                         _mm_packs_epi32(__m128i(x.parts[2]), __m128i(x.parts[3])));
#else
  uint8_t bytes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) bytes[lane] = static_cast<uint8_t>(x.parts[lane / kPartLanes][lane % kPartLanes]);
#endif
  std::memcpy(to, &bytes, kLanes);
}
template <class T>
WINOGRAD_INLINE void store_some(T *to, const Ints &x, int64_t lanes) {
  T all[kLanes];
  store(all, x);
  std::memcpy(to, all, static_cast<size_t>(lanes) * sizeof(T));
}
WINOGRAD_INLINE Ints all_of(int32_t x) {
  return by_part([&](int) WINOGRAD_INLINE_LAMBDA { return x - Part{}; });
}
WINOGRAD_INLINE Ints plus(const Ints &a, const Ints &b) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return Part(UnsignedPart(a.parts[part]) + UnsignedPart(b.parts[part])); });
}
WINOGRAD_INLINE Ints minus(const Ints &a, const Ints &b) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return Part(UnsignedPart(a.parts[part]) - UnsignedPart(b.parts[part])); });
}
WINOGRAD_INLINE Ints times(const Ints &a, const Ints &b) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return Part(UnsignedPart(a.parts[part]) * UnsignedPart(b.parts[part])); });
}
WINOGRAD_INLINE Ints shifted_left(const Ints &a, const Ints &by) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return Part(UnsignedPart(a.parts[part]) << UnsignedPart(by.parts[part])); });
}
WINOGRAD_INLINE Ints shifted_right(const Ints &a, const Ints &by) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA { return a.parts[part] >> by.parts[part]; });
}
WINOGRAD_INLINE Ints clamp(const Ints &x, const Ints &low, const Ints &high) {
#if defined(__AVX512F__)
  return {{Part(_mm512_min_epi32(_mm512_max_epi32(__m512i(x.parts[0]), __m512i(low.parts[0])), __m512i(high.parts[0])))}};
#else
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA {
    const Part floored = x.parts[part] < low.parts[part] ? low.parts[part] : x.parts[part];
    return Part(floored > high.parts[part] ? high.parts[part] : floored);
  });
#endif
}

// ---- Products of bytes -------------------------------------------------------------------------------------------

// sums[i] + x[0] * w[4 i] + ... + x[3] * w[4 i + 3], for 16 outputs i, x without a sign and w with one. Exact.
#if defined(__AVX512VNNI__)
typedef __m512i Weights;
typedef __m512i Pixel;
WINOGRAD_INLINE Weights load_weights(const int8_t *from) { return _mm512_loadu_si512(from); }
WINOGRAD_INLINE Pixel load_pixel(const uint8_t *from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}
WINOGRAD_INLINE Ints multiply_add(const Ints &sums, Pixel x, const Weights &w) {
  return {{Part(_mm512_dpbusd_epi32(__m512i(sums.parts[0]), x, w))}};
}
constexpr int kPixels = 8, kVectors = 2;
#elif defined(__SSE2__)
// Pairs of 16 bits: those of even places and those of odd ones. Products of bytes, added up in pairs of bytes, would saturate.
typedef int16_t Shorts __attribute__((vector_size(kPartBytes)));
typedef int16_t LooseShorts __attribute__((vector_size(kPartBytes), aligned(1), may_alias));
typedef uint16_t UnsignedShorts __attribute__((vector_size(kPartBytes)));
struct Weights {
  Shorts even[kParts], odd[kParts];
};
struct Pixel {
  Shorts even, odd;
};
WINOGRAD_INLINE Weights load_weights(const int8_t *from) {
  Weights w;
  WINOGRAD_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const Shorts bytes = *reinterpret_cast<const LooseShorts *>(from + kPartBytes * part);
    w.even[part] = Shorts(UnsignedShorts(bytes) << 8) >> 8;
    w.odd[part] = bytes >> 8;
  }
  return w;
}
WINOGRAD_INLINE Pixel load_pixel(const uint8_t *from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  const Shorts bytes = Shorts(four - Part{});
  return {bytes & 255, Shorts(UnsignedShorts(bytes) >> 8)};
}
WINOGRAD_INLINE Part sums_of_pairs(Shorts a, Shorts b) {
#if defined(__AVX2__)
  return Part(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#else
  return Part(_mm_madd_epi16(__m128i(a), __m128i(b)));
#endif
}
WINOGRAD_INLINE Ints multiply_add(const Ints &sums, const Pixel &x, const Weights &w) {
  return by_part([&](int part) WINOGRAD_INLINE_LAMBDA {
    const Part products = sums_of_pairs(x.even, w.even[part]) + sums_of_pairs(x.odd, w.odd[part]);
    return Part(UnsignedPart(sums.parts[part]) + UnsignedPart(products));
  });
}
constexpr int kPixels = kParts == 2 ? 4 : 2, kVectors = 1;
#else
struct Weights {
  const int8_t *from;
};
struct Pixel {
  int32_t x[kTogether];
};
WINOGRAD_INLINE Weights load_weights(const int8_t *from) { return {from}; }
WINOGRAD_INLINE Pixel load_pixel(const uint8_t *from) { return {{from[0], from[1], from[2], from[3]}}; }
WINOGRAD_INLINE Ints multiply_add(const Ints &sums, const Pixel &x, const Weights &w) {
  int32_t products[kLanes];
  for (int i = 0; i < kLanes; ++i)
    products[i] = x.x[0] * w.from[4 * i] + x.x[1] * w.from[4 * i + 1] + x.x[2] * w.from[4 * i + 2] + x.x[3] * w.from[4 * i + 3];
  return plus(sums, load(products));
}
constexpr int kPixels = 2, kVectors = 1;
#endif

// ---- Rounding ----------------------------------------------------------------------------------------------------

// Arrays of a Rounding.
struct Rounder {
  const int32_t *left, *half, *right, *low, *high;
  Rounder(const Prepared &network, const Rounding &of)
      : left(network.at<int32_t>(of.left)), half(network.at<int32_t>(of.half)), right(network.at<int32_t>(of.right)),
        low(network.at<int32_t>(of.low)), high(network.at<int32_t>(of.high)) {}

};

// Those of 16 outputs, in registers.
struct RounderOf16 {
  Ints left, half, right, low, high;
  WINOGRAD_INLINE RounderOf16(const Rounder &all, int64_t lane)
      : left(load(all.left + lane)), half(load(all.half + lane)), right(load(all.right + lane)), low(load(all.low + lane)),
        high(load(all.high + lane)) {}
  WINOGRAD_INLINE Ints shifted(const Ints &x) const { return clamp(shifted_right(plus(x, half), right), low, high); }
  WINOGRAD_INLINE Ints operator()(const Ints &x) const { return shifted(shifted_left(x, left)); }
};

// Calls body(pointer to the first number) with the type that a value has in memory.
template <class Body>
WINOGRAD_INLINE void with_numbers(const Image &image, const Value &value, const Body &body) {
  if (value.is_wide)
    body(reinterpret_cast<int32_t *>(image.arena + value.place));
  else
    body(image.arena + value.place);
}

// ---- Convolutions ------------------------------------------------------------------------------------------------

// One group of a convolution: where its windows begin, and what becomes of its sums.
struct Group {
  const Prepared &network;
  const Step &step;
  const Image &image;
  const uint8_t *windows;
  int64_t row_bytes;    // from a row of windows to the next
  int64_t pixel_bytes;  // from a window to the next
  const int8_t *weights;
  const int32_t *bias;
  int64_t lane;     // the first of this group in arrays by output
  int64_t channel;  // and in the output
  int64_t width;    // of the output
  const Value &output;

};

// Makes outputs of sums, and of a residual if there is one.
template <bool adds, class Out>
struct Finish {
  const Group &of;
  Rounder rounder, sum;
  Out *out;
  const uint8_t *second;
  int32_t second_lowest;

  // The same for 16 outputs, with all that belongs to them in registers.
  struct Of16 {
    const Finish &all;
    RounderOf16 rounder, sum;
    Ints left_second, lowest_second, lowest;
    int64_t first, lanes;

    WINOGRAD_INLINE Of16(const Finish &finish, int64_t block)
        : all(finish), rounder(finish.rounder, finish.of.lane + block), sum(finish.sum, finish.of.lane + block),
          left_second(sum.left), lowest_second(all_of(finish.second_lowest)),
          lowest(all_of(sizeof(Out) == 1 ? finish.of.output.lowest : 0)), first(finish.of.channel + block),
          lanes(finish.of.step.group_filters - block) {
      if (adds) left_second = load(finish.of.network.template at<int32_t>(finish.of.step.left_second) + finish.of.lane + block);
    }

    WINOGRAD_INLINE void operator()(const Ints &sums, int64_t pixel) const {
      const int64_t to = pixel * all.of.output.channels + first;
      Ints y = all.of.step.shifts_left ? rounder(sums) : rounder.shifted(sums);
      // Of the residual, what lies behind the last channel is read too, and not used: the arena goes on far enough.
      if (adds) {
        const Ints other = plus(load(all.second + to), lowest_second);
        y = sum.shifted(plus(shifted_left(y, sum.left), shifted_left(other, left_second)));
      }
      y = minus(y, lowest);
      if (lanes >= kLanes)
        store(all.out + to, y);
      else
        store_some(all.out + to, y, lanes);
    }
  };
  WINOGRAD_INLINE Of16 of16(int64_t block) const { return Of16(*this, block); }
};

// Calls body(a Finish), with the type that the output has in memory.
template <class Body>
WINOGRAD_INLINE void finishing(const Group &of, const Body &body) {
  const Rounder rounder(of.network, of.step.rounding);
  uint8_t *const out = of.image.arena + of.output.place;
  if (of.step.second >= 0) {
    const Value &second = of.network.value(of.step.second);
    const Rounder sum(of.network, of.step.sum);
    body(Finish<true, uint8_t>{of, rounder, sum, out, of.image.arena + second.place, second.lowest});
  } else if (of.output.is_wide) {
    body(Finish<false, int32_t>{of, rounder, rounder, reinterpret_cast<int32_t *>(out), nullptr, 0});
  } else {
    body(Finish<false, uint8_t>{of, rounder, rounder, out, nullptr, 0});
  }
}

template <int pixels, int vectors, class Finishing>
WINOGRAD_INLINE void few_pixels(const Group &of, int64_t row, int64_t column, int64_t block, const Finishing &finish) {
  Ints sums[pixels][vectors];
  const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
  const int64_t panel = int64_t{of.step.fours} * kLanes * kTogether;
  const int8_t *w = of.weights + block / kLanes * panel;
  WINOGRAD_UNROLL
  for (int p = 0; p < pixels; ++p)
  WINOGRAD_UNROLL
    for (int v = 0; v < vectors; ++v) sums[p][v] = load(of.bias + of.lane + block + v * kLanes);
  const Run *const runs = of.network.at<Run>(of.step.runs);
  for (int32_t r = 0; r < of.step.run_count; ++r) {
    const uint8_t *from[pixels];
  WINOGRAD_UNROLL
    for (int p = 0; p < pixels; ++p) from[p] = x + runs[r].offset + p * of.pixel_bytes;
    for (int64_t four = 0; four < runs[r].fours; ++four, w += kLanes * kTogether) {
      Weights weights[vectors];
  WINOGRAD_UNROLL
      for (int v = 0; v < vectors; ++v) weights[v] = load_weights(w + v * panel);
  WINOGRAD_UNROLL
      for (int p = 0; p < pixels; ++p) {
        const Pixel pixel = load_pixel(from[p] + kTogether * four);
  WINOGRAD_UNROLL
        for (int v = 0; v < vectors; ++v) sums[p][v] = multiply_add(sums[p][v], pixel, weights[v]);
      }
    }
  }
  WINOGRAD_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const auto finish_vector = finish.of16(block + v * kLanes);
  WINOGRAD_UNROLL
    for (int p = 0; p < pixels; ++p) finish_vector(sums[p][v], row * of.width + column + p);
  }
}

template <int vectors, class Finishing>
WINOGRAD_INLINE void row_of_pixels(const Group &of, int64_t row, int64_t block, const Finishing &finish) {
  int64_t column = 0;
  for (; column + kPixels <= of.width; column += kPixels) few_pixels<kPixels, vectors>(of, row, column, block, finish);
  if (kPixels > 4 && column + 4 <= of.width) few_pixels<4, vectors>(of, row, column, block, finish), column += 4;
  for (; column < of.width; ++column) few_pixels<1, vectors>(of, row, column, block, finish);
}

template <class Finishing>
WINOGRAD_INLINE void rows_in_vectors(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  for (int64_t row = begin; row < end; ++row) {
    int64_t block = 0;
    for (; kVectors == 2 && block + 2 * kLanes <= of.step.group_lanes; block += 2 * kLanes) row_of_pixels<2>(of, row, block, finish);
    for (; block < of.step.group_lanes; block += kLanes) row_of_pixels<1>(of, row, block, finish);
  }
}

#if defined(__AMX_INT8__)
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tile registers: 0 to 3 sums of up to 16 pixels and 16 outputs each, 4 pixels, 5 and 6 weights.
void shape_tiles(const Step &step) {
  TileShapes shapes;
  for (int sums = 0; sums < 4; ++sums) shapes.row_bytes[sums] = 64, shapes.rows[sums] = static_cast<uint8_t>(step.tile_rows);
  shapes.row_bytes[4] = static_cast<uint16_t>(step.tile_fours * kTogether);
  shapes.rows[4] = static_cast<uint8_t>(step.tile_rows);
  for (int weights = 5; weights < 7; ++weights)
    shapes.row_bytes[weights] = 64, shapes.rows[weights] = static_cast<uint8_t>(step.tile_fours);
  _tile_loadconfig(&shapes);
}

template <int vectors, class Finishing>
WINOGRAD_INLINE void tile_of_pixels(const Group &of, int64_t row, int64_t column, int64_t block, const Finishing &finish) {
  alignas(64) int32_t sums[4][kMostTileRows][kLanes];
  const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
  const int64_t panel = int64_t{of.step.fours} * kLanes * kTogether;
  const int8_t *w = of.weights + block / kLanes * panel;
  _tile_zero(0);
  if (vectors > 1) _tile_zero(1);
  if (vectors > 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const Run *const runs = of.network.at<Run>(of.step.runs);
  const int64_t step_fours = of.step.tile_fours;
  for (int32_t r = 0; r < of.step.run_count; ++r)
    for (int64_t four = 0; four < runs[r].fours; four += step_fours, w += step_fours * kLanes * kTogether) {
      _tile_loadd(4, x + runs[r].offset + kTogether * four, of.pixel_bytes);
      _tile_loadd(5, w, 64);
      _tile_dpbusd(0, 4, 5);
      if (vectors > 1) {
        _tile_loadd(6, w + panel, 64);
        _tile_dpbusd(1, 4, 6);
      }
      if (vectors > 2) {
        _tile_loadd(5, w + 2 * panel, 64);
        _tile_dpbusd(2, 4, 5);
        _tile_loadd(6, w + 3 * panel, 64);
        _tile_dpbusd(3, 4, 6);
      }
    }
  _tile_stored(0, sums[0], 64);
  if (vectors > 1) _tile_stored(1, sums[1], 64);
  if (vectors > 2) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }
  const int64_t pixels = of.width - column < of.step.tile_rows ? of.width - column : of.step.tile_rows;
  for (int v = 0; v < vectors; ++v) {
    const Ints bias = load(of.bias + of.lane + block + v * kLanes);
    const auto finish_vector = finish.of16(block + v * kLanes);
    for (int64_t p = 0; p < pixels; ++p) finish_vector(plus(load(sums[v][p]), bias), row * of.width + column + p);
  }
}

template <class Finishing>
WINOGRAD_INLINE void rows_in_tiles(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  shape_tiles(of.step);
  for (int64_t row = begin; row < end; ++row) {
    int64_t block = 0;
    for (; block + 4 * kLanes <= of.step.group_lanes; block += 4 * kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<4>(of, row, column, block, finish);
    for (; block + 2 * kLanes <= of.step.group_lanes; block += 2 * kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<2>(of, row, column, block, finish);
    for (; block < of.step.group_lanes; block += kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<1>(of, row, column, block, finish);
  }
  _tile_release();
}
#endif

// Depthwise: each output from its own channel, 16 channels at a time; weights are int32 [taps][channels].
template <class Finishing>
WINOGRAD_INLINE void rows_by_channel(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  const int32_t *const weights = reinterpret_cast<const int32_t *>(of.weights);
  const Run *const runs = of.network.at<Run>(of.step.runs);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < of.width; ++column) {
      const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
      for (int64_t block = 0; block < of.step.group_lanes; block += kLanes) {
        Ints sums = load(of.bias + block);
        for (int32_t r = 0; r < of.step.run_count; ++r)
          sums = plus(sums, times(load(x + runs[r].offset + block), load(weights + int64_t{r} * of.step.group_lanes + block)));
        finish.of16(block)(sums, row * of.width + column);
      }
    }
}

// The image with its padding, the channels of one group only, filled up to a whole number of fours.
void copy_padded(const Image &image, const Step &step, const Value &source, int64_t first_channel, int64_t channels) {
  const uint8_t *from = image.arena + source.place + first_channel;
  const int zero = -source.lowest;  // padding stands for the integer zero
  const int64_t width = source.width + 2 * int64_t{step.padding[1]}, height = source.height + 2 * int64_t{step.padding[0]};
  const int64_t row_bytes = width * step.group_channels, margin = int64_t{step.padding[1]} * step.group_channels;
  uint8_t *to = image.scratch;
  for (int64_t row = 0; row < height; ++row, to += row_bytes) {
    const int64_t source_row = row - step.padding[0];
    if (source_row < 0 || source_row >= source.height) {
      std::memset(to, zero, static_cast<size_t>(row_bytes));
      continue;
    }
    const uint8_t *line = from + source_row * source.width * source.channels;
    std::memset(to, zero, static_cast<size_t>(margin));
    if (channels == source.channels && channels == step.group_channels) {
      std::memcpy(to + margin, line, static_cast<size_t>(source.width * channels));
    } else {
      uint8_t *pixel = to + margin;
      for (int64_t column = 0; column < source.width; ++column, line += source.channels, pixel += step.group_channels) {
        std::memcpy(pixel, line, static_cast<size_t>(channels));
        for (int64_t c = channels; c < step.group_channels; ++c) pixel[c] = 0;  // their weights are zero
      }
    }
    std::memset(to + margin + int64_t{source.width} * step.group_channels, zero, static_cast<size_t>(margin));
  }
}

void run_rows(const Group &of, int64_t begin, int64_t end) {
  finishing(of, [&](const auto &finish) {
    if (of.step.is_depthwise) return rows_by_channel(of, begin, end, finish);
#if defined(__AMX_INT8__)
    if (has_tiles() && of.step.tile_rows > 0) return rows_in_tiles(of, begin, end, finish);
#endif
    rows_in_vectors(of, begin, end, finish);
  });
}

// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kWorthSharing = 2000000;

struct SharedRows {
  const Group *group;
  int64_t rows, parts;
};

void run_shared_rows(void *context, int64_t part) {
  const SharedRows &shared = *static_cast<const SharedRows *>(context);
  run_rows(*shared.group, shared.rows * part / shared.parts, shared.rows * (part + 1) / shared.parts);
}

void convolve(const Image &image, const Step &step) {
  const Prepared &network = *image.network;
  const Value &source = network.value(step.source), &output = network.value(step.output);
  const int64_t groups = step.is_depthwise ? 1 : step.groups, channels = source.channels / groups;
  for (int64_t group = 0; group < groups; ++group) {
    int64_t width = source.width, first = 0;
    if (step.is_copied) {
      copy_padded(image, step, source, group * channels, channels);
      width += 2 * int64_t{step.padding[1]};
    } else {
      first = image.arena - image.scratch + source.place;
    }
    const int64_t panels = int64_t{step.fours} * step.group_lanes * kTogether;
    const Group of{network, step, image, image.scratch + first, width * step.group_channels * step.stride[0],
                   int64_t{step.group_channels} * step.stride[1], network.at<int8_t>(step.weights) + group * panels,
                   network.at<int32_t>(step.bias), group * step.group_lanes, group * step.group_filters, output.width, output};
    const winograd_threads *const threads = image.threads;
    if (threads == nullptr || step.multiplications < kWorthSharing || output.height < 2) {
      run_rows(of, 0, output.height);
    } else {
      SharedRows shared{&of, output.height, threads->count < output.height ? threads->count : output.height};
      threads->run(threads->runner, shared.parts, run_shared_rows, &shared);
    }
  }
}

// ---- Everything else ---------------------------------------------------------------------------------------------

WINOGRAD_INLINE int32_t add(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
WINOGRAD_INLINE int32_t multiply(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }
WINOGRAD_INLINE int32_t shift_left(int32_t a, int32_t by) { return static_cast<int32_t>(static_cast<uint32_t>(a) << by); }

// Integers of a value, whatever its type in memory.
template <class T>
struct Numbers {
  T *numbers;
  int32_t lowest;  // 0 where they are wide
  WINOGRAD_INLINE int32_t get(int64_t at) const { return numbers[at] + lowest; }
  WINOGRAD_INLINE void set(int64_t at, int32_t x) const { numbers[at] = static_cast<T>(x - lowest); }
};

template <class Body>
WINOGRAD_INLINE void with_value(const Image &image, int32_t number, const Body &body) {
  const Value &value = image.network->value(number);
  with_numbers(image, value, [&](auto *numbers) { body(Numbers<std::remove_pointer_t<decltype(numbers)>>{numbers, value.is_wide ? 0 : value.lowest}); });
}

template <class Body>
WINOGRAD_INLINE void with_two(const Image &image, const Step &step, const Body &body) {
  with_value(image, step.output, [&](auto y) { with_value(image, step.source, [&](auto x) { body(y, x); }); });
}

WINOGRAD_INLINE int32_t rounded(const Rounder &by, int32_t x, int64_t c) {
  const int32_t shifted = add(shift_left(x, by.left[c]), by.half[c]) >> by.right[c];
  const int32_t floored = shifted < by.low[c] ? by.low[c] : shifted;
  return floored > by.high[c] ? by.high[c] : floored;
}

void add_up(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const left = image.network->at<int32_t>(step.rounding.left), *const left_second = image.network->at<int32_t>(step.left_second);
  with_two(image, step, [&](auto y, auto a) {
    with_value(image, step.second, [&](auto b) {
      for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
        for (int32_t c = 0; c < shape.channels; ++c, ++at) {
          const int32_t sum = add(shift_left(a.get(at), left[c]), shift_left(b.get(at), left_second[c]));
          const int32_t shifted = add(sum, rounder.half[c]) >> rounder.right[c];
          const int32_t floored = shifted < rounder.low[c] ? rounder.low[c] : shifted;
          y.set(at, floored > rounder.high[c] ? rounder.high[c] : floored);
        }
    });
  });
}

void multiply_up(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output), &second = image.network->value(step.second);
  const Rounder rounder(*image.network, step.rounding);
  const int64_t is_whole = second.height == shape.height && second.width == shape.width;
  with_two(image, step, [&](auto y, auto a) {
    with_value(image, step.second, [&](auto b) {
      for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
        for (int32_t c = 0; c < shape.channels; ++c, ++at)
          y.set(at, rounded(rounder, multiply(a.get(at), b.get(is_whole ? at : c)), c));
    });
  });
}

// Calls body(offset of the window's number) for what of a window lies inside the image.
template <class Body>
WINOGRAD_INLINE void window(const Step &step, const Value &source, int64_t row, int64_t column, const Body &body) {
  for (int64_t r = 0; r < step.kernel[0]; ++r)
    for (int64_t s = 0; s < step.kernel[1]; ++s) {
      const int64_t y = row * step.stride[0] + r * step.dilation[0] - step.padding[0];
      const int64_t x = column * step.stride[1] + s * step.dilation[1] - step.padding[1];
      if (y >= 0 && y < source.height && x >= 0 && x < source.width) body((y * source.width + x) * source.channels);
    }
}

void pool(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const bool is_average = step.kind == kAveragePool;
  const Rounder rounder(*image.network, step.rounding);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t row = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column)
        for (int32_t c0 = 0; c0 < shape.channels; c0 += kLanes) {
          const int32_t lanes = shape.channels - c0 < kLanes ? shape.channels - c0 : kLanes;
          int32_t found[kLanes];
          for (int32_t i = 0; i < kLanes; ++i) found[i] = is_average ? 0 : INT32_MIN;
          window(step, source, row, column, [&](int64_t at) {
            for (int32_t i = 0; i < lanes; ++i) {
              const int32_t number = x.get(at + c0 + i);
              found[i] = is_average ? add(found[i], number) : found[i] < number ? number : found[i];
            }
          });
          for (int32_t i = 0; i < lanes; ++i) {
            const int32_t number = is_average ? rounded(rounder, multiply(found[i], step.multiplier), c0 + i) : found[i];
            y.set((row * shape.width + column) * shape.channels + c0 + i, number);
          }
        }
  });
}

void look_up(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source);
  const int64_t span = int64_t{source.highest} - source.lowest + 1;
  const int32_t *const table = image.network->at<int32_t>(step.table), *const row = image.network->at<int32_t>(step.row);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t pixel = 0, at = 0; pixel < int64_t{source.height} * source.width; ++pixel)
      for (int32_t c = 0; c < source.channels; ++c, ++at) {
        const int64_t place = int64_t{x.get(at)} - source.lowest;  // a wide number may be anything
        y.set(at, table[row[c] * span + (place < 0 ? 0 : place >= span ? span - 1 : place)]);
      }
  });
}

void requantize(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
      for (int32_t c = 0; c < shape.channels; ++c, ++at) y.set(at, rounded(rounder, x.get(at), c));
  });
}

void concatenate(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const int32_t *const sources = image.network->at<int32_t>(step.sources);
  with_value(image, step.output, [&](auto y) {
    for (int64_t number = 0, first = 0; number < step.source_count; ++number) {
      const Value &part = image.network->value(sources[number]);
      with_value(image, sources[number], [&](auto x) {
        for (int64_t pixel = 0, at = 0; pixel < int64_t{part.height} * part.width; ++pixel)
          for (int32_t c = 0; c < part.channels; ++c, ++at) y.set(pixel * shape.channels + first + c, x.get(at));
      });
      first += part.channels;
    }
  });
}

// Calls body(c, row, column, place) for each number of a value, in the order in which they lie.
template <class Body>
WINOGRAD_INLINE void each(const Value &shape, const Body &body) {
  int64_t at = 0;
  for (int64_t row = 0; row < shape.height; ++row)
    for (int64_t column = 0; column < shape.width; ++column)
      for (int64_t c = 0; c < shape.channels; ++c, ++at) body(c, row, column, at);
}

// What shortcuts are made of, pixel by pixel: slices that leave channels side by side, and paddings. Both values are held alike.
void move_pixels(const Image &image, const Step &step, const Value &from, const Value &to) {
  const int64_t size = from.is_wide ? 4 : 1, pixel_bytes = to.channels * size;
  const int32_t *const by = step.numbers;
  const uint8_t *const source = image.arena + from.place;
  uint8_t *out = image.arena + to.place;
  if (step.kind == kPadding) std::memset(out, from.is_wide ? 0 : -to.lowest, static_cast<size_t>(to.numbers() * size));
  for (int64_t row = 0; row < to.height; ++row)
    for (int64_t column = 0; column < to.width; ++column, out += pixel_bytes)
      if (step.kind == kSlice) {
        const int64_t pixel = (by[1] + row * by[7]) * from.width + by[2] + column * by[8];
        std::memcpy(out, source + (pixel * from.channels + by[0]) * size, static_cast<size_t>(pixel_bytes));
      } else if (row >= by[1] && row - by[1] < from.height && column >= by[2] && column - by[2] < from.width) {
        const int64_t pixel = (row - by[1]) * from.width + column - by[2];
        std::memcpy(out + by[0] * size, source + pixel * from.channels * size, static_cast<size_t>(from.channels * size));
      }
}

void move(const Image &image, const Step &step) {
  const Value &from = image.network->value(step.source), &to = image.network->value(step.output);
  const int32_t *const by = step.numbers;
  const bool are_alike = from.is_wide == to.is_wide && (from.is_wide || from.lowest == to.lowest);
  if (are_alike && (step.kind == kPadding || (step.kind == kSlice && by[6] == 1))) return move_pixels(image, step, from, to);
  const auto place = [&](int64_t c, int64_t row, int64_t column) { return (row * from.width + column) * from.channels + c; };
  with_two(image, step, [&](auto y, auto x) {
    each(to, [&](int64_t c, int64_t row, int64_t column, int64_t at) {
      switch (step.kind) {
        case kSlice:
          return y.set(at, x.get(place(by[0] + c * by[6], by[1] + row * by[7], by[2] + column * by[8])));
        case kPadding: {
          const int64_t fc = c - by[0], fr = row - by[1], fx = column - by[2];
          const bool is_inside = fc >= 0 && fc < from.channels && fr >= 0 && fr < from.height && fx >= 0 && fx < from.width;
          return y.set(at, is_inside ? x.get(place(fc, fr, fx)) : 0);
        }
        case kNearestUpsample:
          return y.set(at, x.get(place(c, row / by[0], column / by[1])));
        case kReshape: {
          const int64_t flat = (c * to.height + row) * to.width + column;
          return y.set(at, x.get(place(flat / from.width / from.height, flat / from.width % from.height, flat % from.width)));
        }
        default: {  // a permutation
          int64_t of_source[3];
          of_source[by[0]] = c, of_source[by[1]] = row, of_source[by[2]] = column;
          return y.set(at, x.get(place(of_source[0], of_source[1], of_source[2])));
        }
      }
    });
  });
}

// B^T d B: sums of four inputs, since the matrices of F(2x2, 3x3) hold nothing but 0, 1 and -1.
void transform_input(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const positions = image.network->at<int32_t>(step.positions);
  with_two(image, step, [&](auto v, auto x) {
    for (int64_t row = 0, first = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column)
        for (int32_t p = 0; p < step.position_count; ++p, first += source.channels) {
          int64_t places[4];
          int32_t signs[4], count = 0;
          for (int r = 0; r < 4; ++r)
            for (int s = 0; s < 4; ++s) {
              const double sign = kMatrices<2>.bt[positions[p] / 4][r] * kMatrices<2>.bt[positions[p] % 4][s];
              const int64_t y = 2 * row + r - step.padding[0], z = 2 * column + s - step.padding[1];
              if (sign == 0 || y < 0 || y >= source.height || z < 0 || z >= source.width) continue;
              places[count] = (y * source.width + z) * source.channels;
              signs[count++] = static_cast<int32_t>(sign);
            }
          for (int64_t c = 0; c < source.channels; ++c) {
            int32_t sum = 0;
            for (int32_t term = 0; term < count; ++term) sum = add(sum, multiply(signs[term], x.get(places[term] + c)));
            v.set(first + c, rounded(rounder, sum, p * source.channels + c));
          }
        }
  });
}

// A^T m A, with each product shifted to where sums meet.
void transform_output(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const positions = image.network->at<int32_t>(step.positions), *const left = image.network->at<int32_t>(step.left_second);
  const int32_t *const bias = image.network->at<int32_t>(step.bias);
  with_two(image, step, [&](auto y, auto m) {
    for (int64_t row = 0, to = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column) {
        const int64_t tile = (row / 2 * source.width + column / 2) * source.channels;
        int32_t signs[16];
        for (int32_t p = 0; p < step.position_count; ++p)
          signs[p] = static_cast<int32_t>(kMatrices<2>.at[row % 2][positions[p] / 4] * kMatrices<2>.at[column % 2][positions[p] % 4]);
        for (int64_t k = 0; k < shape.channels; ++k, ++to) {
          int32_t sum = bias[k];
          for (int32_t p = 0; p < step.position_count; ++p) {
            const int64_t product = p * int64_t{shape.channels} + k;
            sum = add(sum, multiply(signs[p], shift_left(m.get(tile + product), left[product])));
          }
          y.set(to, rounded(rounder, sum, k));
        }
      }
  });
}

void take_input(const Image &image, const void *input, bool is_float) {
  constexpr int64_t kChunk = 64;
  const Value &value = image.network->value(image.network->input);
  const int32_t *const lengths = image.network->at<int32_t>(image.network->input_lengths);
  const int64_t pixels = int64_t{value.height} * value.width;
  with_value(image, image.network->input, [&](auto x) {
    for (int32_t c = 0; c < value.channels; ++c) {
      const double scale = __builtin_ldexp(1.0, lengths[c]), low = value.lowest, high = value.highest;
      for (int64_t first = 0; first < pixels; first += kChunk) {
        const int64_t count = pixels - first < kChunk ? pixels - first : kChunk;
        int32_t integers[kChunk];  // first all integers, in vectors, then each to its place
        if (is_float) {
          const float *const from = static_cast<const float *>(input) + c * pixels + first;
          for (int64_t i = 0; i < count; ++i) {
            const double scaled = from[i] * scale + 0.5;
            const double floored = scaled >= low ? scaled : low;  // a number that is none becomes the lowest
            const double bounded = floored < high + 1 ? floored : high;
            integers[i] = static_cast<int32_t>(bounded - low) + value.lowest;  // rounds down, since nothing is negative
          }
        } else {
          const int32_t *const from = static_cast<const int32_t *>(input) + c * pixels + first;
          for (int64_t i = 0; i < count; ++i)
            integers[i] = from[i] < value.lowest ? value.lowest : from[i] > value.highest ? value.highest : from[i];
        }
        for (int64_t i = 0; i < count; ++i) x.set((first + i) * value.channels + c, integers[i]);
      }
    }
  });
}

void give_output(const Image &image, int32_t *output) {
  const Value &value = image.network->value(image.network->output);
  const int64_t pixels = int64_t{value.height} * value.width;
  with_value(image, image.network->output, [&](auto y) {
    each(value, [&](int64_t c, int64_t row, int64_t column, int64_t at) { output[c * pixels + row * value.width + column] = y.get(at); });
  });
}

void run_image(const Image &image, const void *input, bool is_float, int32_t *output) {
  take_input(image, input, is_float);
  for (int32_t number = 0; number < image.network->step_count; ++number) {
    const Step &step = image.network->step(number);
    switch (step.kind) {
      case kConvolution: convolve(image, step); break;
      case kAddition: add_up(image, step); break;
      case kMultiplication: multiply_up(image, step); break;
      case kMaxPool:
      case kAveragePool: pool(image, step); break;
      case kTable: look_up(image, step); break;
      case kRequantization: requantize(image, step); break;
      case kConcatenation: concatenate(image, step); break;
      case kInputTransform: transform_input(image, step); break;
      case kOutputTransform: transform_output(image, step); break;
      default: move(image, step);
    }
  }
  give_output(image, output);
}

}  // namespace

extern const Code kCode{run_image};

}  // namespace winograd::integers::WINOGRAD_VARIANT
