// The CUDA stages on the host: the same checks, grids, index arithmetic and transforms, in a loop over all threads of a grid.
//
// As a program it runs every stage of every variant on many shapes, with tails, groups and pruned positions, and compares it
// with the definition in double; then it looks at grids and offsets of sizes that no memory holds. As a shared library it
// is the C interface of winograd_cuda.h on host memory, which tests/winograd/test_cuda.py gives to winograd/cuda.py.
// No GPU, no CUDA toolkit. What it can't show: races, alignment faults, and anything that nvcc does differently.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "launches.hpp"

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
    for_each_thread(stage.grid, [&](ThreadPlace place) { transform_output<V::m, V::lanes>(stage, place); });
  }
  template <class V>
  void operator()(V, const FilterStage<typename V::Storage>& stage) const {
    for_each_thread(stage.grid, [&](ThreadPlace place) { transform_filter<V::m>(stage, place); });
  }
};

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

}  // extern "C"

namespace {

int failures = 0;

void expect(bool holds, const std::string& claim) {
  if (holds) return;
  ++failures;
  if (failures <= 20) std::printf("FAILED: %s\n", claim.c_str());
}

// ---- The stages, by definition, in double -----------------------------------------------------------------------------------

struct Case {
  int m;
  int batch, channels, height, width, filters, pad_height, pad_width, groups, kernel_groups, kept;
  int32_t type;
  bool channels_last, relu, has_bias, has_residual;
  int chunk_tiles;
  int misaligned;  // elements by which every pointer is off

  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text, "m=%d N=%d C=%d %dx%d K=%d pad=%d,%d groups=%d kernel_groups=%d kept=%d type=%d %s chunk=%d +%d", m,
                  batch, channels, height, width, filters, pad_height, pad_width, groups, kernel_groups, kept, type,
                  channels_last ? "last" : "first", chunk_tiles, misaligned);
    return text;
  }
};

struct DoubleMatrices {
  int t;
  std::vector<std::vector<double>> bt, g, at;
};

DoubleMatrices matrices_of(int32_t m) {
  DoubleMatrices all;
  with_m(m, [&](auto constant) {
    const auto& f = kMatrices<constant.value>;
    all.t = f.t;
    for (const auto& row : f.bt) all.bt.emplace_back(std::begin(row), std::end(row));
    for (const auto& row : f.g) all.g.emplace_back(std::begin(row), std::end(row));
    for (const auto& row : f.at) all.at.emplace_back(std::begin(row), std::end(row));
  });
  return all;
}

// Everything of one case: numbers as they are stored, and the dense double arrays that they were stored from.
template <class Storage>
class Checked {
 public:
  explicit Checked(const Case& a_case, std::mt19937& generator)
      : c_(a_case), f_(matrices_of(a_case.m)), output_height_(c_.height + 2 * c_.pad_height - 2),
        output_width_(c_.width + 2 * c_.pad_width - 2), rows_((output_height_ + c_.m - 1) / c_.m),
        columns_((output_width_ + c_.m - 1) / c_.m), tiles_(c_.batch * rows_ * columns_),
        blocks_(std::max(c_.groups, c_.kernel_groups)), group_channels_(c_.channels / c_.groups),
        block_filters_(c_.filters / blocks_) {
    choose_positions(generator);
    problem_ = {c_.batch, c_.channels, c_.height, c_.width, c_.filters, c_.groups, c_.pad_height, c_.pad_width, c_.m,
                c_.kernel_groups, c_.kept, positions_.data()};
    std::normal_distribution<float> normal;
    fill(input_, int64_t{c_.batch} * c_.channels * c_.height * c_.width, generator, normal);
    fill(filters_, int64_t{c_.filters} * group_channels_ * 9, generator, normal);
    fill(bias_, c_.filters, generator, normal);
    fill(residual_, int64_t{c_.batch} * c_.filters * output_height_ * output_width_, generator, normal);
  }

  void run() {
    check_filters();
    std::vector<Storage> output(residual_.size(), not_a_number());
    for (int64_t first = 0; first < tiles_; first += c_.chunk_tiles) {
      const winograd_cuda_chunk chunk{first, std::min<int64_t>(c_.chunk_tiles, tiles_ - first)};
      std::vector<Storage> v(c_.misaligned + int64_t{c_.kept} * blocks_ * chunk.tiles * group_channels_, not_a_number());
      call(winograd_cuda_transform_input(&problem_, &chunk, c_.type, c_.channels_last, input(), v.data() + c_.misaligned, nullptr));
      check_v(chunk, v.data() + c_.misaligned);
      std::vector<Storage> products(c_.misaligned + int64_t{c_.kept} * blocks_ * chunk.tiles * block_filters_);
      multiply(chunk, v.data() + c_.misaligned, products.data() + c_.misaligned);
      const winograd_cuda_epilogue epilogue{c_.has_bias ? bias_.data() + c_.misaligned : nullptr,
                                            c_.has_residual ? residual_.data() + c_.misaligned : nullptr, c_.relu};
      call(winograd_cuda_transform_output(&problem_, &chunk, c_.type, c_.channels_last, products.data() + c_.misaligned, &epilogue,
                                          output.data() + c_.misaligned, nullptr));
      check_output(chunk, products.data() + c_.misaligned, output.data() + c_.misaligned);
    }
    if (c_.type == WINOGRAD_FLOAT32 && c_.kept == f_.t * f_.t) check_convolution(output.data() + c_.misaligned);
  }

 private:
  void choose_positions(std::mt19937& generator) {
    std::vector<int32_t> all(f_.t * f_.t);
    for (int group = 0; group < c_.kernel_groups; ++group) {
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
      std::shuffle(all.begin(), all.end(), generator);
      std::sort(all.begin(), all.begin() + c_.kept);
      positions_.insert(positions_.end(), all.begin(), all.begin() + c_.kept);
    }
  }

  void fill(std::vector<Storage>& numbers, int64_t count, std::mt19937& generator, std::normal_distribution<float>& normal) {
    numbers.resize(c_.misaligned + count);
    for (Storage& number : numbers) store_rounded(normal(generator), number);
  }

  static Storage not_a_number() {
    Storage nan;
    store_rounded(std::nanf(""), nan);
    return nan;
  }
  static constexpr double kRounding = sizeof(Storage) == 4 ? 0x1p-23 : std::is_same_v<Storage, Half> ? 0x1p-11 : 0x1p-8;

  const Storage* input() const { return input_.data() + c_.misaligned; }

  void call(int code) { expect(code == 0, c_.name() + ": " + winograd_cuda_last_error()); }

  void expect_close(double found, double expected, double largest, const char* what) {
    // Sums of t * t float products, then one rounding to the storage type; halves can be subnormal.
    const bool is_close = std::abs(found - expected) <= kRounding * std::abs(expected) + 2e-6 * largest + 0x1p-24;
    expect(is_close, c_.name() + ": " + what + " is " + std::to_string(found) + ", not " + std::to_string(expected));
  }

  int group_of_block(int block) const { return block / (blocks_ / c_.groups); }
  int position(int block, int i) const { return positions_[block / (blocks_ / c_.kernel_groups) * c_.kept + i]; }

  int64_t image_index(int channels, int height, int width, int n, int channel, int y, int x) const {
    if (c_.channels_last) return ((int64_t{n} * height + y) * width + x) * channels + channel;
    return ((int64_t{n} * channels + channel) * height + y) * width + x;
  }

  int64_t matrix_index(int64_t tiles, int width, int i, int block, int64_t tile, int channel) const {
    const int64_t matrix = int64_t{i} * blocks_ + block;
    return c_.channels_last ? (matrix * tiles + tile) * width + channel : (matrix * width + channel) * tiles + tile;
  }

  double pixel(int n, int channel, int y, int x) const {
    if (y < 0 || x < 0 || y >= c_.height || x >= c_.width) return 0.0;
    return static_cast<double>(to_float(input()[image_index(c_.channels, c_.height, c_.width, n, channel, y, x)]));
  }

  void check_filters() {
    weights_.assign(c_.misaligned + int64_t{c_.kept} * c_.filters * group_channels_, not_a_number());
    call(winograd_cuda_transform_filters(&problem_, c_.type, filters_.data() + c_.misaligned, weights_.data() + c_.misaligned, nullptr));
    for (int filter = 0; filter < c_.filters; ++filter) {
      for (int channel = 0; channel < group_channels_; ++channel) {
        const Storage* w = filters_.data() + c_.misaligned + (int64_t{filter} * group_channels_ + channel) * 9;
        for (int i = 0; i < c_.kept; ++i) {
          const int at = position(filter / block_filters_, i);
          double exact = 0.0;
          for (int r = 0; r < 3; ++r) {
            for (int s = 0; s < 3; ++s) exact += f_.g[at / f_.t][r] * f_.g[at % f_.t][s] * static_cast<double>(to_float(w[r * 3 + s]));
          }
          Storage rounded;
          store_rounded(exact, rounded);
          const double found = weight(i, filter, channel), wanted = static_cast<double>(to_float(rounded));
          // The last bit of the double may differ, and with it, seldom, which neighbour is nearest.
          expect(std::abs(found - wanted) <= 2 * kRounding * std::abs(wanted) + 0x1p-24, c_.name() + ": a weight is wrong");
        }
      }
    }
  }

  double weight(int i, int filter, int channel) const {
    return static_cast<double>(
        to_float(weights_[c_.misaligned + (int64_t{i} * c_.filters + filter) * group_channels_ + channel]));
  }

  void check_v(const winograd_cuda_chunk& chunk, const Storage* v) {
    for (int block = 0; block < blocks_; ++block) {
      for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
        const int whole = static_cast<int>(chunk.first_tile + tile);
        const int n = whole / (rows_ * columns_), row = whole / columns_ % rows_, column = whole % columns_;
        for (int channel = 0; channel < group_channels_; ++channel) {
          const int of_all = group_of_block(block) * group_channels_ + channel;
          double left[9][9] = {}, largest = 0.0;  // B^T d
          for (int a = 0; a < f_.t; ++a) {
            for (int x = 0; x < f_.t; ++x) {
              for (int y = 0; y < f_.t; ++y) {
                left[a][x] += f_.bt[a][y] * pixel(n, of_all, row * c_.m - c_.pad_height + y, column * c_.m - c_.pad_width + x);
              }
              largest = std::max(largest, std::abs(left[a][x]));
            }
          }
          for (int i = 0; i < c_.kept; ++i) {
            const int at = position(block, i);
            double exact = 0.0;
            for (int x = 0; x < f_.t; ++x) exact += left[at / f_.t][x] * f_.bt[at % f_.t][x];
            const double found = static_cast<double>(to_float(v[matrix_index(chunk.tiles, group_channels_, i, block, tile, channel)]));
            expect_close(found, exact, 10 * largest, "V");
          }
        }
      }
    }
  }

  void multiply(const winograd_cuda_chunk& chunk, const Storage* v, Storage* products) {
    for (int i = 0; i < c_.kept; ++i) {
      for (int filter = 0; filter < c_.filters; ++filter) {
        const int block = filter / block_filters_;
        for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
          double sum = 0.0;
          for (int channel = 0; channel < group_channels_; ++channel) {
            sum += weight(i, filter, channel) *
                   static_cast<double>(to_float(v[matrix_index(chunk.tiles, group_channels_, i, block, tile, channel)]));
          }
          store_rounded(static_cast<float>(sum), products[matrix_index(chunk.tiles, block_filters_, i, block, tile, filter % block_filters_)]);
        }
      }
    }
  }

  void check_output(const winograd_cuda_chunk& chunk, const Storage* products, const Storage* output) {
    for (int filter = 0; filter < c_.filters; ++filter) {
      const int block = filter / block_filters_;
      for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
        const int whole = static_cast<int>(chunk.first_tile + tile);
        const int n = whole / (rows_ * columns_), row = whole / columns_ % rows_, column = whole % columns_;
        double right[9][9] = {}, largest = 0.0;  // M A
        for (int i = 0; i < c_.kept; ++i) {
          const int at = position(block, i);
          const double product =
              static_cast<double>(to_float(products[matrix_index(chunk.tiles, block_filters_, i, block, tile, filter % block_filters_)]));
          for (int q = 0; q < c_.m; ++q) {
            right[at / f_.t][q] += product * f_.at[q][at % f_.t];
            largest = std::max(largest, std::abs(product * f_.at[q][at % f_.t]));
          }
        }
        for (int p = 0; p < c_.m; ++p) {
          for (int q = 0; q < c_.m; ++q) {
            const int y = row * c_.m + p, x = column * c_.m + q;
            if (y >= output_height_ || x >= output_width_) continue;
            double exact = 0.0, scale = largest;
            for (int a = 0; a < f_.t; ++a) {
              exact += f_.at[p][a] * right[a][q];
              scale = std::max(scale, std::abs(f_.at[p][a]) * largest);
            }
            const int64_t index = image_index(c_.filters, output_height_, output_width_, n, filter, y, x);
            if (c_.has_bias) exact += static_cast<double>(to_float(bias_[c_.misaligned + filter]));
            if (c_.has_residual) exact += static_cast<double>(to_float(residual_[c_.misaligned + index]));
            if (c_.relu) exact = std::max(exact, 0.0);
            expect_close(static_cast<double>(to_float(output[index])), exact, scale + 10.0, "output");
          }
        }
      }
    }
  }

  // The whole, against the convolution that it stands for: no Winograd matrix is in the reference.
  void check_convolution(const Storage* output) {
    double worst = 0.0, largest = 0.0;
    for (int n = 0; n < c_.batch; ++n) {
      for (int filter = 0; filter < c_.filters; ++filter) {
        const int group = filter / (c_.filters / c_.groups);
        for (int y = 0; y < output_height_; ++y) {
          for (int x = 0; x < output_width_; ++x) {
            double exact = 0.0;
            for (int channel = 0; channel < group_channels_; ++channel) {
              const Storage* w = filters_.data() + c_.misaligned + (int64_t{filter} * group_channels_ + channel) * 9;
              for (int r = 0; r < 3; ++r) {
                for (int s = 0; s < 3; ++s) {
                  exact += static_cast<double>(to_float(w[r * 3 + s])) *
                           pixel(n, group * group_channels_ + channel, y - c_.pad_height + r, x - c_.pad_width + s);
                }
              }
            }
            const int64_t index = image_index(c_.filters, output_height_, output_width_, n, filter, y, x);
            if (c_.has_bias) exact += static_cast<double>(to_float(bias_[c_.misaligned + filter]));
            if (c_.has_residual) exact += static_cast<double>(to_float(residual_[c_.misaligned + index]));
            if (c_.relu) exact = std::max(exact, 0.0);
            worst = std::max(worst, std::abs(static_cast<double>(to_float(output[index])) - exact));
            largest = std::max(largest, std::abs(exact));
          }
        }
      }
    }
    const double tolerance = c_.m == 2 ? 1e-6 : c_.m == 4 ? 5e-6 : c_.m == 6 ? 4e-5 : 1e-4;
    expect(worst <= tolerance * largest, c_.name() + ": differs from the convolution by " + std::to_string(worst / largest));
  }

  const Case c_;
  const DoubleMatrices f_;
  const int output_height_, output_width_, rows_, columns_, tiles_, blocks_, group_channels_, block_filters_;
  std::vector<int32_t> positions_;
  winograd_problem problem_{};
  std::vector<Storage> input_, filters_, bias_, residual_, weights_;
};

// ---- Cases ----------------------------------------------------------------------------------------------------------------

int check_stages() {
  struct Shape {
    int batch, channels, height, width, filters, pad_height, pad_width, groups, kernel_groups;
  };
  const Shape shapes[] = {
      {2, 8, 9, 7, 16, 1, 1, 1, 1},    // tails on both sides, vectors
      {1, 3, 12, 12, 5, 0, 0, 1, 1},   // odd channels and filters
      {1, 16, 3, 3, 8, 0, 2, 1, 1},    // smaller than a tile; more padding than a filter
      {3, 1, 1, 5, 2, 1, 0, 1, 1},     // one row
      {1, 16, 8, 8, 16, 1, 1, 2, 1},   // groups
      {1, 8, 8, 8, 32, 1, 1, 1, 4},    // groups of filters
      {1, 16, 6, 5, 32, 2, 1, 2, 4},   // both: two groups of filters in a group
      {1, 32, 6, 5, 32, 1, 1, 4, 2},   // both: two groups in a group of filters
      {1, 4, 5, 5, 4, 1, 1, 4, 1},     // depthwise
      {1, 8, 5, 5, 70, 1, 1, 1, 70},   // more groups of filters than one launch takes
      {0, 8, 8, 8, 8, 1, 1, 1, 1},     // an empty batch
  };
  std::mt19937 generator(0);
  int cases = 0;
  for (const int m : {2, 4, 6, 7}) {
    for (const Shape& s : shapes) {
      const int t = m + 2;
      for (const int kept : {t * t, t * t / 2, 1}) {
        for (const int32_t type : {WINOGRAD_FLOAT32, WINOGRAD_FLOAT16, WINOGRAD_BFLOAT16}) {
          for (const bool last : {true, false}) {
            const bool odd = ++cases % 2 == 1;
            const Case a_case{m, s.batch, s.channels, s.height, s.width, s.filters, s.pad_height, s.pad_width, s.groups,
                              s.kernel_groups, kept, type, last, /*relu=*/cases % 3 == 0, /*has_bias=*/cases % 4 != 0,
                              /*has_residual=*/cases % 5 != 0, /*chunk_tiles=*/odd ? 5 : 1000, /*misaligned=*/cases % 7 == 0};
            with_storage(type, [&](auto storage) { Checked<decltype(storage)>(a_case, generator).run(); });
          }
        }
      }
    }
  }
  return cases;
}

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
    expect(static_cast<__int128>(end) == static_cast<__int128>(problem.kept) * tiles * problem.channels - 1, "V ends where it should");
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
