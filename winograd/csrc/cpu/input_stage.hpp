// From the input to V, a vector of channels at a time.
//
//   V   [slot][panel of tiles][channels / 16][panel_rows][16]
//
// Neighbouring tiles share t - m columns, so B^T goes down the columns of a strip of tiles once, into the first-level cache,
// and then along the rows of each tile. Rows are compiled for each set of kept columns, as far as there are not too many.
#pragma once

#include "geometry.hpp"

namespace winograd::WINOGRAD_VARIANT {

template <int m, bool dense>
class InputStage {
 public:
  // `zeros`: at least kLanes of them.
  InputStage(const Geometry<m> &geometry, const GroupSlots<m> &slots, const float *input, int64_t first_channel,
             const float *zeros)
      : geometry_(geometry), kept_(slots.kept), input_(input + first_channel), zeros_(zeros) {
    if constexpr (dense) return;
    int64_t slot = 0;
    for (int row = 0; row < t; ++row) {
      KeptRow &of_row = rows_[row];
      of_row = {0, slot * geometry.input_stride, nullptr};
      for (int column = 0; column < t; ++column)
        if (kept_.at(row, column)) of_row.columns |= 1u << column, ++slot;
      of_row.transform = transform_of(of_row.columns);
      if (of_row.columns == 0) keeps_all_rows_ = false;
    }
  }

  static constexpr int64_t kStripTiles = larger(1, (m < 6 ? 24 : 22) / m);  // so that `lines` stays in the first-level cache

  // V of tiles [tiles.first, + tiles.count) of a block, for some vectors of channels.
  void transform(Range block, Range tiles, Range vectors, float *v) const {
    const int64_t rows = geometry_.panel_rows(block.count);
    for (int64_t tile = tiles.first; tile < tiles.end();) {
      const Place place = geometry_.place_of(block.first + tile);
      const int64_t to_the_right = geometry_.tiles_wide - place.column / m;
      const int64_t strip = smaller(smaller(kStripTiles, to_the_right), tiles.end() - tile);
      for (int64_t vector = vectors.first; vector < vectors.end(); ++vector) {
        const int64_t channel = vector * kLanes;
        float *const to = v + channel / kChannelBlock * rows * kChannelBlock + channel % kChannelBlock;
        Vector lines[t][kStripColumns];
        if (dense || keeps_all_rows_)
          transform_columns<true>(place, strip, channel, lines);
        else
          transform_columns<false>(place, strip, channel, lines);
        transform_rows(lines, tile, strip, rows, to);
      }
      tile += strip;
    }
  }

 private:
  static constexpr int t = Matrices<m>::t;
  static constexpr int kShared = t - m;                              // columns that neighbouring tiles share
  static constexpr int kStripColumns = static_cast<int>(kStripTiles) * m + kShared;

  // Where the tiles of a strip lie in a slot of V.
  struct TilePlaces {
    int64_t count, offset[kStripTiles];
  };
  // B^T along one row of each tile of a strip, into the slots of its kept columns, which follow one another from `to` on.
  using TransformRow = void (*)(unsigned columns, const Vector *line, const TilePlaces &tiles, int64_t slot_stride, float *to);

  static WINOGRAD_INLINE void transform_kept(unsigned columns, const Vector *line, const TilePlaces &tiles, int64_t slot_stride, float *to) {
    for (int64_t tile = 0; tile < tiles.count; ++tile, line += m) {
      float *const at = to + tiles.offset[tile];
      apply_input_rows<m>([=](int column) WINOGRAD_INLINE_LAMBDA { return (columns >> column & 1) != 0; },
                          [&](int column) WINOGRAD_INLINE_LAMBDA { return line[column]; },
                          [&](int column, Vector result) WINOGRAD_INLINE_LAMBDA {
                            store(at + __builtin_popcount(columns & ((1u << column) - 1)) * slot_stride, result);
                          });
    }
  }
  template <unsigned columns>
  static void transform_row(unsigned, const Vector *line, const TilePlaces &tiles, int64_t slot_stride, float *to) {
    transform_kept(columns, line, tiles, slot_stride, to);
  }
  static void transform_any_row(unsigned columns, const Vector *line, const TilePlaces &tiles, int64_t slot_stride, float *to) {
    transform_kept(columns, line, tiles, slot_stride, to);
  }

  static constexpr unsigned kAllColumns = (1u << t) - 1;
  // One of 2^t functions, found by halving; where that would be hundreds, one serves all but the full row.
  static TransformRow transform_of(unsigned columns) {
    if (columns == kAllColumns) return transform_row<kAllColumns>;
    if constexpr (t <= 6)
      return one_of<0, kAllColumns + 1>(columns);
    else
      return transform_any_row;
  }
  template <unsigned first, unsigned count>
  static TransformRow one_of(unsigned columns) {
    if constexpr (count == 1)
      return transform_row<first>;
    else
      return columns < first + count / 2 ? one_of<first, count / 2>(columns) : one_of<first + count / 2, count / 2>(columns);
  }

  template <bool all_rows>
  bool needs_row(int row) const {
    return all_rows || kept_.row(row);
  }

  // B^T down each column of the strip; what two tiles share is done once.
  template <bool all_rows>
  void transform_columns(const Place &place, int64_t tiles, int64_t channel, Vector (&lines)[t][kStripColumns]) const {
    const winograd_problem &problem = geometry_.problem;
    const int columns = static_cast<int>(tiles) * m + kShared;
    const int64_t top = place.row - problem.pad_height, left = place.column - problem.pad_width;
    const int64_t pixel = problem.channels, line = problem.width * pixel;
    const float *const corner = input_ + place.image * problem.height * line + top * line + left * pixel + channel;
    const int64_t lanes = smaller<int64_t>(kLanes, geometry_.runs.channels - channel);
    const auto transform_column = [&](int column, const auto &value) WINOGRAD_INLINE_LAMBDA {
      apply_input_rows<m>([&](int row) WINOGRAD_INLINE_LAMBDA { return needs_row<all_rows>(row); }, value,
                          [&](int row, Vector result) WINOGRAD_INLINE_LAMBDA { lines[row][column] = result; });
    };
    const bool is_inside = top >= 0 && left >= 0 && top + t <= problem.height && left + columns <= problem.width;
    if (is_inside && lanes == kLanes) {
      for (int column = 0; column < columns; ++column) {
        const float *const from = corner + column * pixel;
        // The next strip; the hardware does not follow so many streams.
        WINOGRAD_UNROLL
        for (int row = 0; row < t; ++row) __builtin_prefetch(from + row * line + columns * pixel, 0, 3);
        transform_column(column, [&](int row) WINOGRAD_INLINE_LAMBDA { return load(from + row * line); });
      }
      return;
    }
    const float *from[t];
    int64_t step[t];
    for (int row = 0; row < t; ++row) {
      const bool exists = top + row >= 0 && top + row < problem.height;
      from[row] = exists ? corner + row * line : zeros_;
      step[row] = exists ? pixel : 0;
    }
    for (int column = 0; column < columns; ++column) {
      if (left + column < 0 || left + column >= problem.width) {
        WINOGRAD_UNROLL
        for (int row = 0; row < t; ++row) lines[row][column] = Vector{};
      } else if (lanes == kLanes) {
        transform_column(column, [&](int row) WINOGRAD_INLINE_LAMBDA { return load(from[row] + column * step[row]); });
      } else {
        transform_column(column, [&](int row) WINOGRAD_INLINE_LAMBDA { return load_some(from[row] + column * step[row], lanes); });
      }
    }
  }

  // B^T along each row of each tile, into V.
  void transform_rows(const Vector (&lines)[t][kStripColumns], int64_t tile, int64_t tiles, int64_t rows, float *v) const {
    TilePlaces places;
    places.count = tiles;
    for (int64_t i = 0; i < tiles; ++i)
      places.offset[i] = (tile + i) / rows * rows * geometry_.padded_channels + (tile + i) % rows * kChannelBlock;
    if constexpr (dense) {  // a tile at a time, which is a little faster where no row needs a function of its own
      for (int64_t i = 0; i < tiles; ++i) transform_tile(lines, i * m, v + places.offset[i]);
      return;
    }
    for (int row = 0; row < t; ++row) {
      const KeptRow &of_row = rows_[row];
      if (of_row.columns != 0) of_row.transform(of_row.columns, lines[row], places, geometry_.input_stride, v + of_row.offset);
    }
  }

  void transform_tile(const Vector (&lines)[t][kStripColumns], int64_t first, float *to) const {
    WINOGRAD_UNROLL
    for (int row = 0; row < t; ++row)
      apply_input_rows<m>([](int) WINOGRAD_INLINE_LAMBDA { return true; },
                          [&](int column) WINOGRAD_INLINE_LAMBDA { return lines[row][first + column]; },
                          [&](int column, Vector result) WINOGRAD_INLINE_LAMBDA {
                            store(to + (row * t + column) * geometry_.input_stride, result);
                          });
  }

  struct KeptRow {
    unsigned columns;  // a bit for each that is kept
    int64_t offset;    // in V, of the first
    TransformRow transform;
  };

  const Geometry<m> &geometry_;
  const KeptSome<t> kept_;
  KeptRow rows_[t];
  bool keeps_all_rows_ = true;
  const float *const input_;
  const float *const zeros_;
};

}  // namespace winograd::WINOGRAD_VARIANT
