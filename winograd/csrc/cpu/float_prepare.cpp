// From a program (float_program.py has its format) to a block that can be run: checked, packed, with a place for every tensor.
//
// A program may come from anywhere. What passes here reads and writes nothing but its own memory.
#include <algorithm>
#include <cmath>

#include "check.hpp"
#include "float_network.hpp"
#include "program_shapes.hpp"

namespace winograd::floats {
namespace {

using namespace programs;

constexpr int32_t kVersion = 1;

// An operation as the program has it.
struct Operation {
  Step step{};
  Words sources, positions;
  Floats weights, bias;
};

class Program : public Shapes<Value, Step> {
 public:
  Program(const uint8_t *program, int64_t bytes) : Shapes(program, bytes) {
    const int32_t operation_count = read_head(kMagic, kVersion, "floats");
    for (Value &value : values) read_shape(value);
    for (int32_t number = 0; number < operation_count; ++number) operations.push_back(read_operation());
    check_end();
  }

  std::vector<Operation> operations;

 private:
  Operation read_operation() {
    Operation made;
    Step &step = made.step;
    step.kind = reader_.between(kConvolution, kActivation, "kind of operation");
    step.output = read_output();
    const bool may_add = step.kind == kConvolution || step.kind == kWinogradConvolution;
    const int64_t least = step.kind == kAddition || step.kind == kMultiplication ? 2 : 1;
    made.sources = read_sources(least, step.kind == kConcatenation ? kMostValues : may_add ? 2 : least);
    step.source = made.sources[0];
    step.source_count = static_cast<int64_t>(made.sources.size());
    step.second = step.kind != kConcatenation && step.source_count == 2 ? made.sources[1] : -1;
    step.low = -INFINITY, step.high = INFINITY;
    step.groups = step.dilation[0] = step.dilation[1] = 1;
    read_the_rest(made);
    if (step.second >= 0 && step.kind != kMultiplication) require_alike(step.second, step.output);
    exists_[step.output] = true;
    return made;
  }

  void read_the_rest(Operation &made) {
    Step &step = made.step;
    const Value &from = values[step.source], &to = values[step.output];
    switch (step.kind) {
      case kConvolution: return read_convolution(made);
      case kWinogradConvolution: return read_winograd_convolution(made);
      case kAddition:
        read_bounds(step);
        return require_alike(step.source, step.output);
      case kScaling:
        read_bounds(step);
        made.weights = reader_.floats(to.channels);
        made.bias = reader_.floats(to.channels);
        return require_alike(step.source, step.output);
      case kMaxPool:
      case kAveragePool:
        reader_.pair(step.kernel, 1, "kernel");
        reader_.pair(step.stride, 1, "stride");
        reader_.pair(step.padding, 0, "padding");
        if (step.kind == kMaxPool) reader_.pair(step.dilation, 1, "dilation");
        else step.counts_padding = reader_.between(0, 1, "count of padding");
        require_windows(step, from.channels);
        return require_full_windows(step);
      case kConcatenation: {
        int64_t channels = 0;
        for (const int32_t source : made.sources) {
          require_shape(source, values[source].channels, to.height, to.width);
          channels += values[source].channels;
        }
        return require_shape(step.output, channels, to.height, to.width);
      }
      case kSlice: return read_slice(step);
      case kPadding: return read_padding(step);
      case kNearestUpsample:
        for (int i = 0; i < 2; ++i) step.numbers[i] = reader_.between(1, kMostSide, "scale");
        return require_shape(step.output, from.channels, int64_t{from.height} * step.numbers[0], int64_t{from.width} * step.numbers[1]);
      case kMultiplication: {
        const Value &second = values[step.second];
        if (second.height != 1 || second.width != 1) require_alike(step.second, step.source);
        require_shape(step.second, from.channels, second.height, second.width);
        return require_alike(step.source, step.output);
      }
      default:  // an activation
        step.numbers[0] = reader_.between(kLeakyRelu, kHardSwish, "function");
        step.slope = reader_.number();
        return require_alike(step.source, step.output);
    }
  }

  void read_convolution(Operation &made) {
    Step &step = made.step;
    const Value &from = values[step.source], &to = values[step.output];
    reader_.pair(step.kernel, 1, "kernel");
    reader_.pair(step.stride, 1, "stride");
    reader_.pair(step.padding, 0, "padding");
    reader_.pair(step.dilation, 1, "dilation");
    step.groups = reader_.between(1, kMostSide, "groups");
    if (from.channels % step.groups != 0 || to.channels % step.groups != 0)
      refuse(step.groups, " groups of a convolution divide ", from.channels, " and ", to.channels, " channels.");
    require_windows(step, to.channels);
    const int64_t numbers = int64_t{step.kernel[0]} * step.kernel[1] * (from.channels / step.groups);
    const int64_t padded = (from.height + 2 * int64_t{step.padding[0]}) * (from.width + 2 * int64_t{step.padding[1]});
    if (numbers > kMostNumbers || numbers * to.channels > kMostNumbers || padded > kMostNumbers || padded * from.channels > kMostNumbers)
      refuse("A convolution of the program is too large: more than 2^28 weights or inputs.");
    read_bounds(step);
    made.bias = reader_.floats(to.channels);
    made.weights = reader_.floats(numbers * to.channels);
    step.multiplications = numbers * to.numbers();
  }

  void read_winograd_convolution(Operation &made) {
    Step &step = made.step;
    const Value &from = values[step.source], &to = values[step.output];
    step.m = reader_.between(2, 7, "tile");
    reader_.pair(step.padding, 0, "padding");
    step.groups = reader_.between(1, kMostSide, "groups");
    step.kernel_groups = reader_.between(1, kMostSide, "groups of filters");
    step.kept = reader_.between(1, 81, "number of kept positions");
    if (reader_.between(0, 1, "activation") == 1) step.low = 0;
    made.positions = reader_.words(int64_t{step.kernel_groups} * step.kept);
    const int64_t channels = from.channels / step.groups;  // which must divide, as is checked below
    if (step.kept * channels > kMostNumbers || step.kept * channels * to.channels > kMostNumbers)
      refuse("A convolution of the program has more than 2^28 weights.");
    require_shape(step.output, to.channels, from.height + 2 * int64_t{step.padding[0]} - 2, from.width + 2 * int64_t{step.padding[1]} - 2);
    if (!is_sound(problem_of(made.step, from, to.channels, 1, made.positions.data()))) refuse(winograd_last_error());
    made.bias = reader_.floats(to.channels);
    made.weights = reader_.floats(step.kept * channels * to.channels);
    const int64_t tiles = ((to.height + step.m - 1) / step.m) * int64_t{(to.width + step.m - 1) / step.m};
    step.multiplications = tiles * step.kept * channels * to.channels;
  }

  void read_bounds(Step &step) {
    step.low = reader_.number(), step.high = reader_.number();
    if (!(step.low <= step.high)) refuse("A lower bound of the program is above its upper bound.");
  }
};

// By output, each group filled up with zeros to a whole number of `together`.
Floats filled_up(const Floats &numbers, int64_t groups, int64_t together) {
  const int64_t each = static_cast<int64_t>(numbers.size()) / groups, room = round_up(each, together);
  Floats filled(static_cast<size_t>(groups * room));
  for (int64_t group = 0; group < groups; ++group)
    std::copy_n(numbers.begin() + group * each, each, filled.begin() + group * room);
  return filled;
}

// What is a product of matrices is written as one: a kernel as large as its image, which linear layers after images are.
void flatten_whole_windows(Step &step, const Value &from) {
  step.is_even = step.groups == 1 && step.padding[0] == 0 && step.padding[1] == 0 && step.dilation[0] == 1 && step.dilation[1] == 1 &&
                 ((step.kernel[0] == from.height && step.kernel[1] == from.width) ||
                  (step.kernel[0] == 1 && step.kernel[1] == 1 && step.stride[0] == 1 && step.stride[1] == 1));
}

// Packs weights as multiply.hpp reads them, [group][panel of 32 filters][number of the window][32], or [tap][channels] of depthwise
// ones; and lays out where a window's numbers are.
void put_convolution(Block &block, const Program &program, const Operation &of, Step &step) {
  const Value &from = program.values[step.source], &to = program.values[step.output];
  const int64_t channels = from.channels / step.groups, filters = to.channels / step.groups;
  const int64_t taps = int64_t{step.kernel[0]} * step.kernel[1], numbers = taps * channels;
  step.is_depthwise = step.groups > 1 && channels == 1 && filters == 1;
  flatten_whole_windows(step, from);
  const int64_t line = (from.width + 2 * int64_t{step.padding[1]}) * from.channels;

  std::vector<Run> runs;
  if (step.is_even) {
    runs.push_back({0, numbers});
  } else {
    const bool is_joined = step.groups == 1 && step.dilation[1] == 1;  // taps of a row lie side by side
    for (int32_t r = 0; r < step.kernel[0]; ++r)
      for (int32_t s = 0; s < (is_joined ? 1 : step.kernel[1]); ++s)
        runs.push_back({r * step.dilation[0] * line + int64_t{s} * step.dilation[1] * from.channels, is_joined ? channels * step.kernel[1] : channels});
  }
  step.runs = block.put(runs);
  step.run_count = static_cast<int32_t>(runs.size());

  if (step.is_depthwise) {
    const int64_t room = round_up(to.channels, kWidestVector);
    Floats weights(static_cast<size_t>(taps * room));
    for (int64_t c = 0; c < to.channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap) weights[tap * room + c] = of.weights[c * taps + tap];
    step.weights = block.put(weights);
    step.bias = block.put(filled_up(of.bias, 1, kWidestVector));
    return;
  }
  const int64_t group_floats = round_up(filters, kPanelFilters) * numbers;
  Floats weights(static_cast<size_t>(step.groups * group_floats));
  for (int64_t k = 0; k < to.channels; ++k) {
    const int64_t inside = k % filters;
    float *const start = weights.data() + k / filters * group_floats + inside / kPanelFilters * kPanelFilters * numbers + inside % kPanelFilters;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < channels; ++c) start[(tap * channels + c) * kPanelFilters] = of.weights[(k * channels + c) * taps + tap];
  }
  step.weights = block.put(weights);
  step.bias = block.put(filled_up(of.bias, step.groups, kPanelFilters));
}

void put_winograd_convolution(Block &block, const Program &program, const Operation &of, Step &step) {
  const Value &from = program.values[step.source], &to = program.values[step.output];
  const winograd_problem problem = problem_of(step, from, to.channels, 1, of.positions.data());
  Floats packed(static_cast<size_t>(winograd_packed_weights_size(&problem)));
  winograd_pack_weights(&problem, of.weights.data(), packed.data());
  step.weights = block.put(packed);
  step.bias = block.put(of.bias);
  step.positions = block.put(of.positions);
}

}  // namespace

winograd_problem problem_of(const Step &step, const Value &from, int64_t filters, int64_t images, const int32_t *positions) {
  winograd_problem problem{};
  problem.batch = images;
  problem.channels = from.channels;
  problem.height = from.height;
  problem.width = from.width;
  problem.filters = filters;
  problem.groups = step.groups;
  problem.pad_height = step.padding[0];
  problem.pad_width = step.padding[1];
  problem.m = step.m;
  problem.kernel_groups = step.kernel_groups;
  problem.kept = step.kept;
  problem.positions = positions;
  return problem;
}

std::vector<uint8_t> prepare(const uint8_t *bytes, int64_t size) {
  Program program(bytes, size);
  Prepared header{};
  header.arena_floats = place_values(program, [](const Value &value) { return round_up(value.numbers(), kWidestVector); });
  Block block(sizeof header);
  std::vector<Step> steps;
  for (const Operation &operation : program.operations) {
    Step step = operation.step;
    const Value &from = program.values[step.source];
    switch (step.kind) {
      case kConvolution:
        put_convolution(block, program, operation, step);
        if (step.padding[0] > 0 || step.padding[1] > 0)
          header.frame_floats = std::max(header.frame_floats, (from.height + 2 * int64_t{step.padding[0]}) *
                                                                  (from.width + 2 * int64_t{step.padding[1]}) * from.channels);
        break;
      case kWinogradConvolution:
        put_winograd_convolution(block, program, operation, step);
        break;
      default:
        step.weights = block.put(filled_up(operation.weights, 1, kWidestVector));
        step.bias = block.put(filled_up(operation.bias, 1, kWidestVector));
        step.sources = block.put(operation.sources);
    }
    steps.push_back(step);
  }
  header.frame_floats = round_up(header.frame_floats, kWidestVector);
  header.input = program.input;
  header.output = program.output;
  header.step_count = static_cast<int32_t>(steps.size());
  header.value_count = static_cast<int32_t>(program.values.size());
  header.values = block.put(program.values);
  header.steps = block.put(steps);
  header.head = BlockHead::of(kMagic, static_cast<int64_t>(block.bytes.size()));
  std::memcpy(block.bytes.data(), &header, sizeof header);
  return std::move(block.bytes);
}

}  // namespace winograd::floats
