// How numbers lie in memory: float, half and bfloat16, one or several at a time. Arithmetic is always in float.
//
// Half and Bfloat16 are bare bits, so that host and device share them and no CUDA header is needed. On the device one
// instruction converts; on the host the same rounding (nearest, ties to even) is spelled out.
#pragma once

#include <cstdint>
#include <cstring>

#include "../matrices.hpp"

// Before a loop whose counter indexes arrays: unrolled, they stay in registers.
#if defined(__CUDACC__)
#define WINOGRAD_UNROLL _Pragma("unroll")
#else
#define WINOGRAD_UNROLL
#endif

namespace winograd::cuda {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// `bits` without its lowest `dropped` ones, rounded to the nearest, ties to even.
inline uint32_t round_off(uint32_t bits, int dropped) {
  const uint32_t odd = bits >> dropped & 1;
  return (bits + (uint32_t{1} << (dropped - 1)) - 1 + odd) >> dropped;
}

inline float host_float(Half half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
  const uint32_t exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
  return float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

inline Half host_half(float number) {
  const uint32_t bits = bits_of(number), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // not a number
  } else if (magnitude >= 0x47800000) {
    half = 0x7c00;  // 65536 and more
  } else if (magnitude >= 0x38800000) {
    half = round_off(magnitude - (112u << 23), 13);
  } else {
    // Subnormal: adding 0.5 puts the last bit of the half at the last bit of the float, and the addition rounds.
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  return {static_cast<uint16_t>(sign | half)};
}

WINOGRAD_HOST_DEVICE inline float to_float(float number) { return number; }

WINOGRAD_HOST_DEVICE inline float to_float(Half half) {
#if defined(__CUDA_ARCH__)
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(half.bits));
  return number;
#else
  return host_float(half);
#endif
}

WINOGRAD_HOST_DEVICE inline float to_float(Bfloat16 brain) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<uint32_t>(brain.bits) << 16);
#else
  return float_of(static_cast<uint32_t>(brain.bits) << 16);
#endif
}

WINOGRAD_HOST_DEVICE inline void store_rounded(float number, float& to) { to = number; }

WINOGRAD_HOST_DEVICE inline void store_rounded(float number, Half& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(number));
#else
  to = host_half(number);
#endif
}

WINOGRAD_HOST_DEVICE inline void store_rounded(float number, Bfloat16& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(number));
#else
  const bool is_number = number == number;
  to.bits = static_cast<uint16_t>(is_number ? round_off(bits_of(number), 16) : 0x7fc0);
#endif
}

// From double there must be one rounding, not two. Rounding to odd keeps in the float what the second needs to know.
template <class Storage>
WINOGRAD_HOST_DEVICE void store_rounded(double number, Storage& to) {
  auto nearest = static_cast<float>(number);
  if constexpr (sizeof(Storage) < sizeof(float)) {
    const double error = number - static_cast<double>(nearest);
    uint32_t bits;
    std::memcpy(&bits, &nearest, sizeof bits);
    if (error != 0.0 && nearest != 0.0f && (bits & 1) == 0) {
      const bool away = (error > 0.0) == (nearest > 0.0f);  // the exact number lies farther from zero
      bits = away ? bits + 1 : bits - 1;
      std::memcpy(&nearest, &bits, sizeof bits);
    }
  }
  store_rounded(nearest, to);
}

// Neighbouring elements that one instruction reads or writes: as many as fit into 16 bytes, or fewer.
template <class Storage, int lanes>
struct alignas(sizeof(Storage) * lanes) Vector {
  Storage lane[lanes];
};

// Reads where `exists`, else all are zero. Only the load depends on the condition, not what follows it, so that compilers
// make it a predicate instead of a branch, and the next load need not wait.
template <int lanes, class Storage>
WINOGRAD_HOST_DEVICE void load_if(bool exists, const Storage* from, float (&numbers)[lanes]) {
  Vector<Storage, lanes> stored{};
  if (exists) stored = *reinterpret_cast<const Vector<Storage, lanes>*>(from);
  WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) numbers[lane] = to_float(stored.lane[lane]);
}

template <int lanes, class Storage>
WINOGRAD_HOST_DEVICE void store(const float (&numbers)[lanes], Storage* to) {
  Vector<Storage, lanes> stored;
  WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) store_rounded(numbers[lane], stored.lane[lane]);
  *reinterpret_cast<Vector<Storage, lanes>*>(to) = stored;
}

}  // namespace winograd::cuda
