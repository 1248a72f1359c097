// From a program (winograd.h has its format) to a block that can be run: checked, packed, with a place for every tensor.
//
// A program may come from anywhere. What passes here reads and writes nothing but its own memory, whatever its integers are.
#include <algorithm>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "integer_run.hpp"
#include "program_shapes.hpp"

namespace winograd::integers {
namespace {

constexpr int32_t kVersion = 1;
using namespace programs;

struct Rounded {
  Words left, right, low, high;
};

// An operation as the program has it.
struct Operation {
  Step step{};
  Words sources;
  Rounded rounded, sum;  // sum: of an addition that was taken into this convolution
  Words bias, left_second, sum_left_second, table, row, positions;
  const int8_t *weights = nullptr;
};

class Program : public Shapes<Value, Step> {
 public:
  Program(const uint8_t *program, int64_t bytes) : Shapes(program, bytes) {
    const int32_t operation_count = read_head(kMagic, kVersion, "integers");
    for (Value &value : values) read_value(value);
    if (int64_t{values[input].highest} - values[input].lowest > 65535) refuse("The program's input has more than 16 bits.");
    input_lengths = reader_.words(values[input].channels, -64, 64, "input lengths");
    for (int32_t number = 0; number < operation_count; ++number) operations.push_back(read_operation());
    check_end();
  }

  std::vector<Operation> operations;
  Words input_lengths;

 private:
  void read_value(Value &value) {
    read_shape(value);
    value.lowest = reader_.word();
    value.highest = reader_.word();
    if (value.lowest > 0 || value.highest < 0) refuse("The range of one of the program's values has no zero.");
    value.is_wide = int64_t{value.highest} - value.lowest > 255;
  }

  Operation read_operation() {
    Operation made;
    Step &step = made.step;
    step.kind = reader_.between(kConvolution, kOutputTransform, "kind of operation");
    step.output = read_output();
    const bool takes_two = step.kind == kAddition || step.kind == kMultiplication;
    made.sources = read_sources(1 + takes_two, step.kind == kConcatenation ? kMostValues : 1 + takes_two);
    step.source = made.sources[0];
    step.second = takes_two ? made.sources[1] : -1;
    step.source_count = static_cast<int64_t>(made.sources.size());
    read_the_rest(made);
    exists_[step.output] = true;
    return made;
  }

  void read_the_rest(Operation &made) {
    Step &step = made.step;
    const Value &from = values[step.source], &to = values[step.output];
    switch (step.kind) {
      case kConvolution: return read_convolution(made);
      case kAddition:
        require_shape(step.second, from.channels, from.height, from.width);
        require_shape(step.output, from.channels, from.height, from.width);
        made.rounded.left = read_shifts(to);
        made.left_second = read_shifts(to);
        return read_rounding(made, to);
      case kMultiplication: {
        const Value &second = values[step.second];
        if (second.height != 1 || second.width != 1) require_shape(step.second, from.channels, from.height, from.width);
        require_shape(step.second, from.channels, second.height, second.width);
        require_shape(step.output, from.channels, from.height, from.width);
        made.rounded.left = read_shifts(to);
        return read_rounding(made, to);
      }
      case kMaxPool:
      case kAveragePool:
        reader_.pair(step.kernel, 1, "kernel");
        reader_.pair(step.stride, 1, "stride");
        reader_.pair(step.padding, 0, "padding");
        step.dilation[0] = step.dilation[1] = 1;
        if (step.kind == kMaxPool) reader_.pair(step.dilation, 1, "dilation");
        require_windows(step, from.channels);
        if (step.kind == kMaxPool) {
          require_full_windows(step);
          return require_range(step.source, step.output);
        }
        step.multiplier = reader_.word();
        made.rounded.left = read_shifts(to);
        return read_rounding(made, to);
      case kTable: {
        require_shape(step.output, from.channels, from.height, from.width);
        const int64_t span = int64_t{from.highest} - from.lowest + 1;
        if (span > 65536) refuse("A table of the program would have more than 2^16 entries.");
        step.rows = reader_.between(1, kMostSide, "rows of a table");
        made.row = reader_.words(to.channels, 0, step.rows - 1, "rows of a table");
        made.table = reader_.words(step.rows * span, to.lowest, to.highest, "entries of a table");
        return;
      }
      case kRequantization:
        require_shape(step.output, from.channels, from.height, from.width);
        made.rounded.left = read_shifts(to);
        return read_rounding(made, to);
      case kConcatenation: {
        int64_t channels = 0;
        for (const int32_t source : made.sources) {
          require_shape(source, values[source].channels, to.height, to.width);
          require_range(source, step.output);
          channels += values[source].channels;
        }
        return require_shape(step.output, channels, to.height, to.width);
      }
      case kSlice:
        require_range(step.source, step.output);
        return read_slice(step);
      case kPadding:
        require_range(step.source, step.output);
        return read_padding(step);
      case kNearestUpsample:
        for (int i = 0; i < 2; ++i) step.numbers[i] = reader_.between(1, kMostSide, "scale");
        require_range(step.source, step.output);
        return require_shape(step.output, from.channels, int64_t{from.height} * step.numbers[0], int64_t{from.width} * step.numbers[1]);
      case kReshape:
        require_range(step.source, step.output);
        if (from.numbers() != to.numbers()) refuse("A reshape of the program changes how many numbers there are.");
        return;
      case kInputTransform:
        read_positions(made);
        reader_.pair(step.padding, 0, "padding");
        require_shape(step.output, int64_t{from.channels} * step.position_count, to.height, to.width);
        made.rounded.left = read_shifts(to);
        return read_rounding(made, to);
      case kOutputTransform:
        read_positions(made);
        require_shape(step.source, int64_t{to.channels} * step.position_count, (int64_t{to.height} + 1) / 2, (int64_t{to.width} + 1) / 2);
        made.bias = reader_.words(to.channels);
        made.left_second = read_shifts(from);
        made.rounded.left.assign(static_cast<size_t>(to.channels), 0);
        return read_rounding(made, to);
      default: {  // a permutation
        const int32_t sizes[] = {from.channels, from.height, from.width};
        bool seen[3] = {};
        for (int i = 0; i < 3; ++i) {
          step.numbers[i] = reader_.between(0, 2, "dimension of a permutation");
          if (seen[step.numbers[i]]) refuse("A permutation of the program has a dimension twice.");
          seen[step.numbers[i]] = true;
        }
        require_range(step.source, step.output);
        return require_shape(step.output, sizes[step.numbers[0]], sizes[step.numbers[1]], sizes[step.numbers[2]]);
      }
    }
  }

  void read_positions(Operation &made) {
    made.step.position_count = reader_.between(1, 16, "number of positions");
    made.positions = reader_.words(made.step.position_count, 0, 15, "positions");
    for (size_t p = 1; p < made.positions.size(); ++p)
      if (made.positions[p] <= made.positions[p - 1]) refuse("Positions of the program don't rise.");
  }

  void read_convolution(Operation &made) {
    Step &step = made.step;
    const Value &from = values[step.source], &to = values[step.output];
    if (from.is_wide) refuse("A convolution of the program reads integers of more than 8 bits.");
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
    if (numbers > kMostNumbers || numbers * to.channels > kMostNumbers || padded * (from.channels + 3) > kMostNumbers)
      refuse("A convolution of the program is too large: more than 2^28 weights or inputs.");
    made.bias = reader_.words(to.channels);
    made.rounded.left = read_shifts(to);
    read_rounding(made, to);
    made.weights = reader_.bytes(numbers * to.channels);
    step.multiplications = numbers * to.numbers();
  }

  Words read_shifts(const Value &to) { return reader_.words(to.channels, 0, 31, "shifts"); }
  void read_rounding(Operation &made, const Value &to) {
    made.rounded.right = read_shifts(to);
    made.rounded.low = reader_.words(to.channels, to.lowest, to.highest, "lower bounds");
    made.rounded.high = reader_.words(to.channels, to.lowest, to.highest, "upper bounds");
    for (size_t k = 0; k < made.rounded.low.size(); ++k)
      if (made.rounded.low[k] > made.rounded.high[k]) refuse("A lower bound of the program is above its upper bound.");
  }

  void require_range(int32_t source, int32_t output) const {
    if (values[source].lowest < values[output].lowest || values[source].highest > values[output].highest)
      refuse("An operation of the program writes a value whose range is narrower than that of what it reads.");
  }
};

// Additions that follow a convolution, and are all that does, become part of it: it runs where they stood. Of bytes and to
// bytes, as networks have them.
void take_in_additions(Program &program) {
  std::vector<int32_t> readers(program.values.size()), maker(program.values.size(), -1);
  readers[program.output] = 2;
  for (size_t number = 0; number < program.operations.size(); ++number) {
    const Operation &operation = program.operations[number];
    maker[operation.step.output] = static_cast<int32_t>(number);
    for (const int32_t source : operation.sources) ++readers[source];
  }
  std::vector<bool> is_gone(program.operations.size());
  for (Operation &operation : program.operations) {
    if (operation.step.kind != kAddition || program.values[operation.step.output].is_wide) continue;
    for (const int place : {1, 0}) {
      const int32_t operand = operation.sources[place], by = maker[operand];
      if (readers[operand] != 1 || by < 0 || program.operations[by].step.kind != kConvolution || program.operations[by].step.second >= 0)
        continue;
      if (program.values[operation.sources[1 - place]].is_wide) continue;
      Operation fused = program.operations[by];
      is_gone[by] = true;
      fused.step.second = operation.sources[1 - place];
      fused.step.output = operation.step.output;
      fused.sources.push_back(fused.step.second);
      fused.sum = operation.rounded;
      fused.sum_left_second = operation.left_second;
      if (place == 1) std::swap(fused.sum.left, fused.sum_left_second);
      maker[fused.step.output] = -1;  // it has had its addition
      operation = fused;
      break;
    }
  }
  std::vector<Operation> kept;
  for (size_t number = 0; number < program.operations.size(); ++number)
    if (!is_gone[number]) kept.push_back(program.operations[number]);
  program.operations.swap(kept);
}

// By output, each group filled up to a whole number of lanes; `filler` is what the filled places hold.
Words in_lanes(const Words &numbers, int64_t groups, int32_t filler = 0) {
  const int64_t each = static_cast<int64_t>(numbers.size()) / groups, lanes = round_up(each, kLanes);
  Words filled(static_cast<size_t>(groups * lanes), filler);
  for (int64_t group = 0; group < groups; ++group)
    std::copy_n(numbers.begin() + group * each, each, filled.begin() + group * lanes);
  return filled;
}

Rounding put_rounding(Block &block, const Rounded &of, int64_t groups) {
  Words half;
  for (const int32_t right : of.right) half.push_back(right > 0 ? int32_t{1} << (right - 1) : 0);
  return {block.put(in_lanes(of.left, groups)), block.put(in_lanes(half, groups)), block.put(in_lanes(of.right, groups)),
          block.put(in_lanes(of.low, groups)), block.put(in_lanes(of.high, groups))};
}

// Tile registers want runs in equal parts.
void choose_tiles(Step &step, const std::vector<Run> &runs, int64_t width) {
  const int32_t fours = runs[0].fours, most = kMostTileBytes / kTogether;
  int32_t parts = (fours + most - 1) / most;
  while (fours % parts != 0) ++parts;
  step.tile_fours = fours / parts;
  const int64_t tiles = (width + kMostTileRows - 1) / kMostTileRows;
  step.tile_rows = static_cast<int32_t>((width + tiles - 1) / tiles);
  // Where little of a register is filled, vectors are faster.
  if (step.tile_fours < 3 || step.tile_rows < 4) step.tile_rows = 0;
}

// Packs a convolution's weights, and lays out how it reads its input. Returns how far it may read behind its last pixel.
int64_t put_convolution(Block &block, const Program &program, const Operation &of, Step &step) {
  const Value &from = program.values[step.source], &to = program.values[step.output];
  const int64_t channels = from.channels / step.groups, filters = to.channels / step.groups;
  const int64_t taps = int64_t{step.kernel[0]} * step.kernel[1];
  step.is_depthwise = step.groups > 1 && channels == 1 && filters == 1;
  step.group_channels = static_cast<int32_t>(step.is_depthwise ? from.channels : round_up(channels, kTogether));
  step.group_filters = static_cast<int32_t>(step.is_depthwise ? to.channels : filters);
  step.group_lanes = static_cast<int32_t>(round_up(step.group_filters, kLanes));
  const int64_t groups = step.is_depthwise ? 1 : step.groups;
  step.is_copied = step.padding[0] > 0 || step.padding[1] > 0 || groups > 1 || (!step.is_depthwise && channels % kTogether != 0);
  const int64_t line = (from.width + 2 * int64_t{step.padding[1]}) * step.group_channels;

  // Windows' bytes, tap by tap; without dilation the taps of a row lie side by side.
  std::vector<Run> runs;
  const bool is_joined = !step.is_depthwise && step.dilation[1] == 1;
  const int32_t columns = is_joined ? 1 : step.kernel[1];
  for (int32_t r = 0; r < step.kernel[0]; ++r)
    for (int32_t s = 0; s < columns; ++s) {
      const int64_t offset = r * step.dilation[0] * line + int64_t{s} * step.dilation[1] * step.group_channels;
      runs.push_back({static_cast<int32_t>(offset), step.group_channels / kTogether * (is_joined ? step.kernel[1] : 1)});
    }
  step.run_count = static_cast<int32_t>(runs.size());
  step.fours = static_cast<int32_t>(taps * (step.group_channels / kTogether));
  step.runs = block.put(runs);
  if (!step.is_depthwise) choose_tiles(step, runs, to.width);

  Words bias = of.bias;
  for (int64_t k = 0; k < to.channels; ++k) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < channels * taps; ++i) sum += static_cast<uint32_t>(int32_t{of.weights[k * channels * taps + i]});
    bias[k] = static_cast<int32_t>(static_cast<uint32_t>(bias[k]) + static_cast<uint32_t>(from.lowest) * sum);
  }
  step.bias = block.put(in_lanes(bias, groups));

  if (step.is_depthwise) {
    Words weights(static_cast<size_t>(taps * step.group_lanes));
    for (int64_t c = 0; c < to.channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap) weights[tap * step.group_lanes + c] = of.weights[c * taps + tap];
    step.weights = block.put(weights);
  } else {
    std::vector<int8_t> weights(static_cast<size_t>(groups * step.group_lanes * taps * step.group_channels));
    const int64_t panel = taps * step.group_channels * kLanes;
    for (int64_t k = 0; k < to.channels; ++k) {
      const int64_t group = k / filters, inside = k % filters;
      int8_t *const start = weights.data() + group * step.group_lanes * taps * step.group_channels + inside / kLanes * panel;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t number = tap * step.group_channels + c;  // of the window's bytes
          start[number / kTogether * kLanes * kTogether + inside % kLanes * kTogether + number % kTogether] =
              of.weights[(k * channels + c) * taps + tap];
        }
    }
    step.weights = block.put(weights);
  }

  step.rounding = put_rounding(block, of.rounded, groups);
  step.shifts_left = std::any_of(of.rounded.left.begin(), of.rounded.left.end(), [](int32_t x) { return x != 0; });
  if (step.second >= 0) {
    step.sum = put_rounding(block, of.sum, groups);
    step.left_second = block.put(in_lanes(of.sum_left_second, groups));
  }
  return kMostTileRows * int64_t{step.stride[1]} * step.group_channels + kMostTileBytes;
}

// Bytes that lie behind an array and are read with it, and not used.
constexpr int64_t kReadBehind = 64 * 4;

}  // namespace

std::vector<uint8_t> prepare(const uint8_t *bytes, int64_t size) {
  Program program(bytes, size);
  take_in_additions(program);
  Prepared header{};
  header.arena_bytes = place_values(program, [](const Value &value) { return round_up(value.numbers() * (value.is_wide ? 4 : 1), 64); });
  Block block(sizeof(Prepared));
  std::vector<Step> steps;
  int64_t behind = 0;
  for (const Operation &operation : program.operations) {
    Step step = operation.step;
    if (step.kind == kConvolution) {
      behind = std::max(behind, put_convolution(block, program, operation, step));
      if (step.is_copied) {
        const Value &from = program.values[step.source];
        header.scratch_bytes = std::max(header.scratch_bytes, (from.height + 2 * int64_t{step.padding[0]}) *
                                                                  (from.width + 2 * int64_t{step.padding[1]}) * step.group_channels);
      }
    } else {
      if (!operation.rounded.right.empty()) step.rounding = put_rounding(block, operation.rounded, 1);
      step.left_second = block.put(operation.left_second);
      step.sources = block.put(operation.sources);
      step.table = block.put(operation.table);
      step.row = block.put(operation.row);
      step.bias = block.put(operation.bias);
      step.positions = block.put(operation.positions);
    }
    steps.push_back(step);
  }
  header.scratch_bytes = round_up(header.scratch_bytes, 64);
  header.arena_bytes = round_up(header.arena_bytes + behind + kReadBehind, 4096);
  header.input = program.input;
  header.output = program.output;
  header.step_count = static_cast<int32_t>(steps.size());
  header.value_count = static_cast<int32_t>(program.values.size());
  header.values = block.put(program.values);
  header.steps = block.put(steps);
  header.input_lengths = block.put(program.input_lengths);
  header.head = BlockHead::of(kMagic, static_cast<int64_t>(block.bytes.size()));
  std::memcpy(block.bytes.data(), &header, sizeof header);
  return std::move(block.bytes);
}

}  // namespace winograd::integers
