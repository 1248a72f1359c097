// The operators of torch.ops.winograd on CPU tensors: arguments to pointers, and nothing else.
//
// registration.py defines the schemas and what plain torch does for them; this registers faster code under the same names.
// float32, and networks of integers, are computed here. For every other type, and while the reference is forced, `winograd::reference_<name>` is called.
// The arguments are checked again, so that calling torch.ops.winograd with nonsense ends in an exception.
#include <algorithm>

#include "bindings.hpp"

namespace winograd::bindings {
namespace {

// A tensor packed by plain torch is never as long as one packed here, so neither is taken for the other.
constexpr int64_t kMark = 16;

bool is_computed_here(const Tensor &x) {
  return x.scalar_type() == ScalarType::Float && !reference_is_forced.load(std::memory_order_relaxed);
}

void require_float32_on_cpu(const Tensor &x, const char *name) {
  if (x.scalar_type() != ScalarType::Float) refuse(name, " is not of float32 as the other tensors are; convert it.");
  if (!x.is_cpu()) refuse(name, " is not on the CPU as the other tensors are; move it.");
}

void check(int code) {
  if (code != 0) refuse(winograd_last_error());
}

// What is packed, and the functions of the C interface that belong to it.
struct Packing {
  const char *maker, *reference;
  int64_t (*size)(const winograd_problem *);
  int (*pack)(const winograd_problem *, const float *, float *);
  int (*convolve)(const winograd_problem *, const winograd_operands *, const winograd_blocking *, const winograd_threads *);

  int64_t floats(const Problem &problem) const {
    const int64_t count = size(problem.get());
    if (count < 0) refuse(winograd_last_error());
    return count + kMark;
  }

  Tensor pack_up(const Problem &problem, const Tensor &weights) const {
    const Tensor packed = new_tensor<1>({floats(problem)}, {1});
    float *const start = packed.mutable_data_ptr<float>();
    check(pack(problem.get(), dense(weights).const_data_ptr<float>(), start));
    std::fill_n(start + packed.size(0) - kMark, kMark, 0.0f);
    return packed;
  }
};
constexpr Packing kWeights{"pack_weights", "winograd::reference_conv2d_packed", winograd_packed_weights_size,
                           winograd_pack_weights, winograd_conv2d};
constexpr Packing kFilters{"pack_filters", "winograd::reference_conv2d_packed_filters", winograd_packed_filters_size,
                           winograd_pack_filters, winograd_conv2d_from_filters};

void run_on_torch_threads(void *, int64_t parts, void (*body)(void *context, int64_t part), void *context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(context, part);
  });
}

constexpr winograd_blocking kChosenByLibrary{0, 0, -1};

const float *pointer_or_null(const OptionalTensor &x) { return x ? x->const_data_ptr<float>() : nullptr; }

Tensor convolve(const Packing &packing, const Problem &problem, const Tensor &input, const Tensor &packed,
                const OptionalTensor &bias, const OptionalTensor &residual, const std::string &activation,
                const winograd_blocking &blocking) {
  require_float32_on_cpu(input, "input");
  if (bias) require_float32_on_cpu(*bias, "bias");
  if (residual) require_float32_on_cpu(*residual, "residual");
  const winograd_memory memory = memory_of(input);
  const Tensor dense_input = dense(input, memory);
  const OptionalTensor own_bias = dense_bias(bias, problem), own_residual = dense_residual(residual, problem, memory);
  const Tensor output = new_output(problem, memory);
  const winograd_operands operands{dense_input.const_data_ptr<float>(), packed.const_data_ptr<float>(),
                                   pointer_or_null(own_bias),           pointer_or_null(own_residual),
                                   output.mutable_data_ptr<float>(),    memory,
                                   activation_of(activation)};
  const winograd_threads threads{as_int32(torch::stable::get_num_threads(), "the number of threads"), run_on_torch_threads, nullptr};
  check(packing.convolve(problem.get(), &operands, &blocking, &threads));
  return output;
}

// ---- The operators -----------------------------------------------------------------------------------------------

Tensor conv2d(const Tensor &input, const Tensor &weights, const Numbers &positions, int64_t m, const Numbers &padding,
              const OptionalTensor &bias, const OptionalTensor &residual, const std::string &activation, int64_t groups) {
  if (!is_computed_here(input))
    return call_reference("winograd::reference_conv2d", input, weights, positions, m, padding, bias, residual, activation, groups);
  require_float32_on_cpu(weights, "weights");
  const int64_t kernel_groups = kernel_groups_of(weights, positions);
  if (padding.size() != 2) refuse("padding has ", padding.size(), " numbers; pass rows and columns.");
  const Positions kept(positions, kernel_groups);
  const Problem problem(input, weights.size(1), kept, m, padding[0], padding[1], groups);
  if (weights.size(2) * problem->groups != problem->channels)
    refuse("input has ", problem->channels, " channels, but weights of shape ", shape_of(weights), " in ", groups, " groups.");
  return convolve(kWeights, problem, input, kWeights.pack_up(problem, weights), bias, residual, activation, kChosenByLibrary);
}

Tensor pack_weights(const Tensor &weights, const Numbers &positions, int64_t m, int64_t groups) {
  if (!is_computed_here(weights)) return call_reference("winograd::reference_pack_weights", weights, positions, m, groups);
  const int64_t kernel_groups = kernel_groups_of(weights, positions);
  const Positions kept(positions, kernel_groups);
  return kWeights.pack_up(Problem(weights.size(2), weights.size(1), kept, m, groups), weights);
}

Tensor pack_filters(const Tensor &filters, const Numbers &positions, int64_t m, int64_t kernel_groups, int64_t groups) {
  if (!is_computed_here(filters))
    return call_reference("winograd::reference_pack_filters", filters, positions, m, kernel_groups, groups);
  require_dimensions(filters, 4, "filters", "[K, C/groups, 3, 3]");
  if (filters.size(2) != 3 || filters.size(3) != 3) refuse("filters have shape ", shape_of(filters), "; pass [K, C/groups, 3, 3].");
  const Positions kept(positions, kernel_groups);
  return kFilters.pack_up(Problem(filters.size(1), filters.size(0), kept, m, groups), filters);
}

template <const Packing &packing>
Tensor conv2d_packed(const Tensor &input, const Tensor &packed, const Tensor &positions, int64_t filters, int64_t m,
                     int64_t pad_height, int64_t pad_width, const OptionalTensor &bias, const OptionalTensor &residual,
                     const std::string &activation, int64_t groups, int64_t block_tiles, int64_t block_filters,
                     int64_t block_shared) {
  if (!is_computed_here(input))
    return call_reference(packing.reference, input, packed, positions, filters, m, pad_height, pad_width, bias, residual,
                          activation, groups, block_tiles, block_filters, block_shared);
  require_float32_on_cpu(packed, "packed");
  const Positions kept(positions);
  const Problem problem(input, filters, kept, m, pad_height, pad_width, groups);
  if (packed.dim() != 1 || packed.size(0) != packing.floats(problem))
    refuse("packed has shape ", shape_of(packed), ", not [", packing.floats(problem), "]; pack again, with ", packing.maker,
           " and for this convolution.");
  if (block_tiles < 0 || block_filters < 0 || block_shared < -1)
    refuse("blocking is [", block_tiles, ", ", block_filters, ", ", block_shared, "]; pass 0, 0, -1 to let the library choose.");
  const winograd_blocking blocking{as_int32(block_tiles, "block_tiles"), as_int32(block_filters, "block_filters"),
                                   as_int32(block_shared, "block_shared")};
  return convolve(packing, problem, input, dense(packed), bias, residual, activation, blocking);
}

// What isn't wanted is empty.
std::tuple<Tensor, Tensor> conv2d_gradients(const Tensor &output_gradient, const Tensor &input, const Tensor &weights,
                                            const Numbers &positions, int64_t m, const Numbers &padding, int64_t groups,
                                            bool wants_input, bool wants_weights) {
  if (!is_computed_here(input)) {
    const auto found = results_of_reference("winograd::reference_conv2d_gradients", output_gradient, input, weights, positions, m,
                                            padding, groups, wants_input, wants_weights);
    return {torch::stable::detail::to<Tensor>(found[0]), torch::stable::detail::to<Tensor>(found[1])};
  }
  require_float32_on_cpu(input, "input");
  require_float32_on_cpu(output_gradient, "the output's gradient");
  require_float32_on_cpu(weights, "weights");
  const int64_t kernel_groups = kernel_groups_of(weights, positions);
  if (padding.size() != 2) refuse("padding has ", padding.size(), " numbers; pass rows and columns.");
  const Positions kept(positions, kernel_groups);
  const Problem problem(input, weights.size(1), kept, m, padding[0], padding[1], groups);
  if (weights.size(2) * problem->groups != problem->channels)
    refuse("input has ", problem->channels, " channels, but weights of shape ", shape_of(weights), " in ", groups, " groups.");
  const winograd_memory memory = memory_of(input);
  const Tensor dense_input = dense(input, memory), dense_weights = dense(weights);
  const OptionalTensor gradient = dense_residual(output_gradient, problem, memory);  // shaped like the output, too
  const Tensor of_input = wants_input ? new_input(problem, memory) : new_tensor<1>({0}, {1});
  const int64_t floats_of_position = weights.size(1) * weights.size(2);
  const Tensor of_weights =
      wants_weights ? new_tensor<3>({weights.size(0), weights.size(1), weights.size(2)}, {floats_of_position, weights.size(2), 1})
                    : new_tensor<1>({0}, {1});
  const winograd_gradients operands{gradient->const_data_ptr<float>(),
                                    dense_input.const_data_ptr<float>(),
                                    dense_weights.const_data_ptr<float>(),
                                    wants_input ? of_input.mutable_data_ptr<float>() : nullptr,
                                    wants_weights ? of_weights.mutable_data_ptr<float>() : nullptr,
                                    memory};
  const winograd_threads threads{as_int32(torch::stable::get_num_threads(), "the number of threads"), run_on_torch_threads, nullptr};
  check(winograd_conv2d_gradients(problem.get(), &operands, &threads));
  return {of_input, of_weights};
}

// ---- Networks of integers ----------------------------------------------------------------------------------------

bool reference_is_wanted() { return reference_is_forced.load(std::memory_order_relaxed); }

void require_bytes(const Tensor &x, const char *name) {
  require_dimensions(x, 1, name, "its bytes, one after the other");
  if (x.scalar_type() != ScalarType::Byte || !x.is_cpu()) refuse(name, " must be of uint8 and lie on the CPU.");
}

using Prepare = int (*)(const uint8_t *, int64_t, winograd_allocate, void *);

// A program of bytes as what this process runs.
Tensor prepare_network(const Tensor &program, Prepare prepare) {
  require_bytes(program, "program");
  const Tensor own = dense(program);
  std::optional<Tensor> prepared;
  const auto allocate = [](void *context, int64_t bytes) {
    auto &made = *static_cast<std::optional<Tensor> *>(context);
    made = new_tensor<1>({bytes}, {1}, aoti_torch_dtype_uint8());
    return made->mutable_data_ptr<uint8_t>();
  };
  check(prepare(own.const_data_ptr<uint8_t>(), own.size(0), allocate, &prepared));
  return *prepared;
}

Tensor prepare_integer_network(const Tensor &program) {
  if (reference_is_wanted()) return call_reference("winograd::reference_prepare_integer_network", program);
  return prepare_network(program, winograd_prepare_integer_network);
}

Tensor integer_network_prepared(const Tensor &input, const Tensor &prepared, int64_t outputs) {
  if (reference_is_wanted()) return call_reference("winograd::reference_integer_network_prepared", input, prepared, outputs);
  require_bytes(prepared, "prepared");
  require_dimensions(input, 4, "input", "[N, C, H, W]");
  const bool is_float = input.scalar_type() == ScalarType::Float;
  if ((!is_float && input.scalar_type() != ScalarType::Int) || !input.is_cpu()) refuse("input must be of float32 or int32 and lie on the CPU.");
  const Tensor network = dense(prepared), images = dense(input);
  int64_t shape[3], made = 0;
  check(winograd_integer_network_shape(network.const_data_ptr<uint8_t>(), network.size(0), shape, &made));
  if (input.size(1) != shape[0] || input.size(2) != shape[1] || input.size(3) != shape[2])
    refuse("input has shape ", shape_of(input), "; the network takes [N, ", shape[0], ", ", shape[1], ", ", shape[2], "].");
  if (outputs != made) refuse("outputs is ", outputs, "; the network has ", made, ".");
  const Tensor output = new_tensor<2>({input.size(0), outputs}, {outputs, 1}, aoti_torch_dtype_int32());
  const winograd_threads threads{as_int32(torch::stable::get_num_threads(), "the number of threads"), run_on_torch_threads, nullptr};
  const void *const start = is_float ? static_cast<const void *>(images.const_data_ptr<float>()) : images.const_data_ptr<int32_t>();
  check(winograd_run_integer_network(network.const_data_ptr<uint8_t>(), network.size(0), input.size(0), start, is_float,
                                     output.mutable_data_ptr<int32_t>(), &threads));
  return output;
}

Tensor integer_network(const Tensor &input, const Tensor &program, int64_t outputs) {
  if (reference_is_wanted()) return call_reference("winograd::reference_integer_network", input, program, outputs);
  return integer_network_prepared(input, prepare_integer_network(program), outputs);
}

// ---- Networks of floats ------------------------------------------------------------------------------------------

// Plain torch has no such form of a network: the graph that it was prepared from is what it runs.
void refuse_reference() {
  if (reference_is_wanted()) refuse("whole networks of floats are for compiled code; prepare the network again for plain torch.");
}

Tensor prepare_float_network(const Tensor &program) {
  refuse_reference();
  return prepare_network(program, winograd_prepare_float_network);
}

Tensor float_network_prepared(const Tensor &input, const Tensor &prepared, int64_t outputs) {
  refuse_reference();
  require_bytes(prepared, "prepared");
  require_dimensions(input, 4, "input", "[N, C, H, W]");
  if (input.scalar_type() != ScalarType::Float || !input.is_cpu()) refuse("input must be of float32 and lie on the CPU.");
  const winograd_memory memory = memory_of(input);
  const Tensor network = dense(prepared), images = dense(input, memory);
  int64_t taken[3], made[3];
  check(winograd_float_network_shape(network.const_data_ptr<uint8_t>(), network.size(0), taken, made));
  if (input.size(1) != taken[0] || input.size(2) != taken[1] || input.size(3) != taken[2])
    refuse("input has shape ", shape_of(input), "; the network takes [N, ", taken[0], ", ", taken[1], ", ", taken[2], "].");
  if (outputs != made[0] * made[1] * made[2]) refuse("outputs is ", outputs, "; the network has ", made[0] * made[1] * made[2], ".");
  const Tensor output = new_tensor<2>({input.size(0), outputs}, {outputs, 1});
  const winograd_threads threads{as_int32(torch::stable::get_num_threads(), "the number of threads"), run_on_torch_threads, nullptr};
  check(winograd_run_float_network(network.const_data_ptr<uint8_t>(), network.size(0), input.size(0), images.const_data_ptr<float>(),
                                   memory, output.mutable_data_ptr<float>(), &threads));
  return output;
}

}  // namespace
}  // namespace winograd::bindings

STABLE_TORCH_LIBRARY_IMPL(winograd, CPU, library) {
  using namespace winograd::bindings;
  library.impl("conv2d", TORCH_BOX(&conv2d));
  library.impl("pack_weights", TORCH_BOX(&pack_weights));
  library.impl("pack_filters", TORCH_BOX(&pack_filters));
  library.impl("conv2d_packed", TORCH_BOX(&conv2d_packed<kWeights>));
  library.impl("conv2d_packed_filters", TORCH_BOX(&conv2d_packed<kFilters>));
  library.impl("conv2d_gradients", TORCH_BOX(&conv2d_gradients));
  library.impl("prepare_integer_network", TORCH_BOX(&prepare_integer_network));
  library.impl("integer_network", TORCH_BOX(&integer_network));
  library.impl("integer_network_prepared", TORCH_BOX(&integer_network_prepared));
  library.impl("prepare_float_network", TORCH_BOX(&prepare_float_network));
  library.impl("float_network_prepared", TORCH_BOX(&float_network_prepared));
}

// For winograd.library: 1 sends all calls to plain torch, 0 no longer.
extern "C" WINOGRAD_API void winograd_torch_force_reference(int on) { winograd::bindings::reference_is_forced = on != 0; }
