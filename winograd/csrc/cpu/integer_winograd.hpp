// Winograd convolutions F(2x2, 3x3) of bytes: input transform, a product for each kept position, output transform.
//
// All three are done a strip of rows of tiles at a time, so that V (bytes) and M (int32) stay in the nearest cache:
//
//   V  [16 positions][tiles of a strip][channels, filled up to 16]       in the image's scratch memory; not where none is kept
//   M  [16 positions][tiles of a block][16 filters, or twice as many]    on the stack; zeros where none is kept
//
// Sums of V have 16 bits: four bytes come to 1020 at most, whatever their signs. So do shifts, as products whose higher half is
// taken: floor((x + half) / 2^r) = high half of 4 (x + half) * 2^(14 - r). integer_prepare.cpp says for which programs that is
// exact; others run in three steps (integer_steps.hpp), which are the definition in plain loops.
#pragma once

#include "../matrices.hpp"
#include "integer_convolutions.hpp"

namespace winograd::integers::WINOGRAD_VARIANT {
namespace {

// ---- Sixteen integers of 16 bits -----------------------------------------------------------------------------------

constexpr int kHalfBytes = kPartBytes < 32 ? kPartBytes : 32, kHalfParts = 32 / kHalfBytes;
typedef int16_t HalfPart __attribute__((vector_size(kHalfBytes)));
typedef int16_t LooseHalfPart __attribute__((vector_size(kHalfBytes), aligned(1), may_alias));

struct Halves {
  HalfPart parts[kHalfParts];
};

template <class Make>
WINOGRAD_INLINE Halves by_half_part(const Make &make) {
  Halves made;
  WINOGRAD_UNROLL
  for (int part = 0; part < kHalfParts; ++part) made.parts[part] = make(part);
  return made;
}
WINOGRAD_INLINE Halves load_halves(const int16_t *from) {
  return by_half_part([&](int part) WINOGRAD_INLINE_LAMBDA {
    return HalfPart(*reinterpret_cast<const LooseHalfPart *>(from + part * (kHalfBytes / 2)));
  });
}
WINOGRAD_INLINE Halves plus(const Halves &a, const Halves &b) {
  return by_half_part([&](int part) WINOGRAD_INLINE_LAMBDA { return a.parts[part] + b.parts[part]; });
}
WINOGRAD_INLINE Halves minus(const Halves &a, const Halves &b) {
  return by_half_part([&](int part) WINOGRAD_INLINE_LAMBDA { return a.parts[part] - b.parts[part]; });
}
// Four times 16 bytes.
WINOGRAD_INLINE Halves load_fourfold(const uint8_t *from) {
#if defined(__AVX2__)
  return {{HalfPart(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))), 2))}};
#elif defined(__SSE2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)), zero = _mm_setzero_si128();
  return {{HalfPart(_mm_slli_epi16(_mm_unpacklo_epi8(bytes, zero), 2)), HalfPart(_mm_slli_epi16(_mm_unpackhi_epi8(bytes, zero), 2))}};
#else
  int16_t all[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) all[lane] = static_cast<int16_t>(4 * from[lane]);
  return load_halves(all);
#endif
}
// The higher 16 bits of each product, rounded down.
WINOGRAD_INLINE Halves high_products(const Halves &a, const Halves &b) {
  return by_half_part([&](int part) WINOGRAD_INLINE_LAMBDA {
#if defined(__AVX2__)
    return HalfPart(_mm256_mulhi_epi16(__m256i(a.parts[part]), __m256i(b.parts[part])));
#elif defined(__SSE2__)
    return HalfPart(_mm_mulhi_epi16(__m128i(a.parts[part]), __m128i(b.parts[part])));
#else
    HalfPart made;
    for (int lane = 0; lane < kHalfBytes / 2; ++lane)
      made[lane] = static_cast<int16_t>(int32_t{a.parts[part][lane]} * b.parts[part][lane] >> 16);
    return made;
#endif
  });
}
// Clamped to 0 and 255, then to these bounds.
template <bool clamps>
WINOGRAD_INLINE void store_bytes(uint8_t *to, const Halves &x, const uint8_t *low, const uint8_t *high) {
#if defined(__SSE2__)
#if defined(__AVX2__)
  const __m128i first = _mm256_castsi256_si128(__m256i(x.parts[0])), second = _mm256_extracti128_si256(__m256i(x.parts[0]), 1);
#else
  const __m128i first = __m128i(x.parts[0]), second = __m128i(x.parts[1]);
#endif
  __m128i bytes = _mm_packus_epi16(first, second);
  if (clamps) {
    bytes = _mm_max_epu8(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i *>(low)));
    bytes = _mm_min_epu8(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i *>(high)));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    const int16_t number = x.parts[lane / (kHalfBytes / 2)][lane % (kHalfBytes / 2)];
    const int16_t floored = number < low[lane] ? low[lane] : number;
    to[lane] = static_cast<uint8_t>(floored > high[lane] ? high[lane] : floored);
  }
#endif
}

// ---- Input transform -----------------------------------------------------------------------------------------------

constexpr int kTileSide = 4, kPositions = kTileSide * kTileSide;

// B^T, row by row, and A^T are written out below as these say.
constexpr bool has_row(const double *matrix, int a, int b, int c, int d) {
  return matrix[0] == a && matrix[1] == b && matrix[2] == c && matrix[3] == d;
}
static_assert(has_row(kMatrices<2>.bt[0], -1, 0, 1, 0) && has_row(kMatrices<2>.bt[1], 0, 1, 1, 0) &&
              has_row(kMatrices<2>.bt[2], 0, -1, 1, 0) && has_row(kMatrices<2>.bt[3], 0, -1, 0, 1));
static_assert(has_row(kMatrices<2>.at[0], 1, 1, 1, 0) && has_row(kMatrices<2>.at[1], 0, 1, -1, 1));

WINOGRAD_INLINE void transform_four(const Halves &a, const Halves &b, const Halves &c, const Halves &d, Halves *to) {
  to[0] = minus(c, a);
  to[1] = plus(b, c);
  to[2] = minus(c, b);
  to[3] = minus(d, b);
}

// A Winograd convolution as it runs: its three steps, and the memory for one strip's V.
struct Strips {
  const Image &image;
  const Step &output, &input, &product;
  const Value &source, &tiles;  // tiles: V, as far as rows and columns go
  int64_t strip_tiles;
  int64_t v_channels;  // bytes of a tile at one position
  bool uses_tiles;     // tile registers, decided once
};

// Where the pixels of a row of tiles lie, 16 channels of them.
struct TileRow {
  const uint8_t *rows[kTileSide];  // null: outside the image
  const uint8_t *zeros;            // what padding holds
  int64_t width, channels;
  bool is_inside;  // all four rows

  WINOGRAD_INLINE Halves pixel(int r, int64_t x) const {
    return load_fourfold(x >= 0 && x < width && rows[r] != nullptr ? rows[r] + x * channels : zeros);
  }
  // B^T d of one column.
  WINOGRAD_INLINE void column(int64_t x, Halves *to) const {
    if (is_inside && x >= 0 && x < width) {
      const uint8_t *const from = rows[0] + x * channels;
      const int64_t row = rows[1] - rows[0];
      transform_four(load_fourfold(from), load_fourfold(from + row), load_fourfold(from + 2 * row), load_fourfold(from + 3 * row), to);
    } else {
      transform_four(pixel(0, x), pixel(1, x), pixel(2, x), pixel(3, x), to);
    }
  }
};

// How 16 channels become bytes of V: numbers of the first position, the next are `position_numbers` further on.
struct TileRounding {
  const int16_t *halves, *factors;
  const uint8_t *lows, *highs;
  int64_t position_numbers;
  Halves lowest;
  uint32_t kept;  // a bit for each position
};

// 16 channels of one tile at all kept positions, from B^T d.
template <bool clamps>
WINOGRAD_INLINE void transform_tile(const Halves (&columns)[kTileSide][kTileSide], const TileRounding &by, uint8_t *to, int64_t plane) {
  WINOGRAD_UNROLL
  for (int a = 0; a < kTileSide; ++a) {
    Halves row[kTileSide];
    transform_four(columns[0][a], columns[1][a], columns[2][a], columns[3][a], row);
    WINOGRAD_UNROLL
    for (int b = 0; b < kTileSide; ++b) {
      const int position = kTileSide * a + b;
      if ((by.kept >> position & 1) == 0) continue;
      const int64_t at = position * by.position_numbers;
      const Halves rounded = high_products(plus(row[b], load_halves(by.halves + at)), load_halves(by.factors + at));
      store_bytes<clamps>(to + position * plane, minus(rounded, by.lowest), by.lows + at, by.highs + at);
    }
  }
}

// V of the rows of tiles from `first` to before `end`.
template <bool clamps>
void transform_strip(const Strips &of, int64_t first, int64_t end, uint8_t *v) {
  const Prepared &network = *of.image.network;
  const Value &source = of.source;
  const Step &input = of.input;
  const int32_t *const positions = network.at<int32_t>(input.positions);
  uint32_t kept = 0;
  for (int32_t p = 0; p < input.position_count; ++p) kept |= uint32_t{1} << positions[p];
  uint8_t zeros[kLanes];  // padding stands for the integer zero
  std::memset(zeros, -source.lowest, sizeof zeros);
  int16_t lowest[kLanes];
  for (int16_t &lane : lowest) lane = static_cast<int16_t>(of.tiles.lowest);

  for (int64_t tile_row = first; tile_row < end; ++tile_row)
    for (int64_t block = 0; block < of.v_channels; block += kLanes) {
      const TileRounding by{network.at<int16_t>(input.tile_halves) + block, network.at<int16_t>(input.tile_factors) + block,
                            network.at<uint8_t>(input.tile_lows) + block, network.at<uint8_t>(input.tile_highs) + block,
                            of.v_channels, load_halves(lowest), kept};
      TileRow pixels{{}, zeros, source.width, source.channels, true};
      for (int r = 0; r < kTileSide; ++r) {
        const int64_t y = 2 * tile_row + r - input.padding[0];
        const bool is_outside = y < 0 || y >= source.height;
        pixels.rows[r] = is_outside ? nullptr : of.image.arena + source.place + y * source.width * source.channels + block;
        if (is_outside) pixels.is_inside = false;
      }
      Halves columns[kTileSide][kTileSide];
      pixels.column(-int64_t{input.padding[1]}, columns[0]);
      pixels.column(1 - int64_t{input.padding[1]}, columns[1]);
      uint8_t *to = v + (tile_row - first) * of.tiles.width * of.v_channels + block;
      for (int64_t tile = 0; tile < of.tiles.width; ++tile, to += of.v_channels) {
        pixels.column(2 * tile + 2 - input.padding[1], columns[2]);
        pixels.column(2 * tile + 3 - input.padding[1], columns[3]);
        transform_tile<clamps>(columns, by, to, of.strip_tiles * of.v_channels);
        WINOGRAD_UNROLL
        for (int a = 0; a < kTileSide; ++a) columns[0][a] = columns[2][a], columns[1][a] = columns[3][a];
      }
    }
}

// ---- Products, and output transform --------------------------------------------------------------------------------

// Tiles whose sums fit into registers.
template <int vectors>
constexpr int kTilesOfSums = kVectors == 2 ? 2 * kPixels / vectors : kPixels;

// How many tiles are multiplied, then transformed: what M of them takes is a quarter to a half of the nearest cache.
template <int vectors>
WINOGRAD_INLINE int64_t tiles_at_once(const Strips &of) {
  return of.uses_tiles ? of.product.tile_rows : kMostTileRows / vectors;
}

// M of so many tiles, for 16 filters or twice as many.
template <int vectors>
struct Products {
  alignas(64) int32_t numbers[kPositions * kMostTileRows * vectors * kLanes];
  int64_t position_numbers;
  explicit Products(const Strips &of) : position_numbers(tiles_at_once<vectors>(of) * vectors * kLanes) {
    const int32_t *const positions = of.image.network->at<int32_t>(of.input.positions);
    for (int32_t position = 0, p = 0; position < kPositions; ++position)
      if (p < of.input.position_count && positions[p] == position)
        ++p;
      else
        std::memset(numbers + position * position_numbers, 0, static_cast<size_t>(position_numbers) * sizeof *numbers);
  }
};

#if defined(__AMX_INT8__)
// What becomes of a position's sums in tile registers: they are kept in M.
template <int vectors>
struct Keep {
  int32_t *to;
  int64_t first;  // filter
  struct Of16 {
    int32_t *to;
    WINOGRAD_INLINE void operator()(const Ints &sums, int64_t tile) const { store(to + tile * vectors * kLanes, sums); }
  };
  WINOGRAD_INLINE Of16 of16(int64_t block) const { return {to + block - first}; }
};
#endif

template <int count>
struct Count {
  static constexpr int value = count;
};

// How a product gets to where sums meet: shifted, which SSE2 can't do lane by lane, so there it is multiplied.
WINOGRAD_INLINE Ints shifts_of(const int32_t *left) {
#if defined(__AVX2__) || !defined(__SSE2__)
  return load(left);
#else
  int32_t powers[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) powers[lane] = static_cast<int32_t>(uint32_t{1} << left[lane]);
  return load(powers);
#endif
}
WINOGRAD_INLINE Ints shifted(const Ints &x, const Ints &by) {
#if defined(__AVX2__) || !defined(__SSE2__)
  return shifted_left(x, by);
#else
  return times(x, by);
#endif
}

// A^T m A of a tile's 16 filters, [2][2].
template <bool shifts>
WINOGRAD_INLINE void transform_products(const int32_t *m, int64_t position_numbers, const Ints *left, Ints (&y)[2][2]) {
  Ints halves[2][kTileSide];  // A^T m
  WINOGRAD_UNROLL
  for (int b = 0; b < kTileSide; ++b) {
    const auto product = [&](int a) WINOGRAD_INLINE_LAMBDA {
      const int position = kTileSide * a + b;
      const Ints x = load(m + position * position_numbers);
      return shifts ? shifted(x, left[position]) : x;
    };
    const Ints second = product(1), third = product(2);
    halves[0][b] = plus(product(0), plus(second, third));
    halves[1][b] = plus(minus(second, third), product(3));
  }
  WINOGRAD_UNROLL
  for (int r = 0; r < 2; ++r) {
    y[r][0] = plus(halves[r][0], plus(halves[r][1], halves[r][2]));
    y[r][1] = plus(minus(halves[r][1], halves[r][2]), halves[r][3]);
  }
}

// Some tiles of one row, from `column`: outputs of the 16 filters from `filter`, whose products begin at `m`.
template <bool shifts, class Finishing>
WINOGRAD_INLINE void finish_tiles(const Group &of, int64_t tile_row, int64_t column, int64_t count, int64_t filter, const int32_t *m,
                                  int64_t tile_numbers, int64_t position_numbers, const Finishing &finish) {
  const int32_t *const lefts = of.network.at<int32_t>(of.step.product_lefts) + filter;
  const int32_t *const positions = of.network.at<int32_t>(of.step.positions);
  Ints left[kPositions] = {};
  if (shifts)
    for (int32_t p = 0; p < of.step.position_count; ++p) left[positions[p]] = shifts_of(lefts + int64_t{p} * of.step.group_lanes);
  const Ints bias = load(of.bias + filter);
  const auto finish_filters = finish.of16(filter);
  const bool has_second_row = 2 * tile_row + 1 < of.output.height;
  for (int64_t tile = 0; tile < count; ++tile, m += tile_numbers) {
    Ints y[2][2];
    transform_products<shifts>(m, position_numbers, left, y);
    const int64_t pixel = 2 * tile_row * of.width + 2 * (column + tile);
    const bool has_second_column = 2 * (column + tile) + 1 < of.width;
    finish_filters(plus(y[0][0], bias), pixel);
    if (has_second_column) finish_filters(plus(y[0][1], bias), pixel + 1);
    if (has_second_row) finish_filters(plus(y[1][0], bias), pixel + of.width);
    if (has_second_row && has_second_column) finish_filters(plus(y[1][1], bias), pixel + of.width + 1);
  }
}

// M of a few tiles at one position. The loop over windows' rows that other convolutions need would take as long as the products.
template <int tiles, int vectors>
WINOGRAD_INLINE void multiply_few(const uint8_t *v, int64_t v_channels, const int8_t *w, int64_t panel, int64_t fours,
                                  const int32_t *bias, int32_t *to) {
  Ints sums[tiles][vectors];
  WINOGRAD_UNROLL
  for (int vector = 0; vector < vectors; ++vector) {
    const Ints first = load(bias + vector * kLanes);
    WINOGRAD_UNROLL
    for (int tile = 0; tile < tiles; ++tile) sums[tile][vector] = first;
  }
  for (int64_t four = 0; four < fours; ++four, v += kTogether, w += kLanes * kTogether) {
    Weights weights[vectors];
    WINOGRAD_UNROLL
    for (int vector = 0; vector < vectors; ++vector) weights[vector] = load_weights(w + vector * panel);
    WINOGRAD_UNROLL
    for (int tile = 0; tile < tiles; ++tile) {
      const Pixel pixel = load_pixel(v + tile * v_channels);
      WINOGRAD_UNROLL
      for (int vector = 0; vector < vectors; ++vector) sums[tile][vector] = multiply_add(sums[tile][vector], pixel, weights[vector]);
    }
  }
  WINOGRAD_UNROLL
  for (int tile = 0; tile < tiles; ++tile)
  WINOGRAD_UNROLL
    for (int vector = 0; vector < vectors; ++vector) store(to + (tile * vectors + vector) * kLanes, sums[tile][vector]);
}

// M of a strip's tiles from `first` on, for the filters from `block` on.
template <int vectors>
WINOGRAD_INLINE void multiply_tiles(const Strips &of, const uint8_t *v, int64_t first, int64_t count, int64_t block, Products<vectors> &m) {
  const Prepared &network = *of.image.network;
  const int32_t *const positions = network.at<int32_t>(of.input.positions);
  const int64_t fours = of.product.fours, lanes = of.product.group_lanes, panel = fours * kLanes * kTogether;
  for (int64_t p = 0; p < of.input.position_count; ++p) {
    const uint8_t *from = v + (positions[p] * of.strip_tiles + first) * of.v_channels;
    const int8_t *const w = network.at<int8_t>(of.product.weights) + p * lanes * fours * kTogether;
    const int32_t *const bias = network.at<int32_t>(of.product.bias) + p * lanes;
    int32_t *to = m.numbers + positions[p] * m.position_numbers;
#if defined(__AMX_INT8__)
    if (of.uses_tiles) {
      const Group group{network, of.product, of.image, from, 0, of.v_channels, w, bias, 0, 0, count, of.tiles};
      for (int64_t tile = 0; tile < count; tile += of.product.tile_rows)
        tile_of_pixels<vectors>(group, 0, tile, block, Keep<vectors>{to, block});
      continue;
    }
#endif
    int64_t tile = 0;
    const auto multiply = [&](auto tiles) WINOGRAD_INLINE_LAMBDA {
      for (; tile + tiles.value <= count; tile += tiles.value, from += tiles.value * of.v_channels, to += tiles.value * vectors * kLanes)
        multiply_few<tiles.value, vectors>(from, of.v_channels, w + block / kLanes * panel, panel, fours, bias + block, to);
    };
    multiply(Count<kTilesOfSums<vectors>>{});
    if (kTilesOfSums<vectors> > 4) multiply(Count<4>{});
    multiply(Count<1>{});
  }
}

template <int vectors, bool shifts, class Finishing>
WINOGRAD_INLINE void filters_of_strip(const Strips &of, const Group &outputs, const uint8_t *v, int64_t first_row, int64_t end_row,
                                      int64_t block, Products<vectors> &m, const Finishing &finish) {
  const int64_t columns = of.tiles.width, count = (end_row - first_row) * columns, at_once = tiles_at_once<vectors>(of);
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t end = first + at_once < count ? first + at_once : count;
    multiply_tiles<vectors>(of, v, first, end - first, block, m);
    for (int64_t tile = first; tile < end;) {  // a row of tiles at a time
      const int64_t row = tile / columns, column = tile % columns, last = (row + 1) * columns < end ? (row + 1) * columns : end;
      WINOGRAD_UNROLL
      for (int part = 0; part < vectors; ++part)
        finish_tiles<shifts>(outputs, first_row + row, column, last - tile, block + part * kLanes,
                             m.numbers + ((tile - first) * vectors + part) * kLanes, vectors * kLanes, m.position_numbers, finish);
      tile = last;
    }
  }
}

template <bool shifts>
void run_strips_of(const Strips &of, int64_t begin, int64_t end, bool keeps_apart) {
  const Prepared &network = *of.image.network;
  const Value &output = network.value(of.output.output);
  const Group outputs{network, of.output, of.image, nullptr, 0, 0, nullptr, network.at<int32_t>(of.output.bias), 0, 0, output.width, output};
  Products<1> one(of);
  Products<kVectors> two(of);
#if defined(__AMX_INT8__)
  if (of.uses_tiles) shape_tiles(of.product);
#endif
  finishing(outputs, [&](const auto &finish) {
    for (int64_t strip = begin; strip < end; ++strip) {
      uint8_t *const v = of.image.scratch + (keeps_apart ? strip * of.input.strip_bytes : 0);
      const int64_t first_row = strip * of.input.strip_rows;
      const int64_t behind = first_row + of.input.strip_rows, end_row = behind < of.tiles.height ? behind : of.tiles.height;
      if (of.input.clamps_tiles)
        transform_strip<true>(of, first_row, end_row, v);
      else
        transform_strip<false>(of, first_row, end_row, v);
      int64_t block = 0;
      for (; kVectors == 2 && block + 2 * kLanes <= of.product.group_lanes; block += 2 * kLanes)
        filters_of_strip<kVectors, shifts>(of, outputs, v, first_row, end_row, block, two, finish);
      for (; block < of.product.group_lanes; block += kLanes)
        filters_of_strip<1, shifts>(of, outputs, v, first_row, end_row, block, one, finish);
    }
  });
#if defined(__AMX_INT8__)
  if (of.uses_tiles) _tile_release();
#endif
}

void run_strips(const Strips &of, int64_t begin, int64_t end, bool keeps_apart) {
  if (of.output.shifts_products)
    run_strips_of<true>(of, begin, end, keeps_apart);
  else
    run_strips_of<false>(of, begin, end, keeps_apart);
}

struct SharedStrips {
  const Strips *of;
  int64_t strips, parts;
};

void run_shared_strips(void *context, int64_t part) {
  const SharedStrips &shared = *static_cast<const SharedStrips *>(context);
  run_strips(*shared.of, shared.strips * part / shared.parts, shared.strips * (part + 1) / shared.parts, true);
}

// `first` of three steps: what the outputs are, then the input transform, then the product.
void convolve_in_strips(const Image &image, int32_t first) {
  const Prepared &network = *image.network;
  const Step &output = network.step(first), &input = network.step(first + 1), &product = network.step(first + 2);
  const Value &source = network.value(input.source), &tiles = network.value(input.output);
#if defined(__AMX_INT8__)
  const bool uses_tiles = has_tiles() && product.tile_rows > 0;
#else
  const bool uses_tiles = false;
#endif
  const Strips of{image,  output, input, product, source, tiles, input.strip_rows * int64_t{tiles.width}, input.tile_channels,
                  uses_tiles};
  const int64_t strips = (tiles.height + input.strip_rows - 1) / input.strip_rows;
  const winograd_threads *const threads = image.threads;
  if (threads == nullptr || product.multiplications < kWorthSharing || strips < 2) return run_strips(of, 0, strips, false);
  SharedStrips shared{&of, strips, threads->count < strips ? threads->count : strips};
  threads->run(threads->runner, shared.parts, run_shared_strips, &shared);
}

}  // namespace
}  // namespace winograd::integers::WINOGRAD_VARIANT
