// The C interface on CPU against Winograd convolutions in double, written as the formulas say: no blocks, no vectors.
//
//   test_convolve [convolutions [seed]]
//
// Convolutions are drawn at random: sizes that fill no tile, vector or panel; groups, kernel groups, any kept positions, both
// orders of memory, all that may follow (bias, residual, ReLU), one thread and three, blocks that the library or the test
// chose; each on every instruction set of this processor. All arrays have exactly the size that they must have, so that a
// build with WINOGRAD_SANITIZE finds whatever reads or writes beside them. No framework: a check that fails prints why.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "winograd.h"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

int passed = 0, failed = 0;

void check(bool holds, const std::string &claim) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("FAILED: %s\n", claim.c_str());
}

// ---- The formulas ------------------------------------------------------------------------------------------------

struct Matrices {
  int m, t;
  double bt[81], g[27], at[81];
  explicit Matrices(int outputs) : m(outputs), t(outputs + 2) { winograd_matrices(m, bt, g, at); }
};

// left [rows, inner] @ x [inner, inner] @ left^T
Doubles on_both_sides(const double *left, const Doubles &x, int rows, int inner) {
  Doubles half(rows * inner), result(rows * rows);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < inner; ++j)
      for (int k = 0; k < inner; ++k) half[i * inner + j] += left[i * inner + k] * x[k * inner + j];
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < rows; ++j)
      for (int k = 0; k < inner; ++k) result[i * rows + j] += half[i * inner + k] * left[j * inner + k];
  return result;
}

struct Convolution {
  winograd_problem problem{};
  std::vector<int32_t> positions;
  int32_t memory = WINOGRAD_CHANNELS_FIRST, activation = WINOGRAD_NONE;
  winograd_blocking blocking{0, 0, -1};
  Floats input, filters, weights, bias, residual;  // bias and residual: empty if there is none

  int64_t channels_of_group() const { return problem.channels / problem.groups; }
  int64_t out_height() const { return problem.height + 2 * problem.pad_height - 2; }
  int64_t out_width() const { return problem.width + 2 * problem.pad_width - 2; }
  int64_t outputs() const { return problem.batch * problem.filters * out_height() * out_width(); }
  int64_t tiles() const {
    const int64_t m = problem.m;
    return problem.batch * ((out_height() + m - 1) / m) * ((out_width() + m - 1) / m);
  }
  int32_t position(int64_t filter, int64_t slot) const {
    return positions[filter / (problem.filters / problem.kernel_groups) * problem.kept + slot];
  }
  bool is_dense() const { return problem.kept == (problem.m + 2) * (problem.m + 2); }

  size_t place(int64_t n, int64_t channel, int64_t y, int64_t x, int64_t channels, int64_t height, int64_t width) const {
    return memory == WINOGRAD_CHANNELS_LAST ? ((n * height + y) * width + x) * channels + channel
                                            : ((n * channels + channel) * height + y) * width + x;
  }
  double pixel(int64_t n, int64_t channel, int64_t y, int64_t x) const {
    if (y < 0 || x < 0 || y >= problem.height || x >= problem.width) return 0.0;
    return input[place(n, channel, y, x, problem.channels, problem.height, problem.width)];
  }
  std::string name() const {
    char text[256];
    std::snprintf(text, sizeof text, "F(%d) %lldx%lldx%lldx%lld, %lld filters, padding %d %d, groups %lld and %d, %d kept, %s",
                  problem.m, (long long)problem.batch, (long long)problem.channels, (long long)problem.height,
                  (long long)problem.width, (long long)problem.filters, problem.pad_height, problem.pad_width,
                  (long long)problem.groups, problem.kernel_groups, problem.kept,
                  memory == WINOGRAD_CHANNELS_LAST ? "channels last" : "channels first");
    return text;
  }
};

// Calls put(n, k, y, x, value) with every output, before bias, residual and activation.
using Put = std::function<void(int64_t, int64_t, int64_t, int64_t, double)>;

void winograd_in_double(const Convolution &of, const Put &put) {
  const winograd_problem &p = of.problem;
  const Matrices matrices(p.m);
  const int t = matrices.t, m = matrices.m;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t top = 0; top < of.out_height(); top += m)
      for (int64_t left = 0; left < of.out_width(); left += m) {
        std::vector<Doubles> v;  // by channel
        for (int64_t c = 0; c < p.channels; ++c) {
          Doubles tile(t * t);
          for (int i = 0; i < t * t; ++i) tile[i] = of.pixel(n, c, top + i / t - p.pad_height, left + i % t - p.pad_width);
          v.push_back(on_both_sides(matrices.bt, tile, t, t));
        }
        for (int64_t k = 0; k < p.filters; ++k) {
          const int64_t group = k / (p.filters / p.groups);
          Doubles product(t * t);
          for (int64_t slot = 0; slot < p.kept; ++slot)
            for (int64_t c = 0; c < of.channels_of_group(); ++c)
              product[of.position(k, slot)] += v[group * of.channels_of_group() + c][of.position(k, slot)] *
                                               of.weights[(slot * p.filters + k) * of.channels_of_group() + c];
          Doubles half(m * t);
          for (int i = 0; i < m; ++i)
            for (int j = 0; j < t; ++j)
              for (int l = 0; l < t; ++l) half[i * t + j] += matrices.at[i * t + l] * product[l * t + j];
          for (int64_t y = top; y < std::min(top + m, of.out_height()); ++y)
            for (int64_t x = left; x < std::min(left + m, of.out_width()); ++x) {
              double sum = 0;
              for (int l = 0; l < t; ++l) sum += half[(y - top) * t + l] * matrices.at[(x - left) * t + l];
              put(n, k, y, x, sum);
            }
        }
      }
}

void directly_in_double(const Convolution &of, const Put &put) {
  const winograd_problem &p = of.problem;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t k = 0; k < p.filters; ++k)
      for (int64_t y = 0; y < of.out_height(); ++y)
        for (int64_t x = 0; x < of.out_width(); ++x) {
          double sum = 0;
          const int64_t first_channel = k / (p.filters / p.groups) * of.channels_of_group();
          for (int64_t c = 0; c < of.channels_of_group(); ++c)
            for (int i = 0; i < 9; ++i)
              sum += of.pixel(n, first_channel + c, y + i / 3 - p.pad_height, x + i % 3 - p.pad_width) *
                     of.filters[(k * of.channels_of_group() + c) * 9 + i];
          put(n, k, y, x, sum);
        }
}

Doubles expected(const Convolution &of, void (*formula)(const Convolution &, const Put &)) {
  Doubles output(of.outputs());
  formula(of, [&](int64_t n, int64_t k, int64_t y, int64_t x, double value) {
    const size_t place = of.place(n, k, y, x, of.problem.filters, of.out_height(), of.out_width());
    if (!of.bias.empty()) value += of.bias[k];
    if (!of.residual.empty()) value += of.residual[place];
    output[place] = of.activation == WINOGRAD_RELU ? std::max(value, 0.0) : value;
  });
  return output;
}

// The same chain transposed: what each output's gradient says of inputs and weights.
struct Gradients {
  Doubles input, weights;
};

// x^T [columns, rows] a [rows, rows] x [rows, columns]
Doubles transposed_on_both_sides(const double *x, const Doubles &a, int rows, int columns) {
  Doubles flipped(columns * rows), result(columns * columns), half(columns * rows);
  for (int i = 0; i < columns; ++i)
    for (int j = 0; j < rows; ++j) flipped[i * rows + j] = x[j * columns + i];
  for (int i = 0; i < columns; ++i)
    for (int j = 0; j < rows; ++j)
      for (int k = 0; k < rows; ++k) half[i * rows + j] += flipped[i * rows + k] * a[k * rows + j];
  for (int i = 0; i < columns; ++i)
    for (int j = 0; j < columns; ++j)
      for (int k = 0; k < rows; ++k) result[i * columns + j] += half[i * rows + k] * flipped[j * rows + k];
  return result;
}

Gradients gradients_in_double(const Convolution &of, const Floats &output_gradient) {
  const winograd_problem &p = of.problem;
  const Matrices matrices(p.m);
  const int t = matrices.t, m = matrices.m;
  const int64_t channels = of.channels_of_group();
  Gradients found{Doubles(of.input.size()), Doubles(of.weights.size())};
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t top = 0; top < of.out_height(); top += m)
      for (int64_t left = 0; left < of.out_width(); left += m) {
        std::vector<Doubles> v, v_gradients(p.channels, Doubles(t * t));  // by channel
        for (int64_t c = 0; c < p.channels; ++c) {
          Doubles tile(t * t);
          for (int i = 0; i < t * t; ++i) tile[i] = of.pixel(n, c, top + i / t - p.pad_height, left + i % t - p.pad_width);
          v.push_back(on_both_sides(matrices.bt, tile, t, t));
        }
        for (int64_t k = 0; k < p.filters; ++k) {
          Doubles tile(m * m);
          for (int64_t y = top; y < std::min(top + m, of.out_height()); ++y)
            for (int64_t x = left; x < std::min(left + m, of.out_width()); ++x)
              tile[(y - top) * m + x - left] = output_gradient[of.place(n, k, y, x, p.filters, of.out_height(), of.out_width())];
          const Doubles product = transposed_on_both_sides(matrices.at, tile, m, t);
          const int64_t first_channel = k / (p.filters / p.groups) * channels;
          for (int64_t slot = 0; slot < p.kept; ++slot)
            for (int64_t c = 0; c < channels; ++c) {
              const int32_t position = of.position(k, slot);
              const int64_t weight = (slot * p.filters + k) * channels + c;
              found.weights[weight] += product[position] * v[first_channel + c][position];
              v_gradients[first_channel + c][position] += product[position] * of.weights[weight];
            }
        }
        for (int64_t c = 0; c < p.channels; ++c) {
          const Doubles tile = transposed_on_both_sides(matrices.bt, v_gradients[c], t, t);
          for (int i = 0; i < t * t; ++i) {
            const int64_t y = top + i / t - p.pad_height, x = left + i % t - p.pad_width;
            if (y >= 0 && x >= 0 && y < p.height && x < p.width)
              found.input[of.place(n, c, y, x, p.channels, p.height, p.width)] += tile[i];
          }
        }
      }
  return found;
}

// ---- What is tested ----------------------------------------------------------------------------------------------

void run_on_std_threads(void *, int64_t parts, void (*body)(void *, int64_t), void *context) {
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread &thread : threads) thread.join();
}

using Size = int64_t (*)(const winograd_problem *);
using Pack = int (*)(const winograd_problem *, const float *, float *);
using Convolve = int (*)(const winograd_problem *, const winograd_operands *, const winograd_blocking *, const winograd_threads *);

Floats run(const Convolution &of, const Floats &weights, Size size, Pack pack, Convolve convolve, int threads) {
  Floats packed(std::max<int64_t>(size(&of.problem), 0));
  Floats output(of.outputs(), std::nanf(""));
  if (pack(&of.problem, weights.data(), packed.data()) != 0) {
    check(false, of.name() + ": packing said: " + winograd_last_error());
    return output;
  }
  const winograd_operands operands{of.input.data(), packed.data(), of.bias.empty() ? nullptr : of.bias.data(),
                                   of.residual.empty() ? nullptr : of.residual.data(), output.data(), of.memory, of.activation};
  const winograd_threads on{threads, run_on_std_threads, nullptr};
  if (convolve(&of.problem, &operands, &of.blocking, threads > 1 ? &on : nullptr) != 0)
    check(false, of.name() + ": convolving said: " + winograd_last_error());
  return output;
}

double largest_of(const Doubles &x) {
  return std::accumulate(x.begin(), x.end(), 0.0, [](double most, double value) { return std::max(most, std::fabs(value)); });
}

// Largest difference over `scale`; NaN counts as infinite.
double difference(const Floats &x, const Doubles &y, double scale) {
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) most = std::isnan(x[i]) ? INFINITY : std::max(most, std::fabs(x[i] - y[i]));
  return most == 0 ? 0 : most / std::max(scale, 1e-30);
}

void compare(const Convolution &of, const std::vector<const char *> &variants) {
  const Doubles wanted = expected(of, winograd_in_double);
  // Kept positions that don't cancel make large M from which small outputs come, so the error is measured against both.
  const double scale = std::max(largest_of(wanted), 1.0);
  const double tolerance = of.problem.m == 2 ? 4e-6 : of.problem.m == 4 ? 2e-5 : of.problem.m == 6 ? 2e-4 : 6e-4;
  if (of.is_dense()) {  // then both formulas are the same convolution, but for the rounding of U
    const Doubles direct = expected(of, directly_in_double);
    double most = 0;
    for (size_t i = 0; i < direct.size(); ++i) most = std::max(most, std::fabs(direct[i] - wanted[i]));
    check(most <= 1e-5 * scale, of.name() + ": the formulas contradict each other, by " + std::to_string(most));
  }
  for (const char *variant : variants) {
    winograd_cpu_force(variant);
    for (const int threads : {1, 3}) {
      const std::string name = of.name() + ", " + variant + ", " + std::to_string(threads) + " threads: ";
      uint64_t gemms, multiplications;
      winograd_reset_operation_counts();
      double error = difference(
          run(of, of.weights, winograd_packed_weights_size, winograd_pack_weights, winograd_conv2d, threads), wanted, scale);
      winograd_operation_counts(&gemms, &multiplications);
      check(error <= tolerance, name + "weights, error " + std::to_string(error));
      const int64_t once = of.problem.kept * std::max<int64_t>(of.problem.groups, of.problem.kernel_groups);
      check(gemms == static_cast<uint64_t>(of.problem.batch == 0 ? 0 : once), name + std::to_string(gemms) + " GEMMs counted");
      check(multiplications == static_cast<uint64_t>(of.problem.kept * of.tiles() * of.problem.filters * of.channels_of_group()),
            name + std::to_string(multiplications) + " multiplications counted");
      error = difference(
          run(of, of.filters, winograd_packed_filters_size, winograd_pack_filters, winograd_conv2d_from_filters, threads), wanted,
          scale);
      check(error <= tolerance, name + "filters, error " + std::to_string(error));
    }
  }
  winograd_cpu_force(nullptr);
}

void compare_gradients(const Convolution &of, const Floats &output_gradient, const std::vector<const char *> &variants) {
  const Gradients wanted = gradients_in_double(of, output_gradient);
  const double tolerance = of.problem.m == 2 ? 4e-6 : of.problem.m == 4 ? 2e-5 : of.problem.m == 6 ? 2e-4 : 6e-4;
  for (const char *variant : variants) {
    winograd_cpu_force(variant);
    for (const int threads : {1, 3})
      for (const bool both : {true, false}) {
        const bool only_input = !both && threads == 1;
        Floats input(of.input.size(), std::nanf("")), weights(of.weights.size(), std::nanf(""));
        const winograd_gradients operands{output_gradient.data(), of.input.data(), of.weights.data(),
                                          both || only_input ? input.data() : nullptr, both || !only_input ? weights.data() : nullptr,
                                          of.memory};
        const winograd_threads on{threads, run_on_std_threads, nullptr};
        const std::string name = of.name() + ", " + variant + ", " + std::to_string(threads) + " threads: ";
        if (winograd_conv2d_gradients(&of.problem, &operands, threads > 1 ? &on : nullptr) != 0)
          check(false, name + "gradients said: " + winograd_last_error());
        if (operands.input_gradient != nullptr) {
          const double error = difference(input, wanted.input, std::max(largest_of(wanted.input), 1.0));
          check(error <= tolerance, name + "the gradient of the input, error " + std::to_string(error));
        }
        if (operands.weight_gradient != nullptr) {
          const double error = difference(weights, wanted.weights, std::max(largest_of(wanted.weights), 1.0));
          check(error <= tolerance, name + "the gradient of the weights, error " + std::to_string(error));
        }
      }
  }
  winograd_cpu_force(nullptr);
}

// ---- Drawing convolutions ----------------------------------------------------------------------------------------

class Draw {
 public:
  explicit Draw(unsigned seed) : random_(seed) {}
  int64_t number(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_); }
  bool coin() { return number(0, 1) == 1; }
  Floats floats(int64_t count) {
    Floats values(count);
    std::normal_distribution<float> normal;
    for (float &value : values) value = normal(random_);
    return values;
  }
  std::vector<int32_t> ascending(int32_t kept, int32_t of) {
    std::vector<int32_t> all(of);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random_);
    all.resize(kept);
    std::sort(all.begin(), all.end());
    return all;
  }
  Convolution convolution();

 private:
  std::mt19937 random_;
};

Convolution Draw::convolution() {
  constexpr int kOutputs[] = {2, 4, 6, 7};
  constexpr int kGroups[][2] = {{1, 1}, {1, 1}, {1, 1}, {1, 3}, {2, 1}, {2, 4}, {3, 3}, {4, 2}};  // of channels, of positions
  Convolution of;
  winograd_problem &p = of.problem;
  p.m = kOutputs[number(0, 3)];
  const auto &[groups, kernel_groups] = kGroups[number(0, 7)];
  p.groups = groups;
  p.kernel_groups = kernel_groups;
  p.channels = groups * (coin() ? number(1, 9) : number(10, 40));
  p.filters = std::max(groups, kernel_groups) * (coin() ? number(1, 9) : number(10, 70));
  p.batch = number(0, 9) == 0 ? 0 : number(1, 3);
  p.height = number(1, 20);
  p.width = number(1, 20);
  p.pad_height = static_cast<int32_t>(number(p.height < 3 ? 1 : 0, 2));
  p.pad_width = static_cast<int32_t>(number(p.width < 3 ? 1 : 0, 2));
  const int32_t t = p.m + 2;
  p.kept = coin() ? t * t : static_cast<int32_t>(number(1, t * t));
  for (int run = 0; run < kernel_groups; ++run)
    for (const int32_t position : ascending(p.kept, t * t)) of.positions.push_back(position);
  p.positions = of.positions.data();
  of.memory = coin() ? WINOGRAD_CHANNELS_LAST : WINOGRAD_CHANNELS_FIRST;
  of.activation = coin() ? WINOGRAD_RELU : WINOGRAD_NONE;
  if (coin()) of.blocking = {static_cast<int32_t>(number(1, 60)), static_cast<int32_t>(32 * number(1, 3)),
                             static_cast<int32_t>(number(0, 1))};
  of.input = floats(p.batch * p.channels * p.height * p.width);
  if (coin()) of.bias = floats(p.filters);
  if (coin()) of.residual = floats(of.outputs());

  const int64_t pairs = p.filters * of.channels_of_group();  // of filter and channel
  of.filters = floats(pairs * 9);
  of.weights.resize(p.kept * pairs);
  const Matrices matrices(p.m);
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t slot = 0; slot < p.kept; ++slot) {
      const int32_t position = of.position(pair / of.channels_of_group(), slot);
      double sum = 0;  // of G w G^T
      for (int i = 0; i < 9; ++i)
        sum += matrices.g[position / t * 3 + i / 3] * matrices.g[position % t * 3 + i % 3] * of.filters[pair * 9 + i];
      of.weights[slot * pairs + pair] = static_cast<float>(sum);
    }
  return of;
}

// ---- What must be refused ----------------------------------------------------------------------------------------

void check_refusals() {
  const int32_t positions[] = {0, 5, 15};
  const winograd_problem sound{1, 4, 8, 8, 4, 1, 1, 1, 2, 1, 3, positions};
  check(winograd_packed_weights_size(&sound) > 0, "a sound problem is accepted");
  const int32_t unordered[] = {5, 0, 15}, twice[] = {5, 5, 15}, outside[] = {0, 5, 16}, negative[] = {-1, 5, 15};
  const int32_t everything = INT32_MAX;
  const struct {
    const char *what;
    std::function<void(winograd_problem &)> spoil;
  } cases[] = {
      {"m of 3", [](auto &p) { p.m = 3; }},
      {"m of -1", [](auto &p) { p.m = -1; }},
      {"a huge m", [=](auto &p) { p.m = everything; }},
      {"a negative batch", [](auto &p) { p.batch = -1; }},
      {"no channels", [](auto &p) { p.channels = 0; }},
      {"no filters", [](auto &p) { p.filters = 0; }},
      {"no groups", [](auto &p) { p.groups = 0; }},
      {"groups that don't divide", [](auto &p) { p.groups = 3; }},
      {"no kernel groups", [](auto &p) { p.kernel_groups = 0; }},
      {"kernel groups that don't divide", [](auto &p) { p.kernel_groups = 3; }},
      {"no height", [](auto &p) { p.height = 0; }},
      {"an input below the filter", [](auto &p) { p.height = p.width = 2; p.pad_height = p.pad_width = 0; }},
      {"negative padding", [](auto &p) { p.pad_height = -1; }},
      {"huge padding", [=](auto &p) { p.pad_height = p.pad_width = everything; }},
      {"huge sizes", [](auto &p) { p.batch = p.channels = p.filters = p.height = p.width = INT64_MAX; }},
      {"a product of sizes beyond 64 bits", [](auto &p) { p.batch = p.channels = p.filters = p.height = p.width = 2000000000; }},
      {"no positions kept", [](auto &p) { p.kept = 0; }},
      {"more positions than a tile has", [](auto &p) { p.kept = 17; }},
      {"missing positions", [](auto &p) { p.positions = nullptr; }},
      {"positions out of order", [&](auto &p) { p.positions = unordered; }},
      {"the same position twice", [&](auto &p) { p.positions = twice; }},
      {"a position outside the tile", [&](auto &p) { p.positions = outside; }},
      {"a negative position", [&](auto &p) { p.positions = negative; }},
  };
  Floats some(4096);
  const winograd_operands operands{some.data(), some.data(), nullptr, nullptr, some.data(), WINOGRAD_CHANNELS_LAST, WINOGRAD_NONE};
  const winograd_gradients gradients{some.data(), some.data(), some.data(), some.data(), some.data(), WINOGRAD_CHANNELS_LAST};
  for (const auto &[what, spoil] : cases) {
    winograd_problem spoiled = sound;
    spoil(spoiled);
    const std::string name = std::string(what) + " is refused by ";
    const auto says_why = [] {
      const std::string sentence = winograd_last_error();
      return sentence.size() > 10 && sentence.back() == '.';
    };
    check(winograd_packed_weights_size(&spoiled) < 0 && says_why(), name + "packed_weights_size");
    check(winograd_packed_filters_size(&spoiled) < 0 && says_why(), name + "packed_filters_size");
    check(winograd_pack_weights(&spoiled, some.data(), some.data()) != 0 && says_why(), name + "pack_weights");
    check(winograd_pack_filters(&spoiled, some.data(), some.data()) != 0 && says_why(), name + "pack_filters");
    check(winograd_conv2d(&spoiled, &operands, nullptr, nullptr) != 0 && says_why(), name + "conv2d");
    check(winograd_conv2d_from_filters(&spoiled, &operands, nullptr, nullptr) != 0 && says_why(), name + "conv2d_from_filters");
    check(winograd_conv2d_gradients(&spoiled, &gradients, nullptr) != 0 && says_why(), name + "conv2d_gradients");
  }
  for (const winograd_blocking &blocking : {winograd_blocking{8, 33, 0}, winograd_blocking{8, 32, 2}})
    check(winograd_conv2d(&sound, &operands, &blocking, nullptr) != 0,
          "blocking of " + std::to_string(blocking.filters) + " filters, shared " + std::to_string(blocking.shared) + ", is refused");
  winograd_operands missing = operands;
  missing.input = nullptr;
  check(winograd_conv2d(&sound, &missing, nullptr, nullptr) != 0, "a missing input is refused");
  winograd_gradients without = gradients;
  without.output_gradient = nullptr;
  check(winograd_conv2d_gradients(&sound, &without, nullptr) != 0, "a missing gradient is refused");
  check(winograd_cpu_force("neon9000") != 0, "an instruction set that doesn't exist is refused");
  double one[81];
  check(winograd_matrices(5, one, one, one) != 0, "matrices of F(5) are refused");
}

}  // namespace

int main(int count, char **arguments) {
  const int convolutions = count > 1 ? std::atoi(arguments[1]) : 300;
  Draw draw(count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 1);
  std::vector<const char *> variants;
  for (const char *name : {"avx512", "avx2", "portable"})
    if (winograd_cpu_force(name) == 0) variants.push_back(name);
  winograd_cpu_force(nullptr);
  check_refusals();
  for (int i = 0; i < convolutions; ++i) {
    const Convolution convolution = draw.convolution();
    compare(convolution, variants);
    compare_gradients(convolution, draw.floats(convolution.outputs()), variants);
  }
  winograd_release_workspace();
  check(winograd_workspace_bytes() == 0, "all workspace is given back");
  for (const char *name : variants) std::printf("%s was tested\n", name);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
