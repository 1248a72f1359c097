// Gradients of a Winograd convolution, for training: every step of it is linear, so this is the same chain transposed.
//
//   dM = A dY A^T      dU = sum over tiles of dM V^T      dV = U^T dM      dx = sum over tiles of B dV B^T
//
//   dM, V, dV   [slot of the run][tile of the block][filters or channels, filled up to whole vectors]
//   dU          [slot][filter][channels, filled up]
//   U           [slot][run][panel of two vectors of channels][filter of the run][channels of the panel]
//
// Each thread takes whole images, so that tiles, which overlap in dx, are added up by one thread, and sums up a dU of its own.
#pragma once

#include "geometry.hpp"

namespace winograd::WINOGRAD_VARIANT {

WINOGRAD_INLINE Vector load_lanes(const float *from, int64_t lanes) { return lanes == kLanes ? load(from) : load_some(from, lanes); }
WINOGRAD_INLINE void store_lanes(float *to, Vector value, int64_t lanes) {
  if (lanes == kLanes)
    store(to, value);
  else
    store_some(to, value, lanes);
}

inline constexpr int kColumns = 2 * kLanes;  // of a panel

// C (+)= A B: `depth` outer products of a column of A and a row of B, whole vectors wide.
struct OuterProducts {
  const float *a;
  int64_t a_row, a_step;  // between rows, and between steps of the depth
  const float *b;
  int64_t b_step, b_panel;  // between steps, and between panels of kColumns
  int64_t depth;
  float *c;
  int64_t c_row;
};

template <int rows, int vectors, bool accumulate>
WINOGRAD_INLINE void add_outer_products(const OuterProducts &of, int64_t offset) {
  const float *a = of.a, *b = of.b + offset / kColumns * of.b_panel;
  float *const c = of.c + offset;
  Vector sums[rows][vectors];
  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) sums[row][part] = accumulate ? load(c + row * of.c_row + part * kLanes) : Vector{};
  for (int64_t step = 0; step < of.depth; ++step, a += of.a_step, b += of.b_step) {
    Vector values[vectors];
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) values[part] = load(b + part * kLanes);
    WINOGRAD_UNROLL
    for (int row = 0; row < rows; ++row) {
      const Vector factor = broadcast(a[row * of.a_row]);
      WINOGRAD_UNROLL
      for (int part = 0; part < vectors; ++part) sums[row][part] += factor * values[part];
    }
  }
  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) store(c + row * of.c_row + part * kLanes, sums[row][part]);
}

template <int rows, bool accumulate>
__attribute__((noinline)) void add_rows(const OuterProducts &of, int64_t columns) {
  int64_t offset = 0;
  for (; offset + kLanes < columns; offset += kColumns) add_outer_products<rows, 2, accumulate>(of, offset);
  if (offset < columns) add_outer_products<rows, 1, accumulate>(of, offset);
}

// Some rows in panels of nearly the same size, as many as there are registers for.
template <bool accumulate>
void multiply_matrices(OuterProducts of, int64_t rows, int64_t columns) {
  using AddRows = void (*)(const OuterProducts &, int64_t);
  static constexpr AddRows of_rows[] = {
      nullptr,
      add_rows<1, accumulate>, add_rows<2, accumulate>, add_rows<3, accumulate>,
      add_rows<4, accumulate>, add_rows<5, accumulate>, add_rows<6, accumulate>,
#if WINOGRAD_LANES == 16
      add_rows<7, accumulate>, add_rows<8, accumulate>, add_rows<9, accumulate>, add_rows<10, accumulate>,
      add_rows<11, accumulate>, add_rows<12, accumulate>, add_rows<13, accumulate>, add_rows<14, accumulate>,
#endif
  };
  const int64_t panel = ceil_div(rows, ceil_div(rows, kMostRows));
  for (int64_t row = 0; row < rows; row += panel) {
    of_rows[smaller(panel, rows - row)](of, columns);
    of.a += panel * of.a_row;
    of.c += panel * of.c_row;
  }
}

template <int m>
class Gradients {
 public:
  // Without a workspace it only counts how large one must be.
  explicit Gradients(const Backward &backward)
      : of_(backward),
        geometry_(backward.problem, {backward.block_tiles, kPanel, 0}),
        threads_(smaller<int64_t>(backward.threads.count, backward.problem.batch)),
        channels_(round_up(geometry_.runs.channels, kLanes)),
        filters_(round_up(geometry_.runs.filters, kLanes)),
        channel_stride_(apart_from_pages(geometry_.block_tiles * channels_)),
        filter_stride_(apart_from_pages(geometry_.block_tiles * filters_)) {
    Layout layout(of_.workspace);
    products_ = layout.floats(threads_ * geometry_.kept * filter_stride_);
    inputs_ = layout.floats(threads_ * geometry_.kept * channel_stride_);
    weights_ = layout.floats(wants_input() ? weight_rows() * round_up(channels_, kColumns) : 0);
    sums_ = layout.floats(wants_weights() && !sums_are_the_gradient() ? threads_ * weight_floats() : 0);
    if (sums_are_the_gradient()) sums_ = of_.operands.weight_gradient;
    workspace_floats_ = layout.used();
  }

  int64_t workspace_floats() const { return workspace_floats_; }

  void compute() {
    if (wants_input()) in_parallel([&](int64_t thread) { pack_weights(thread); });
    in_parallel([&](int64_t thread) { compute_part(thread); });
    if (wants_weights() && !sums_are_the_gradient()) in_parallel([&](int64_t thread) { add_up(thread); });
  }

 private:
  static constexpr int t = Matrices<m>::t;

  bool wants_input() const { return of_.operands.input_gradient != nullptr; }
  bool wants_weights() const { return of_.operands.weight_gradient != nullptr; }
  int64_t weight_rows() const { return geometry_.kept * of_.problem.filters; }
  int64_t weight_floats() const { return weight_rows() * channels_; }
  // One thread's, without anything to fill up.
  bool sums_are_the_gradient() const { return wants_weights() && threads_ == 1 && channels_ == geometry_.runs.channels; }

  template <class Body>
  void in_parallel(const Body &body) const {
    run_parts(of_.threads, threads_, body);
  }

  // A row of U is a filter's channels at one slot; as panels, rows of a run lie one after the other.
  void pack_weights(int64_t thread) const {
    const int64_t channels = geometry_.runs.channels, filters = geometry_.runs.filters;
    const Range rows = Range{0, weight_rows()}.part(thread, threads_);
    for (int64_t row = rows.first; row < rows.end(); ++row) {
      const float *const from = of_.operands.weights + row * channels;
      float *const to = packed(row / filters) + row % filters * kColumns;
      for (int64_t channel = 0; channel < channels_; channel += kLanes)
        store(to + channel / kColumns * filters * kColumns + channel % kColumns,
              load_lanes(from + channel, smaller<int64_t>(kLanes, channels - channel)));
    }
  }
  // U of one slot and run, both counted together.
  float *packed(int64_t slot_and_run) const { return weights_ + slot_and_run * geometry_.runs.filters * round_up(channels_, kColumns); }

  void compute_part(int64_t thread) const {
    const Range images = Range{0, of_.problem.batch}.part(thread, threads_);
    const int64_t image_floats = of_.problem.height * of_.problem.width * of_.problem.channels;
    if (wants_input())
      std::memset(of_.operands.input_gradient + images.first * image_floats, 0, sizeof(float) * static_cast<size_t>(images.count * image_floats));
    const int64_t of_image = geometry_.tiles_high * geometry_.tiles_wide;
    const Range mine{images.first * of_image, images.count * of_image};
    const int64_t blocks = ceil_div(mine.count, geometry_.block_tiles);
    for (int64_t run = 0; run < geometry_.runs.count; ++run) {
      const Part part(*this, run, thread);
      for (int64_t block = 0; block < blocks; ++block) part.compute(mine.part(block, blocks), block == 0);
    }
  }

  // dU from the sums of all threads.
  void add_up(int64_t thread) const {
    const Range rows = Range{0, weight_rows()}.part(thread, threads_);
    const int64_t channels = geometry_.runs.channels;
    for (int64_t row = rows.first; row < rows.end(); ++row)
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        Vector sum{};
        for (int64_t other = 0; other < threads_; ++other) sum += load(sums_ + other * weight_floats() + row * channels_ + channel);
        store_lanes(of_.operands.weight_gradient + row * channels + channel, sum, smaller<int64_t>(kLanes, channels - channel));
      }
  }

  // Filters with common positions, on one thread.
  class Part {
   public:
    Part(const Gradients &of, int64_t run, int64_t thread)
        : of_(of),
          geometry_(of.geometry_),
          run_(run),
          first_channel_(run / of.geometry_.runs.of_each_group * of.geometry_.runs.channels),
          products_(of.products_ + thread * geometry_.kept * of.filter_stride_),
          inputs_(of.inputs_ + thread * geometry_.kept * of.channel_stride_),
          sums_(of.sums_ + thread * of.weight_floats()) {
      const int32_t *const positions = geometry_.runs.positions(of.of_.problem, run);
      for (int slot = 0; slot < geometry_.kept; ++slot) {
        kept_.keep(positions[slot] / t, positions[slot] % t);
        slot_[positions[slot] / t][positions[slot] % t] = slot;
      }
    }

    // `is_first` of the thread's blocks: dU begins with it.
    void compute(Range tiles, bool is_first) const {
      transform_gradient(tiles);
      const Runs &runs = geometry_.runs;
      if (of_.wants_weights()) {
        transform_input(tiles);
        for (int64_t slot = 0; slot < geometry_.kept; ++slot) {
          const OuterProducts of_slot{products_ + slot * of_.filter_stride_, 1, of_.filters_,
                                      inputs_ + slot * of_.channel_stride_, of_.channels_, kColumns, tiles.count,
                                      sums_ + (slot * of_.of_.problem.filters + run_ * runs.filters) * of_.channels_, of_.channels_};
          if (is_first)
            multiply_matrices<false>(of_slot, runs.filters, of_.channels_);
          else
            multiply_matrices<true>(of_slot, runs.filters, of_.channels_);
        }
      }
      if (of_.wants_input()) {
        for (int64_t slot = 0; slot < geometry_.kept; ++slot)
          multiply_matrices<false>({products_ + slot * of_.filter_stride_, of_.filters_, 1, of_.packed(slot * runs.count + run_),
                                    kColumns, runs.filters * kColumns, runs.filters, inputs_ + slot * of_.channel_stride_,
                                    of_.channels_},
                                   tiles.count, of_.channels_);
        add_tiles(tiles);
      }
    }

   private:
    // Calls use(place, vector's first, lanes, tile) for all tiles and vectors of `count` channels or filters.
    template <class Use>
    WINOGRAD_INLINE void for_all(Range tiles, int64_t count, const Use &use) const {
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const Place place = geometry_.place_of(tiles.first + tile);
        for (int64_t first = 0; first < count; first += kLanes) use(place, first, smaller<int64_t>(kLanes, count - first), tile);
      }
    }

    // dM = A dY A^T.
    void transform_gradient(Range tiles) const {
      const int64_t pixel = of_.of_.problem.filters, line = geometry_.out_width * pixel;
      const float *const gradient = of_.of_.operands.output_gradient + run_ * geometry_.runs.filters;
      for_all(tiles, geometry_.runs.filters, [&](const Place &place, int64_t filter, int64_t lanes, int64_t tile) {
        const float *const from = gradient + (place.image * geometry_.out_height + place.row) * line + place.column * pixel + filter;
        const int64_t high = smaller<int64_t>(m, geometry_.out_height - place.row);
        const int64_t wide = smaller<int64_t>(m, geometry_.out_width - place.column);
        Vector half_done[t][m];  // A dY
        for (int column = 0; column < m; ++column) {
          Vector y[m];
          for (int row = 0; row < m; ++row)
            y[row] = row < high && column < wide ? load_lanes(from + row * line + column * pixel, lanes) : Vector{};
          apply_output_columns<m>([](int) WINOGRAD_INLINE_LAMBDA { return true; },
                                  [&](int row) WINOGRAD_INLINE_LAMBDA { return y[row]; },
                                  [&](int row, Vector value) WINOGRAD_INLINE_LAMBDA { half_done[row][column] = value; });
        }
        float *const to = products_ + tile * of_.filters_ + filter;
        for (int row = 0; row < t; ++row)
          if (kept_.row(row))
            apply_output_columns<m>([&](int column) WINOGRAD_INLINE_LAMBDA { return kept_.at(row, column); },
                                    [&](int column) WINOGRAD_INLINE_LAMBDA { return half_done[row][column]; },
                                    [&](int column, Vector value) WINOGRAD_INLINE_LAMBDA {
                                      store(to + slot_[row][column] * of_.filter_stride_, value);
                                    });
      });
    }

    // V = B^T d B.
    void transform_input(Range tiles) const {
      const winograd_problem &problem = of_.of_.problem;
      const int64_t pixel = problem.channels, line = problem.width * pixel;
      for_all(tiles, geometry_.runs.channels, [&](const Place &place, int64_t channel, int64_t lanes, int64_t tile) {
        const int64_t top = place.row - problem.pad_height, left = place.column - problem.pad_width;
        const float *const from =
            of_.of_.operands.input + place.image * problem.height * line + top * line + left * pixel + first_channel_ + channel;
        Vector half_done[t][t];  // B^T d
        for (int column = 0; column < t; ++column) {
          Vector d[t];
          for (int row = 0; row < t; ++row)
            d[row] = is_inside(top + row, left + column) ? load_lanes(from + row * line + column * pixel, lanes) : Vector{};
          apply_input_rows<m>([](int) WINOGRAD_INLINE_LAMBDA { return true; },
                              [&](int row) WINOGRAD_INLINE_LAMBDA { return d[row]; },
                              [&](int row, Vector value) WINOGRAD_INLINE_LAMBDA { half_done[row][column] = value; });
        }
        float *const to = inputs_ + tile * of_.channels_ + channel;
        for (int row = 0; row < t; ++row)
          if (kept_.row(row))
            apply_input_rows<m>([&](int column) WINOGRAD_INLINE_LAMBDA { return kept_.at(row, column); },
                                [&](int column) WINOGRAD_INLINE_LAMBDA { return half_done[row][column]; },
                                [&](int column, Vector value) WINOGRAD_INLINE_LAMBDA {
                                  store(to + slot_[row][column] * of_.channel_stride_, value);
                                });
      });
    }

    // dx += B dV B^T, where the tile is inside of the image.
    void add_tiles(Range tiles) const {
      const winograd_problem &problem = of_.of_.problem;
      const int64_t pixel = problem.channels, line = problem.width * pixel;
      for_all(tiles, geometry_.runs.channels, [&](const Place &place, int64_t channel, int64_t lanes, int64_t tile) {
        const int64_t top = place.row - problem.pad_height, left = place.column - problem.pad_width;
        float *const to = of_.of_.operands.input_gradient + place.image * problem.height * line + top * line + left * pixel +
                          first_channel_ + channel;
        const float *const from = inputs_ + tile * of_.channels_ + channel;
        Vector half_done[t][t];  // B dV
        for (int column = 0; column < t; ++column) {
          Vector v[t];
          for (int row = 0; row < t; ++row)
            v[row] = kept_.at(row, column) ? load(from + slot_[row][column] * of_.channel_stride_) : Vector{};
          apply_input_columns<m>([&](int row) WINOGRAD_INLINE_LAMBDA { return v[row]; },
                                 [&](int row, Vector value) WINOGRAD_INLINE_LAMBDA { half_done[row][column] = value; });
        }
        for (int row = 0; row < t; ++row)
          apply_input_columns<m>([&](int column) WINOGRAD_INLINE_LAMBDA { return half_done[row][column]; },
                                 [&](int column, Vector value) WINOGRAD_INLINE_LAMBDA {
                                   if (!is_inside(top + row, left + column)) return;
                                   float *const at = to + row * line + column * pixel;
                                   store_lanes(at, load_lanes(at, lanes) + value, lanes);
                                 });
      });
    }

    bool is_inside(int64_t row, int64_t column) const {
      const winograd_problem &problem = of_.of_.problem;
      return row >= 0 && row < problem.height && column >= 0 && column < problem.width;
    }

    const Gradients &of_;
    const Geometry<m> &geometry_;
    const int64_t run_, first_channel_;
    float *const products_, *const inputs_, *const sums_;
    KeptSome<t> kept_{};
    int slot_[t][t]{};
  };

  const Backward &of_;
  const Geometry<m> geometry_;
  const int64_t threads_;
  const int64_t channels_, filters_;                  // of a run, filled up to whole vectors
  const int64_t channel_stride_, filter_stride_;      // of a slot
  int64_t workspace_floats_;
  float *products_, *inputs_, *weights_, *sums_;
};

template <class Use>
void with_gradients(const Backward &backward, const Use &use) {
  const auto of_tile = [&](auto tile) {
    Gradients<decltype(tile)::value> gradients(backward);
    use(gradients);
  };
  switch (backward.problem.m) {
    case 2: return of_tile(Tile<2>{});
    case 4: return of_tile(Tile<4>{});
    case 6: return of_tile(Tile<6>{});
    case 7: return of_tile(Tile<7>{});
  }
}

inline int64_t gradients_workspace_floats(const Backward &backward) {
  int64_t floats = 0;
  with_gradients(backward, [&](const auto &gradients) { floats = gradients.workspace_floats(); });
  return floats;
}

inline void compute_gradients(const Backward &backward) {
  with_gradients(backward, [](auto &gradients) { gradients.compute(); });
}

}  // namespace winograd::WINOGRAD_VARIANT
