// Whole networks through the C interface: expected outputs on every instruction set, and damaged programs, which must end in a
// sentence or in numbers, never beside their own memory.
//
//   test_networks integers|floats cases [damaged programs of each [seed]]
//
// `cases` holds, as often as there are networks: the program's bytes, the number of images, of numbers of an image and of its
// outputs (four int64), then the program, the images and the outputs (int32, or float32). Arrays have exactly the size that they
// must have, so that a build with WINOGRAD_SANITIZE finds whatever reads or writes beside them.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "winograd.h"

namespace {

int passed = 0, failed = 0;

void check(bool holds, const std::string &claim) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("FAILED: %s\n", claim.c_str());
}

using Bytes = std::vector<uint8_t>;

struct Integers {
  using Number = int32_t;
  static constexpr auto prepare = winograd_prepare_integer_network;
  static int shape(const uint8_t *network, int64_t bytes, int64_t *input, int64_t *outputs) {
    return winograd_integer_network_shape(network, bytes, input, outputs);
  }
  static int run(const uint8_t *network, int64_t bytes, int64_t batch, const int32_t *input, int32_t *output, const winograd_threads *threads) {
    return winograd_run_integer_network(network, bytes, batch, input, 0, output, threads);
  }
  static bool are_alike(const std::vector<int32_t> &found, const std::vector<int32_t> &expected) { return found == expected; }
};

struct Floats {
  using Number = float;
  static constexpr auto prepare = winograd_prepare_float_network;
  static int shape(const uint8_t *network, int64_t bytes, int64_t *input, int64_t *outputs) {
    int64_t made[3];
    if (winograd_float_network_shape(network, bytes, input, made) != 0) return 1;
    *outputs = made[0] * made[1] * made[2];
    return 0;
  }
  static int run(const uint8_t *network, int64_t bytes, int64_t batch, const float *input, float *output, const winograd_threads *threads) {
    return winograd_run_float_network(network, bytes, batch, input, WINOGRAD_CHANNELS_FIRST, output, threads);
  }
  // Sums are rounded in another order, and what a clamp cuts off may have been much larger. The Python tests have tighter bounds;
  // here memory is what matters.
  static bool are_alike(const std::vector<float> &found, const std::vector<float> &expected) {
    float largest = 0, error = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      largest = std::fmax(largest, std::fabs(expected[i]));
      if (!(std::fabs(found[i] - expected[i]) <= error)) error = std::fabs(found[i] - expected[i]);
    }
    return error <= 1e-3f * largest;
  }
};

template <class Kind>
struct Case {
  using Numbers = std::vector<typename Kind::Number>;
  Bytes program;
  int64_t images;
  Numbers inputs, outputs;
};

template <class Kind>
class Prepared {
 public:
  explicit Prepared(const Bytes &program) {
    is_sound_ = Kind::prepare(program.data(), static_cast<int64_t>(program.size()), allocate, this) == 0;
  }
  bool is_sound() const { return is_sound_; }
  int run(const Case<Kind> &of, typename Case<Kind>::Numbers &outputs, const winograd_threads *threads) const {
    return Kind::run(start_.get(), bytes_, of.images, of.inputs.data(), outputs.data(), threads);
  }
  bool takes(const Case<Kind> &of) const {
    int64_t shape[3], outputs;
    return Kind::shape(start_.get(), bytes_, shape, &outputs) == 0 &&
           shape[0] * shape[1] * shape[2] * of.images == static_cast<int64_t>(of.inputs.size()) &&
           outputs * of.images == static_cast<int64_t>(of.outputs.size());
  }

 private:
  static uint8_t *allocate(void *prepared, int64_t bytes) {
    auto &mine = *static_cast<Prepared *>(prepared);
    mine.bytes_ = bytes;
    mine.start_.reset(static_cast<uint8_t *>(std::aligned_alloc(64, static_cast<size_t>(bytes))));  // a multiple of 64
    return mine.start_.get();
  }
  struct Free {
    void operator()(uint8_t *memory) const { std::free(memory); }
  };
  bool is_sound_;
  int64_t bytes_ = 0;
  std::unique_ptr<uint8_t, Free> start_;
};

void run_on_threads(void *, int64_t parts, void (*body)(void *, int64_t), void *context) {
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread &thread : threads) thread.join();
}

template <class Kind>
std::vector<Case<Kind>> read_cases(const char *path) {
  using Numbers = typename Case<Kind>::Numbers;
  std::ifstream file(path, std::ios::binary);
  std::vector<Case<Kind>> cases;
  int64_t sizes[4];
  while (file.read(reinterpret_cast<char *>(sizes), sizeof sizes)) {
    Case<Kind> read{Bytes(static_cast<size_t>(sizes[0])), sizes[1], Numbers(static_cast<size_t>(sizes[1] * sizes[2])),
                    Numbers(static_cast<size_t>(sizes[1] * sizes[3]))};
    file.read(reinterpret_cast<char *>(read.program.data()), sizes[0]);
    file.read(reinterpret_cast<char *>(read.inputs.data()), static_cast<std::streamsize>(read.inputs.size() * 4));
    file.read(reinterpret_cast<char *>(read.outputs.data()), static_cast<std::streamsize>(read.outputs.size() * 4));
    cases.push_back(std::move(read));
  }
  return cases;
}

template <class Kind>
void test_outputs(const Case<Kind> &of, const std::string &where) {
  const Prepared<Kind> prepared(of.program);
  check(prepared.is_sound() && prepared.takes(of), where + ": prepared");
  if (!prepared.is_sound() || !prepared.takes(of)) return;
  const winograd_threads three{3, run_on_threads, nullptr};
  for (const winograd_threads *threads : {static_cast<const winograd_threads *>(nullptr), &three}) {
    typename Case<Kind>::Numbers outputs(of.outputs.size());
    check(prepared.run(of, outputs, threads) == 0 && Kind::are_alike(outputs, of.outputs),
          where + (threads != nullptr ? ": 3 threads" : ": 1 thread"));
  }
}

// Words with other numbers, and programs that end too early.
template <class Kind>
void test_damaged(const Case<Kind> &of, int count, std::mt19937 &draw) {
  const int32_t numbers[] = {0, 1, -1, 2, 3, 7, 16, 31, 32, 255, 256, -128, 65535, 1 << 20, 1 << 28, INT32_MAX, INT32_MIN};
  for (int number = 0; number < count; ++number) {
    Case<Kind> damaged = of;
    const size_t words = of.program.size() / 4;
    // Most words at the end are weights and bounds; what describes the network stands everywhere.
    const size_t word = draw() % (draw() % 2 == 0 ? words : (words < 64 ? words : 64));
    const int32_t other = numbers[draw() % (sizeof numbers / sizeof *numbers)];
    std::memcpy(damaged.program.data() + 4 * word, &other, sizeof other);
    if (draw() % 8 == 0) damaged.program.resize(draw() % damaged.program.size());
    damaged.program.shrink_to_fit();
    const Prepared<Kind> prepared(damaged.program);
    if (!prepared.is_sound()) {
      check(std::strlen(winograd_last_error()) > 10, "a refusal has a sentence");
    } else if (prepared.takes(damaged)) {
      typename Case<Kind>::Numbers outputs(damaged.outputs.size());
      check(prepared.run(damaged, outputs, nullptr) == 0, "a program that was taken runs");
    }
  }
}

template <class Kind>
size_t test_all(const char *path, int damaged, std::mt19937 &draw) {
  const std::vector<Case<Kind>> cases = read_cases<Kind>(path);
  for (const char *variant : {"avx512", "avx2", "portable"}) {
    if (winograd_cpu_force(variant) != 0) continue;
    for (const int tiles : {1, 0}) {  // which floats are not computed in
      winograd_integer_allow_tiles(tiles);
      if (winograd_integer_tiles_in_use() != tiles) continue;
      for (size_t number = 0; number < cases.size(); ++number)
        test_outputs(cases[number], std::string(variant) + (tiles != 0 ? " with tiles, network " : ", network ") + std::to_string(number));
    }
    for (const Case<Kind> &of : cases) test_damaged(of, damaged, draw);
  }
  return cases.size();
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 3) return std::puts("Say whether it is integers or floats, and where the cases are."), 2;
  const int damaged = count > 3 ? std::atoi(arguments[3]) : 50;
  std::mt19937 draw(count > 4 ? static_cast<unsigned>(std::atoi(arguments[4])) : 1);
  const bool are_floats = std::strcmp(arguments[1], "floats") == 0;
  const size_t cases = are_floats ? test_all<Floats>(arguments[2], damaged, draw) : test_all<Integers>(arguments[2], damaged, draw);
  std::printf("%zu networks\n%d passed, %d failed\n", cases, passed, failed);
  return failed == 0 && cases > 0 ? 0 : 1;
}
