// The one-dimensional transforms of F(m, 3), on registers: multiplications by rows of B^T, G and A^T (see matrices.hpp).
//
// Coefficients are compile-time constants, so that zeros cost nothing and nothing is read from memory. Both rows of a pair
// of points +-p have the same coefficients but for the sign of every second one: two half sums serve both rows.
#pragma once

#include <utility>

#include "../matrices.hpp"

namespace winograd::cuda {

// std::integral_constant can't be used on the device without a compiler option.
template <int number>
struct Constant {
  static constexpr int value = number;
  WINOGRAD_HOST_DEVICE constexpr operator int() const { return number; }
};

template <class Body, int... index>
WINOGRAD_HOST_DEVICE void unrolled(const Body& body, std::integer_sequence<int, index...>) {
  (body(Constant<index>{}), ...);
}

// body(0), body(1), ... body(count - 1), each with a constant: array subscripts made of it stay in registers.
template <int count, class Body>
WINOGRAD_HOST_DEVICE void unrolled(const Body& body) {
  unrolled(body, std::make_integer_sequence<int, count>{});
}

enum class Which { bt, g, at };

// Coefficients of one row of a matrix, those at `first`, first + `step`, ... only.
template <int m, Which which, int row, int first, int step, int columns>
struct Row {
  static constexpr double coefficient(int column) {
    if constexpr (which == Which::bt) return kMatrices<m>.bt[row][column];
    if constexpr (which == Which::g) return kMatrices<m>.g[row][column];
    if constexpr (which == Which::at) return kMatrices<m>.at[row][column];
  }
  static constexpr int first_nonzero() {
    int column = first;
    while (column < columns && coefficient(column) == 0.0) column += step;
    return column;
  }
  static constexpr int start = first_nonzero();
  // Constants by themselves, because the device can't call coefficient().
  template <int column>
  static constexpr double at = coefficient(column);

  template <class Real>
  WINOGRAD_HOST_DEVICE static Real times(const Real (&x)[columns]) {
    static_assert(start < columns, "a row without coefficients");
    Real sum = static_cast<Real>(at<start>) * x[start];
    unrolled<columns>([&](auto index) {
      constexpr int column = decltype(index)::value;
      if constexpr (column > start && (column - first) % step == 0) {
        if constexpr (at<column> != 0.0) sum += static_cast<Real>(at<column>) * x[column];
      }
    });
    return sum;
  }
};

// v = B^T d
template <int m, class Real>
WINOGRAD_HOST_DEVICE void transform_input_line(const Real (&d)[m + 2], Real (&v)[m + 2]) {
  constexpr int t = m + 2;
  using F = Matrices<m>;
  if constexpr (F::has_zero) v[0] = Row<m, Which::bt, 0, 0, 1, t>::times(d);
  unrolled<F::pairs>([&](auto pair) {
    constexpr int row = F::first_pair + 2 * decltype(pair)::value;
    // x E(x) has the parity of t; its coefficients are the same in both rows.
    const Real same = Row<m, Which::bt, row, t % 2, 2, t>::times(d);
    const Real opposite = Row<m, Which::bt, row, 1 - t % 2, 2, t>::times(d);
    v[row] = same + opposite;
    v[row + 1] = same - opposite;
  });
  v[F::infinity] = Row<m, Which::bt, F::infinity, 0, 1, t>::times(d);
}

// u = G w
template <int m, class Real>
WINOGRAD_HOST_DEVICE void transform_filter_line(const Real (&w)[kFilterSize], Real (&u)[m + 2]) {
  unrolled<m + 2>([&](auto index) {
    constexpr int row = decltype(index)::value;
    u[row] = Row<m, Which::g, row, 0, 1, kFilterSize>::times(w);
  });
}

// y = A^T x
template <int m, class Real>
WINOGRAD_HOST_DEVICE void transform_output_line(const Real (&x)[m + 2], Real (&y)[m]) {
  using F = Matrices<m>;
  Real sum[F::pairs], difference[F::pairs];
  unrolled<F::pairs>([&](auto index) {
    constexpr int pair = decltype(index)::value, column = F::first_pair + 2 * pair;
    sum[pair] = x[column] + x[column + 1];
    difference[pair] = x[column] - x[column + 1];
  });
  unrolled<m>([&](auto index) {
    constexpr int row = decltype(index)::value;
    const auto& halves = row % 2 == 0 ? sum : difference;  // (+-p)^row
    Real y_row{};
    unrolled<F::pairs>([&](auto index_of_pair) {
      constexpr int pair = decltype(index_of_pair)::value;
      constexpr double power = kMatrices<m>.at[row][F::first_pair + 2 * pair];
      const Real term = static_cast<Real>(power) * halves[pair];
      y_row = pair == 0 ? term : y_row + term;
    });
    if constexpr (row == 0 && F::has_zero) y_row += x[0];
    if constexpr (row == m - 1) y_row += x[F::infinity];
    y[row] = y_row;
  });
}

}  // namespace winograd::cuda
