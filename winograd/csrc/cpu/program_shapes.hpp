// What programs of integers and of floats have in common: values with shapes, and operations that move or pool them. Everything is
// checked as it is read.
#pragma once

#include <algorithm>
#include <vector>

#include "prepared_block.hpp"
#include "program_reader.hpp"

namespace winograd::programs {

// `Value` has channels, height and width; `Step` what its kind of operation needs of source, output, kernel and so on.
template <class Value, class Step>
class Shapes {
 public:
  std::vector<Value> values;
  int32_t input, output;

 protected:
  Shapes(const uint8_t *program, int64_t bytes) : reader_(program, bytes) {}

  // What every program begins with; returns the number of its operations.
  int32_t read_head(int32_t magic, int32_t version, const char *kind) {
    if (reader_.word() != magic) refuse("This is no program of ", kind, ": it begins with other bytes.");
    const int32_t found = reader_.word();
    if (found != version) refuse("The program has version ", found, "; this package runs version ", version, ".");
    const int32_t value_count = reader_.between(1, kMostValues, "number of values");
    const int32_t operation_count = reader_.between(0, kMostValues, "number of operations");
    input = reader_.between(0, value_count - 1, "input");
    output = reader_.between(0, value_count - 1, "output");
    values.resize(static_cast<size_t>(value_count));
    exists_.assign(static_cast<size_t>(value_count), false);
    exists_[input] = true;
    return operation_count;
  }

  void read_shape(Value &value) {
    value.channels = reader_.between(1, kMostSide, "channels");
    value.height = reader_.between(1, kMostSide, "height");
    value.width = reader_.between(1, kMostSide, "width");
    if (int64_t{value.channels} * value.height > kMostNumbers || value.numbers() > kMostNumbers)
      refuse("One of the program's values has more than 2^28 numbers.");
  }

  int32_t read_output() {
    const int32_t number = reader_.between(0, static_cast<int64_t>(values.size()) - 1, "output of an operation");
    if (exists_[number]) refuse("Two of the program's operations make the same value.");
    return number;
  }

  Words read_sources(int64_t least, int64_t most) {
    const int32_t count = reader_.between(least, most, "number of sources");
    Words sources = reader_.words(count, 0, static_cast<int64_t>(values.size()) - 1, "sources");
    for (const int32_t source : sources)
      if (!exists_[source]) refuse("One of the program's operations reads a value that isn't there yet.");
    return sources;
  }

  void check_end() const {
    if (!reader_.is_at_end()) refuse("The program goes on behind its last operation.");
    if (!exists_[output]) refuse("No operation makes the program's output.");
  }

  // Start, end and step of each dimension.
  void read_slice(Step &step) {
    const Value &from = values[step.source];
    const int32_t sizes[] = {from.channels, from.height, from.width};
    int64_t found[3];
    for (int i = 0; i < 3; ++i) step.numbers[i] = reader_.between(0, sizes[i] - 1, "start of a slice");
    for (int i = 3; i < 6; ++i) step.numbers[i] = reader_.between(1, sizes[i - 3], "end of a slice");
    for (int i = 6; i < 9; ++i) step.numbers[i] = reader_.between(1, kMostSide, "step of a slice");
    for (int i = 0; i < 3; ++i)
      found[i] = (int64_t{step.numbers[3 + i]} - step.numbers[i] + step.numbers[6 + i] - 1) / step.numbers[6 + i];
    require_shape(step.output, found[0], found[1], found[2]);
  }

  // Before and after each dimension.
  void read_padding(Step &step) {
    const Value &from = values[step.source];
    for (int i = 0; i < 6; ++i) step.numbers[i] = reader_.between(0, kMostSide, "padding");
    const auto around = [&](int i) { return int64_t{step.numbers[i]} + step.numbers[3 + i]; };
    require_shape(step.output, from.channels + around(0), from.height + around(1), from.width + around(2));
  }

  void require_shape(int32_t number, int64_t channels, int64_t height, int64_t width) const {
    const Value &value = values[number];
    if (value.channels != channels || value.height != height || value.width != width)
      refuse("A value of the program is [", value.channels, ", ", value.height, ", ", value.width, "], where its operation has [",
             channels, ", ", height, ", ", width, "].");
  }
  void require_alike(int32_t number, int32_t other) const {
    require_shape(number, values[other].channels, values[other].height, values[other].width);
  }

  void require_windows(const Step &step, int64_t channels) const {
    const Value &from = values[step.source];
    int64_t sizes[2];
    const int64_t sides[] = {from.height, from.width};
    for (int i = 0; i < 2; ++i) {
      const int64_t reach = int64_t{step.dilation[i]} * (step.kernel[i] - 1) + 1;
      const int64_t room = sides[i] + 2 * int64_t{step.padding[i]} - reach;
      if (room < 0) refuse("A kernel of the program is larger than its image.");
      sizes[i] = room / step.stride[i] + 1;
    }
    require_shape(step.output, channels, sizes[0], sizes[1]);
  }

  // A window that lies in the padding alone has no largest number, and no mean.
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

// Gives every value a place in one arena, in which it takes size_of(value). Returns the arena's size.
template <class Program, class SizeOf>
int64_t place_values(Program &program, const SizeOf &size_of) {
  const auto count = static_cast<int32_t>(program.operations.size());
  std::vector<Lifetime> lifetimes;
  for (const auto &value : program.values) lifetimes.push_back({size_of(value), count, -1});
  std::vector<int32_t> order{program.input};
  lifetimes[program.input].first = -1;
  lifetimes[program.output].last = count;
  for (int32_t number = 0; number < count; ++number) {
    const auto &operation = program.operations[number];
    order.push_back(operation.step.output);
    Lifetime &made = lifetimes[operation.step.output];
    made.first = number;
    made.last = std::max(made.last, number);
    for (const int32_t source : operation.sources) lifetimes[source].last = std::max(lifetimes[source].last, number);
  }
  const Arena arena = place_in_arena(lifetimes, order);
  for (size_t v = 0; v < program.values.size(); ++v) program.values[v].place = arena.places[v];
  return arena.size;
}

}  // namespace winograd::programs
