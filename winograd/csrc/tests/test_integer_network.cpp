// Networks of integers through the C interface: expected outputs on every instruction set, and damaged programs, which must end
// in a sentence or in numbers, never beside their own memory.
//
//   test_integer_network cases [damaged programs of each [seed]]
//
// `cases` holds, as often as there are networks: the program's bytes, the number of images, of integers of an image and of its
// outputs (four int64), then the program, the images and the outputs (int32). Arrays have exactly the size that they must have,
// so that a build with WINOGRAD_SANITIZE finds whatever reads or writes beside them.
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
using Integers = std::vector<int32_t>;

struct Case {
  Bytes program;
  int64_t images;
  Integers inputs, outputs;
};

class Prepared {
 public:
  explicit Prepared(const Bytes &program) : bytes_(winograd_prepare_integer_network(program.data(), size(program), nullptr, 0)) {
    if (bytes_ < 0) return;
    start_.reset(static_cast<uint8_t *>(std::aligned_alloc(64, static_cast<size_t>(bytes_))));  // a multiple of 64
    bytes_ = winograd_prepare_integer_network(program.data(), size(program), start_.get(), bytes_);
  }
  bool is_sound() const { return bytes_ >= 0; }
  int run(const Case &of, Integers &outputs, const winograd_threads *threads) const {
    return winograd_run_integer_network(start_.get(), bytes_, of.images, of.inputs.data(), 0, outputs.data(), threads);
  }
  bool takes(const Case &of) const {
    int64_t shape[3], outputs;
    return winograd_integer_network_shape(start_.get(), bytes_, shape, &outputs) == 0 &&
           shape[0] * shape[1] * shape[2] * of.images == static_cast<int64_t>(of.inputs.size()) &&
           outputs * of.images == static_cast<int64_t>(of.outputs.size());
  }

 private:
  static int64_t size(const Bytes &of) { return static_cast<int64_t>(of.size()); }
  struct Free {
    void operator()(uint8_t *memory) const { std::free(memory); }
  };
  int64_t bytes_;
  std::unique_ptr<uint8_t, Free> start_;
};

void run_on_threads(void *, int64_t parts, void (*body)(void *, int64_t), void *context) {
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread &thread : threads) thread.join();
}

std::vector<Case> read_cases(const char *path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<Case> cases;
  int64_t sizes[4];
  while (file.read(reinterpret_cast<char *>(sizes), sizeof sizes)) {
    Case read{Bytes(static_cast<size_t>(sizes[0])), sizes[1], Integers(static_cast<size_t>(sizes[1] * sizes[2])),
              Integers(static_cast<size_t>(sizes[1] * sizes[3]))};
    file.read(reinterpret_cast<char *>(read.program.data()), sizes[0]);
    file.read(reinterpret_cast<char *>(read.inputs.data()), static_cast<std::streamsize>(read.inputs.size() * 4));
    file.read(reinterpret_cast<char *>(read.outputs.data()), static_cast<std::streamsize>(read.outputs.size() * 4));
    cases.push_back(std::move(read));
  }
  return cases;
}

void test_outputs(const Case &of, const std::string &where) {
  const Prepared prepared(of.program);
  check(prepared.is_sound() && prepared.takes(of), where + ": prepared");
  if (!prepared.is_sound() || !prepared.takes(of)) return;
  const winograd_threads three{3, run_on_threads, nullptr};
  for (const winograd_threads *threads : {static_cast<const winograd_threads *>(nullptr), &three}) {
    Integers outputs(of.outputs.size());
    check(prepared.run(of, outputs, threads) == 0 && outputs == of.outputs, where + (threads != nullptr ? ": 3 threads" : ": 1 thread"));
  }
}

// Words with other numbers, and programs that end too early.
void test_damaged(const Case &of, int count, std::mt19937 &draw) {
  const int32_t numbers[] = {0, 1, -1, 2, 3, 7, 16, 31, 32, 255, 256, -128, 65535, 1 << 20, 1 << 28, INT32_MAX, INT32_MIN};
  for (int number = 0; number < count; ++number) {
    Case damaged = of;
    const size_t words = of.program.size() / 4;
    // Most words at the end are weights and bounds; what describes the network stands everywhere.
    const size_t word = draw() % (draw() % 2 == 0 ? words : (words < 64 ? words : 64));
    const int32_t other = numbers[draw() % (sizeof numbers / sizeof *numbers)];
    std::memcpy(damaged.program.data() + 4 * word, &other, sizeof other);
    if (draw() % 8 == 0) damaged.program.resize(draw() % damaged.program.size());
    damaged.program.shrink_to_fit();
    const Prepared prepared(damaged.program);
    if (!prepared.is_sound()) {
      check(std::strlen(winograd_last_error()) > 10, "a refusal has a sentence");
    } else if (prepared.takes(damaged)) {
      Integers outputs(damaged.outputs.size());
      check(prepared.run(damaged, outputs, nullptr) == 0, "a program that was taken runs");
    }
  }
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 2) return std::puts("Say where the cases are."), 2;
  const std::vector<Case> cases = read_cases(arguments[1]);
  const int damaged = count > 2 ? std::atoi(arguments[2]) : 50;
  std::mt19937 draw(count > 3 ? static_cast<unsigned>(std::atoi(arguments[3])) : 1);
  for (const char *variant : {"avx512", "avx2", "portable"}) {
    if (winograd_cpu_force(variant) != 0) continue;
    for (const int tiles : {1, 0}) {
      winograd_integer_allow_tiles(tiles);
      if (winograd_integer_tiles_in_use() != tiles) continue;
      for (size_t number = 0; number < cases.size(); ++number)
        test_outputs(cases[number], std::string(variant) + (tiles != 0 ? " with tiles, network " : ", network ") + std::to_string(number));
    }
    for (const Case &of : cases) test_damaged(of, damaged, draw);
  }
  std::printf("%zu networks\n%d passed, %d failed\n", cases.size(), passed, failed);
  return failed == 0 && !cases.empty() ? 0 : 1;
}
