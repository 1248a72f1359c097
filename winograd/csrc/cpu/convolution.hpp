// What the C interface hands to the code of one instruction set: a checked convolution in channels-last memory.
#pragma once

#include <cstdint>

#include "../winograd.h"

namespace winograd {

inline constexpr int kMostPositions = 81;
inline constexpr int kAlignment = 64;  // bytes: a cache line, and the widest vector

// Filters with common positions that belong to one group of channels; U is packed run by run.
struct Runs {
  int64_t count, filters;  // filters of each
  int64_t of_each_group;
  int64_t channels;  // that each filter reads

  explicit Runs(const winograd_problem &problem)
      : count(problem.groups > problem.kernel_groups ? problem.groups : problem.kernel_groups),
        filters(problem.filters / count),
        of_each_group(count / problem.groups),
        channels(problem.channels / problem.groups) {}

  const int32_t *positions(const winograd_problem &problem, int64_t run) const {
    return problem.positions + run * problem.kernel_groups / count * problem.kept;
  }
};

// Lays the parts of a workspace one after the other. Without a start it only counts.
class Layout {
 public:
  explicit Layout(float *start) : start_(start) {}
  float *floats(int64_t count) {
    constexpr int64_t line = kAlignment / static_cast<int64_t>(sizeof(float));
    float *const here = start_ == nullptr ? nullptr : start_ + used_;
    used_ += (count + line - 1) / line * line;
    return here;
  }
  int64_t used() const { return used_; }

 private:
  float *const start_;
  int64_t used_ = 0;
};

struct Convolution {
  winograd_problem problem;
  winograd_operands operands;  // memory: channels last
  winograd_blocking blocking;  // all chosen
  winograd_threads threads;
  float *workspace;
  bool counts_gemms;
};

// The gradients of a convolution; operands in channels-last memory.
struct Backward {
  winograd_problem problem;
  winograd_gradients operands;
  winograd_threads threads;
  int32_t block_tiles;
  float *workspace;
};

// Counts what was executed, from any thread.
void count_operations(uint64_t gemms, uint64_t multiplications);

// winograd_conv2d; without counting its GEMMs where they belong to those of a call that has counted them.
int convolve_weights(const winograd_problem *problem, const winograd_operands *operands, const winograd_blocking *blocking,
                     const winograd_threads *threads, bool counts_gemms);

struct Algorithm {
  int64_t (*workspace_floats)(const Convolution &);
  void (*convolve)(const Convolution &);
};

struct BackwardAlgorithm {
  int64_t (*workspace_floats)(const Backward &);
  void (*compute)(const Backward &);
};

// The code of one instruction set.
struct Variant {
  const char *name;
  int most_rows;  // of a register block
  Algorithm from_weights, from_filters;
  BackwardAlgorithm gradients;
};

namespace avx512 {
extern const Variant kVariant;
}
namespace avx2 {
extern const Variant kVariant;
}
namespace portable {
extern const Variant kVariant;
}

}  // namespace winograd
