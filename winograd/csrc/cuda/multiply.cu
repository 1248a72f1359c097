// M = V U^T of float32 numbers on tensor cores (multiply.hpp) by warps of 32 threads (mma.sync), which every device from sm_80 on has.
#include "convolve.hpp"
#include "kernel_launch.cuh"
#include "multiply_panel.cuh"
#include "multiply_warpgroups.cuh"

namespace winograd::cuda {
namespace {

__device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class Tile, bool channels_last>
__global__ void __launch_bounds__(Tile::threads) multiply_kernel(const __grid_constant__ MultiplyStage stage) {
  using A = Panel<Tile::rows, true, Tile::threads>;
  using B = Panel<Tile::columns, channels_last, Tile::threads>;
  constexpr int row_parts = Tile::warp_rows / 16, column_parts = Tile::warp_columns / 8;
  static_assert(column_parts % 2 == 0);
  extern __shared__ float4 memory[];
  const uint32_t shared = shared_address(memory);
  constexpr uint32_t bytes_of_step = A::bytes + B::bytes;

  const PlaceOfBlock place = place_of_block<Tile>(stage, blockIdx.x);
  A a(stage.a + place.matrix * stage.a_matrix, place.first_row, stage.rows, stage.depth, threadIdx.x);
  B b(stage.b + place.matrix * stage.b_matrix, place.first_column, stage.columns, stage.depth, threadIdx.x);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / (Tile::columns / Tile::warp_columns) * Tile::warp_rows;
  const int warp_column = warp % (Tile::columns / Tile::warp_columns) * Tile::warp_columns;
  const int steps = (stage.depth + kDepthOfStep - 1) / kDepthOfStep;

  const auto fetch = [&](int step) {
    if (step < steps) {
      const uint32_t to = shared + step % Tile::steps * bytes_of_step;
      a.copy(to);
      b.copy(to + A::bytes);
      a.advance(), b.advance();
    }
    close_group();
  };

  // What a warp multiplies with in one go: 16 x 8 of A and 8 x 8 of B, as often as its tile has them.
  const auto load = [&](uint32_t (&of_rows)[row_parts][4], uint32_t (&of_columns)[column_parts / 2][4], int step, int depth) {
    const uint32_t from_a = shared + step % Tile::steps * bytes_of_step, from_b = from_a + A::bytes;
    WINOGRAD_UNROLL for (int row = 0; row < row_parts; ++row) {
      load_matrices(of_rows[row], from_a + A::place(warp_row + row * 16 + lane % 16, depth / 4 + lane / 16));
    }
    WINOGRAD_UNROLL for (int pair = 0; pair < column_parts / 2; ++pair) {
      if constexpr (channels_last) {
        load_matrices(of_columns[pair], from_b + B::place(warp_column + pair * 16 + lane / 16 * 8 + lane % 8, depth / 4 + lane / 8 % 2));
      } else {
        WINOGRAD_UNROLL for (int i = 0; i < 4; ++i) {
          const int at = (depth + lane % 4 + i % 2 * 4) * B::stride + warp_column + pair * 16 + i / 2 * 8 + lane / 4;
          asm volatile("ld.shared.b32 %0, [%1];" : "=r"(of_columns[pair][i]) : "r"(from_b + at * 4));
        }
      }
    }
  };

  wait_for_earlier_kernels();
  WINOGRAD_UNROLL for (int step = 0; step < Tile::steps - 1; ++step) fetch(step);
  wait_for_groups<Tile::steps - 2>();
  __syncthreads();

  float sum[row_parts][column_parts][4] = {};
  uint32_t rows[2][row_parts][4], columns[2][column_parts / 2][4];  // what is multiplied now, and what comes next
  load(rows[0], columns[0], 0, 0);
  for (int step = 0; step < steps; ++step) {
    float part[row_parts][column_parts][4] = {};
    WINOGRAD_UNROLL for (int depth = 0; depth < kDepthOfStep; depth += 8) {
      const int now = depth / 8 % 2;
      if (depth == 0) fetch(step + Tile::steps - 1);  // to where the step before this one was
      if (depth + 8 < kDepthOfStep) {
        load(rows[1 - now], columns[1 - now], step, depth + 8);
      } else {
        wait_for_groups<Tile::steps - 2>();
        __syncthreads();
        load(rows[1 - now], columns[1 - now], step + 1, 0);  // after the last step: numbers that nobody uses
      }
      uint32_t a_high[row_parts][4], a_low[row_parts][4], b_high[column_parts][2], b_low[column_parts][2];
      WINOGRAD_UNROLL for (int column = 0; column < column_parts; ++column) {
        WINOGRAD_UNROLL for (int i = 0; i < 2; ++i) {
          const Split parts = split(__uint_as_float(columns[now][column / 2][column % 2 * 2 + i]));
          b_high[column][i] = parts.high;
          b_low[column][i] = parts.low;
        }
      }
      WINOGRAD_UNROLL for (int row = 0; row < row_parts; ++row) {
        WINOGRAD_UNROLL for (int i = 0; i < 4; ++i) {
          const Split parts = split(__uint_as_float(rows[now][row][i]));
          a_high[row][i] = parts.high;
          a_low[row][i] = parts.low;
        }
      }
      // One product of all pairs after the other, so that no multiplication waits for the one before it.
      const auto multiply_all = [&](const uint32_t (&a_part)[row_parts][4], const uint32_t (&b_part)[column_parts][2]) {
        WINOGRAD_UNROLL for (int row = 0; row < row_parts; ++row) {
          WINOGRAD_UNROLL for (int column = 0; column < column_parts; ++column) multiply_add(part[row][column], a_part[row], b_part[column]);
        }
      };
      multiply_all(a_low, b_high);
      multiply_all(a_high, b_low);
      multiply_all(a_high, b_high);
    }
    WINOGRAD_UNROLL for (int row = 0; row < row_parts; ++row) {
      WINOGRAD_UNROLL for (int column = 0; column < column_parts; ++column) {
        WINOGRAD_UNROLL for (int i = 0; i < 4; ++i) sum[row][column][i] += part[row][column][i];
      }
    }
  }
  wait_for_groups<0>();
  let_next_kernel_start();

  float* d = stage.d + place.matrix * stage.d_matrix;
  WINOGRAD_UNROLL for (int row = 0; row < row_parts; ++row) {
    WINOGRAD_UNROLL for (int half = 0; half < 2; ++half) {
      const int at_row = place.first_row + warp_row + row * 16 + half * 8 + lane / 4;
      if (at_row >= stage.rows) continue;
      WINOGRAD_UNROLL for (int column = 0; column < column_parts; ++column) {
        const int at_column = place.first_column + warp_column + column * 8 + lane % 4 * 2;
        float* to = d + int64_t{at_row} * stage.columns + at_column;
        const float first = sum[row][column][half * 2], second = sum[row][column][half * 2 + 1];
        if (stage.by_pairs && at_column < stage.columns) {
          *reinterpret_cast<float2*>(to) = make_float2(first, second);
        } else {
          if (at_column < stage.columns) to[0] = first;
          if (at_column + 1 < stage.columns) to[1] = second;
        }
      }
    }
  }
}

struct DeviceLaunch {
  void* stream;

  template <class Tile, bool channels_last>
  void operator()(MultiplyVariant<Tile, channels_last>, const MultiplyStage& stage) const {
    if constexpr (is_of_warpgroups<Tile>) {
      multiply_by_warpgroups<Tile, channels_last>(stage, stream);
    } else {
      constexpr auto kernel = multiply_kernel<Tile, channels_last>;
      constexpr int bytes =
          Tile::steps * (Panel<Tile::rows, true, Tile::threads>::bytes + Panel<Tile::columns, channels_last, Tile::threads>::bytes);
      allow_shared_memory<kernel>(bytes);
      launch_kernel(kernel, stage, dim3(stage.blocks), dim3(Tile::threads), bytes, stream);
    }
  }
};

// What is asked about a device is remembered, for each thread.
Processors processors() {
  thread_local int asked_about = -1;
  thread_local Processors known{};
  const Device device = this_device();
  if (device.number != asked_about) {
    known = {device.processors, device.major == 9 && warpgroups_are_compiled()};
    asked_about = device.number;
  }
  return known;
}

}  // namespace
}  // namespace winograd::cuda

extern "C" int winograd_cuda_multiply(const winograd_problem* problem, const winograd_cuda_chunk* chunk, int32_t memory, int32_t tile,
                                      const void* weights, const void* v, void* m, void* stream) {
  using namespace winograd::cuda;
  return guarded([&] {
    multiply_stage(*problem, *chunk, memory, tile, weights, v, m, processors(), DeviceLaunch{stream});
  });
}

extern "C" int winograd_cuda_convolve(const winograd_problem* problem, int64_t chunk_tiles, int32_t memory, const void* input,
                                      const void* weights, const winograd_cuda_epilogue* epilogue, void* workspace, void* output,
                                      void* stream, winograd_cuda_done* done) {
  using namespace winograd::cuda;
  return guarded([&] {
    const auto multiply = [&](const winograd_cuda_chunk& chunk, const float* v, float* m) {
      return multiply_stage(*problem, chunk, memory, WINOGRAD_CUDA_ANY_TILE, weights, v, m, processors(), DeviceLaunch{stream});
    };
    const Multiplied all = convolve_in_chunks(*problem, chunk_tiles, memory, input, *epilogue, static_cast<float*>(workspace), output,
                                              stream, multiply);
    *done = {all.gemms, all.multiplications};
  });
}
