// From the input to V, a vector of channels at a time.
//
//   V   [slot][panel of tiles][channels / 16][panel_rows][16]
//
// Neighbouring tiles share t - m columns, so B^T goes down the columns of a strip of tiles once, into the first-level cache,
// and then along the rows of each tile.
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
    for (int row = 0; row < t; ++row)
      for (int column = 0; column < t; ++column) offset_[row][column] = slots.input_slot[row][column] * geometry.input_stride;
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
        transform_columns(place, strip, channel, lines);
        transform_rows(lines, tile, strip, rows, to);
      }
      tile += strip;
    }
  }

 private:
  static constexpr int t = Matrices<m>::t;
  static constexpr int kShared = t - m;                              // columns that neighbouring tiles share
  static constexpr int kStripColumns = static_cast<int>(kStripTiles) * m + kShared;

  bool needs(int row, int column) const { return dense || kept_.at(row, column); }
  bool needs_row(int row) const { return dense || kept_.row(row); }
  int64_t offset_of(int row, int column) const {
    return dense ? (row * t + column) * geometry_.input_stride : offset_[row][column];
  }

  // B^T down each column of the strip; what two tiles share is done once.
  void transform_columns(const Place &place, int64_t tiles, int64_t channel, Vector (&lines)[t][kStripColumns]) const {
    const winograd_problem &problem = geometry_.problem;
    const int columns = static_cast<int>(tiles) * m + kShared;
    const int64_t top = place.row - problem.pad_height, left = place.column - problem.pad_width;
    const int64_t pixel = problem.channels, line = problem.width * pixel;
    const float *const corner = input_ + place.image * problem.height * line + top * line + left * pixel + channel;
    const int64_t lanes = smaller<int64_t>(kLanes, geometry_.runs.channels - channel);
    const auto transform_column = [&](int column, const auto &value) WINOGRAD_INLINE_LAMBDA {
      apply_input_rows<m>([&](int row) WINOGRAD_INLINE_LAMBDA { return needs_row(row); }, value,
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
    for (int64_t of_strip = 0; of_strip < tiles; ++of_strip, ++tile) {
      float *const to = v + tile / rows * rows * geometry_.padded_channels + tile % rows * kChannelBlock;
      WINOGRAD_UNROLL
      for (int row = 0; row < t; ++row) {
        if (!needs_row(row)) continue;
        const Vector *const line = lines[row] + of_strip * m;
        apply_input_rows<m>([&](int column) WINOGRAD_INLINE_LAMBDA { return needs(row, column); },
                            [&](int column) WINOGRAD_INLINE_LAMBDA { return line[column]; },
                            [&](int column, Vector result) WINOGRAD_INLINE_LAMBDA {
                              store(to + offset_of(row, column), result);
                            });
      }
    }
  }

  const Geometry<m> &geometry_;
  const KeptSome<t> kept_;
  int64_t offset_[t][t];  // in V, of each position
  const float *const input_;
  const float *const zeros_;
};

}  // namespace winograd::WINOGRAD_VARIANT
