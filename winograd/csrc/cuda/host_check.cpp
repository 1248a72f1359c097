// The CUDA stages on the host: the same checks, grids, index arithmetic and transforms, in a loop over all threads of a grid.
//
// As a program it runs stage_checks.hpp, then it looks at grids and offsets of sizes that no memory holds. As a shared library it
// is the C interface of winograd_cuda.h on host memory, which tests/winograd/test_cuda.py gives to winograd/cuda.py.
// No GPU, no CUDA toolkit. What it can't show: races, alignment faults, and anything that nvcc does differently.
#include <vector>

namespace winograd::cuda {

template <class T>
class Placed {
 public:
  explicit Placed(std::vector<T>& numbers) : numbers_(numbers) {}
  T* data() { return numbers_.data(); }

 private:
  std::vector<T>& numbers_;
};

}  // namespace winograd::cuda

#include "convolve.hpp"
#include "stage_checks.hpp"

using namespace winograd;
using namespace winograd::cuda;

// ---- The C interface ----------------------------------------------------------------------------------------------------

namespace {

template <class Body>
void for_each_thread(const ThreadGrid& grid, const Body& body) {
  for (uint32_t block = 0; block < grid.blocks; ++block) {
    for (uint32_t slow = 0; slow < grid.slow_threads; ++slow) {
      for (uint32_t fast = 0; fast < grid.fast_threads; ++fast) {
        const ThreadPlace place = place_of_thread(grid, block, fast, slow);
        if (place.inside) body(place);
      }
    }
  }
}

struct HostLaunch {
  template <class V>
  void operator()(V, const InputStage<typename V::Storage>& stage) const {
    for_each_thread(stage.grid, [&](ThreadPlace place) { transform_input<V::m, V::lanes>(stage, place); });
  }
  template <class V>
  void operator()(V, const OutputStage<typename V::Storage>& stage) const {
    for_each_thread(stage.grid, [&](ThreadPlace place) { transform_output<V::m, V::lanes, V::run>(stage, place); });
  }
  template <class V>
  void operator()(V, const FilterStage<typename V::Storage>& stage) const {
    for_each_thread(stage.grid, [&](ThreadPlace place) { transform_filter<V::m>(stage, place); });
  }
  template <class V>
  void operator()(V, const MultiplyStage& stage) const {
    using Tile = typename V::Tile;
    // With channels first, channels of V are lines; and groups of warps have V for the rows.
    constexpr bool a_is_across = !V::channels_last && is_of_warpgroups<Tile>, b_is_across = !V::channels_last && !is_of_warpgroups<Tile>;
    for (uint32_t block = 0; block < stage.blocks; ++block) {
      const PlaceOfBlock place = place_of_block<Tile>(stage, block);
      for (int row = place.first_row; row < std::min(stage.rows, place.first_row + Tile::rows); ++row) {
        for (int column = place.first_column; column < std::min(stage.columns, place.first_column + Tile::columns); ++column) {
          const int64_t at = a_is_across ? int64_t{column} * stage.rows + row : int64_t{row} * stage.columns + column;
          const Line a = {stage.a + place.matrix * stage.a_matrix, a_is_across, row, stage.rows, stage.depth};
          const Line b = {stage.b + place.matrix * stage.b_matrix, b_is_across, column, stage.columns, stage.depth};
          stage.d[place.matrix * stage.d_matrix + at] = product(a, b, stage.depth);
        }
      }
    }
  }

 private:
  // One row or column of a factor: its channels are neighbours, or `count` numbers apart.
  struct Line {
    const float* matrix;
    bool is_across;
    int number, count, depth;

    float operator[](int channel) const {
      return is_across ? matrix[int64_t{channel} * count + number] : matrix[int64_t{number} * depth + channel];
    }
  };

  // What tensor cores read of a number.
  static float read(uint32_t bits) { return from_raw_bits(bits & ~kDroppedBits); }

  static float product(const Line& a, const Line& b, int depth) {
    float sum = 0.0f;
    for (int first = 0; first < depth; first += kDepthOfStep) {
      float part = 0.0f;
      for (int channel = first; channel < std::min(depth, first + kDepthOfStep); ++channel) {
        const Split x = split(a[channel]), y = split(b[channel]);
        part += read(x.low) * read(y.high);
        part += read(x.high) * read(y.low);
        part += read(x.high) * read(y.high);
      }
      sum += part;
    }
    return sum;
  }
};

constexpr Processors kProcessors{132, true};  // an H100's: the choice of tiles depends on it

}  // namespace

extern "C" {

const char* winograd_cuda_last_error(void) { return last_error().c_str(); }

int winograd_cuda_make_plan(const winograd_problem* problem, int32_t type, int64_t workspace_bytes, winograd_cuda_plan* plan) {
  return guarded([&] { *plan = make_plan(*problem, type, workspace_bytes); });
}

int winograd_cuda_transform_filters(const winograd_problem* problem, int32_t type, const void* filters, void* weights, void*) {
  return guarded([&] { transform_filters_stage(*problem, type, filters, weights, HostLaunch{}); });
}

int winograd_cuda_transform_input(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t type,
                                  int32_t memory, const void* input, void* v, void*) {
  return guarded([&] { transform_input_stage(*problem, *chunk, type, memory, input, v, HostLaunch{}); });
}

int winograd_cuda_transform_output(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t type,
                                   int32_t memory, const void* m, const winograd_cuda_epilogue* epilogue, void* output, void*) {
  return guarded([&] { transform_output_stage(*problem, *chunk, type, memory, m, *epilogue, output, HostLaunch{}); });
}

int winograd_cuda_workspace_floats(const winograd_problem* problem, int64_t chunk_tiles, int64_t* floats) {
  return guarded([&] { *floats = workspace_of(*problem, chunk_tiles).floats; });
}

int winograd_cuda_multiply(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t memory, int32_t tile,
                           const void* weights, const void* v, void* m, void*) {
  return guarded([&] { multiply_stage(*problem, *chunk, memory, tile, weights, v, m, kProcessors, HostLaunch{}); });
}

int winograd_cuda_convolve(const winograd_problem* problem, int64_t chunk_tiles, int32_t memory, const void* input,
                           const void* weights, const winograd_cuda_epilogue* epilogue, void* workspace, void* output, void* stream,
                           winograd_cuda_done* done) {
  return guarded([&] {
    const auto multiply = [&](const winograd_cuda_chunk& chunk, const float* v, float* m) {
      return multiply_stage(*problem, chunk, memory, WINOGRAD_CUDA_ANY_TILE, weights, v, m, kProcessors, HostLaunch{});
    };
    const Multiplied all = convolve_in_chunks(*problem, chunk_tiles, memory, input, *epilogue, static_cast<float*>(workspace), output,
                                              stream, multiply);
    *done = {all.gemms, all.multiplications};
  });
}

}  // extern "C"

namespace {

// ---- Storage ----------------------------------------------------------------------------------------------------------------

template <class Storage>
Storage from_bits(uint32_t bits) {
  return {static_cast<uint16_t>(bits)};
}

// Rounding of every number that lies between two neighbours, and of their middle.
template <class Storage>
void check_rounding(uint32_t infinity) {
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    const float low = to_float(from_bits<Storage>(bits));
    Storage rounded;
    store_rounded(low, rounded);
    expect(rounded.bits == bits, "rounding keeps what needs none");
    if (bits + 1 == infinity) break;
    const float high = to_float(from_bits<Storage>(bits + 1)), middle = low + (high - low) / 2;
    store_rounded(middle, rounded);
    expect(rounded.bits == bits + bits % 2, "a tie goes to the even neighbour");
    store_rounded(std::nextafter(middle, low), rounded);
    expect(rounded.bits == bits, "below the middle goes down");
    store_rounded(std::nextafter(middle, high), rounded);
    expect(rounded.bits == bits + 1, "above the middle goes up");
    store_rounded(-std::nextafter(middle, high), rounded);
    expect(rounded.bits == (0x8000 | (bits + 1)), "negative numbers round like positive ones");
    // So near to the middle that float can't tell: a second rounding would go wrong.
    const double beside = static_cast<double>(middle) * (1.0 + 0x1p-40);
    if (bits >= 0x0400) {
      store_rounded(beside, rounded);
      expect(rounded.bits == bits + 1, "from double there is one rounding");
      store_rounded(-beside, rounded);
      expect(rounded.bits == (0x8000 | (bits + 1)), "from negative double there is one rounding");
    }
  }
  Storage rounded;
  store_rounded(std::nanf(""), rounded);
  expect(std::isnan(to_float(rounded)), "not a number stays one");
  store_rounded(std::numeric_limits<float>::infinity(), rounded);
  expect(rounded.bits == infinity, "infinity stays infinity");
  store_rounded(1e-60, rounded);
  expect(rounded.bits == 0, "tiny numbers become zero");
}

// ---- Sizes that no memory holds -----------------------------------------------------------------------------------------------

void check_grid(int64_t fast_count, int64_t slow_count) {
  const ThreadGrid grid = thread_grid(fast_count, slow_count);
  const std::string name = "grid of " + std::to_string(fast_count) + " x " + std::to_string(slow_count);
  expect(grid.fast_threads * grid.slow_threads == kThreadsOfBlock, name + ": threads of a block");
  expect(grid.blocks <= 0x7fffffffu && grid.blocks >= 1, name + ": blocks");
  expect(int64_t{grid.fast_blocks} * grid.fast_threads >= fast_count, name + ": covers the fast count");
  expect(int64_t{grid.blocks / grid.fast_blocks} * grid.slow_threads >= slow_count, name + ": covers the slow count");
  const auto block = static_cast<uint32_t>((slow_count - 1) / grid.slow_threads * grid.fast_blocks + (fast_count - 1) / grid.fast_threads);
  const ThreadPlace last = place_of_thread(grid, block, static_cast<uint32_t>((fast_count - 1) % grid.fast_threads),
                                           static_cast<uint32_t>((slow_count - 1) % grid.slow_threads));
  expect(last.inside && last.fast == fast_count - 1 && last.slow == slow_count - 1, name + ": the last thread has the last place");
  expect(block < grid.blocks, name + ": the last place is in the grid");
  if (fast_count * slow_count > 100000) return;
  std::vector<int> visits(fast_count * slow_count);
  for_each_thread(grid, [&](ThreadPlace place) { ++visits[int64_t{place.slow} * fast_count + place.fast]; });
  expect(std::all_of(visits.begin(), visits.end(), [](int count) { return count == 1; }), name + ": each place once");
}

template <class Body>
void expect_refusal(const Body& body, const std::string& word) {
  try {
    body();
    expect(false, "nothing was refused: " + word);
  } catch (const Refusal& refusal) {
    expect(std::string(refusal.what()).find(word) != std::string::npos, std::string(refusal.what()) + " names " + word);
  }
}

winograd_problem dense(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t filters, int32_t m) {
  static const std::vector<int32_t> all = [] {
    std::vector<int32_t> positions(81);
    for (int i = 0; i < 81; ++i) positions[i] = i;
    return positions;
  }();
  return {batch, channels, height, width, filters, 1, 1, 1, m, 1, (m + 2) * (m + 2), all.data()};
}

// Offsets of the last tile against arithmetic in 128 bits.
void check_last_offsets(const winograd_problem& problem) {
  const Geometry geometry = geometry_of(problem);
  const int64_t tiles = count_tiles(problem, geometry);
  const TilePlace place = place_of_tile(geometry, static_cast<int>(tiles - 1));
  expect(place.image == problem.batch - 1 && place.row == geometry.tile_rows - 1 && place.column == geometry.tile_columns - 1,
         "the last tile is in the last corner");
  for (const bool last : {true, false}) {
    const ImageStrides image = image_strides(last, problem.channels, problem.height, problem.width);
    const int64_t found = image.at(static_cast<int>(problem.batch - 1), geometry.height - 1, geometry.width - 1, geometry.channels - 1);
    const __int128 elements = static_cast<__int128>(problem.batch) * problem.channels * problem.height * problem.width;
    expect(static_cast<__int128>(found) == elements - 1, "the last pixel has the last offset");
    const MatrixStrides matrix = matrix_strides(last, geometry.blocks, tiles, geometry.channels_per_group);
    const int64_t end = (problem.kept - 1) * matrix.position + (geometry.blocks - 1) * matrix.block + (tiles - 1) * matrix.tile +
                        (geometry.channels_per_group - 1) * matrix.channel;
    const int64_t length = last ? tiles : padded_tiles(tiles);
    const __int128 whole = static_cast<__int128>(problem.kept) * length * problem.channels;
    expect(static_cast<__int128>(end) == whole - 1 - (length - tiles), "V ends where it should");
  }
}

void check_extremes() {
  const int64_t counts[] = {1, 2, 3, 31, 32, 33, 127, 128, 129, 1000, 65536, 1000003, kLargestCount};
  for (const int64_t fast : counts) {
    for (const int64_t slow : counts) {
      if (fast * slow / 128 < kLargestCount / 2) check_grid(fast, slow);
    }
  }
  expect_refusal([] { thread_grid(kLargestCount, kLargestCount); }, "blocks of threads");
  expect_refusal([] { thread_grid(kLargestCount + 1, 1); }, "blocks of threads");

  check_last_offsets(dense(1, 4096, 60000, 60000, 64, 2));            // 1.5e13 elements
  check_last_offsets(dense(kLargestCount / 4, 1, 3, 3, 1, 2));        // most images
  check_last_offsets(dense(2, 100000000, 1, 7, 3, 7));                // most channels
  check_last_offsets(dense(1, 1, kLargestCoordinate, 1, 1, 4));       // highest
  check_last_offsets(dense(1, 3, 2, kLargestCoordinate, 1, 6));       // widest
  expect_refusal([] { geometry_of(dense(1, 1, kLargestCoordinate + 1, 1, 1, 2)); }, "2^30");
  expect_refusal([] { make_plan(dense(kLargestCount, 1, 5, 5, 1, 2), WINOGRAD_FLOAT32, 1 << 20); }, "2^31");
  expect_refusal([] { make_plan(dense(1, 1, 5, 5, 1, 3), WINOGRAD_FLOAT32, 1 << 20); }, "m must");
  expect_refusal([] { make_plan(dense(1, 1, 5, 5, 1, 2), 7, 1 << 20); }, "type 7");

  for (const int64_t bytes : {int64_t{0}, int64_t{1} << 20, int64_t{24} << 20, int64_t{1} << 40}) {
    for (const int m : {2, 4, 6, 7}) {
      for (const int64_t batch : {0, 1, 7, 256}) {
        const winograd_problem problem = dense(batch, 128, 56, 50, 64, m);
        const winograd_cuda_plan plan = make_plan(problem, WINOGRAD_FLOAT16, bytes);
        const int64_t of_tile = problem.kept * (128 + 64) * 2;
        expect(plan.chunk_tiles <= plan.tiles && (plan.chunk_tiles > 0 || plan.tiles == 0), "a chunk has some of the tiles");
        expect(plan.chunk_tiles <= std::max(bytes / of_tile, kFewestTilesOfChunk) + kTilesMultiple, "a chunk fits");
        expect(plan.chunk_tiles == plan.tiles || plan.chunk_tiles >= kFewestTilesOfChunk / 2, "a chunk fills a multiplication");
      }
    }
  }
}

}  // namespace

int main() {
  const int cases = check_stages();
  check_rounding<Half>(0x7c00);
  check_rounding<Bfloat16>(0x7f80);
  check_extremes();
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
