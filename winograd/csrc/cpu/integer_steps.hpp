// Runs the steps of a prepared network of integers, with one instruction set (see vector.hpp for how one source serves all).
#pragma once

#include <type_traits>

#include "../matrices.hpp"
#include "integer_convolutions.hpp"
#include "integer_winograd.hpp"

namespace winograd::integers::WINOGRAD_VARIANT {
namespace {

WINOGRAD_INLINE int32_t add(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
WINOGRAD_INLINE int32_t multiply(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }
WINOGRAD_INLINE int32_t shift_left(int32_t a, int32_t by) { return static_cast<int32_t>(static_cast<uint32_t>(a) << by); }

// Integers of a value, whatever its type in memory.
template <class T>
struct Numbers {
  T *numbers;
  int32_t lowest;  // 0 where they are wide
  WINOGRAD_INLINE int32_t get(int64_t at) const { return numbers[at] + lowest; }
  WINOGRAD_INLINE void set(int64_t at, int32_t x) const { numbers[at] = static_cast<T>(x - lowest); }
};

template <class Body>
WINOGRAD_INLINE void with_value(const Image &image, int32_t number, const Body &body) {
  const Value &value = image.network->value(number);
  with_numbers(image, value, [&](auto *numbers) { body(Numbers<std::remove_pointer_t<decltype(numbers)>>{numbers, value.is_wide ? 0 : value.lowest}); });
}

template <class Body>
WINOGRAD_INLINE void with_two(const Image &image, const Step &step, const Body &body) {
  with_value(image, step.output, [&](auto y) { with_value(image, step.source, [&](auto x) { body(y, x); }); });
}

WINOGRAD_INLINE int32_t rounded(const Rounder &by, int32_t x, int64_t c) {
  const int32_t shifted = add(shift_left(x, by.left[c]), by.half[c]) >> by.right[c];
  const int32_t floored = shifted < by.low[c] ? by.low[c] : shifted;
  return floored > by.high[c] ? by.high[c] : floored;
}

void add_up(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const left = image.network->at<int32_t>(step.rounding.left), *const left_second = image.network->at<int32_t>(step.left_second);
  with_two(image, step, [&](auto y, auto a) {
    with_value(image, step.second, [&](auto b) {
      for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
        for (int32_t c = 0; c < shape.channels; ++c, ++at) {
          const int32_t sum = add(shift_left(a.get(at), left[c]), shift_left(b.get(at), left_second[c]));
          const int32_t shifted = add(sum, rounder.half[c]) >> rounder.right[c];
          const int32_t floored = shifted < rounder.low[c] ? rounder.low[c] : shifted;
          y.set(at, floored > rounder.high[c] ? rounder.high[c] : floored);
        }
    });
  });
}

void multiply_up(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output), &second = image.network->value(step.second);
  const Rounder rounder(*image.network, step.rounding);
  const int64_t is_whole = second.height == shape.height && second.width == shape.width;
  with_two(image, step, [&](auto y, auto a) {
    with_value(image, step.second, [&](auto b) {
      for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
        for (int32_t c = 0; c < shape.channels; ++c, ++at)
          y.set(at, rounded(rounder, multiply(a.get(at), b.get(is_whole ? at : c)), c));
    });
  });
}

// Calls body(offset of the window's number) for what of a window lies inside the image.
template <class Body>
WINOGRAD_INLINE void window(const Step &step, const Value &source, int64_t row, int64_t column, const Body &body) {
  for (int64_t r = 0; r < step.kernel[0]; ++r)
    for (int64_t s = 0; s < step.kernel[1]; ++s) {
      const int64_t y = row * step.stride[0] + r * step.dilation[0] - step.padding[0];
      const int64_t x = column * step.stride[1] + s * step.dilation[1] - step.padding[1];
      if (y >= 0 && y < source.height && x >= 0 && x < source.width) body((y * source.width + x) * source.channels);
    }
}

void pool(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const bool is_average = step.kind == kAveragePool;
  const Rounder rounder(*image.network, step.rounding);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t row = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column)
        for (int32_t c0 = 0; c0 < shape.channels; c0 += kLanes) {
          const int32_t lanes = shape.channels - c0 < kLanes ? shape.channels - c0 : kLanes;
          int32_t found[kLanes];
          for (int32_t i = 0; i < kLanes; ++i) found[i] = is_average ? 0 : INT32_MIN;
          window(step, source, row, column, [&](int64_t at) {
            for (int32_t i = 0; i < lanes; ++i) {
              const int32_t number = x.get(at + c0 + i);
              found[i] = is_average ? add(found[i], number) : found[i] < number ? number : found[i];
            }
          });
          for (int32_t i = 0; i < lanes; ++i) {
            const int32_t number = is_average ? rounded(rounder, multiply(found[i], step.multiplier), c0 + i) : found[i];
            y.set((row * shape.width + column) * shape.channels + c0 + i, number);
          }
        }
  });
}

void look_up(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source);
  const int64_t span = int64_t{source.highest} - source.lowest + 1;
  const int32_t *const table = image.network->at<int32_t>(step.table), *const row = image.network->at<int32_t>(step.row);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t pixel = 0, at = 0; pixel < int64_t{source.height} * source.width; ++pixel)
      for (int32_t c = 0; c < source.channels; ++c, ++at) {
        const int64_t place = int64_t{x.get(at)} - source.lowest;  // a wide number may be anything
        y.set(at, table[row[c] * span + (place < 0 ? 0 : place >= span ? span - 1 : place)]);
      }
  });
}

void requantize(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  with_two(image, step, [&](auto y, auto x) {
    for (int64_t pixel = 0, at = 0; pixel < int64_t{shape.height} * shape.width; ++pixel)
      for (int32_t c = 0; c < shape.channels; ++c, ++at) y.set(at, rounded(rounder, x.get(at), c));
  });
}

void concatenate(const Image &image, const Step &step) {
  const Value &shape = image.network->value(step.output);
  const int32_t *const sources = image.network->at<int32_t>(step.sources);
  with_value(image, step.output, [&](auto y) {
    for (int64_t number = 0, first = 0; number < step.source_count; ++number) {
      const Value &part = image.network->value(sources[number]);
      with_value(image, sources[number], [&](auto x) {
        for (int64_t pixel = 0, at = 0; pixel < int64_t{part.height} * part.width; ++pixel)
          for (int32_t c = 0; c < part.channels; ++c, ++at) y.set(pixel * shape.channels + first + c, x.get(at));
      });
      first += part.channels;
    }
  });
}

// Calls body(c, row, column, place) for each number of a value, in the order in which they lie.
template <class Body>
WINOGRAD_INLINE void each(const Value &shape, const Body &body) {
  int64_t at = 0;
  for (int64_t row = 0; row < shape.height; ++row)
    for (int64_t column = 0; column < shape.width; ++column)
      for (int64_t c = 0; c < shape.channels; ++c, ++at) body(c, row, column, at);
}

// What shortcuts are made of, pixel by pixel: slices that leave channels side by side, and paddings. Both values are held alike.
void move_pixels(const Image &image, const Step &step, const Value &from, const Value &to) {
  const int64_t size = from.is_wide ? 4 : 1, pixel_bytes = to.channels * size;
  const int32_t *const by = step.numbers;
  const uint8_t *const source = image.arena + from.place;
  uint8_t *out = image.arena + to.place;
  if (step.kind == kPadding) std::memset(out, from.is_wide ? 0 : -to.lowest, static_cast<size_t>(to.numbers() * size));
  for (int64_t row = 0; row < to.height; ++row)
    for (int64_t column = 0; column < to.width; ++column, out += pixel_bytes)
      if (step.kind == kSlice) {
        const int64_t pixel = (by[1] + row * by[7]) * from.width + by[2] + column * by[8];
        std::memcpy(out, source + (pixel * from.channels + by[0]) * size, static_cast<size_t>(pixel_bytes));
      } else if (row >= by[1] && row - by[1] < from.height && column >= by[2] && column - by[2] < from.width) {
        const int64_t pixel = (row - by[1]) * from.width + column - by[2];
        std::memcpy(out + by[0] * size, source + pixel * from.channels * size, static_cast<size_t>(from.channels * size));
      }
}

void move(const Image &image, const Step &step) {
  const Value &from = image.network->value(step.source), &to = image.network->value(step.output);
  const int32_t *const by = step.numbers;
  const bool are_alike = from.is_wide == to.is_wide && (from.is_wide || from.lowest == to.lowest);
  if (are_alike && (step.kind == kPadding || (step.kind == kSlice && by[6] == 1))) return move_pixels(image, step, from, to);
  const auto place = [&](int64_t c, int64_t row, int64_t column) { return (row * from.width + column) * from.channels + c; };
  with_two(image, step, [&](auto y, auto x) {
    each(to, [&](int64_t c, int64_t row, int64_t column, int64_t at) {
      switch (step.kind) {
        case kSlice:
          return y.set(at, x.get(place(by[0] + c * by[6], by[1] + row * by[7], by[2] + column * by[8])));
        case kPadding: {
          const int64_t fc = c - by[0], fr = row - by[1], fx = column - by[2];
          const bool is_inside = fc >= 0 && fc < from.channels && fr >= 0 && fr < from.height && fx >= 0 && fx < from.width;
          return y.set(at, is_inside ? x.get(place(fc, fr, fx)) : 0);
        }
        case kNearestUpsample:
          return y.set(at, x.get(place(c, row / by[0], column / by[1])));
        case kReshape: {
          const int64_t flat = (c * to.height + row) * to.width + column;
          return y.set(at, x.get(place(flat / from.width / from.height, flat / from.width % from.height, flat % from.width)));
        }
        default: {  // a permutation
          int64_t of_source[3];
          of_source[by[0]] = c, of_source[by[1]] = row, of_source[by[2]] = column;
          return y.set(at, x.get(place(of_source[0], of_source[1], of_source[2])));
        }
      }
    });
  });
}

// B^T d B: sums of four inputs, since the matrices of F(2x2, 3x3) hold nothing but 0, 1 and -1.
void transform_input(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const positions = image.network->at<int32_t>(step.positions);
  with_two(image, step, [&](auto v, auto x) {
    for (int64_t row = 0, first = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column)
        for (int32_t p = 0; p < step.position_count; ++p, first += source.channels) {
          int64_t places[4];
          int32_t signs[4], count = 0;
          for (int r = 0; r < 4; ++r)
            for (int s = 0; s < 4; ++s) {
              const double sign = kMatrices<2>.bt[positions[p] / 4][r] * kMatrices<2>.bt[positions[p] % 4][s];
              const int64_t y = 2 * row + r - step.padding[0], z = 2 * column + s - step.padding[1];
              if (sign == 0 || y < 0 || y >= source.height || z < 0 || z >= source.width) continue;
              places[count] = (y * source.width + z) * source.channels;
              signs[count++] = static_cast<int32_t>(sign);
            }
          for (int64_t c = 0; c < source.channels; ++c) {
            int32_t sum = 0;
            for (int32_t term = 0; term < count; ++term) sum = add(sum, multiply(signs[term], x.get(places[term] + c)));
            v.set(first + c, rounded(rounder, sum, p * source.channels + c));
          }
        }
  });
}

// A^T m A, with each product shifted to where sums meet.
void transform_output(const Image &image, const Step &step) {
  const Value &source = image.network->value(step.source), &shape = image.network->value(step.output);
  const Rounder rounder(*image.network, step.rounding);
  const int32_t *const positions = image.network->at<int32_t>(step.positions), *const left = image.network->at<int32_t>(step.left_second);
  const int32_t *const bias = image.network->at<int32_t>(step.bias);
  with_two(image, step, [&](auto y, auto m) {
    for (int64_t row = 0, to = 0; row < shape.height; ++row)
      for (int64_t column = 0; column < shape.width; ++column) {
        const int64_t tile = (row / 2 * source.width + column / 2) * source.channels;
        int32_t signs[16];
        for (int32_t p = 0; p < step.position_count; ++p)
          signs[p] = static_cast<int32_t>(kMatrices<2>.at[row % 2][positions[p] / 4] * kMatrices<2>.at[column % 2][positions[p] % 4]);
        for (int64_t k = 0; k < shape.channels; ++k, ++to) {
          int32_t sum = bias[k];
          for (int32_t p = 0; p < step.position_count; ++p) {
            const int64_t product = p * int64_t{shape.channels} + k;
            sum = add(sum, multiply(signs[p], shift_left(m.get(tile + product), left[product])));
          }
          y.set(to, rounded(rounder, sum, k));
        }
      }
  });
}

void take_input(const Image &image, const void *input, bool is_float) {
  constexpr int64_t kChunk = 64;
  const Value &value = image.network->value(image.network->input);
  const int32_t *const lengths = image.network->at<int32_t>(image.network->input_lengths);
  const int64_t pixels = int64_t{value.height} * value.width;
  with_value(image, image.network->input, [&](auto x) {
    for (int32_t c = 0; c < value.channels; ++c) {
      const double scale = __builtin_ldexp(1.0, lengths[c]), low = value.lowest, high = value.highest;
      for (int64_t first = 0; first < pixels; first += kChunk) {
        const int64_t count = pixels - first < kChunk ? pixels - first : kChunk;
        int32_t integers[kChunk];  // first all integers, in vectors, then each to its place
        if (is_float) {
          const float *const from = static_cast<const float *>(input) + c * pixels + first;
          for (int64_t i = 0; i < count; ++i) {
            const double scaled = from[i] * scale + 0.5;
            const double floored = scaled >= low ? scaled : low;  // a number that is none becomes the lowest
            const double bounded = floored < high + 1 ? floored : high;
            integers[i] = static_cast<int32_t>(bounded - low) + value.lowest;  // rounds down, since nothing is negative
          }
        } else {
          const int32_t *const from = static_cast<const int32_t *>(input) + c * pixels + first;
          for (int64_t i = 0; i < count; ++i)
            integers[i] = from[i] < value.lowest ? value.lowest : from[i] > value.highest ? value.highest : from[i];
        }
        for (int64_t i = 0; i < count; ++i) x.set((first + i) * value.channels + c, integers[i]);
      }
    }
  });
}

void give_output(const Image &image, int32_t *output) {
  const Value &value = image.network->value(image.network->output);
  const int64_t pixels = int64_t{value.height} * value.width;
  with_value(image, image.network->output, [&](auto y) {
    each(value, [&](int64_t c, int64_t row, int64_t column, int64_t at) { output[c * pixels + row * value.width + column] = y.get(at); });
  });
}

void run_image(const Image &image, const void *input, bool is_float, int32_t *output) {
  take_input(image, input, is_float);
  for (int32_t number = 0; number < image.network->step_count; ++number) {
    const Step &step = image.network->step(number);
    switch (step.kind) {
      case kConvolution: convolve(image, step); break;
      case kAddition: add_up(image, step); break;
      case kMultiplication: multiply_up(image, step); break;
      case kMaxPool:
      case kAveragePool: pool(image, step); break;
      case kTable: look_up(image, step); break;
      case kRequantization: requantize(image, step); break;
      case kConcatenation: concatenate(image, step); break;
      case kInputTransform: transform_input(image, step); break;
      case kOutputTransform: transform_output(image, step); break;
      case kWinogradConvolution:
        convolve_in_strips(image, number);
        number += kStepsOfWinograd - 1;
        break;
      default: move(image, step);
    }
  }
  give_output(image, output);
}

}  // namespace

extern const Code kCode{run_image};

}  // namespace winograd::integers::WINOGRAD_VARIANT
