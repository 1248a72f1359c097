// The C interface of networks of floats: prepares programs, and takes images through them.
#include <cstring>

#include "check.hpp"
#include "convolution.hpp"
#include "float_network.hpp"
#include "workspace.hpp"

namespace winograd::floats {
namespace {

// Images that go through together share what is read of the weights, and the tiles of small layers are many enough; so many that
// what they hold stays in the second-level cache.
constexpr int64_t kTogetherBytes = 1 << 20, kMostTogether = 16;

// The code that goes with what convolutions run on.
const Code &code() {
#if defined(__x86_64__)
  const char *const name = winograd_cpu_variant();
  if (std::strcmp(name, "avx512") == 0) return avx512::kCode;
  if (std::strcmp(name, "avx2") == 0) return avx2::kCode;
#endif
  return portable::kCode;
}

const Prepared *sound(const uint8_t *prepared, int64_t bytes) { return programs::sound<Prepared>(prepared, bytes, kMagic); }

// `to` as rows of columns: to[column][row] = from[row][column].
void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t row = 0; row < rows; ++row) to[column * rows + row] = from[row * columns + column];
}

bool run_winograd_convolution(const Images &images, const Step &step) {
  const Prepared &network = *images.network;
  const Value &from = network.value(step.source), &to = network.value(step.output);
  const winograd_problem problem = problem_of(step, from, to.channels, images.count, network.at<int32_t>(step.positions));
  const winograd_operands operands{images.tensor(step.source),
                                   network.at<float>(step.weights),
                                   network.at<float>(step.bias),
                                   step.second < 0 ? nullptr : images.tensor(step.second),
                                   images.tensor(step.output),
                                   WINOGRAD_CHANNELS_LAST,
                                   step.low == 0 ? WINOGRAD_RELU : WINOGRAD_NONE};
  const bool is_shared = step.multiplications * images.count >= kWorthSharing;
  return convolve_weights(&problem, &operands, nullptr, is_shared ? images.threads : nullptr, images.are_first) == 0;
}

bool run_steps(const Images &images, const Code &code) {
  for (int32_t number = 0; number < images.network->step_count; ++number) {
    const Step &step = images.network->step(number);
    if (step.kind != kWinogradConvolution) code.run(images, step);
    else if (!run_winograd_convolution(images, step)) return false;  // there was no memory
  }
  return true;
}

struct Batch {
  const Prepared *network;
  const Code *code;
  float *memory;
  int64_t floats_of_part;
  const float *input;
  int32_t memory_order;
  float *output;
  int64_t images, together, parts;
  bool *failed;  // of each part
};

bool run_images(const Batch &batch, int64_t part, const winograd_threads *threads) {
  const Prepared &network = *batch.network;
  const Value &taken = network.value(network.input), &made = network.value(network.output);
  const int64_t taken_pixels = int64_t{taken.height} * taken.width, made_pixels = int64_t{made.height} * made.width;
  float *const own = batch.memory + part * batch.floats_of_part;
  const int64_t end = batch.images * (part + 1) / batch.parts;
  for (int64_t first = batch.images * part / batch.parts; first < end; first += batch.together) {
    const int64_t count = end - first < batch.together ? end - first : batch.together;
    const Images images{&network, count, first == 0, own, own + network.frame_floats, threads};
    const float *const input = batch.input + first * taken.numbers();
    float *const output = batch.output + first * made.numbers();
    for (int64_t n = 0; n < count; ++n) {
      float *const to = images.tensor(network.input) + n * taken.numbers();
      if (batch.memory_order == WINOGRAD_CHANNELS_LAST)
        std::memcpy(to, input + n * taken.numbers(), sizeof(float) * static_cast<size_t>(taken.numbers()));
      else
        transpose(input + n * taken.numbers(), taken.channels, taken_pixels, to);
    }
    if (!run_steps(images, *batch.code)) return false;
    for (int64_t n = 0; n < count; ++n)
      transpose(images.tensor(network.output) + n * made.numbers(), made_pixels, made.channels, output + n * made.numbers());
  }
  return true;
}

void run_part(void *batch, int64_t part) {
  const Batch &all = *static_cast<const Batch *>(batch);
  all.failed[part] = !run_images(all, part, nullptr);
}

}  // namespace
}  // namespace winograd::floats

using namespace winograd;
using namespace winograd::floats;

extern "C" int winograd_prepare_float_network(const uint8_t *program, int64_t bytes, winograd_allocate allocate, void *context) {
  return programs::hand_over([&] { return floats::prepare(program, bytes); }, allocate, context);
}

extern "C" int winograd_float_network_shape(const uint8_t *prepared, int64_t bytes, int64_t *input, int64_t *output) {
  const Prepared *const network = sound(prepared, bytes);
  if (network == nullptr) return 1;
  const Value &taken = network->value(network->input), &made = network->value(network->output);
  input[0] = taken.channels, input[1] = taken.height, input[2] = taken.width;
  output[0] = made.channels, output[1] = made.height, output[2] = made.width;
  return 0;
}

extern "C" int winograd_run_float_network(const uint8_t *prepared, int64_t bytes, int64_t batch, const float *input, int32_t memory,
                                          float *output, const winograd_threads *threads) {
  const Prepared *const network = sound(prepared, bytes);
  if (network == nullptr) return 1;
  if (batch <= 0) return batch == 0 ? 0 : fail("The number of images is %lld.", static_cast<long long>(batch));
  if (input == nullptr || output == nullptr) return fail("Input or output are missing.");
  constexpr int64_t kMostParts = 256;
  const bool has_threads = threads != nullptr && threads->count > 1 && threads->run != nullptr;
  int64_t parts = has_threads && batch > 1 ? (batch < threads->count ? batch : threads->count) : 1;
  if (parts > kMostParts) parts = kMostParts;
  int64_t together = kTogetherBytes / (4 * (network->arena_floats + 1));
  together = together < 1 ? 1 : together > kMostTogether ? kMostTogether : together;
  const int64_t most = (batch + parts - 1) / parts;
  if (together > most) together = most;
  const int64_t floats_of_part = programs::round_up(network->frame_floats + together * network->arena_floats, 1024);
  const Workspace workspace(parts * floats_of_part);
  if (workspace.start() == nullptr) return fail("There is no memory for %lld images.", static_cast<long long>(parts * together));
  bool failed[kMostParts] = {};
  Batch all{network, &code(), workspace.start(), floats_of_part, input, memory, output, batch, together, parts, failed};
  if (parts > 1) {
    threads->run(threads->runner, parts, run_part, &all);
  } else {
    failed[0] = !run_images(all, 0, has_threads ? threads : nullptr);
  }
  for (int64_t part = 0; part < parts; ++part)
    if (failed[part]) return fail("There was no memory for a convolution of the network.");
  return 0;
}
