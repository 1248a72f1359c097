// Convolutions of bytes: windows of a padded image times packed weights, in vectors or in tile registers.
#pragma once

#include "integer_vectors.hpp"

namespace winograd::integers::WINOGRAD_VARIANT {
namespace {

// One group of a convolution: where its windows begin, and what becomes of its sums.
struct Group {
  const Prepared &network;
  const Step &step;
  const Image &image;
  const uint8_t *windows;
  int64_t row_bytes;    // from a row of windows to the next
  int64_t pixel_bytes;  // from a window to the next
  const int8_t *weights;
  const int32_t *bias;
  int64_t lane;     // the first of this group in arrays by output
  int64_t channel;  // and in the output
  int64_t width;    // of the output
  const Value &output;

};

// Makes outputs of sums, and of a residual if there is one.
template <bool adds, class Out>
struct Finish {
  const Group &of;
  Rounder rounder, sum;
  Out *out;
  const uint8_t *second;
  int32_t second_lowest;

  // The same for 16 outputs, with all that belongs to them in registers.
  struct Of16 {
    const Finish &all;
    RounderOf16 rounder, sum;
    Ints left_second, lowest_second, lowest;
    int64_t first, lanes;

    WINOGRAD_INLINE Of16(const Finish &finish, int64_t block)
        : all(finish), rounder(finish.rounder, finish.of.lane + block), sum(finish.sum, finish.of.lane + block),
          left_second(sum.left), lowest_second(all_of(finish.second_lowest)),
          lowest(all_of(sizeof(Out) == 1 ? finish.of.output.lowest : 0)), first(finish.of.channel + block),
          lanes(finish.of.step.group_filters - block) {
      if (adds) left_second = load(finish.of.network.template at<int32_t>(finish.of.step.left_second) + finish.of.lane + block);
    }

    WINOGRAD_INLINE void operator()(const Ints &sums, int64_t pixel) const {
      const int64_t to = pixel * all.of.output.channels + first;
      Ints y = all.of.step.shifts_left ? rounder(sums) : rounder.shifted(sums);
      // Of the residual, what lies behind the last channel is read too, and not used: the arena goes on far enough.
      if (adds) {
        const Ints other = plus(load(all.second + to), lowest_second);
        y = sum.shifted(plus(shifted_left(y, sum.left), shifted_left(other, left_second)));
      }
      y = minus(y, lowest);
      if (lanes >= kLanes)
        store(all.out + to, y);
      else
        store_some(all.out + to, y, lanes);
    }
  };
  WINOGRAD_INLINE Of16 of16(int64_t block) const { return Of16(*this, block); }
};

// Calls body(a Finish), with the type that the output has in memory.
template <class Body>
WINOGRAD_INLINE void finishing(const Group &of, const Body &body) {
  const Rounder rounder(of.network, of.step.rounding);
  uint8_t *const out = of.image.arena + of.output.place;
  if (of.step.second >= 0) {
    const Value &second = of.network.value(of.step.second);
    const Rounder sum(of.network, of.step.sum);
    body(Finish<true, uint8_t>{of, rounder, sum, out, of.image.arena + second.place, second.lowest});
  } else if (of.output.is_wide) {
    body(Finish<false, int32_t>{of, rounder, rounder, reinterpret_cast<int32_t *>(out), nullptr, 0});
  } else {
    body(Finish<false, uint8_t>{of, rounder, rounder, out, nullptr, 0});
  }
}

template <int pixels, int vectors, class Finishing>
WINOGRAD_INLINE void few_pixels(const Group &of, int64_t row, int64_t column, int64_t block, const Finishing &finish) {
  Ints sums[pixels][vectors];
  const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
  const int64_t panel = int64_t{of.step.fours} * kLanes * kTogether;
  const int8_t *w = of.weights + block / kLanes * panel;
  WINOGRAD_UNROLL
  for (int p = 0; p < pixels; ++p)
  WINOGRAD_UNROLL
    for (int v = 0; v < vectors; ++v) sums[p][v] = load(of.bias + of.lane + block + v * kLanes);
  const Run *const runs = of.network.at<Run>(of.step.runs);
  for (int32_t r = 0; r < of.step.run_count; ++r) {
    const uint8_t *from[pixels];
  WINOGRAD_UNROLL
    for (int p = 0; p < pixels; ++p) from[p] = x + runs[r].offset + p * of.pixel_bytes;
    for (int64_t four = 0; four < runs[r].fours; ++four, w += kLanes * kTogether) {
      Weights weights[vectors];
  WINOGRAD_UNROLL
      for (int v = 0; v < vectors; ++v) weights[v] = load_weights(w + v * panel);
  WINOGRAD_UNROLL
      for (int p = 0; p < pixels; ++p) {
        const Pixel pixel = load_pixel(from[p] + kTogether * four);
  WINOGRAD_UNROLL
        for (int v = 0; v < vectors; ++v) sums[p][v] = multiply_add(sums[p][v], pixel, weights[v]);
      }
    }
  }
  WINOGRAD_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const auto finish_vector = finish.of16(block + v * kLanes);
  WINOGRAD_UNROLL
    for (int p = 0; p < pixels; ++p) finish_vector(sums[p][v], row * of.width + column + p);
  }
}

template <int vectors, class Finishing>
WINOGRAD_INLINE void row_of_pixels(const Group &of, int64_t row, int64_t block, const Finishing &finish) {
  int64_t column = 0;
  for (; column + kPixels <= of.width; column += kPixels) few_pixels<kPixels, vectors>(of, row, column, block, finish);
  if (kPixels > 4 && column + 4 <= of.width) few_pixels<4, vectors>(of, row, column, block, finish), column += 4;
  for (; column < of.width; ++column) few_pixels<1, vectors>(of, row, column, block, finish);
}

template <class Finishing>
WINOGRAD_INLINE void rows_in_vectors(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  for (int64_t row = begin; row < end; ++row) {
    int64_t block = 0;
    for (; kVectors == 2 && block + 2 * kLanes <= of.step.group_lanes; block += 2 * kLanes) row_of_pixels<2>(of, row, block, finish);
    for (; block < of.step.group_lanes; block += kLanes) row_of_pixels<1>(of, row, block, finish);
  }
}

#if defined(__AMX_INT8__)
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tile registers: 0 to 3 sums of up to 16 pixels and 16 outputs each, 4 pixels, 5 and 6 weights.
void shape_tiles(const Step &step) {
  TileShapes shapes;
  for (int sums = 0; sums < 4; ++sums) shapes.row_bytes[sums] = 64, shapes.rows[sums] = static_cast<uint8_t>(step.tile_rows);
  shapes.row_bytes[4] = static_cast<uint16_t>(step.tile_fours * kTogether);
  shapes.rows[4] = static_cast<uint8_t>(step.tile_rows);
  for (int weights = 5; weights < 7; ++weights)
    shapes.row_bytes[weights] = 64, shapes.rows[weights] = static_cast<uint8_t>(step.tile_fours);
  _tile_loadconfig(&shapes);
}

template <int vectors, class Finishing>
WINOGRAD_INLINE void tile_of_pixels(const Group &of, int64_t row, int64_t column, int64_t block, const Finishing &finish) {
  alignas(64) int32_t sums[4][kMostTileRows][kLanes];
  const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
  const int64_t panel = int64_t{of.step.fours} * kLanes * kTogether;
  const int8_t *w = of.weights + block / kLanes * panel;
  _tile_zero(0);
  if (vectors > 1) _tile_zero(1);
  if (vectors > 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const Run *const runs = of.network.at<Run>(of.step.runs);
  const int64_t step_fours = of.step.tile_fours;
  for (int32_t r = 0; r < of.step.run_count; ++r)
    for (int64_t four = 0; four < runs[r].fours; four += step_fours, w += step_fours * kLanes * kTogether) {
      _tile_loadd(4, x + runs[r].offset + kTogether * four, of.pixel_bytes);
      _tile_loadd(5, w, 64);
      _tile_dpbusd(0, 4, 5);
      if (vectors > 1) {
        _tile_loadd(6, w + panel, 64);
        _tile_dpbusd(1, 4, 6);
      }
      if (vectors > 2) {
        _tile_loadd(5, w + 2 * panel, 64);
        _tile_dpbusd(2, 4, 5);
        _tile_loadd(6, w + 3 * panel, 64);
        _tile_dpbusd(3, 4, 6);
      }
    }
  _tile_stored(0, sums[0], 64);
  if (vectors > 1) _tile_stored(1, sums[1], 64);
  if (vectors > 2) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }
  const int64_t pixels = of.width - column < of.step.tile_rows ? of.width - column : of.step.tile_rows;
  for (int v = 0; v < vectors; ++v) {
    const Ints bias = load(of.bias + of.lane + block + v * kLanes);
    const auto finish_vector = finish.of16(block + v * kLanes);
    for (int64_t p = 0; p < pixels; ++p) finish_vector(plus(load(sums[v][p]), bias), row * of.width + column + p);
  }
}

template <class Finishing>
WINOGRAD_INLINE void rows_in_tiles(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  shape_tiles(of.step);
  for (int64_t row = begin; row < end; ++row) {
    int64_t block = 0;
    for (; block + 4 * kLanes <= of.step.group_lanes; block += 4 * kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<4>(of, row, column, block, finish);
    for (; block + 2 * kLanes <= of.step.group_lanes; block += 2 * kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<2>(of, row, column, block, finish);
    for (; block < of.step.group_lanes; block += kLanes)
      for (int64_t column = 0; column < of.width; column += of.step.tile_rows) tile_of_pixels<1>(of, row, column, block, finish);
  }
  _tile_release();
}
#endif

// Depthwise: each output from its own channel, 16 channels at a time; weights are int32 [taps][channels].
template <class Finishing>
WINOGRAD_INLINE void rows_by_channel(const Group &of, int64_t begin, int64_t end, const Finishing &finish) {
  const int32_t *const weights = reinterpret_cast<const int32_t *>(of.weights);
  const Run *const runs = of.network.at<Run>(of.step.runs);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < of.width; ++column) {
      const uint8_t *x = of.windows + row * of.row_bytes + column * of.pixel_bytes;
      for (int64_t block = 0; block < of.step.group_lanes; block += kLanes) {
        Ints sums = load(of.bias + block);
        for (int32_t r = 0; r < of.step.run_count; ++r)
          sums = plus(sums, times(load(x + runs[r].offset + block), load(weights + int64_t{r} * of.step.group_lanes + block)));
        finish.of16(block)(sums, row * of.width + column);
      }
    }
}

// The image with its padding, the channels of one group only, filled up to a whole number of fours.
void copy_padded(const Image &image, const Step &step, const Value &source, int64_t first_channel, int64_t channels) {
  const uint8_t *from = image.arena + source.place + first_channel;
  const int zero = -source.lowest;  // padding stands for the integer zero
  const int64_t width = source.width + 2 * int64_t{step.padding[1]}, height = source.height + 2 * int64_t{step.padding[0]};
  const int64_t row_bytes = width * step.group_channels, margin = int64_t{step.padding[1]} * step.group_channels;
  uint8_t *to = image.scratch;
  for (int64_t row = 0; row < height; ++row, to += row_bytes) {
    const int64_t source_row = row - step.padding[0];
    if (source_row < 0 || source_row >= source.height) {
      std::memset(to, zero, static_cast<size_t>(row_bytes));
      continue;
    }
    const uint8_t *line = from + source_row * source.width * source.channels;
    std::memset(to, zero, static_cast<size_t>(margin));
    if (channels == source.channels && channels == step.group_channels) {
      std::memcpy(to + margin, line, static_cast<size_t>(source.width * channels));
    } else {
      uint8_t *pixel = to + margin;
      for (int64_t column = 0; column < source.width; ++column, line += source.channels, pixel += step.group_channels) {
        std::memcpy(pixel, line, static_cast<size_t>(channels));
        for (int64_t c = channels; c < step.group_channels; ++c) pixel[c] = 0;  // their weights are zero
      }
    }
    std::memset(to + margin + int64_t{source.width} * step.group_channels, zero, static_cast<size_t>(margin));
  }
}

void run_rows(const Group &of, int64_t begin, int64_t end) {
  finishing(of, [&](const auto &finish) {
    if (of.step.is_depthwise) return rows_by_channel(of, begin, end, finish);
#if defined(__AMX_INT8__)
    if (has_tiles() && of.step.tile_rows > 0) return rows_in_tiles(of, begin, end, finish);
#endif
    rows_in_vectors(of, begin, end, finish);
  });
}

// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kWorthSharing = 2000000;

struct SharedRows {
  const Group *group;
  int64_t rows, parts;
};

void run_shared_rows(void *context, int64_t part) {
  const SharedRows &shared = *static_cast<const SharedRows *>(context);
  run_rows(*shared.group, shared.rows * part / shared.parts, shared.rows * (part + 1) / shared.parts);
}

void convolve(const Image &image, const Step &step) {
  const Prepared &network = *image.network;
  const Value &source = network.value(step.source), &output = network.value(step.output);
  const int64_t groups = step.is_depthwise ? 1 : step.groups, channels = source.channels / groups;
  for (int64_t group = 0; group < groups; ++group) {
    int64_t width = source.width, first = 0;
    if (step.is_copied) {
      copy_padded(image, step, source, group * channels, channels);
      width += 2 * int64_t{step.padding[1]};
    } else {
      first = image.arena - image.scratch + source.place;
    }
    const int64_t panels = int64_t{step.fours} * step.group_lanes * kTogether;
    const Group of{network, step, image, image.scratch + first, width * step.group_channels * step.stride[0],
                   int64_t{step.group_channels} * step.stride[1], network.at<int8_t>(step.weights) + group * panels,
                   network.at<int32_t>(step.bias), group * step.group_lanes, group * step.group_filters, output.width, output};
    const winograd_threads *const threads = image.threads;
    if (threads == nullptr || step.multiplications < kWorthSharing || output.height < 2) {
      run_rows(of, 0, output.height);
    } else {
      SharedRows shared{&of, output.height, threads->count < output.height ? threads->count : output.height};
      threads->run(threads->runner, shared.parts, run_shared_rows, &shared);
    }
  }
}

}  // namespace
}  // namespace winograd::integers::WINOGRAD_VARIANT
