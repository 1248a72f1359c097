// A vector of floats as wide as this translation unit's instruction set, in GCC's and Clang's vector notation.
//
// One source serves all instruction sets: convolve_avx512.cpp, convolve_avx2.cpp and convolve_portable.cpp define
// WINOGRAD_VARIANT (a namespace) and WINOGRAD_LANES and include the same headers. Everything below lives in that
// namespace, so that the linker can't hand code of a wider instruction set to a processor that lacks it; for the same reason
// nothing here uses templates of the standard library.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

// Without the compiler's options for them, vectors would be computed in pieces, several times as slowly.
#if (WINOGRAD_LANES == 16 && !defined(__AVX512F__)) || (WINOGRAD_LANES == 8 && !defined(__AVX2__))
#error "CMakeLists.txt has no options for the instruction set of this file."
#endif

#define WINOGRAD_INLINE inline __attribute__((always_inline))
#define WINOGRAD_INLINE_LAMBDA __attribute__((always_inline))
#define WINOGRAD_UNROLL _Pragma("GCC unroll 16")

namespace winograd::WINOGRAD_VARIANT {

inline constexpr int kLanes = WINOGRAD_LANES;
inline constexpr int kChannelBlock = 16;  // channels that lie together in V, whatever the vector
inline constexpr int kPanel = 32;         // filters that lie together in U, whatever the vector

typedef float Vector __attribute__((vector_size(WINOGRAD_LANES * sizeof(float))));
// Compilers let a vector alias its elements' type, so it needs no may_alias, after which they would read every member again.
typedef float UnalignedVector __attribute__((vector_size(WINOGRAD_LANES * sizeof(float)), aligned(4)));

WINOGRAD_INLINE Vector load(const float *from) { return *reinterpret_cast<const UnalignedVector *>(from); }
WINOGRAD_INLINE void store(float *to, Vector value) { *reinterpret_cast<UnalignedVector *>(to) = value; }
// The first `lanes` floats alone; the other lanes read as zero and are not written. The vector notation has no masks, and a
// memcpy of a few floats, which is a call, took half of the time of a convolution that reads three channels.
#if defined(__AVX512F__)
WINOGRAD_INLINE __mmask16 first_lanes(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
WINOGRAD_INLINE Vector load_some(const float *from, int64_t lanes) { return _mm512_maskz_loadu_ps(first_lanes(lanes), from); }
WINOGRAD_INLINE void store_some(float *to, Vector value, int64_t lanes) { _mm512_mask_storeu_ps(to, first_lanes(lanes), value); }
#elif defined(__AVX2__)
WINOGRAD_INLINE __m256i first_lanes(int64_t lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
WINOGRAD_INLINE Vector load_some(const float *from, int64_t lanes) { return _mm256_maskload_ps(from, first_lanes(lanes)); }
WINOGRAD_INLINE void store_some(float *to, Vector value, int64_t lanes) { _mm256_maskstore_ps(to, first_lanes(lanes), value); }
#else
WINOGRAD_INLINE Vector load_some(const float *from, int64_t lanes) {
  Vector value{};
  std::memcpy(&value, from, sizeof(float) * static_cast<size_t>(lanes));
  return value;
}
WINOGRAD_INLINE void store_some(float *to, Vector value, int64_t lanes) {
  std::memcpy(to, &value, sizeof(float) * static_cast<size_t>(lanes));
}
#endif
WINOGRAD_INLINE Vector broadcast(float value) { return value - Vector{}; }
// The larger of both; a NaN in `value` stays one.
WINOGRAD_INLINE Vector at_least(Vector value, Vector floor) { return floor > value ? floor : value; }
template <int value_>
struct Tile {
  static constexpr int value = value_;
};

template <class T>
WINOGRAD_INLINE constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
WINOGRAD_INLINE constexpr T larger(T a, T b) {
  return a < b ? b : a;
}
WINOGRAD_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
WINOGRAD_INLINE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace winograd::WINOGRAD_VARIANT
