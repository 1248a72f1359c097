// What a network of floats computes besides Winograd convolutions, on one instruction set. Tensors lie as N H W C.
//
// A direct convolution holds up to 14 windows of a line times 32 filters in registers, as multiply.hpp does, and reads the windows'
// numbers where they are: a row of a window is one run of floats, whatever the stride, once the image stands in a frame of zeros.
#pragma once

#include "float_network.hpp"
#include "multiply.hpp"

namespace winograd::floats::WINOGRAD_VARIANT {

using namespace ::winograd::WINOGRAD_VARIANT;

inline constexpr int64_t kDepthwiseWindows = 4;    // that are computed together

struct Bounds {
  Vector low, high;
  explicit Bounds(const Step &step) : low(broadcast(step.low)), high(broadcast(step.high)) {}
  // A NaN stays one.
  WINOGRAD_INLINE Vector clamp(Vector value) const {
    value = at_least(value, low);
    return value > high ? high : value;
  }
};

// ---- Direct convolutions -----------------------------------------------------------------------------------------

// Some neighbouring windows, and a panel of filters.
struct Windows {
  const float *input;  // of the first one
  int64_t input_stride;  // from window to window
  const Run *runs;
  int64_t run_count;
  const float *weights;  // [numbers of a window][32]
  const float *bias;
  const float *residual;  // like output, or null
  float *output;
  int64_t output_stride;
  int64_t filters;  // of the panel's 32, those that exist
  Bounds bounds;
};

// `rows` windows times `vectors` vectors of filters, the first of which stands `offset` into the panel.
template <int rows, int vectors>
WINOGRAD_INLINE void convolve_registers(const Windows &of, int64_t offset) {
  constexpr int kBase = 5;  // rows that one pointer serves, since addresses have few forms
  const float *weights = of.weights + offset;
  const int64_t stride = of.input_stride;
  Vector sums[rows][vectors];
  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) sums[row][part] = load(of.bias + offset + part * kLanes);

  for (int64_t r = 0; r < of.run_count; ++r) {
    const float *base[(rows + kBase - 1) / kBase];
    WINOGRAD_UNROLL
    for (int b = 0; b < (rows + kBase - 1) / kBase; ++b) base[b] = of.input + of.runs[r].offset + b * kBase * stride;
    const int64_t count = of.runs[r].floats;
#pragma GCC unroll 2
    for (int64_t i = 0; i < count; ++i, weights += kPanel) {
      Vector here[vectors];
      WINOGRAD_UNROLL
      for (int part = 0; part < vectors; ++part) here[part] = load(weights + part * kLanes);
      WINOGRAD_UNROLL
      for (int row = 0; row < rows; ++row) {
        const Vector value = broadcast(base[row / kBase][row % kBase * stride + i]);
        WINOGRAD_UNROLL
        for (int part = 0; part < vectors; ++part) sums[row][part] += value * here[part];
      }
    }
  }

  WINOGRAD_UNROLL
  for (int row = 0; row < rows; ++row)
    WINOGRAD_UNROLL
    for (int part = 0; part < vectors; ++part) {
      const int64_t at = row * of.output_stride + offset + part * kLanes, lanes = of.filters - offset - part * kLanes;
      Vector value = sums[row][part];
      if (lanes >= kLanes) {
        if (of.residual != nullptr) value += load(of.residual + at);
        store(of.output + at, of.bounds.clamp(value));
      } else {
        if (of.residual != nullptr) value += load_some(of.residual + at, lanes);
        store_some(of.output + at, of.bounds.clamp(value), lanes);
      }
    }
}

template <int rows>
__attribute__((noinline)) void convolve_rows(const Windows &of) {
  int64_t offset = 0;
  for (; offset + kLanes < of.filters; offset += 2 * kLanes) convolve_registers<rows, 2>(of, offset);
  if (offset < of.filters) convolve_registers<rows, 1>(of, offset);
}

using ConvolveRows = void (*)(const Windows &);

WINOGRAD_INLINE ConvolveRows convolve_of(int64_t rows) {
  static constexpr ConvolveRows of_rows[] = {
      nullptr,          convolve_rows<1>, convolve_rows<2>, convolve_rows<3>,  convolve_rows<4>,  convolve_rows<5>,  convolve_rows<6>,
#if WINOGRAD_LANES == 16
      convolve_rows<7>, convolve_rows<8>, convolve_rows<9>, convolve_rows<10>, convolve_rows<11>, convolve_rows<12>, convolve_rows<13>,
      convolve_rows<14>,
#endif
  };
  return of_rows[rows];
}

// One image in its frame, or, where windows lie evenly, all images: lines of windows, to be divided among threads.
class Convolver {
 public:
  Convolver(const Images &images, const Step &step)
      : network_(*images.network), step_(step), from_(network_.value(step.source)), to_(network_.value(step.output)) {
    windows_of_line_ = to_.width;
    lines_ = to_.height;
    line_floats_ = step.stride[0] * (from_.width + 2 * int64_t{step.padding[1]}) * from_.channels;
    stride_ = int64_t{step.stride[1]} * from_.channels;
    if (step.is_even) {
      windows_ = images.count * to_.height * to_.width;
      windows_of_line_ = 4 * kMostRows;
      lines_ = ceil_div(windows_, windows_of_line_);
      stride_ = network_.at<Run>(step.runs)[0].floats;
      line_floats_ = windows_of_line_ * stride_;
    } else {
      windows_ = lines_ * windows_of_line_;
    }
  }

  void convolve(const float *input, const float *residual, float *output, const winograd_threads *threads) {
    input_ = input, residual_ = residual, output_ = output;
    parts_ = threads == nullptr ? 1 : threads->count;
    if (parts_ > 1)
      threads->run(threads->runner, parts_, [](void *of, int64_t part) { static_cast<Convolver *>(of)->convolve_part(part); }, this);
    else
      convolve_part(0);
  }

 private:
  void convolve_part(int64_t part) const {
    if (step_.is_depthwise) return convolve_channels(lines_ * part / parts_, lines_ * (part + 1) / parts_);
    const int64_t items = step_.groups * panels() * lines_, end = items * (part + 1) / parts_;
    for (int64_t item = items * part / parts_; item < end; ++item) convolve_line(item / lines_, item % lines_);
  }

  int64_t filters_of_group() const { return to_.channels / step_.groups; }
  int64_t panels() const { return ceil_div(filters_of_group(), kPanel); }

  void convolve_line(int64_t panel, int64_t line) const {
    const int64_t group = panel / panels(), first = panel % panels() * kPanel;
    const int64_t numbers = int64_t{step_.kernel[0]} * step_.kernel[1] * (from_.channels / step_.groups);
    const int64_t filter = group * filters_of_group() + first;
    const int64_t begin = line * windows_of_line_, count = smaller(windows_of_line_, windows_ - begin);
    const int64_t rows = ceil_div(count, ceil_div(count, kMostRows));
    const int64_t at = begin * to_.channels + filter;
    Windows of{input_ + line * line_floats_ + group * (from_.channels / step_.groups), stride_,
               network_.at<Run>(step_.runs), step_.run_count,
               network_.at<float>(step_.weights) + panel * kPanel * numbers, network_.at<float>(step_.bias) + panel * kPanel,
               residual_ == nullptr ? nullptr : residual_ + at, output_ + at, to_.channels,
               smaller<int64_t>(kPanel, filters_of_group() - first), Bounds(step_)};
    for (int64_t window = 0; window < count; window += rows) {
      const int64_t these = smaller(rows, count - window);
      convolve_of(these)(of);
      of.input += these * of.input_stride;
      of.output += these * of.output_stride;
      if (of.residual != nullptr) of.residual += these * of.output_stride;
    }
  }

  // Depthwise: a vector of channels at a time, each with its own filter.
  void convolve_channels(int64_t begin, int64_t end) const {
    for (int64_t line = begin; line < end; ++line)
      for (int64_t channel = 0; channel < to_.channels; channel += kLanes) {
        const float *const corner = input_ + line * line_floats_ + channel;
        const int64_t start = line * to_.width * to_.channels + channel, lanes = smaller<int64_t>(kLanes, to_.channels - channel);
        int64_t x = 0;
        for (; x + kDepthwiseWindows <= to_.width; x += kDepthwiseWindows)
          convolve_together<kDepthwiseWindows>(corner + x * stride_, channel, start + x * to_.channels, lanes);
        for (; x < to_.width; ++x) convolve_together<1>(corner + x * stride_, channel, start + x * to_.channels, lanes);
      }
  }

  template <int count>
  WINOGRAD_INLINE void convolve_together(const float *corner, int64_t channel, int64_t at, int64_t lanes) const {
    const int64_t room = round_up(to_.channels, kWidestVector);
    const float *weights = network_.at<float>(step_.weights) + channel;
    const Run *const runs = network_.at<Run>(step_.runs);
    const Bounds bounds(step_);
    Vector sums[count];
    for (int i = 0; i < count; ++i) sums[i] = load(network_.at<float>(step_.bias) + channel);
    for (int64_t tap = 0; tap < step_.run_count; ++tap, weights += room) {
      const Vector weight = load(weights);
      for (int i = 0; i < count; ++i) sums[i] += weight * load_some_of(corner + runs[tap].offset + i * stride_, lanes);
    }
    for (int i = 0; i < count; ++i) {
      const int64_t place = at + i * to_.channels;
      Vector value = sums[i];
      if (residual_ != nullptr) value += load_some_of(residual_ + place, lanes);
      store_some_of(output_ + place, bounds.clamp(value), lanes);
    }
  }

 public:
  static WINOGRAD_INLINE Vector load_some_of(const float *from, int64_t lanes) {
    return lanes == kLanes ? load(from) : load_some(from, lanes);
  }
  static WINOGRAD_INLINE void store_some_of(float *to, Vector value, int64_t lanes) {
    if (lanes == kLanes) store(to, value);
    else store_some(to, value, lanes);
  }

 private:
  const Prepared &network_;
  const Step &step_;
  const Value &from_, &to_;
  int64_t windows_, windows_of_line_, lines_, line_floats_, stride_;
  const float *input_ = nullptr, *residual_ = nullptr;
  float *output_ = nullptr;
  int64_t parts_ = 1;
};

inline void zero(float *start, int64_t floats) { std::memset(start, 0, sizeof(float) * static_cast<size_t>(floats)); }
inline void copy(float *to, const float *from, int64_t floats) { std::memcpy(to, from, sizeof(float) * static_cast<size_t>(floats)); }

// An image with zeros around it.
inline void put_in_frame(const float *image, const Value &of, const Step &step, float *frame) {
  const int64_t row = int64_t{of.width} * of.channels, side = int64_t{step.padding[1]} * of.channels;
  const int64_t above = step.padding[0] * (row + 2 * side);
  zero(frame, above);
  frame += above;
  for (int64_t y = 0; y < of.height; ++y, image += row) {
    zero(frame, side);
    copy(frame + side, image, row);
    zero(frame + side + row, side);
    frame += side + row + side;
  }
  zero(frame, above);
}

inline void run_convolution(const Images &images, const Step &step) {
  const Value &from = images.network->value(step.source), &to = images.network->value(step.output);
  const float *input = images.tensor(step.source), *residual = step.second < 0 ? nullptr : images.tensor(step.second);
  float *output = images.tensor(step.output);
  Convolver convolver(images, step);
  const int64_t together = step.is_even ? images.count : 1;
  const winograd_threads *const threads = step.multiplications * together < kWorthSharing ? nullptr : images.threads;
  const bool has_frame = step.padding[0] > 0 || step.padding[1] > 0;
  for (int64_t image = 0; image < images.count; image += together) {
    if (has_frame) put_in_frame(input, from, step, images.frame);
    convolver.convolve(has_frame ? images.frame : input, residual, output, threads);
    input += from.numbers();
    output += to.numbers();
    if (residual != nullptr) residual += to.numbers();
  }
}

// ---- Everything else ---------------------------------------------------------------------------------------------

inline void run_addition(const Images &images, const Step &step) {
  const float *const a = images.tensor(step.source), *const b = images.tensor(step.second);
  float *const sum = images.tensor(step.output);
  const int64_t count = images.count * images.network->value(step.output).numbers();
  const Bounds bounds(step);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller<int64_t>(kLanes, count - i);
    const Vector value = Convolver::load_some_of(a + i, lanes) + Convolver::load_some_of(b + i, lanes);
    Convolver::store_some_of(sum + i, bounds.clamp(value), lanes);
  }
}

// Calls use(channel, lanes) for the vectors of a pixel.
template <class Use>
WINOGRAD_INLINE void for_vectors(int64_t channels, const Use &use) {
  for (int64_t channel = 0; channel < channels; channel += kLanes) use(channel, smaller<int64_t>(kLanes, channels - channel));
}

inline void run_scaling(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.output);
  const float *from = images.tensor(step.source), *const scale = images.network->at<float>(step.weights);
  const float *const shift = images.network->at<float>(step.bias);
  float *to = images.tensor(step.output);
  const Bounds bounds(step);
  const int64_t pixels = images.count * of.height * of.width;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, from += of.channels, to += of.channels)
    for_vectors(of.channels, [&](int64_t channel, int64_t lanes) WINOGRAD_INLINE_LAMBDA {
      const Vector value = Convolver::load_some_of(from + channel, lanes) * load(scale + channel) + load(shift + channel);
      Convolver::store_some_of(to + channel, bounds.clamp(value), lanes);
    });
}

// The taps of one window, along one side, that lie in the image.
struct Taps {
  int64_t start, first, end;
  Taps(const Step &step, int side, int64_t number, int64_t size)
      : start(number * step.stride[side] - step.padding[side]),
        first(start >= 0 ? 0 : ceil_div(-start, step.dilation[side])),
        end(smaller<int64_t>(step.kernel[side], ceil_div(size - start, step.dilation[side]))) {}
};

inline void run_pool(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.source), &made = images.network->value(step.output);
  const float *image = images.tensor(step.source);
  float *to = images.tensor(step.output);
  const bool is_mean = step.kind == kAveragePool;
  for (int64_t n = 0; n < images.count; ++n, image += of.numbers())
    for (int64_t y = 0; y < made.height; ++y)
      for (int64_t x = 0; x < made.width; ++x, to += made.channels) {
        const Taps rows(step, 0, y, of.height), columns(step, 1, x, of.width);
        const int64_t counted = step.counts_padding ? int64_t{step.kernel[0]} * step.kernel[1] : (rows.end - rows.first) * (columns.end - columns.first);
        const Vector divisor = broadcast(static_cast<float>(counted));
        for_vectors(of.channels, [&](int64_t channel, int64_t lanes) WINOGRAD_INLINE_LAMBDA {
          Vector found = is_mean ? Vector{} : broadcast(-__builtin_inff());
          for (int64_t r = rows.first; r < rows.end; ++r)
            for (int64_t s = columns.first; s < columns.end; ++s) {
              const int64_t pixel = (rows.start + r * step.dilation[0]) * of.width + columns.start + s * step.dilation[1];
              const Vector value = Convolver::load_some_of(image + pixel * of.channels + channel, lanes);
              // The larger of both, or a NaN if either is one.
              found = is_mean ? found + value : (found >= value || found != found ? found : value);
            }
          Convolver::store_some_of(to + channel, is_mean ? found / divisor : found, lanes);
        });
      }
}

inline void run_concatenation(const Images &images, const Step &step) {
  const Value &made = images.network->value(step.output);
  const int32_t *const sources = images.network->at<int32_t>(step.sources);
  const int64_t pixels = images.count * made.height * made.width;
  float *to = images.tensor(step.output);
  for (int64_t number = 0; number < step.source_count; ++number) {
    const float *from = images.tensor(sources[number]);
    const int64_t channels = images.network->value(sources[number]).channels;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) copy(to + pixel * made.channels, from + pixel * channels, channels);
    to += channels;
  }
}

inline void run_slice(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.source), &made = images.network->value(step.output);
  const int32_t *const start = step.numbers, *const every = step.numbers + 6;
  const float *image = images.tensor(step.source);
  float *to = images.tensor(step.output);
  for (int64_t n = 0; n < images.count; ++n, image += of.numbers())
    for (int64_t y = 0; y < made.height; ++y)
      for (int64_t x = 0; x < made.width; ++x, to += made.channels) {
        const float *const from = image + ((start[1] + y * every[1]) * of.width + start[2] + x * every[2]) * of.channels + start[0];
        if (every[0] == 1) copy(to, from, made.channels);
        else
          for (int64_t c = 0; c < made.channels; ++c) to[c] = from[c * every[0]];
      }
}

inline void run_padding(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.source), &made = images.network->value(step.output);
  const int32_t *const before = step.numbers;
  const float *from = images.tensor(step.source);
  float *to = images.tensor(step.output);
  for (int64_t n = 0; n < images.count; ++n, to += made.numbers()) {
    zero(to, made.numbers());
    for (int64_t y = 0; y < of.height; ++y)
      for (int64_t x = 0; x < of.width; ++x, from += of.channels)
        copy(to + ((before[1] + y) * made.width + before[2] + x) * made.channels + before[0], from, of.channels);
  }
}

inline void run_upsample(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.source), &made = images.network->value(step.output);
  const float *from = images.tensor(step.source);
  float *to = images.tensor(step.output);
  for (int64_t row = 0; row < images.count * of.height; ++row, from += int64_t{of.width} * of.channels)
    for (int64_t y = 0; y < step.numbers[0]; ++y)
      for (int64_t x = 0; x < made.width; ++x, to += made.channels) copy(to, from + x / step.numbers[1] * of.channels, of.channels);
}

// By a tensor of the same shape, or by one number for each channel of an image.
inline void run_multiplication(const Images &images, const Step &step) {
  const Value &of = images.network->value(step.source), &by = images.network->value(step.second);
  const float *a = images.tensor(step.source), *b = images.tensor(step.second);
  float *to = images.tensor(step.output);
  const int64_t pixels = int64_t{of.height} * of.width, step_of_b = by.numbers() == of.numbers() ? of.channels : 0;
  for (int64_t image = 0; image < images.count; ++image) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, a += of.channels, b += step_of_b, to += of.channels)
      for_vectors(of.channels, [&](int64_t channel, int64_t lanes) WINOGRAD_INLINE_LAMBDA {
        const Vector product = Convolver::load_some_of(a + channel, lanes) * Convolver::load_some_of(b + channel, lanes);
        Convolver::store_some_of(to + channel, product, lanes);
      });
    if (step_of_b == 0) b += of.channels;
  }
}

// e^x within 2 ulp, by e^x = 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 6 (Cephes, expf). Beyond what float32 holds,
// the largest or smallest number that is normal; a NaN stays one.
WINOGRAD_INLINE Vector exponential(Vector x) {
  typedef uint32_t Bits __attribute__((vector_size(WINOGRAD_LANES * sizeof(uint32_t))));
  const Vector lowest = broadcast(-87.0f), highest = broadcast(88.0f);
  x = at_least(x, lowest);
  x = x > highest ? highest : x;
  const float to_integers = 12582912.0f;  // 1.5 * 2^23, above which float32 has integers alone
  const Vector shifted = x * 1.44269504f + to_integers, n = shifted - to_integers;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector power = r * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  const Bits exponent = (reinterpret_cast<const Bits &>(shifted) + 127u) << 23;  // n stands in the lowest bits of `shifted`
  return power * reinterpret_cast<const Vector &>(exponent);
}

WINOGRAD_INLINE Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

template <class Of>
WINOGRAD_INLINE void map(const Images &images, const Step &step, const Of &of) {
  const float *const from = images.tensor(step.source);
  float *const to = images.tensor(step.output);
  const int64_t count = images.count * images.network->value(step.output).numbers();
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = smaller<int64_t>(kLanes, count - i);
    Convolver::store_some_of(to + i, of(Convolver::load_some_of(from + i, lanes)), lanes);
  }
}

inline void run_activation(const Images &images, const Step &step) {
  const auto hard_sigmoid = [](Vector x) WINOGRAD_INLINE_LAMBDA {
    const Vector raised = at_least(x + 3.0f, Vector{});
    return (raised > 6.0f ? broadcast(6.0f) : raised) / 6.0f;
  };
  switch (step.numbers[0]) {
    case kLeakyRelu:
      return map(images, step, [&](Vector x) WINOGRAD_INLINE_LAMBDA { return x < 0.0f ? x * step.slope : x; });
    case kSigmoid: return map(images, step, [](Vector x) WINOGRAD_INLINE_LAMBDA { return sigmoid(x); });
    case kSilu: return map(images, step, [](Vector x) WINOGRAD_INLINE_LAMBDA { return x * sigmoid(x); });
    case kTanh: return map(images, step, [](Vector x) WINOGRAD_INLINE_LAMBDA { return 2.0f * sigmoid(2.0f * x) - 1.0f; });
    case kHardSigmoid: return map(images, step, hard_sigmoid);
    case kHardSwish: return map(images, step, [&](Vector x) WINOGRAD_INLINE_LAMBDA { return x * hard_sigmoid(x); });
  }
}

void run(const Images &images, const Step &step) {
  switch (step.kind) {
    case kConvolution: return run_convolution(images, step);
    case kAddition: return run_addition(images, step);
    case kScaling: return run_scaling(images, step);
    case kMaxPool:
    case kAveragePool: return run_pool(images, step);
    case kConcatenation: return run_concatenation(images, step);
    case kSlice: return run_slice(images, step);
    case kPadding: return run_padding(images, step);
    case kNearestUpsample: return run_upsample(images, step);
    case kMultiplication: return run_multiplication(images, step);
    case kActivation: return run_activation(images, step);
  }
}

const Code kCode{run};

}  // namespace winograd::floats::WINOGRAD_VARIANT
