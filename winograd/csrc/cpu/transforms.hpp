// The transforms of one tile, a vector of channels (or filters) at a time:  V = B^T d B,  Y = A^T M A,  U = G w G^T.
//
// The rows of B^T and the columns of A^T that belong to +p and -p share their even and odd halves, and coefficients are
// known when this compiles, so zeros cost nothing and a one multiplies nothing. A transform goes over the tile one
// group of columns at a time (zero; each pair; infinity): 2 t values are live, not t^2, and fit in the registers.
//
// Arguments are callables: load(row, column) and store(row, column, value); `kept` knows which positions have weights, so
// that what is needed by none of them is not computed. Its answers are the same for every tile, so the branches predict.
#pragma once

#include "../matrices.hpp"
#include "vector.hpp"

namespace winograd::WINOGRAD_VARIANT {

// Which positions of the tile have weights.
template <int t>
struct KeptAll {
  static constexpr bool at(int, int) { return true; }
  static constexpr bool row(int) { return true; }
  static constexpr bool column(int) { return true; }
};
template <int t>
struct KeptSome {
  bool position[t][t]{};
  bool rows[t]{};
  bool columns[t]{};
  void keep(int row, int column) { position[row][column] = rows[row] = columns[column] = true; }
  WINOGRAD_INLINE bool at(int row, int column) const { return position[row][column]; }
  WINOGRAD_INLINE bool row(int row) const { return rows[row]; }
  WINOGRAD_INLINE bool column(int column) const { return columns[column]; }
};

// B^T split into what its rows share. Row +-p of pair q is X +- p E with E = sum_k half[q][k] d[k], X = sum_k half[q][k] d[k+1].
template <int m>
struct InputRows {
  using Of = Matrices<m>;
  float zero[Of::t]{};
  float infinity[Of::t]{};
  float half[Of::pairs][Of::t]{};
  float point[Of::pairs]{};

  constexpr InputRows() {
    for (int k = 0; k < Of::t; ++k) {
      zero[k] = Of::has_zero ? static_cast<float>(kMatrices<m>.bt[0][k]) : 0.0f;
      infinity[k] = static_cast<float>(kMatrices<m>.bt[Of::infinity][k]);
    }
    for (int pair = 0; pair < Of::pairs; ++pair) {
      const double p = Points<m>::value[pair];
      const int row = Of::first_pair + 2 * pair;
      point[pair] = static_cast<float>(p);
      for (int k = 0; k < Of::t; ++k)
        half[pair][k] = static_cast<float>((kMatrices<m>.bt[row][k] - kMatrices<m>.bt[row + 1][k]) / (2.0 * p));
    }
  }
};
template <int m>
inline constexpr InputRows<m> kInputRows{};

// sum_k coefficients[k] d(k + shift): zeros are left out and ones not multiplied by.
template <int t, class Values>
WINOGRAD_INLINE Vector combine(const float (&coefficients)[t], int shift, const Values &d) {
  Vector sum{};
  bool first = true;
  WINOGRAD_UNROLL
  for (int k = 0; k < t; ++k) {
    if (coefficients[k] == 0.0f) continue;
    const Vector term = d(k + shift);
    if (coefficients[k] == 1.0f)
      sum = first ? term : sum + term;
    else
      sum = first ? coefficients[k] * term : sum + coefficients[k] * term;
    first = false;
  }
  return sum;
}

// B^T applied to t values; take(k, value) gets the result of row k, for rows that are `wanted`.
template <int m, class Wanted, class Values, class Take>
WINOGRAD_INLINE void apply_input_rows(const Wanted &wanted, const Values &value, const Take &take) {
  using Of = Matrices<m>;
  constexpr const InputRows<m> &rows = kInputRows<m>;
  if constexpr (Of::has_zero)
    if (wanted(0)) take(0, combine(rows.zero, 0, value));
  WINOGRAD_UNROLL
  for (int pair = 0; pair < Of::pairs; ++pair) {
    const int plus = Of::first_pair + 2 * pair, minus = plus + 1;
    if (!wanted(plus) && !wanted(minus)) continue;
    const Vector even = combine(rows.half[pair], 0, value);
    const Vector odd = combine(rows.half[pair], 1, value);
    if (wanted(plus)) take(plus, odd + rows.point[pair] * even);
    if (wanted(minus)) take(minus, odd - rows.point[pair] * even);
  }
  if (wanted(Of::infinity)) take(Of::infinity, combine(rows.infinity, 0, value));
}

constexpr double power(double base, int exponent) {
  double result = 1.0;
  for (int i = 0; i < exponent; ++i) result *= base;
  return result;
}

// Rows first, first + step, … of A^T applied to t values; wanted(k, value) takes the result of row k.
template <int m, int first, int step, class Values, class Take>
WINOGRAD_INLINE void apply_output_rows(const Values &value, const Take &take) {
  using Of = Matrices<m>;
  Vector sum[Of::pairs], difference[Of::pairs];
  WINOGRAD_UNROLL
  for (int pair = 0; pair < Of::pairs; ++pair) {
    const Vector plus = value(Of::first_pair + 2 * pair), minus = value(Of::first_pair + 2 * pair + 1);
    if (step == 1 || first == 0) sum[pair] = plus + minus;
    if (step == 1 || first == 1) difference[pair] = plus - minus;
  }
  WINOGRAD_UNROLL
  for (int k = first; k < m; k += step) {
    const Vector *half = k % 2 == 0 ? sum : difference;
    Vector result = k == 0 && Of::has_zero ? value(0) : Vector{};
    bool is_zero = !(k == 0 && Of::has_zero);
    if (k == m - 1) {
      result = is_zero ? value(Of::infinity) : result + value(Of::infinity);
      is_zero = false;
    }
    WINOGRAD_UNROLL
    for (int pair = 0; pair < Of::pairs; ++pair) {
      const float weight = static_cast<float>(power(Points<m>::value[pair], k));
      const Vector term = half[pair];
      if (weight == 1.0f)
        result = is_zero ? term : result + term;
      else
        result = is_zero ? weight * term : result + weight * term;
      is_zero = false;
    }
    take(k, result);
  }
}

// The transposes of both, for gradients. A applied to m values; take(k, value) gets the result of row k, for rows that are `wanted`.
template <int m, class Wanted, class Values, class Take>
WINOGRAD_INLINE void apply_output_columns(const Wanted &wanted, const Values &value, const Take &take) {
  using Of = Matrices<m>;
  if constexpr (Of::has_zero)
    if (wanted(0)) take(0, value(0));
  WINOGRAD_UNROLL
  for (int pair = 0; pair < Of::pairs; ++pair) {
    const int plus = Of::first_pair + 2 * pair, minus = plus + 1;
    if (!wanted(plus) && !wanted(minus)) continue;
    Vector even = value(0), odd{};
    WINOGRAD_UNROLL
    for (int k = 1; k < m; ++k) {
      const Vector term = static_cast<float>(power(Points<m>::value[pair], k)) * value(k);
      if (k % 2 == 0)
        even += term;
      else
        odd = k == 1 ? term : odd + term;
    }
    if (wanted(plus)) take(plus, even + odd);
    if (wanted(minus)) take(minus, even - odd);
  }
  if (wanted(Of::infinity)) take(Of::infinity, value(m - 1));
}

// B applied to t values.
template <int m, class Values, class Take>
WINOGRAD_INLINE void apply_input_columns(const Values &value, const Take &take) {
  using Of = Matrices<m>;
  constexpr const InputRows<m> &rows = kInputRows<m>;
  Vector result[Of::t];
  WINOGRAD_UNROLL
  for (int k = 0; k < Of::t; ++k) {
    result[k] = rows.infinity[k] * value(Of::infinity);
    if constexpr (Of::has_zero) result[k] += rows.zero[k] * value(0);
  }
  WINOGRAD_UNROLL
  for (int pair = 0; pair < Of::pairs; ++pair) {
    const Vector plus = value(Of::first_pair + 2 * pair), minus = value(Of::first_pair + 2 * pair + 1);
    const Vector of_odd = plus + minus, of_even = rows.point[pair] * (plus - minus);
    WINOGRAD_UNROLL
    for (int k = 0; k + 1 < Of::t; ++k) {
      if (rows.half[pair][k] == 0.0f) continue;
      result[k] += rows.half[pair][k] * of_even;
      result[k + 1] += rows.half[pair][k] * of_odd;
    }
  }
  WINOGRAD_UNROLL
  for (int k = 0; k < Of::t; ++k) take(k, result[k]);
}

// Output rows first, first + step, … of A^T M A.
template <int m, int first, int step, class Kept, class Load, class Store>
WINOGRAD_INLINE void transform_output_rows(const Kept &kept, const Load &products, const Store &store_at) {
  using Of = Matrices<m>;
  constexpr int rows = (m - first + step - 1) / step;
  Vector half_done[rows][Of::t];  // A^T M
  WINOGRAD_UNROLL
  for (int column = 0; column < Of::t; ++column) {
    if (!kept.column(column)) {
      WINOGRAD_UNROLL
      for (int row = 0; row < rows; ++row) half_done[row][column] = Vector{};
      continue;
    }
    apply_output_rows<m, first, step>(
        [&](int row) WINOGRAD_INLINE_LAMBDA { return products(row, column); },
        [&](int k, Vector value) WINOGRAD_INLINE_LAMBDA { half_done[(k - first) / step][column] = value; });
  }
  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    apply_output_rows<m, 0, 1>(
        [&](int column) WINOGRAD_INLINE_LAMBDA { return half_done[row][column]; },
        [&](int k, Vector value) WINOGRAD_INLINE_LAMBDA { store_at(first + row * step, k, value); });
}

// Y = A^T M A of one tile. Large tiles go by even and odd rows, so that what is half done stays in the registers.
template <int m, class Kept, class Load, class Store>
WINOGRAD_INLINE void transform_output(const Kept &kept, const Load &products, const Store &store_at) {
  if constexpr (m * Matrices<m>::t <= 24) {
    transform_output_rows<m, 0, 1>(kept, products, store_at);
  } else {
    transform_output_rows<m, 0, 2>(kept, products, store_at);
    transform_output_rows<m, 1, 2>(kept, products, store_at);
  }
}

// U = G w G^T of a vector of filters.
template <int m, class Load, class Store>
WINOGRAD_INLINE void transform_filters(const Load &w, const Store &store_at) {
  using Of = Matrices<m>;
  const auto apply_row = [](int pair, const Vector &w0, const Vector &w1, const Vector &w2, Vector &plus,
                            Vector &minus) WINOGRAD_INLINE_LAMBDA {
    const double(&g)[kFilterSize] = kMatrices<m>.g[Of::first_pair + 2 * pair];
    const double(&opposite)[kFilterSize] = kMatrices<m>.g[Of::first_pair + 2 * pair + 1];
    // The norms of +p and -p agree but for the sign that t - 1 factors give.
    const float sign = g[0] == opposite[0] ? 1.0f : -1.0f;
    const Vector even = static_cast<float>(g[0]) * w0 + static_cast<float>(g[2]) * w2;
    const Vector odd = static_cast<float>(g[1]) * w1;
    plus = even + odd;
    minus = sign * (even - odd);
  };
  Vector rows[Of::t][kFilterSize];
  WINOGRAD_UNROLL
  for (int s = 0; s < kFilterSize; ++s) {
    const Vector w0 = w(0, s), w1 = w(1, s), w2 = w(2, s);
    if constexpr (Of::has_zero) rows[0][s] = static_cast<float>(kMatrices<m>.g[0][0]) * w0;
    WINOGRAD_UNROLL
    for (int pair = 0; pair < Of::pairs; ++pair)
      apply_row(pair, w0, w1, w2, rows[Of::first_pair + 2 * pair][s], rows[Of::first_pair + 2 * pair + 1][s]);
    rows[Of::infinity][s] = w2;
  }
  WINOGRAD_UNROLL
  for (int row = 0; row < Of::t; ++row) {
    if constexpr (Of::has_zero) store_at(row, 0, static_cast<float>(kMatrices<m>.g[0][0]) * rows[row][0]);
    WINOGRAD_UNROLL
    for (int pair = 0; pair < Of::pairs; ++pair) {
      Vector plus, minus;
      apply_row(pair, rows[row][0], rows[row][1], rows[row][2], plus, minus);
      store_at(row, Of::first_pair + 2 * pair, plus);
      store_at(row, Of::first_pair + 2 * pair + 1, minus);
    }
    store_at(row, Of::infinity, rows[row][2]);
  }
}

}  // namespace winograd::WINOGRAD_VARIANT
