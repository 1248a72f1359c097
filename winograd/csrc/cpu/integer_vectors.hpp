// Sixteen integers at a time, products of bytes, and rounding, with the instructions of one file (see vector.hpp for how one
// source serves all instruction sets).
//
// What is multiplied: sums over (x - lowest) * w, bytes without a sign times bytes with one, to which the bias adds
// lowest * (sum of w). Sums wrap at 32 bits, so that they may leave it on the way and come back.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

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

}  // namespace
}  // namespace winograd::integers::WINOGRAD_VARIANT
