// From M to the output, with bias, residual and activation on the way: a tile and a vector of filters at a time.
//
//   M   [tile][zeros, where positions are pruned; slot of the run][filters of the block]
#pragma once

#include "geometry.hpp"

namespace winograd::WINOGRAD_VARIANT {

template <int m, bool dense>
class OutputStage {
 public:
  // `bias` is filled up with zeros to whole panels.
  OutputStage(const Geometry<m> &geometry, const winograd_operands &operands, const float *bias)
      : geometry_(geometry),
        operands_(operands),
        bias_(bias),
        row_stride_(geometry.out_width * geometry.problem.filters),
        column_stride_(geometry.problem.filters),
        floor_(broadcast(operands.activation == WINOGRAD_RELU ? 0.0f : -__builtin_inff())) {}

  // `run` counts all runs; `panels` from `first_panel` on are in M.
  void transform(Range tiles, int64_t run, const RunSlots<m> &slots, int64_t first_panel, int64_t panels,
                 const float *products) const {
    const int64_t filters = panels * kPanel, first_filter = first_panel * kPanel;
    const int64_t existing = smaller(filters, geometry_.runs.filters - first_filter);
    const float *const bias = bias_ + run * geometry_.panels * kPanel + first_filter;
    const Products of_run(slots, geometry_.zero_floats, filters);
    for (int64_t tile = 0; tile < tiles.count; ++tile, products += geometry_.product_stride) {
      const Place place = geometry_.place_of(tiles.first + tile);
      const int64_t pixel = (place.image * geometry_.out_height + place.row) * geometry_.out_width + place.column;
      const int64_t offset = pixel * geometry_.problem.filters + run * geometry_.runs.filters + first_filter;
      const Part part{smaller<int64_t>(m, geometry_.out_height - place.row),
                      smaller<int64_t>(m, geometry_.out_width - place.column)};
      for (int64_t filter = 0; filter < existing; filter += kLanes) {
        const int64_t lanes = smaller<int64_t>(kLanes, existing - filter);
        if (part.high == m && part.wide == m && lanes == kLanes)
          transform_whole(products + filter, of_run, load(bias + filter), offset + filter);
        else
          transform_part(products + filter, of_run, load(bias + filter), offset + filter, part, lanes);
      }
    }
  }

 private:
  static constexpr int t = Matrices<m>::t;
  struct Part {
    int64_t high, wide;  // of the tile, inside of the output
  };

  // Where the products of each position lie in a tile's M; pruned positions read the zeros in front.
  struct Products {
    KeptSome<t> kept;
    int64_t offset[t][t], slot_stride;
    Products(const RunSlots<m> &slots, int64_t zero_floats, int64_t slot_floats)
        : kept(slots.kept), slot_stride(slot_floats) {
      for (int row = 0; row < t; ++row)
        for (int column = 0; column < t; ++column)
          offset[row][column] = kept.at(row, column) ? zero_floats + slots.product_slot[row][column] * slot_floats : 0;
    }
  };

  template <class Store>
  WINOGRAD_INLINE void transform_back(const float *products, const Products &of, const Store &store_at) const {
    if constexpr (dense)
      transform_output<m>(
          KeptAll<t>{},
          [&](int row, int column) WINOGRAD_INLINE_LAMBDA { return load(products + (row * t + column) * of.slot_stride); },
          store_at);
    else
      transform_output<m>(
          of.kept,
          [&](int row, int column) WINOGRAD_INLINE_LAMBDA { return load(products + of.offset[row][column]); }, store_at);
  }

  WINOGRAD_INLINE void transform_whole(const float *products, const Products &of, Vector bias, int64_t offset) const {
    float *const output = operands_.output + offset;
    const float *const residual = operands_.residual == nullptr ? nullptr : operands_.residual + offset;
    // The next tile's lines will be written, so they are fetched for writing.
    WINOGRAD_UNROLL
    for (int row = 0; row < m; ++row)
      WINOGRAD_UNROLL
      for (int column = 0; column < m; ++column)
        __builtin_prefetch(output + row * row_stride_ + (m + column) * column_stride_, 1, 3);
    transform_back(products, of, [&](int row, int column, Vector value) WINOGRAD_INLINE_LAMBDA {
      const int64_t at = row * row_stride_ + column * column_stride_;
      value += bias;
      if (residual != nullptr) value += load(residual + at);
      store(output + at, at_least(value, floor_));
    });
  }

  // A tile that reaches beyond the output, or fewer filters than lanes.
  void transform_part(const float *products, const Products &of, Vector bias, int64_t offset, Part part, int64_t lanes) const {
    Vector tile[m][m];
    transform_back(products, of, [&](int row, int column, Vector value) WINOGRAD_INLINE_LAMBDA {
      tile[row][column] = value + bias;
    });
    for (int64_t row = 0; row < part.high; ++row)
      for (int64_t column = 0; column < part.wide; ++column) {
        const int64_t at = offset + row * row_stride_ + column * column_stride_;
        Vector value = tile[row][column];
        if (operands_.residual != nullptr) value += load_some(operands_.residual + at, lanes);
        store_some(operands_.output + at, at_least(value, floor_), lanes);
      }
  }

  const Geometry<m> &geometry_;
  const winograd_operands &operands_;
  const float *const bias_;
  const int64_t row_stride_, column_stride_;
  const Vector floor_;
};

}  // namespace winograd::WINOGRAD_VARIANT
