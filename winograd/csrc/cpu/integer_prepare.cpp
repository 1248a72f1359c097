// From a program (winograd.h has its format) to a block that can be run: checked, packed, with a place for every tensor.
//
// A program may come from anywhere. What passes here reads and writes nothing but its own memory, whatever its integers are.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "integer_run.hpp"
#include "program_shapes.hpp"

namespace winograd::integers {
namespace {

constexpr int32_t kVersion = 1;
constexpr int64_t kTilePositions = 16;  // of F(2x2, 3x3)
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
  std::vector<Operation> parts;  // of a Winograd convolution: the input transform and the products; the operation is the rest
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
    made.step.position_count = reader_.between(1, kTilePositions, "number of positions");
    made.positions = reader_.words(made.step.position_count, 0, kTilePositions - 1, "positions");
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

// Who makes each value, and how often it is read.
struct Uses {
  std::vector<int32_t> readers, maker;
  explicit Uses(const Program &program) : readers(program.values.size()), maker(program.values.size(), -1) {
    readers[program.output] = 2;
    for (size_t number = 0; number < program.operations.size(); ++number) {
      const Operation &operation = program.operations[number];
      maker[operation.step.output] = static_cast<int32_t>(number);
      for (const int32_t source : operation.sources) ++readers[source];
    }
  }
  // The operation that makes this value for one reader alone, if it is of that kind; else null.
  const Operation *sole(const Program &program, int32_t value, Kind kind) const {
    if (readers[value] != 1 || maker[value] < 0 || program.operations[maker[value]].step.kind != kind) return nullptr;
    return &program.operations[maker[value]];
  }
};

void keep_others(Program &program, const std::vector<bool> &is_gone) {
  std::vector<Operation> kept;
  for (size_t number = 0; number < program.operations.size(); ++number)
    if (!is_gone[number]) kept.push_back(std::move(program.operations[number]));
  program.operations.swap(kept);
}

// Whether the sums of V, and what becomes of them, fit into 16 bits as integer_winograd.hpp computes them. A shift to the left is
// taken off the one to the right, which is exact where no more than 2^10 is shifted, and within 32 bits.
bool fits_16_bits(const Program &program, const Operation &transform) {
  constexpr int32_t kFarthest = 20;
  if (program.values[transform.step.source].is_wide) return false;
  for (size_t lane = 0; lane < transform.rounded.left.size(); ++lane)
    if (transform.rounded.left[lane] > std::min(transform.rounded.right[lane], kFarthest)) return false;
  return true;
}

// Whether a convolution's outputs are nothing but its sums: not shifted, and never as large as its bounds.
bool gives_sums(const Program &program, const Operation &convolution) {
  const Value &from = program.values[convolution.step.source], &to = program.values[convolution.step.output];
  const int64_t numbers = from.channels / convolution.step.groups, largest = std::max(-int64_t{from.lowest}, int64_t{from.highest});
  const Rounded &by = convolution.rounded;
  for (int64_t k = 0; k < to.channels; ++k) {
    int64_t bound = std::abs(int64_t{convolution.bias[k]});
    for (int64_t i = 0; i < numbers; ++i) bound += largest * std::abs(int32_t{convolution.weights[k * numbers + i]});
    if (bound > 0 && (by.left[k] != 0 || by.right[k] != 0)) return false;
    if (bound > by.high[k] || -bound < by.low[k]) return false;
  }
  return true;
}

// Of 1x1 filters, a group for each position, so that V of a tile is all that an output needs.
bool multiplies_positions(const Program &program, const Step &convolution, int32_t positions) {
  const auto are = [](const int32_t *pair, int32_t number) { return pair[0] == number && pair[1] == number; };
  const bool is_depthwise = program.values[convolution.source].channels == positions && program.values[convolution.output].channels == positions;
  return convolution.groups == positions && are(convolution.kernel, 1) && are(convolution.stride, 1) && are(convolution.padding, 0) &&
         !is_depthwise && program.values[convolution.output].is_wide;
}

// An input transform, its products and their output transform become one Winograd convolution where the last stood, if no other
// operation reads what is between them, and the fast form of it is exact.
void join_winograd(Program &program) {
  const Uses uses(program);
  std::vector<bool> is_gone(program.operations.size());
  for (Operation &operation : program.operations) {
    if (operation.step.kind != kOutputTransform) continue;
    const Operation *const products = uses.sole(program, operation.step.source, kConvolution);
    if (products == nullptr || !gives_sums(program, *products)) continue;
    const Operation *const transform = uses.sole(program, products->step.source, kInputTransform);
    if (transform == nullptr || transform->positions != operation.positions || !fits_16_bits(program, *transform)) continue;
    if (!multiplies_positions(program, products->step, transform->step.position_count)) continue;
    is_gone[uses.maker[products->step.output]] = is_gone[uses.maker[transform->step.output]] = true;
    operation.parts = {*transform, *products};
    operation.step.kind = kWinogradConvolution;
    operation.step.source = transform->step.source;
    operation.sources = transform->sources;
  }
  keep_others(program, is_gone);
}

// Additions that follow a convolution, and are all that does, become part of it: it runs where they stood. Of bytes and to
// bytes, as networks have them.
void take_in_additions(Program &program) {
  Uses uses(program);
  std::vector<bool> is_gone(program.operations.size());
  for (Operation &operation : program.operations) {
    if (operation.step.kind != kAddition || program.values[operation.step.output].is_wide) continue;
    for (const int place : {1, 0}) {
      const int32_t operand = operation.sources[place];
      const Operation *maker = uses.sole(program, operand, kConvolution);
      if (maker == nullptr) maker = uses.sole(program, operand, kWinogradConvolution);
      if (maker == nullptr || maker->step.second >= 0 || program.values[operation.sources[1 - place]].is_wide) continue;
      Operation fused = *maker;
      is_gone[uses.maker[operand]] = true;
      fused.step.second = operation.sources[1 - place];
      fused.step.output = operation.step.output;
      fused.sources.push_back(fused.step.second);
      fused.sum = operation.rounded;
      fused.sum_left_second = operation.left_second;
      if (place == 1) std::swap(fused.sum.left, fused.sum_left_second);
      uses.maker[fused.step.output] = -1;  // it has had its addition
      operation = fused;
      break;
    }
  }
  keep_others(program, is_gone);
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

// What becomes of sums, and of a residual if there is one.
void put_finish(Block &block, const Operation &of, int64_t groups, Step &step) {
  step.rounding = put_rounding(block, of.rounded, groups);
  step.shifts_left = std::any_of(of.rounded.left.begin(), of.rounded.left.end(), [](int32_t x) { return x != 0; });
  if (step.second < 0) return;
  step.sum = put_rounding(block, of.sum, groups);
  step.left_second = block.put(in_lanes(of.sum_left_second, groups));
}

// Packs a convolution's weights, and lays out how it reads its input, `width` pixels in a row. Returns how far it may read behind
// its last pixel.
int64_t put_convolution(Block &block, const Program &program, const Operation &of, int64_t width, Step &step) {
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
  if (!step.is_depthwise) choose_tiles(step, runs, width);

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

  put_finish(block, of, groups, step);
  return kMostTileRows * int64_t{step.stride[1]} * step.group_channels + kMostTileBytes;
}

// How V is made: arrays by position and channel, as integer_winograd.hpp takes them.
void put_input_transform(Block &block, const Program &program, const Operation &of, Step &step) {
  constexpr int32_t kMiddle = 5;      // the one position whose four inputs all count as they are; others' offsets cancel
  constexpr int32_t kAllGone = 12;    // what is shifted so far is zero, as 2^11 is more than any sum
  constexpr int32_t kFactorBits = 14;
  const Value &from = program.values[step.source], &to = program.values[step.output];
  step.tile_channels = static_cast<int32_t>(round_up(from.channels, kLanes));
  const size_t lanes = kTilePositions * static_cast<size_t>(step.tile_channels);
  std::vector<int16_t> halves(lanes), factors(lanes);
  std::vector<uint8_t> lows(lanes), highs(lanes);
  for (int32_t p = 0; p < step.position_count; ++p)
    for (int32_t c = 0; c < from.channels; ++c) {
      const int32_t number = p * from.channels + c, lane = of.positions[p] * step.tile_channels + c;
      const int32_t right = std::min(of.rounded.right[number] - of.rounded.left[number], kAllGone);
      const int32_t half = right > 0 ? 1 << (right - 1) : 0, offset = of.positions[p] == kMiddle ? 4 * from.lowest : 0;
      halves[lane] = static_cast<int16_t>(4 * (half + offset));
      factors[lane] = static_cast<int16_t>(1 << (kFactorBits - right));
      lows[lane] = static_cast<uint8_t>(of.rounded.low[number] - to.lowest);
      highs[lane] = static_cast<uint8_t>(of.rounded.high[number] - to.lowest);
    }
  const auto in_full = [&](const Words &ends, int32_t end) { return std::all_of(ends.begin(), ends.end(), [=](int32_t x) { return x == end; }); };
  step.clamps_tiles = to.highest - to.lowest < 255 || !in_full(of.rounded.low, to.lowest) || !in_full(of.rounded.high, to.highest);
  step.positions = block.put(of.positions);
  step.tile_halves = block.put(halves);
  step.tile_factors = block.put(factors);
  step.tile_lows = block.put(lows);
  step.tile_highs = block.put(highs);
}

// Appends the steps of a Winograd convolution. Returns how many bytes V takes, of all strips.
int64_t put_winograd(Block &block, const Program &program, const Operation &of, std::vector<Step> &steps) {
  constexpr int64_t kStripTiles = 16;  // at least, where there are so many: enough for each weight that is read
  const Operation &transform = of.parts[0], &products = of.parts[1];
  const Value &tiles = program.values[transform.step.output];
  Step output = of.step, input = transform.step, product = products.step;
  const int64_t rows = std::min<int64_t>(tiles.height, (kStripTiles + tiles.width - 1) / tiles.width);
  put_input_transform(block, program, transform, input);
  const int64_t behind = put_convolution(block, program, products, rows * tiles.width, product);
  input.strip_rows = static_cast<int32_t>(rows);
  input.strip_bytes = round_up((kTilePositions * rows * tiles.width + kMostTileRows) * input.tile_channels + behind, 64);

  output.positions = block.put(of.positions);
  output.bias = block.put(in_lanes(of.bias, 1));
  output.product_lefts = block.put(in_lanes(of.left_second, output.position_count));
  output.shifts_products = std::any_of(of.left_second.begin(), of.left_second.end(), [](int32_t x) { return x != 0; });
  output.group_filters = product.group_filters;
  output.group_lanes = product.group_lanes;
  put_finish(block, of, 1, output);
  steps.insert(steps.end(), {output, input, product});
  return (tiles.height + rows - 1) / rows * input.strip_bytes;
}

// Bytes that lie behind an array and are read with it, and not used.
constexpr int64_t kReadBehind = 64 * 4;

}  // namespace

std::vector<uint8_t> prepare(const uint8_t *bytes, int64_t size) {
  Program program(bytes, size);
  join_winograd(program);
  take_in_additions(program);
  Prepared header{};
  header.arena_bytes = place_values(program, [](const Value &value) { return round_up(value.numbers() * (value.is_wide ? 4 : 1), 64); });
  Block block(sizeof(Prepared));
  std::vector<Step> steps;
  int64_t behind = 0;
  for (const Operation &operation : program.operations) {
    Step step = operation.step;
    if (step.kind == kWinogradConvolution) {
      header.scratch_bytes = std::max(header.scratch_bytes, put_winograd(block, program, operation, steps));
      continue;
    }
    if (step.kind == kConvolution) {
      const int64_t width = program.values[step.output].width;
      behind = std::max(behind, put_convolution(block, program, operation, width, step));
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
