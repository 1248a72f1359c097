// The C interface of networks of integers: prepares programs, chooses the instruction set, and runs images.
#include "integer_run.hpp"

#include <atomic>
#include <cstring>

#include "check.hpp"
#include "workspace.hpp"
#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace winograd::integers {
namespace {

std::atomic<bool> tiles_are_allowed{true};

// Linux gives the state of tile registers to processes that ask for it.
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kTiles = 1u << 24, kBytes = 1u << 25;
  if ((d & kTiles) == 0 || (d & kBytes) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The code for networks of integers that goes with what convolutions run on.
const Code &code() {
#if defined(__x86_64__)
  const char *const name = winograd_cpu_variant();
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512vnni")) return avx512::kCode;
  if (std::strcmp(name, "portable") != 0) return avx2::kCode;
#endif
  return portable::kCode;
}

struct Images {
  const Prepared *network;
  const Code *code;
  uint8_t *memory;
  const uint8_t *input;
  bool is_float;
  int32_t *output;
  int64_t batch, parts;
};

int64_t bytes_of_image(const Prepared &network) { return network.scratch_bytes + network.arena_bytes; }

void run_part(const Images &all, int64_t part, const winograd_threads *threads) {
  const Prepared &network = *all.network;
  uint8_t *const own = all.memory + part * bytes_of_image(network);
  const Image image{&network, own, own + network.scratch_bytes, threads};
  const int64_t inputs = network.value(network.input).numbers(), outputs = network.value(network.output).numbers();
  for (int64_t n = all.batch * part / all.parts; n < all.batch * (part + 1) / all.parts; ++n)
    all.code->image(image, all.input + n * inputs * 4, all.is_float, all.output + n * outputs);
}

void run_part_of(void *images, int64_t part) { run_part(*static_cast<const Images *>(images), part, nullptr); }

const Prepared *sound(const uint8_t *prepared, int64_t bytes) { return programs::sound<Prepared>(prepared, bytes, kMagic); }

}  // namespace

bool has_tiles() {
  static const bool have = request_tiles();
  return have && tiles_are_allowed.load(std::memory_order_relaxed);
}

}  // namespace winograd::integers

using namespace winograd;
using namespace winograd::integers;

extern "C" int winograd_prepare_integer_network(const uint8_t *program, int64_t bytes, winograd_allocate allocate, void *context) {
  return programs::hand_over([&] { return prepare(program, bytes); }, allocate, context);
}

extern "C" int winograd_integer_network_shape(const uint8_t *prepared, int64_t bytes, int64_t *input, int64_t *outputs) {
  const Prepared *const network = sound(prepared, bytes);
  if (network == nullptr) return 1;
  const Value &taken = network->value(network->input);
  input[0] = taken.channels, input[1] = taken.height, input[2] = taken.width;
  *outputs = network->value(network->output).numbers();
  return 0;
}

extern "C" int winograd_run_integer_network(const uint8_t *prepared, int64_t bytes, int64_t batch, const void *input, int32_t is_float,
                                            int32_t *output, const winograd_threads *threads) {
  const Prepared *const network = sound(prepared, bytes);
  if (network == nullptr) return 1;
  if (batch <= 0) return batch == 0 ? 0 : fail("The number of images is %lld.", static_cast<long long>(batch));
  if (input == nullptr || output == nullptr) return fail("Input or output are missing.");
  const bool has_threads = threads != nullptr && threads->count > 1 && threads->run != nullptr;
  const int64_t parts = has_threads && batch > 1 ? (batch < threads->count ? batch : threads->count) : 1;
  const Workspace workspace((parts * bytes_of_image(*network) + 3) / 4);
  if (workspace.start() == nullptr) return fail("There is no memory for %lld images.", static_cast<long long>(parts));
  Images images{network, &code(), reinterpret_cast<uint8_t *>(workspace.start()), static_cast<const uint8_t *>(input), is_float != 0,
                output,  batch,   parts};
  if (parts > 1)
    threads->run(threads->runner, parts, run_part_of, &images);
  else
    run_part(images, 0, has_threads ? threads : nullptr);
  return 0;
}

extern "C" void winograd_integer_allow_tiles(int32_t allowed) { tiles_are_allowed = allowed != 0; }

extern "C" int winograd_integer_tiles_in_use(void) { return has_tiles(); }
