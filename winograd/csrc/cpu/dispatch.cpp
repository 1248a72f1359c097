// The C interface of a convolution on CPU: checks, chooses the instruction set and the blocks, and runs.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../matrices.hpp"
#include "check.hpp"
#include "convolution.hpp"
#include "reorder.hpp"
#include "workspace.hpp"

namespace winograd {
namespace {

std::atomic<uint64_t> executed_gemms{0}, executed_multiplications{0};
std::atomic<const Variant *> forced{nullptr};

// Best first; those that this processor can't run are left out.
const Variant *const *available_variants() {
  static const Variant *found[4] = {};
  static const bool once = [] {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      found[count++] = &avx512::kVariant;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &avx2::kVariant;
#endif
    found[count++] = &portable::kVariant;
    return true;
  }();
  (void)once;
  return found;
}

const Variant &variant() {
  const Variant *const chosen = forced.load();
  return chosen != nullptr ? *chosen : *available_variants()[0];
}

// Asked once: in a virtual machine the answer costs more than a small convolution.
int64_t second_level_cache_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found > 0) return static_cast<int64_t>(found);
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

// Measured on two cores with 1 MiB of second-level cache each (Zen 4, 2026-11-24).
constexpr int64_t kTilesOfAThread = 6;
constexpr int64_t kCachesOfWeights = 16;

// Blocks that keep V and M of a thread in its second-level cache, and how the threads share the work.
// benchmarks/winograd.py measures other choices; selection.py passes the better ones.
winograd_blocking choose_blocking(const winograd_problem &problem, const winograd_blocking *asked, int64_t threads,
                                  const Variant &variant) {
  const Runs runs(problem);
  const int64_t l2 = second_level_cache_bytes();
  const int64_t out_height = problem.height + 2 * problem.pad_height - 2, out_width = problem.width + 2 * problem.pad_width - 2;
  const int64_t tiles = problem.batch * ((out_height + problem.m - 1) / problem.m) * ((out_width + problem.m - 1) / problem.m);
  const int64_t panels = (runs.filters + 31) / 32;
  winograd_blocking chosen = asked != nullptr ? *asked : winograd_blocking{0, 0, -1};
  const int64_t bytes_of_tile = problem.kept * runs.channels * 4;
  const int64_t bytes_of_weights = problem.kept * runs.channels * runs.filters * 4;
  // Threads with tiles of their own read all of U each, in each block: dear where U comes from memory. And with few tiles
  // for each thread a row of U is used too seldom. Otherwise a shared V, which threads fetch from each other, costs more.
  if (chosen.shared < 0)
    chosen.shared = tiles < kTilesOfAThread * threads || bytes_of_weights > kCachesOfWeights * l2;
  if (chosen.filters <= 0) chosen.filters = static_cast<int32_t>(32 * (panels < 4 ? panels : 4));
  if (chosen.tiles <= 0) {
    const int64_t budget = chosen.shared == 1 ? 4 * l2 : l2 / 2;
    int64_t count = budget / (bytes_of_tile + problem.kept * chosen.filters * 4);
    count = count / variant.most_rows * variant.most_rows;
    chosen.tiles = static_cast<int32_t>(count < variant.most_rows ? variant.most_rows : count > 4096 ? 4096 : count);
  }
  if (chosen.shared == 1)
    while (chosen.filters > 32 && panels * 32 / chosen.filters < threads) chosen.filters -= 32;
  return chosen;
}

bool blocking_is_sound(const winograd_blocking &blocking) {
  if (blocking.filters % 32 != 0 || blocking.filters < 32 || blocking.tiles < 1 || blocking.shared < 0 || blocking.shared > 1)
    return fail("Blocks of %d tiles and %d filters are not possible: filters come in 32s, and `shared` is 0, 1 or -1.",
                blocking.tiles, blocking.filters) == 0;
  return true;
}

int convolve(const winograd_problem *problem, const winograd_operands *operands, const winograd_blocking *blocking,
             const winograd_threads *threads, bool counts_gemms, Algorithm Variant::*source) {
  if (!is_sound(*problem)) return 1;
  if (problem->batch == 0) return 0;
  if (operands->input == nullptr || operands->packed == nullptr || operands->output == nullptr)
    return fail("Input, packed weights or output are missing.");
  const Variant &code = variant();
  Convolution convolution{*problem, *operands, {}, {1, nullptr, nullptr}, nullptr, counts_gemms};
  if (threads != nullptr && threads->count > 1) convolution.threads = *threads;
  convolution.blocking = choose_blocking(*problem, blocking, convolution.threads.count, code);
  if (!blocking_is_sound(convolution.blocking)) return 1;

  const Algorithm &algorithm = code.*source;
  const int64_t computing = algorithm.workspace_floats(convolution);
  const ChannelsLastCopies copies(convolution);
  const Workspace workspace(computing + copies.floats());
  if (workspace.start() == nullptr)
    return fail("There is no memory for a workspace of %lld bytes.", static_cast<long long>((computing + copies.floats()) * 4));
  convolution.workspace = workspace.start();
  copies.make(convolution, workspace.start() + computing);
  algorithm.convolve(convolution);
  copies.give_back(convolution, *operands);
  return 0;
}

// Blocks whose dM and V stay in a thread's second-level cache. Where U and dU don't, blocks are larger: each reads and writes them.
int32_t block_of_gradients(const winograd_problem &problem) {
  const Runs runs(problem);
  const int64_t l2 = second_level_cache_bytes();
  const int64_t bytes_of_tile = problem.kept * (runs.channels + runs.filters) * 4;
  const int64_t bytes_of_weights = problem.kept * runs.channels * runs.filters * 4;
  return static_cast<int32_t>(std::clamp<int64_t>(l2 / 2 / bytes_of_tile, bytes_of_weights > l2 ? 128 : 28, 256));
}

int compute_gradients(const winograd_problem &problem, const winograd_gradients &operands, const winograd_threads *threads) {
  if (!is_sound(problem)) return 1;
  const Runs runs(problem);
  if (problem.batch == 0) {
    const int64_t floats = problem.kept * problem.filters * runs.channels;
    if (operands.weight_gradient != nullptr) std::fill_n(operands.weight_gradient, floats, 0.0f);
    return 0;
  }
  if (operands.output_gradient == nullptr || operands.input == nullptr || operands.weights == nullptr)
    return fail("The gradient of the output, the input or the weights are missing.");
  Backward backward{problem, operands, {1, nullptr, nullptr}, block_of_gradients(problem), nullptr};
  if (threads != nullptr && threads->count > 1) backward.threads = *threads;
  const BackwardAlgorithm &algorithm = variant().gradients;
  const int64_t computing = algorithm.workspace_floats(backward);
  const ChannelsLastGradients copies(backward);
  const Workspace workspace(computing + copies.floats());
  if (workspace.start() == nullptr)
    return fail("There is no memory for a workspace of %lld bytes.", static_cast<long long>((computing + copies.floats()) * 4));
  backward.workspace = workspace.start();
  copies.make(backward, workspace.start() + computing);
  algorithm.compute(backward);
  copies.give_back(backward, operands);
  return 0;
}

template <int m>
void copy_matrices(double *bt, double *g, double *at) {
  std::memcpy(bt, kMatrices<m>.bt, sizeof kMatrices<m>.bt);
  std::memcpy(g, kMatrices<m>.g, sizeof kMatrices<m>.g);
  std::memcpy(at, kMatrices<m>.at, sizeof kMatrices<m>.at);
}

}  // namespace

int convolve_weights(const winograd_problem *problem, const winograd_operands *operands, const winograd_blocking *blocking,
                     const winograd_threads *threads, bool counts_gemms) {
  return convolve(problem, operands, blocking, threads, counts_gemms, &Variant::from_weights);
}

void count_operations(uint64_t gemms, uint64_t multiplications) {
  executed_gemms.fetch_add(gemms, std::memory_order_relaxed);
  executed_multiplications.fetch_add(multiplications, std::memory_order_relaxed);
}

}  // namespace winograd

using namespace winograd;

extern "C" int winograd_matrices(int32_t m, double *bt, double *g, double *at) {
  switch (m) {
    case 2: return copy_matrices<2>(bt, g, at), 0;
    case 4: return copy_matrices<4>(bt, g, at), 0;
    case 6: return copy_matrices<6>(bt, g, at), 0;
    case 7: return copy_matrices<7>(bt, g, at), 0;
  }
  return fail("F(%dx%d, 3x3) is not implemented; m may be 2, 4, 6 or 7.", m, m);
}

extern "C" const char *winograd_cpu_variant(void) { return variant().name; }

extern "C" int winograd_cpu_force(const char *name) {
  if (name == nullptr) {
    forced = nullptr;
    return 0;
  }
  for (const Variant *const *found = available_variants(); *found != nullptr; ++found)
    if (std::strcmp((*found)->name, name) == 0) {
      forced = *found;
      return 0;
    }
  return fail("This processor, or this build, has no code called %.40s.", name);
}

extern "C" int winograd_conv2d(const winograd_problem *problem, const winograd_operands *operands,
                               const winograd_blocking *blocking, const winograd_threads *threads) {
  return convolve_weights(problem, operands, blocking, threads, true);
}

extern "C" int winograd_conv2d_from_filters(const winograd_problem *problem, const winograd_operands *operands,
                                            const winograd_blocking *blocking, const winograd_threads *threads) {
  return convolve(problem, operands, blocking, threads, true, &Variant::from_filters);
}

extern "C" int winograd_conv2d_gradients(const winograd_problem *problem, const winograd_gradients *operands,
                                         const winograd_threads *threads) {
  return compute_gradients(*problem, *operands, threads);
}

extern "C" void winograd_operation_counts(uint64_t *gemms, uint64_t *multiplications) {
  *gemms = executed_gemms;
  *multiplications = executed_multiplications;
}

extern "C" void winograd_reset_operation_counts(void) {
  executed_gemms = 0;
  executed_multiplications = 0;
}
