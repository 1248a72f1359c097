// From a program (winograd.h has its format) to a block that can be run: checked, packed, with a place for every tensor.
//
// A program may come from anywhere. What passes here reads and writes nothing but its own memory, whatever its integers are.
#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "integer_run.hpp"

namespace winograd::integers {
namespace {

constexpr int32_t kMagic = 0x4E494957, kVersion = 1;
constexpr int64_t kMostNumbers = int64_t{1} << 28;  // of one tensor
constexpr int64_t kMostSide = int64_t{1} << 20;
constexpr int64_t kMostValues = 1 << 20;

using Words = std::vector<int32_t>;

template <class... Parts>
[[noreturn]] void refuse(const Parts &...parts) {
  std::string sentence;
  const auto text = [](const auto &part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) return std::to_string(part);
    else return std::string(part);
  };
  ((sentence += text(parts)), ...);
  throw std::invalid_argument(sentence);
}

class Reader {
 public:
  Reader(const uint8_t *program, int64_t bytes) : at_(program), left_(bytes) {}

  int32_t word() {
    int32_t x;
    std::memcpy(&x, take(4), sizeof x);
    return x;
  }
  int32_t between(int64_t least, int64_t most, const char *name) {
    const int32_t x = word();
    if (x < least || x > most) refuse("The program's ", name, " is ", x, ", not ", least, " to ", most, ".");
    return x;
  }
  Words words(int64_t count) {
    const uint8_t *const from = take(4 * count);
    Words found(static_cast<size_t>(count));
    std::memcpy(found.data(), from, static_cast<size_t>(4 * count));
    return found;
  }
  Words words(int64_t count, int64_t least, int64_t most, const char *name) {
    Words found = words(count);
    for (const int32_t x : found)
      if (x < least || x > most) refuse("One of the program's ", name, " is ", x, ", not ", least, " to ", most, ".");
    return found;
  }
  // Padded to whole words.
  const int8_t *bytes(int64_t count) { return reinterpret_cast<const int8_t *>(take((count + 3) / 4 * 4)); }
  bool is_at_end() const { return left_ == 0; }

 private:
  const uint8_t *take(int64_t bytes) {
    if (bytes > left_) refuse("The program ends too early.");
    const uint8_t *const here = at_;
    at_ += bytes;
    left_ -= bytes;
    return here;
  }
  const uint8_t *at_;
  int64_t left_;
};

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

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

int64_t window_reach(const Step &step, int side) { return int64_t{step.dilation[side]} * (step.kernel[side] - 1) + 1; }

class Program {
 public:
  Program(const uint8_t *program, int64_t bytes) : reader_(program, bytes) {
    if (reader_.word() != kMagic) refuse("This is no program of integers: it begins with other bytes.");
    const int32_t version = reader_.word();
    if (version != kVersion) refuse("The program has version ", version, "; this package runs version ", kVersion, ".");
    const int32_t value_count = reader_.between(1, kMostValues, "number of values");
    const int32_t operation_count = reader_.between(0, kMostValues, "number of operations");
    input = reader_.between(0, value_count - 1, "input");
    output = reader_.between(0, value_count - 1, "output");
    for (int32_t number = 0; number < value_count; ++number) values.push_back(read_value());
    if (int64_t{values[input].highest} - values[input].lowest > 65535) refuse("The program's input has more than 16 bits.");
    input_lengths = reader_.words(values[input].channels, -64, 64, "input lengths");
    exists_.assign(static_cast<size_t>(value_count), false);
    exists_[input] = true;
    for (int32_t number = 0; number < operation_count; ++number) operations.push_back(read_operation());
    if (!reader_.is_at_end()) refuse("The program goes on behind its last operation.");
    if (!exists_[output]) refuse("No operation makes the program's output.");
  }

  std::vector<Value> values;
  std::vector<Operation> operations;
  int32_t input, output;
  Words input_lengths;

 private:
  Value read_value() {
    Value value{};
    value.channels = reader_.between(1, kMostSide, "channels");
    value.height = reader_.between(1, kMostSide, "height");
    value.width = reader_.between(1, kMostSide, "width");
    value.lowest = reader_.word();
    value.highest = reader_.word();
    if (value.lowest > 0 || value.highest < 0) refuse("The range of one of the program's values has no zero.");
    value.is_wide = int64_t{value.highest} - value.lowest > 255;
    if (int64_t{value.channels} * value.height > kMostNumbers || value.numbers() > kMostNumbers)
      refuse("One of the program's values has more than 2^28 numbers.");
    return value;
  }

  Operation read_operation() {
    Operation made;
    Step &step = made.step;
    step.kind = reader_.between(kConvolution, kOutputTransform, "kind of operation");
    step.output = reader_.between(0, static_cast<int64_t>(values.size()) - 1, "output of an operation");
    if (exists_[step.output]) refuse("Two of the program's operations make the same value.");
    const bool takes_two = step.kind == kAddition || step.kind == kMultiplication;
    const int32_t count = step.kind == kConcatenation ? reader_.between(1, kMostValues, "number of sources")
                                                      : reader_.between(1 + takes_two, 1 + takes_two, "number of sources");
    made.sources = reader_.words(count, 0, static_cast<int64_t>(values.size()) - 1, "sources");
    for (const int32_t source : made.sources)
      if (!exists_[source]) refuse("One of the program's operations reads a value that isn't there yet.");
    step.source = made.sources[0];
    step.second = takes_two ? made.sources[1] : -1;
    step.source_count = count;
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
        read_pair(step.kernel, 1, "kernel");
        read_pair(step.stride, 1, "stride");
        read_pair(step.padding, 0, "padding");
        step.dilation[0] = step.dilation[1] = 1;
        if (step.kind == kMaxPool) read_pair(step.dilation, 1, "dilation");
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
      case kSlice: {
        const int32_t sizes[] = {from.channels, from.height, from.width};
        int64_t found[3];
        for (int i = 0; i < 3; ++i) step.numbers[i] = reader_.between(0, sizes[i] - 1, "start of a slice");
        for (int i = 3; i < 6; ++i) step.numbers[i] = reader_.between(1, sizes[i - 3], "end of a slice");
        for (int i = 6; i < 9; ++i) step.numbers[i] = reader_.between(1, kMostSide, "step of a slice");
        for (int i = 0; i < 3; ++i)
          found[i] = (int64_t{step.numbers[3 + i]} - step.numbers[i] + step.numbers[6 + i] - 1) / step.numbers[6 + i];
        require_range(step.source, step.output);
        return require_shape(step.output, found[0], found[1], found[2]);
      }
      case kPadding: {
        for (int i = 0; i < 6; ++i) step.numbers[i] = reader_.between(0, kMostSide, "padding");
        require_range(step.source, step.output);
        const auto around = [&](int i) { return int64_t{step.numbers[i]} + step.numbers[3 + i]; };
        return require_shape(step.output, from.channels + around(0), from.height + around(1), from.width + around(2));
      }
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
        read_pair(step.padding, 0, "padding");
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
    read_pair(step.kernel, 1, "kernel");
    read_pair(step.stride, 1, "stride");
    read_pair(step.padding, 0, "padding");
    read_pair(step.dilation, 1, "dilation");
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

  void read_pair(int32_t (&pair)[2], int64_t least, const char *name) {
    for (int32_t &x : pair) x = reader_.between(least, kMostSide, name);
  }
  Words read_shifts(const Value &to) { return reader_.words(to.channels, 0, 31, "shifts"); }
  void read_rounding(Operation &made, const Value &to) {
    made.rounded.right = read_shifts(to);
    made.rounded.low = reader_.words(to.channels, to.lowest, to.highest, "lower bounds");
    made.rounded.high = reader_.words(to.channels, to.lowest, to.highest, "upper bounds");
    for (size_t k = 0; k < made.rounded.low.size(); ++k)
      if (made.rounded.low[k] > made.rounded.high[k]) refuse("A lower bound of the program is above its upper bound.");
  }

  void require_shape(int32_t number, int64_t channels, int64_t height, int64_t width) const {
    const Value &value = values[number];
    if (value.channels != channels || value.height != height || value.width != width)
      refuse("A value of the program is [", value.channels, ", ", value.height, ", ", value.width, "], where its operation has [",
             channels, ", ", height, ", ", width, "].");
  }
  void require_range(int32_t source, int32_t output) const {
    if (values[source].lowest < values[output].lowest || values[source].highest > values[output].highest)
      refuse("An operation of the program writes a value whose range is narrower than that of what it reads.");
  }
  void require_windows(const Step &step, int64_t channels) const {
    const Value &from = values[step.source];
    int64_t sizes[2];
    const int64_t sides[] = {from.height, from.width};
    for (int i = 0; i < 2; ++i) {
      const int64_t room = sides[i] + 2 * int64_t{step.padding[i]} - window_reach(step, i);
      if (room < 0) refuse("A kernel of the program is larger than its image.");
      sizes[i] = room / step.stride[i] + 1;
    }
    require_shape(step.output, channels, sizes[0], sizes[1]);
  }

  // A window that lies in the padding alone has no largest number.
  void require_full_windows(const Step &step) const {
    const Value &from = values[step.source], &to = values[step.output];
    const int64_t sides[] = {from.height, from.width}, counts[] = {to.height, to.width};
    for (int i = 0; i < 2; ++i)
      for (int64_t number = 0; number < counts[i]; ++number) {
        const int64_t start = number * step.stride[i] - step.padding[i];
        const int64_t tap = start >= 0 ? 0 : (-start + step.dilation[i] - 1) / step.dilation[i];  // the first behind the padding
        if (tap >= step.kernel[i] || start + tap * step.dilation[i] >= sides[i])
          refuse("A window of one of the program's pools has nothing but padding in it.");
      }
  }

  Reader reader_;
  std::vector<bool> exists_;
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

class Block {
 public:
  Block() { grow(sizeof(Prepared)); }

  template <class T>
  int64_t put(const T *numbers, size_t count) {
    const int64_t place = grow(count * sizeof(T));
    if (count > 0) std::memcpy(bytes.data() + place, numbers, count * sizeof(T));
    return place;
  }
  template <class T>
  int64_t put(const std::vector<T> &numbers) { return put(numbers.data(), numbers.size()); }

  std::vector<uint8_t> bytes;

 private:
  int64_t grow(size_t by) {
    const int64_t place = static_cast<int64_t>(bytes.size());
    bytes.resize(static_cast<size_t>(round_up(place + static_cast<int64_t>(by), 64)));
    return place;
  }
};

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

// Gives every value a place in the arena, above which nothing lies that is still needed. Returns the arena's bytes.
int64_t place_values(Program &program) {
  const auto count = static_cast<int32_t>(program.operations.size());
  std::vector<int32_t> first(program.values.size(), count), last(program.values.size(), -1);
  first[program.input] = -1;
  last[program.output] = count;
  for (int32_t number = 0; number < count; ++number) {
    const Operation &operation = program.operations[number];
    first[operation.step.output] = number;
    last[operation.step.output] = std::max(last[operation.step.output], number);
    for (const int32_t source : operation.sources) last[source] = std::max(last[source], number);
  }
  last[program.input] = std::max(last[program.input], -1);
  int64_t arena = 0;
  std::vector<int32_t> placed;
  const auto bytes_of = [&](int32_t v) { return round_up(program.values[v].numbers() * (program.values[v].is_wide ? 4 : 1), 64); };
  const auto place = [&](int32_t v) {
    std::vector<std::pair<int64_t, int64_t>> taken;  // from, to
    for (const int32_t other : placed)
      if (last[other] >= first[v]) taken.push_back({program.values[other].place, program.values[other].place + bytes_of(other)});
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto &[from, to] : taken) {
      if (from - at >= bytes_of(v)) break;
      at = std::max(at, to);
    }
    program.values[v].place = at;
    arena = std::max(arena, at + bytes_of(v));
    // What is no longer needed by anything that comes can't be in the way again.
    placed.erase(std::remove_if(placed.begin(), placed.end(), [&](int32_t other) { return last[other] < first[v]; }), placed.end());
    placed.push_back(v);
  };
  place(program.input);
  for (const Operation &operation : program.operations) place(operation.step.output);
  return arena;
}

}  // namespace

uint64_t mark_of_this_process() {
  static const uint64_t mark = [] {
    std::random_device source;
    return static_cast<uint64_t>(source()) << 32 | source();
  }();
  return mark;
}

std::vector<uint8_t> prepare(const uint8_t *bytes, int64_t size) {
  Program program(bytes, size);
  take_in_additions(program);
  Prepared header{};
  header.arena_bytes = place_values(program);
  Block block;
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
  header.mark = mark_of_this_process();
  header.input = program.input;
  header.output = program.output;
  header.step_count = static_cast<int32_t>(steps.size());
  header.value_count = static_cast<int32_t>(program.values.size());
  header.values = block.put(program.values);
  header.steps = block.put(steps);
  header.input_lengths = block.put(program.input_lengths);
  header.bytes = static_cast<int64_t>(block.bytes.size());
  std::memcpy(block.bytes.data(), &header, sizeof header);
  return std::move(block.bytes);
}

}  // namespace winograd::integers
