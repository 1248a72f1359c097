// The matrices of F(m x m, 3 x 3), made at compile time from the interpolation points, for host and device.
//
//   U = G w G^T      V = B^T d B      Y = A^T (U . V) A          (Lavin & Gray 2015, eq. 8; Cook-Toom)
//
// An input tile has t = m + 2 rows. Points come in pairs +-p, with 0 first where t is even, and infinity last. The row of
// B^T that belongs to +-p is (x +- p) E(x), where E is even or odd, so both rows share their two halves; see `Pair`.
// `winograd/matrices.py` makes the same matrices in exact fractions, and the tests compare the two.
#pragma once

#include <array>

#if defined(__CUDACC__)
#define WINOGRAD_HOST_DEVICE __host__ __device__
#else
#define WINOGRAD_HOST_DEVICE
#endif

namespace winograd {

inline constexpr int kFilterSize = 3;
inline constexpr int kLargestTile = 9;

// The positive points of each F(m, 3), chosen for the least rounding error (docs/winograd.md has the measurements).
template <int m>
struct Points;
template <>
struct Points<2> {
  static constexpr std::array<double, 1> value{1.0};
};
template <>
struct Points<4> {
  static constexpr std::array<double, 2> value{0.75, 1.5};
};
template <>
struct Points<6> {
  static constexpr std::array<double, 3> value{0.5, 1.0, 2.0};
};
template <>
struct Points<7> {  // no zero among them: t is odd
  static constexpr std::array<double, 4> value{0.234375, 0.671875, 1.125, 2.171875};
};

// All the coefficients that the transforms of F(m, 3) need, in double.
template <int m>
struct Matrices {
  static constexpr int t = m + kFilterSize - 1;
  static constexpr int pairs = static_cast<int>(Points<m>::value.size());
  static constexpr bool has_zero = t % 2 == 0;
  static constexpr int first_pair = has_zero ? 1 : 0;  // row of +p of the first pair
  static constexpr int infinity = t - 1;

  double bt[t][t]{};
  double g[t][kFilterSize]{};
  double at[m][t]{};

  constexpr Matrices() {
    double point[t - 1]{};
    for (int pair = 0; pair < pairs; ++pair) {
      point[first_pair + 2 * pair] = Points<m>::value[pair];
      point[first_pair + 2 * pair + 1] = -Points<m>::value[pair];
    }
    for (int i = 0; i < t - 1; ++i) {
      multiply_out(point, i, bt[i]);
      double norm = 1.0;
      for (int j = 0; j < t - 1; ++j) norm *= j == i ? 1.0 : point[i] - point[j];
      double power = 1.0;
      for (int k = 0; k < (m > kFilterSize ? m : kFilterSize); ++k, power *= point[i]) {
        if (k < kFilterSize) g[i][k] = power / norm;
        if (k < m) at[k][i] = power;
      }
    }
    multiply_out(point, t - 1, bt[infinity]);
    g[infinity][kFilterSize - 1] = 1.0;
    at[m - 1][infinity] = 1.0;
  }

 private:
  // Coefficients of the product of (x - point[j]) over all j except `left_out`.
  static constexpr void multiply_out(const double (&point)[t - 1], int left_out, double (&coefficients)[t]) {
    coefficients[0] = 1.0;
    int degree = 0;
    for (int j = 0; j < t - 1; ++j) {
      if (j == left_out) continue;
      ++degree;
      for (int k = degree; k > 0; --k) coefficients[k] = coefficients[k - 1] - point[j] * coefficients[k];
      coefficients[0] *= -point[j];
    }
  }
};

template <int m>
inline constexpr Matrices<m> kMatrices{};

}  // namespace winograd
