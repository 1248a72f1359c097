// A network of float32, made ready to run in one call: one block of memory without a pointer in it, so that a tensor can hold it.
//
// float_prepare.cpp makes it from a program (float_program.py has the format), float_run.cpp takes images through it, a few at a
// time, and float_steps.hpp computes what isn't a Winograd convolution, once for each instruction set. Tensors of the network lie
// as N H W C.
#pragma once

#include <cstdint>
#include <vector>

#include "../winograd.h"
#include "prepared_block.hpp"

namespace winograd::floats {

inline constexpr int32_t kMagic = 0x4E464957;  // "WIFN", at the start of every program
inline constexpr int64_t kPanelFilters = 32;   // that lie together in packed weights, as in multiply.hpp
inline constexpr int64_t kWidestVector = 16;   // floats; arrays by channel are filled up to a multiple

inline constexpr int64_t kWorthSharing = 400'000;  // multiplications; below that, a second thread costs more than it does

enum Kind : int32_t {
  kConvolution = 1, kWinogradConvolution, kAddition, kScaling, kMaxPool, kAveragePool, kConcatenation, kSlice, kPadding,
  kNearestUpsample, kMultiplication, kActivation,
};

// Of kActivation.
enum Function : int32_t { kLeakyRelu, kSigmoid, kSilu, kTanh, kHardSigmoid, kHardSwish };

struct Value {
  int32_t channels, height, width;
  int64_t place;  // in the arena of one image, in floats
  int64_t numbers() const { return int64_t{channels} * height * width; }
};

// Input numbers that lie side by side and belong to one window: those of a row of the kernel, or of one of its taps.
struct Run {
  int64_t offset;  // in floats from the first one of the window
  int64_t floats;
};

struct Step {
  int32_t kind, output, source, second;  // second: the other operand, a residual of a convolution, or -1
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int32_t groups, counts_padding;
  float low, high;     // what is written is clamped to them
  int32_t numbers[9];  // of slices and paddings, scales, and the function of an activation
  float slope;         // of a leaky ReLU
  int64_t sources, source_count;
  int64_t multiplications;   // for one image
  int64_t weights, bias;     // places; of a scaling: its factors and what is added
  // ---- Direct convolutions alone
  int64_t runs;
  int32_t run_count, is_depthwise;
  int32_t is_even;           // windows lie next to each other, from the first of the batch to the last: one long row
  // ---- Winograd convolutions alone
  int32_t m, kernel_groups, kept;
  int64_t positions;
};

struct Prepared {
  programs::BlockHead head;
  int32_t input, output, step_count, value_count;
  int64_t values, steps;
  int64_t frame_floats, arena_floats;  // of one image: the largest with its padding around it, and all tensors

  const Value &value(int32_t number) const { return at<Value>(values)[number]; }
  const Step &step(int32_t number) const { return at<Step>(steps)[number]; }
  template <class T>
  const T *at(int64_t place) const {
    return reinterpret_cast<const T *>(reinterpret_cast<const uint8_t *>(this) + place);
  }
};

// A few images on their way through the network, side by side in every tensor.
struct Images {
  const Prepared *network;
  int64_t count;
  bool are_first;  // of the call: GEMMs are counted with them
  float *frame, *arena;
  const winograd_threads *threads;  // null: this one alone

  float *tensor(int32_t value) const { return arena + network->value(value).place * count; }
};

// What the C interface takes for a Winograd convolution of so many images.
winograd_problem problem_of(const Step &step, const Value &from, int64_t filters, int64_t images, const int32_t *positions);

// The prepared form of a program; throws std::invalid_argument with a sentence.
std::vector<uint8_t> prepare(const uint8_t *program, int64_t bytes);

struct Code {
  void (*run)(const Images &, const Step &);  // anything but Winograd convolutions
};

namespace avx512 { extern const Code kCode; }
namespace avx2 { extern const Code kCode; }
namespace portable { extern const Code kCode; }

}  // namespace winograd::floats
