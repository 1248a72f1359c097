// What one thread does in each stage. The kernels (*.cu) call these, and so does the host check, for every thread of a grid.
//
// A thread of the input or output stage has one tile and `lanes` neighbouring channels: as many as keep t * t (or m * t)
// numbers of each in registers. Pruned positions are neither computed, where a whole row of them is pruned, nor read or
// written. All loops over positions are unrolled, and the number of a kept position is counted along.
#pragma once

#include "indexing.hpp"
#include "storage.hpp"
#include "transforms.hpp"

namespace winograd::cuda {

template <class Storage>
struct InputStage {
  Geometry geometry;
  ImageStrides image;
  MatrixStrides matrix;  // of V
  ThreadGrid grid;
  bool channel_is_fast;
  int first_tile;  // of the chunk
  const Storage* input;
  Storage* v;
  KeptPositions kept;
};

template <class Storage>
struct OutputStage {
  Geometry geometry;
  ImageStrides image;
  MatrixStrides matrix;  // of M
  ThreadGrid grid;
  bool channel_is_fast;
  bool relu;
  int first_tile, first_filter;
  const Storage* products;  // M
  const Storage* bias;      // or null
  const Storage* residual;  // or null
  Storage* output;
  KeptPositions kept;
};

template <class Storage>
struct FilterStage {
  Geometry geometry;
  ThreadGrid grid;
  int first_filter;
  const Storage* filters;
  Storage* weights;
  KeptPositions kept;
};

// V = B^T d B of one tile and `lanes` channels, for every block that reads them.
template <int m, int lanes, class Storage>
WINOGRAD_HOST_DEVICE void transform_input(const InputStage<Storage>& stage, ThreadPlace thread) {
  constexpr int t = m + 2;
  const Geometry& geometry = stage.geometry;
  const int tile = stage.channel_is_fast ? thread.slow : thread.fast;
  const int channel = (stage.channel_is_fast ? thread.fast : thread.slow) * lanes;
  const TilePlace place = place_of_tile(geometry, stage.first_tile + tile);
  const int first_row = place.row * m - geometry.pad_height;
  const int first_column = place.column * m - geometry.pad_width;
  const int64_t corner = stage.image.at(place.image, first_row, first_column, channel);

  float half[lanes][t][t];  // B^T d
  WINOGRAD_UNROLL for (int column = 0; column < t; ++column) {
    const bool column_inside = is_inside(first_column + column, geometry.width);
    float d[lanes][t];
    WINOGRAD_UNROLL for (int row = 0; row < t; ++row) {
      float pixel[lanes];
      load_if(column_inside && is_inside(first_row + row, geometry.height),
              stage.input + corner + row * stage.image.row + column * stage.image.column, pixel);
      WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) d[lane][row] = pixel[lane];
    }
    WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) {
      float v[t];
      transform_input_line<m>(d[lane], v);
      WINOGRAD_UNROLL for (int row = 0; row < t; ++row) half[lane][row][column] = v[row];
    }
  }

  const int group = channel / geometry.channels_per_group;
  const int channel_of_group = channel - group * geometry.channels_per_group;
  const int first_block = group * geometry.blocks_per_group;
  for (int block = first_block; block < first_block + geometry.blocks_per_group; ++block) {
    if (block < stage.kept.first_block || block >= stage.kept.end_block) continue;
    const KeptRows& kept = stage.kept.of_block(geometry, block);
    Storage* matrix = stage.v + block * stage.matrix.block + tile * stage.matrix.tile + channel_of_group * stage.matrix.channel;
    WINOGRAD_UNROLL for (int row = 0; row < t; ++row) {
      const unsigned columns = kept.columns[row];
      if (columns == 0) continue;
      float v[lanes][t];
      WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) transform_input_line<m>(half[lane][row], v[lane]);
      Storage* to = matrix + kept.before[row] * stage.matrix.position;
      WINOGRAD_UNROLL for (int column = 0; column < t; ++column) {
        if ((columns >> column & 1) == 0) continue;
        float element[lanes];
        WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) element[lane] = v[lane][column];
        store(element, to);
        to += stage.matrix.position;
      }
    }
  }
}

template <class Storage>
WINOGRAD_HOST_DEVICE float activated(const OutputStage<Storage>& stage, float number) {
  return stage.relu && number < 0.0f ? 0.0f : number;  // not a number stays one, as in torch
}

// y = activation(A^T M A + bias + residual) of one tile and `lanes` filters.
template <int m, int lanes, int run, class Storage>
WINOGRAD_HOST_DEVICE void transform_output(const OutputStage<Storage>& stage, ThreadPlace thread) {
  constexpr int t = m + 2;
  const Geometry& geometry = stage.geometry;
  const int tile = stage.channel_is_fast ? thread.slow : thread.fast;
  const int filter = stage.first_filter + (stage.channel_is_fast ? thread.fast : thread.slow) * lanes;
  const int block = filter / geometry.filters_per_block;
  const int filter_of_block = filter - block * geometry.filters_per_block;
  const KeptRows& kept = stage.kept.of_block(geometry, block);
  const Storage* __restrict__ matrix =
      stage.products + block * stage.matrix.block + tile * stage.matrix.tile + filter_of_block * stage.matrix.channel;

  float half[lanes][m][t];  // (M A)^T
  WINOGRAD_UNROLL for (int row = 0; row < t; ++row) {
    const unsigned columns = kept.columns[row];
    const Storage* from = matrix + kept.before[row] * stage.matrix.position;
    float x[lanes][t];
    WINOGRAD_UNROLL for (int column = 0; column < t; ++column) {
      float element[lanes];
      const bool is_kept = columns >> column & 1;
      load_if(is_kept, from, element);
      if (is_kept) from += stage.matrix.position;
      WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) x[lane][column] = element[lane];
    }
    WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) {
      float y[m];
      transform_output_line<m>(x[lane], y);
      WINOGRAD_UNROLL for (int column = 0; column < m; ++column) half[lane][column][row] = y[column];
    }
  }

  const TilePlace place = place_of_tile(geometry, stage.first_tile + tile);
  const int first_row = place.row * m, first_column = place.column * m;
  const int64_t corner = stage.image.at(place.image, first_row, first_column, filter);
  const Storage* __restrict__ residual = stage.residual;
  Storage* __restrict__ output = stage.output;
  float bias[lanes];
  load_if(stage.bias != nullptr, stage.bias + filter, bias);
  if constexpr (run > 1) {
    // Channels first: rows of the output, `run` neighbours at a time.
    static_assert(lanes == 1 && m % run == 0);
    float y[m][m];
    WINOGRAD_UNROLL for (int column = 0; column < m; ++column) {
      float y_column[m];
      transform_output_line<m>(half[0][column], y_column);
      WINOGRAD_UNROLL for (int row = 0; row < m; ++row) y[row][column] = y_column[row];
    }
    WINOGRAD_UNROLL for (int row = 0; row < m; ++row) {
      if (!is_inside(first_row + row, geometry.output_height)) continue;
      WINOGRAD_UNROLL for (int column = 0; column < m; column += run) {
        if (!is_inside(first_column + column, geometry.output_width)) continue;
        const int64_t at = corner + row * stage.image.row + column;
        float added[run], sum[run];
        load_if(residual != nullptr, residual + at, added);
        WINOGRAD_UNROLL for (int i = 0; i < run; ++i) sum[i] = activated(stage, y[row][column + i] + bias[0] + added[i]);
        store(sum, output + at);
      }
    }
  } else {
    WINOGRAD_UNROLL for (int column = 0; column < m; ++column) {
      if (!is_inside(first_column + column, geometry.output_width)) continue;
      const int64_t top = corner + column * stage.image.column;
      float added[m][lanes], y[lanes][m];
      WINOGRAD_UNROLL for (int row = 0; row < m; ++row) {
        load_if(residual != nullptr && is_inside(first_row + row, geometry.output_height),
                residual + top + row * stage.image.row, added[row]);
      }
      WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) transform_output_line<m>(half[lane][column], y[lane]);
      WINOGRAD_UNROLL for (int row = 0; row < m; ++row) {
        if (!is_inside(first_row + row, geometry.output_height)) continue;
        float sum[lanes];
        WINOGRAD_UNROLL for (int lane = 0; lane < lanes; ++lane) {
          sum[lane] = activated(stage, y[lane][row] + bias[lane] + added[row][lane]);
        }
        store(sum, output + top + row * stage.image.row);
      }
    }
  }
}

// U = G w G^T of one filter and channel, in double, rounded once.
template <int m, class Storage>
WINOGRAD_HOST_DEVICE void transform_filter(const FilterStage<Storage>& stage, ThreadPlace thread) {
  constexpr int t = m + 2;
  const Geometry& geometry = stage.geometry;
  const int channel = thread.fast, filter = stage.first_filter + thread.slow;
  const int64_t plane = static_cast<int64_t>(filter) * geometry.channels_per_group + channel;
  const int64_t position_stride = static_cast<int64_t>(geometry.filters) * geometry.channels_per_group;
  const Storage* w = stage.filters + plane * (kFilterSize * kFilterSize);

  double half[t][kFilterSize];  // G w
  WINOGRAD_UNROLL for (int column = 0; column < kFilterSize; ++column) {
    double taps[kFilterSize], u[t];
    WINOGRAD_UNROLL for (int row = 0; row < kFilterSize; ++row) {
      taps[row] = static_cast<double>(to_float(w[row * kFilterSize + column]));
    }
    transform_filter_line<m>(taps, u);
    WINOGRAD_UNROLL for (int row = 0; row < t; ++row) half[row][column] = u[row];
  }

  const KeptRows& kept = stage.kept.of_block(geometry, filter / geometry.filters_per_block);
  WINOGRAD_UNROLL for (int row = 0; row < t; ++row) {
    const unsigned columns = kept.columns[row];
    if (columns == 0) continue;
    double u[t];
    transform_filter_line<m>(half[row], u);
    Storage* to = stage.weights + plane + kept.before[row] * position_stride;
    WINOGRAD_UNROLL for (int column = 0; column < t; ++column) {
      if ((columns >> column & 1) == 0) continue;
      store_rounded(u[column], *to);
      to += position_stride;
    }
  }
}

}  // namespace winograd::cuda
