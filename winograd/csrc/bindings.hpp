// From the arguments of an operator to what the C interface takes: a winograd_problem and tensors in the right order of memory;
// and the way back to plain torch.
//
// Everything goes through torch's stable C interface, so that one binary serves torch 2.10 and what comes after.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "winograd.h"

// Came with torch 2.13; null where torch is older.
extern "C" const char *torch_exception_get_what_without_backtrace() __attribute__((weak));

namespace winograd::bindings {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Numbers = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

template <class... Words>
[[noreturn]] void refuse(const Words &...words) {
  std::ostringstream sentence;
  sentence << "winograd: ";
  (sentence << ... << words);
  throw std::runtime_error(sentence.str());
}

// What torch said when it last failed on this thread.
inline std::string words_of_torch() {
  return torch_exception_get_what_without_backtrace != nullptr ? torch_exception_get_what_without_backtrace()
                                                              : "this version of torch keeps the reason to itself";
}

// ---- Handing over to plain torch ---------------------------------------------------------------------------------

// winograd.library.force("reference") sets it.
inline std::atomic<bool> reference_is_forced{false};

// Calls winograd::reference_<name>, the operator as registration.py wrote it. Results take the places of arguments.
template <class... Arguments>
auto results_of_reference(const char *name, const Arguments &...arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  if (torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    refuse(name, " failed: ", words_of_torch());
  return stack;
}

template <class... Arguments>
Tensor call_reference(const char *name, const Arguments &...arguments) {
  return torch::stable::detail::to<Tensor>(results_of_reference(name, arguments...)[0]);
}

// ---- Problems ----------------------------------------------------------------------------------------------------

inline int32_t as_int32(int64_t value, const char *name) {
  if (value < INT32_MIN || value > INT32_MAX) refuse(name, " is ", value, ", which is far too large.");
  return static_cast<int32_t>(value);
}

inline std::string shape_of(const Tensor &x) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < x.dim(); ++i) text << (i > 0 ? ", " : "") << x.size(i);
  text << ']';
  return text.str();
}

inline void require_dimensions(const Tensor &x, int64_t count, const char *name, const char *expected) {
  if (x.dim() != count) refuse(name, " has shape ", shape_of(x), "; pass ", expected, ".");
}

// The kept positions of each group of filters, from a list of numbers, or from a tensor of int32 [kernel groups, P], of which
// nothing is copied.
class Positions {
 public:
  Positions(const Numbers &numbers, int64_t kernel_groups) {
    const auto count = static_cast<int64_t>(numbers.size());
    if (kernel_groups < 1 || count % kernel_groups != 0)
      refuse(count, " positions can't be divided into ", kernel_groups, " kernel groups of the same size.");
    copied_.reserve(numbers.size());
    for (const int64_t position : numbers) copied_.push_back(as_int32(position, "a position"));
    kernel_groups_ = as_int32(kernel_groups, "kernel_groups");
    kept_ = as_int32(count / kernel_groups, "the number of positions");
    start_ = copied_.data();
  }

  explicit Positions(const Tensor &positions) {
    require_dimensions(positions, 2, "positions", "[kernel groups, P]");
    if (positions.scalar_type() != ScalarType::Int || !positions.is_cpu() || !positions.is_contiguous())
      refuse("positions must lie on the CPU as int32, contiguous, wherever the other tensors are.");
    kernel_groups_ = as_int32(positions.size(0), "the number of kernel groups");
    kept_ = as_int32(positions.size(1), "the number of positions");
    start_ = positions.const_data_ptr<int32_t>();
  }

  Positions(const Positions &) = delete;
  Positions &operator=(const Positions &) = delete;

  int32_t kernel_groups() const { return kernel_groups_; }
  int32_t kept() const { return kept_; }
  const int32_t *start() const { return start_; }

 private:
  std::vector<int32_t> copied_;
  int32_t kernel_groups_, kept_;
  const int32_t *start_;
};

// A winograd_problem, whose positions must outlive it. What its sizes mean together, the C interface checks.
class Problem {
 public:
  Problem(const Tensor &input, int64_t filters, const Positions &positions, int64_t m, int64_t pad_height, int64_t pad_width,
          int64_t groups)
      : Problem(filters, positions, m, groups) {
    require_dimensions(input, 4, "input", "[N, C, H, W]");
    problem_.batch = input.size(0);
    problem_.channels = input.size(1);
    problem_.height = input.size(2);
    problem_.width = input.size(3);
    problem_.pad_height = as_int32(pad_height, "padding");
    problem_.pad_width = as_int32(pad_width, "padding");
  }

  // To pack weights or filters, for which images don't matter.
  Problem(int64_t channels_of_group, int64_t filters, const Positions &positions, int64_t m, int64_t groups)
      : Problem(filters, positions, m, groups) {
    problem_.batch = 1;
    problem_.channels = int64_t{as_int32(channels_of_group, "channels")} * groups;
    problem_.height = problem_.width = 3;
  }

  Problem(const Problem &) = delete;
  Problem &operator=(const Problem &) = delete;

  const winograd_problem *get() const { return &problem_; }
  const winograd_problem *operator->() const { return &problem_; }

  std::array<int64_t, 4> output_sizes() const {
    return {problem_.batch, problem_.filters, problem_.height + 2 * int64_t{problem_.pad_height} - 2,
            problem_.width + 2 * int64_t{problem_.pad_width} - 2};
  }

 private:
  Problem(int64_t filters, const Positions &positions, int64_t m, int64_t groups) {
    problem_.filters = filters;
    problem_.groups = as_int32(groups, "groups");
    problem_.m = as_int32(m, "m");
    problem_.kernel_groups = positions.kernel_groups();
    problem_.kept = positions.kept();
    problem_.positions = positions.start();
  }

  winograd_problem problem_{};
};

// How many groups of filters have positions of their own, from weights [P, K, C/groups].
inline int64_t kernel_groups_of(const Tensor &weights, const Numbers &positions) {
  require_dimensions(weights, 3, "weights", "[P, K, C/groups]");
  const auto count = static_cast<int64_t>(positions.size());
  if (weights.size(0) < 1 || count == 0 || count % weights.size(0) != 0)
    refuse("weights have shape ", shape_of(weights), ", but ", count, " positions were given; pass P for each group of filters.");
  return count / weights.size(0);
}

inline winograd_activation activation_of(const std::string &name) {
  if (name == "none") return WINOGRAD_NONE;
  if (name == "relu") return WINOGRAD_RELU;
  refuse("activation is \"", name, "\"; choose \"none\" or \"relu\".");
}

// ---- Memory ------------------------------------------------------------------------------------------------------

// Dense in the order N H W C; the stride of a dimension of one element means nothing.
inline bool is_channels_last(const Tensor &x) {
  int64_t expected = 1;
  for (const int64_t dimension : {1, 3, 2, 0}) {
    if (x.size(dimension) == 1) continue;
    if (x.stride(dimension) != expected) return false;
    expected *= x.size(dimension);
  }
  return true;
}

// The order of the output: that of the input, as memory_format_of in reference.py says. Other strides become channels first.
inline winograd_memory memory_of(const Tensor &input) {
  return !input.is_contiguous() && is_channels_last(input) ? WINOGRAD_CHANNELS_LAST : WINOGRAD_CHANNELS_FIRST;
}

inline MemoryFormat format_of(winograd_memory memory) {
  return memory == WINOGRAD_CHANNELS_LAST ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor dense(const Tensor &x, winograd_memory memory = WINOGRAD_CHANNELS_FIRST) {
  const bool is_dense = memory == WINOGRAD_CHANNELS_LAST ? is_channels_last(x) : x.is_contiguous();
  return is_dense ? x : torch::stable::contiguous(x, format_of(memory));
}

// Checks what belongs to the output, and brings it into its order.
inline OptionalTensor dense_bias(const OptionalTensor &bias, const Problem &problem) {
  if (!bias) return std::nullopt;
  require_dimensions(*bias, 1, "bias", "[K]");
  if (bias->size(0) != problem->filters) refuse("bias has ", bias->size(0), " numbers for ", problem->filters, " filters.");
  return dense(*bias);
}

inline OptionalTensor dense_residual(const OptionalTensor &residual, const Problem &problem, winograd_memory memory) {
  if (!residual) return std::nullopt;
  require_dimensions(*residual, 4, "residual", "a tensor shaped like the output");
  const auto sizes = problem.output_sizes();
  for (int64_t i = 0; i < 4; ++i)
    if (residual->size(i) != sizes[i])
      refuse("residual has shape ", shape_of(*residual), "; that of the output is [", sizes[0], ", ", sizes[1], ", ", sizes[2],
             ", ", sizes[3], "].");
  return dense(*residual, memory);
}

// On the CPU. Without the dispatcher, through which torch::stable::empty takes a microsecond more.
template <size_t dimensions>
Tensor new_tensor(const std::array<int64_t, dimensions> &sizes, const std::array<int64_t, dimensions> &strides,
                  int32_t dtype = aoti_torch_dtype_float32()) {
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(dimensions, sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &made) != AOTI_TORCH_SUCCESS)
    refuse("there is no memory for a tensor of this operator: ", words_of_torch());
  return Tensor(made);
}

inline Tensor new_images(const std::array<int64_t, 4> &sizes, winograd_memory memory) {
  const auto [n, k, height, width] = sizes;
  if (memory == WINOGRAD_CHANNELS_LAST) return new_tensor<4>(sizes, {height * width * k, 1, width * k, k});
  return new_tensor<4>(sizes, {k * height * width, height * width, width, 1});
}
inline Tensor new_output(const Problem &problem, winograd_memory memory) { return new_images(problem.output_sizes(), memory); }
inline Tensor new_input(const Problem &problem, winograd_memory memory) {
  return new_images({problem->batch, problem->channels, problem->height, problem->width}, memory);
}

}  // namespace winograd::bindings
