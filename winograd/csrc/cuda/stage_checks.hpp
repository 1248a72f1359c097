// Every stage of every variant on many shapes, with tails, groups and pruned positions, against the definition in double.
//
// host_check.cpp runs this over the stages on the host, device_check.cu over the kernels. Both define, before they include it,
//
//   template <class T> class Placed {
//    public:
//     explicit Placed(std::vector<T>& numbers);  // puts them where the stages can reach them
//     ~Placed();                                 // and brings them back, with what was written
//     T* data();
//   };
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "launches.hpp"

namespace winograd::cuda {

inline int failures = 0;

inline void expect(bool holds, const std::string& claim) {
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

inline DoubleMatrices matrices_of(int32_t m) {
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
      std::vector<Storage> v(c_.misaligned + int64_t{c_.kept} * blocks_ * length_of(chunk) * group_channels_, not_a_number());
      transform_input(chunk, v);
      check_v(chunk, v.data() + c_.misaligned);
      std::vector<Storage> products(c_.misaligned + int64_t{c_.kept} * blocks_ * length_of(chunk) * block_filters_);
      const std::vector<Product> exact = exact_products(chunk, v.data() + c_.misaligned);
      bool is_multiplied = false;
      for (int32_t tile = WINOGRAD_CUDA_TILES; tile >= WINOGRAD_CUDA_ANY_TILE; --tile) {
        std::fill(products.begin(), products.end(), not_a_number());
        is_multiplied = multiply(chunk, tile, v, products);
        if (is_multiplied) check_products(exact, products.data() + c_.misaligned);
      }
      if (!is_multiplied) {
        for (const Product& product : exact) store_rounded(static_cast<float>(product.sum), products[c_.misaligned + product.index]);
      }
      transform_output(chunk, products, output);
      check_output(chunk, products.data() + c_.misaligned, output.data() + c_.misaligned);
    }
    if (c_.type == WINOGRAD_FLOAT32 && c_.kept == f_.t * f_.t) check_convolution(output.data() + c_.misaligned);
  }

 private:
  // An element of M: where it is, what it is, and the sum of the magnitudes of its terms.
  struct Product {
    int64_t index;
    double sum, magnitudes;
  };

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

  void transform_filters() {
    Placed filters(filters_), weights(weights_);
    call(winograd_cuda_transform_filters(&problem_, c_.type, filters.data() + c_.misaligned, weights.data() + c_.misaligned, nullptr));
  }

  void transform_input(const winograd_cuda_chunk& chunk, std::vector<Storage>& v_) {
    Placed input(input_), v(v_);
    call(winograd_cuda_transform_input(&problem_, &chunk, c_.type, c_.channels_last, input.data() + c_.misaligned,
                                       v.data() + c_.misaligned, nullptr));
  }

  // Whether it was done: for float32, channels in fours, aligned operands, and groups of warps where there are any.
  bool multiply(const winograd_cuda_chunk& chunk, int32_t tile, std::vector<Storage>& v_, std::vector<Storage>& products_) {
    if (c_.type != WINOGRAD_FLOAT32) return false;
    Placed weights(weights_), v(v_), products(products_);
    const int code = winograd_cuda_multiply(&problem_, &chunk, c_.channels_last, tile, weights.data() + c_.misaligned,
                                            v.data() + c_.misaligned, products.data() + c_.misaligned, nullptr);
    const bool can = group_channels_ % 4 == 0 && c_.misaligned == 0;
    const bool is_missing = can && code != 0 && std::string(winograd_cuda_last_error()).find("only sm_90 has") != std::string::npos;
    expect((code == 0) == can || is_missing, c_.name() + ": multiplies, or refuses: " + winograd_cuda_last_error());
    return code == 0;
  }

  void transform_output(const winograd_cuda_chunk& chunk, std::vector<Storage>& products_, std::vector<Storage>& output_) {
    Placed products(products_), bias(bias_), residual(residual_), output(output_);
    const winograd_cuda_epilogue epilogue{c_.has_bias ? bias.data() + c_.misaligned : nullptr,
                                          c_.has_residual ? residual.data() + c_.misaligned : nullptr, c_.relu};
    call(winograd_cuda_transform_output(&problem_, &chunk, c_.type, c_.channels_last, products.data() + c_.misaligned, &epilogue,
                                        output.data() + c_.misaligned, nullptr));
  }

  void call(int code) { expect(code == 0, c_.name() + ": " + winograd_cuda_last_error()); }

  void expect_close(double found, double expected, double largest, const char* what) {
    // Sums of t * t float products, then one rounding to the storage type; halves can be subnormal.
    if (std::abs(found - expected) <= kRounding * std::abs(expected) + 2e-6 * largest + 0x1p-24) return;
    expect(false, c_.name() + ": " + what + " is " + std::to_string(found) + ", not " + std::to_string(expected));
  }

  // Each factor is off by 2^-21 of itself at most; sums of so few terms by less.
  void expect_product(double found, double exact, double sum_of_terms) {
    if (std::abs(found - exact) <= 0x1.8p-20 * sum_of_terms) return;
    expect(false, c_.name() + ": a product is " + std::to_string(found) + ", not " + std::to_string(exact));
  }

  int group_of_block(int block) const { return block / (blocks_ / c_.groups); }
  int position(int block, int i) const { return positions_[block / (blocks_ / c_.kernel_groups) * c_.kept + i]; }

  int64_t image_index(int channels, int height, int width, int n, int channel, int y, int x) const {
    if (c_.channels_last) return ((int64_t{n} * height + y) * width + x) * channels + channel;
    return ((int64_t{n} * channels + channel) * height + y) * width + x;
  }

  // Tiles of V and M, with those that fill them up.
  int64_t length_of(const winograd_cuda_chunk& chunk) const { return c_.channels_last ? chunk.tiles : padded_tiles(chunk.tiles); }

  int64_t matrix_index(int64_t length, int width, int i, int block, int64_t tile, int channel) const {
    const int64_t matrix = int64_t{i} * blocks_ + block;
    return c_.channels_last ? (matrix * length + tile) * width + channel : (matrix * width + channel) * length + tile;
  }

  double pixel(int n, int channel, int y, int x) const {
    if (y < 0 || x < 0 || y >= c_.height || x >= c_.width) return 0.0;
    return static_cast<double>(to_float(input()[image_index(c_.channels, c_.height, c_.width, n, channel, y, x)]));
  }

  void check_filters() {
    weights_.assign(c_.misaligned + int64_t{c_.kept} * c_.filters * group_channels_, not_a_number());
    transform_filters();
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
            const double found = static_cast<double>(to_float(v[matrix_index(length_of(chunk), group_channels_, i, block, tile, channel)]));
            expect_close(found, exact, 10 * largest, "V");
          }
        }
      }
    }
  }

  std::vector<Product> exact_products(const winograd_cuda_chunk& chunk, const Storage* v) const {
    std::vector<Product> products;
    for (int i = 0; i < c_.kept; ++i) {
      for (int filter = 0; filter < c_.filters; ++filter) {
        const int block = filter / block_filters_;
        for (int64_t tile = 0; tile < chunk.tiles; ++tile) {
          Product product{matrix_index(length_of(chunk), block_filters_, i, block, tile, filter % block_filters_), 0.0, 0.0};
          for (int channel = 0; channel < group_channels_; ++channel) {
            const double term = weight(i, filter, channel) *
                                static_cast<double>(to_float(v[matrix_index(length_of(chunk), group_channels_, i, block, tile, channel)]));
            product.sum += term;
            product.magnitudes += std::abs(term);
          }
          products.push_back(product);
        }
      }
    }
    return products;
  }

  void check_products(const std::vector<Product>& exact, const Storage* products) {
    for (const Product& product : exact) {
      expect_product(static_cast<double>(to_float(products[product.index])), product.sum, product.magnitudes);
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
              static_cast<double>(to_float(products[matrix_index(length_of(chunk), block_filters_, i, block, tile, filter % block_filters_)]));
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

// Of shapes with at least so many channels: compute-sanitizer makes all 840 cases last for many minutes.
inline int check_stages(int least_channels = 0) {
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
      {1, 36, 18, 34, 140, 1, 1, 1, 1},  // several blocks of rows and columns for every tile of the multiplication
      {1, 228, 5, 6, 12, 1, 1, 1, 1},  // more steps of depth than are in flight
  };
  const auto is_large = [](const Shape& s) { return s.channels > 32; };  // for the multiplication, which is of float32
  std::mt19937 generator(0);
  int cases = 0;
  for (const int m : {2, 4, 6, 7}) {
    for (const Shape& s : shapes) {
      if (s.channels < least_channels) continue;
      const int t = m + 2;
      for (const int kept : {t * t, t * t / 2, 1}) {
        for (const int32_t type : {WINOGRAD_FLOAT32, WINOGRAD_FLOAT16, WINOGRAD_BFLOAT16}) {
          if (is_large(s) && type != WINOGRAD_FLOAT32) continue;
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

}  // namespace winograd::cuda
