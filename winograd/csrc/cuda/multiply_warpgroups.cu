// M = V U^T of float32 numbers on tensor cores (multiply.hpp) by groups of four warps (wgmma), which sm_90 alone has: more than mma.sync
// gets out of its tensor cores, because these instructions read one factor from shared memory and run beside everything else.
//
// V comes from registers, where a thread splits what it has loaded from shared memory. U comes from shared memory, where both of
// its parts are written by groups of warps that do nothing else but to fetch: what else the others do, between one step's
// multiplications and the next one's, has to be less than the multiplications of a step, or tensor cores would wait for it.
//
//   groups that fetch     [a place of the ring is free] · copy V of s there · split U of s, and write it there · load U of s + 1
//   the other groups      start the multiplications of s · [V and U of s + 1 are there] · load V of s + 1 ·
//                         wait for the multiplications, free their place · add to the sums · split V of s + 1
//
// A block of threads takes one part of the products after the other; fetching runs ahead over their borders.
#include "kernel_launch.cuh"
#include "multiply_panel.cuh"
#include "multiply_warpgroups.cuh"

namespace winograd::cuda {
namespace {

inline constexpr int kRing = 4;           // steps in shared memory
inline constexpr int kAlignment = 1024;   // of what is swizzled: eight rows

// One thread of a warp tells of a place that the whole warp has read. compute-sanitizer's racecheck believes only threads that arrive
// themselves, so for it, all of them can.
#if !defined(WINOGRAD_EVERY_THREAD_ARRIVES)
#define WINOGRAD_EVERY_THREAD_ARRIVES 0
#endif

// Where the operands of a block of threads lie in shared memory. `is_full` and `is_free` are barriers.
template <class Tile, bool channels_last>
struct Memory {
  using V = Panel<64, channels_last, Tile::fetching_threads>;    // of a group
  using U = Panel<Tile::columns, true, Tile::fetching_threads>;  // one part
  static constexpr int bytes_of_step = 2 * U::bytes + Tile::groups * V::bytes;
  static constexpr int bytes = kRing * (bytes_of_step + 16) + kAlignment;
  static_assert(U::bytes % kAlignment == 0 && bytes_of_step % kAlignment == 0);

  uint32_t start;

  __device__ explicit Memory(const void* memory) : start((shared_address(memory) + kAlignment - 1) / kAlignment * kAlignment) {}
  __device__ uint32_t high(int slot) const { return start + slot * bytes_of_step; }
  __device__ uint32_t low(int slot) const { return high(slot) + U::bytes; }
  __device__ uint32_t v(int slot, int group) const { return low(slot) + U::bytes + group * V::bytes; }
  __device__ uint32_t is_full(int slot) const { return start + kRing * bytes_of_step + slot * 16; }
  __device__ uint32_t is_free(int slot) const { return is_full(slot) + 8; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline constexpr int kParts = kDepthOfStep / 8;  // of a step: an instruction multiplies eight channels

// What wgmma reads of U: rows of 128 bytes, swizzled, eight of them every 1024 bytes.
__device__ uint64_t matrix_descriptor(uint32_t address) {
  constexpr uint64_t swizzle_of_128_bytes = uint64_t{1} << 62, eight_rows = uint64_t{1024 >> 4} << 32, unused = uint64_t{1} << 16;
  return swizzle_of_128_bytes | eight_rows | unused | (address & 0x3ffff) >> 4;
}

#define WINOGRAD_FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WINOGRAD_SIXTEEN(d, i) WINOGRAD_FOUR(d, i), WINOGRAD_FOUR(d, i + 4), WINOGRAD_FOUR(d, i + 8), WINOGRAD_FOUR(d, i + 12)

// d = a b, plus d where `adds`: 64 rows, eight channels of them in registers, by 128 columns or 64.
__device__ void multiply_add(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1; }"
      : WINOGRAD_SIXTEEN(d, 0), WINOGRAD_SIXTEEN(d, 16), WINOGRAD_SIXTEEN(d, 32), WINOGRAD_SIXTEEN(d, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

__device__ void multiply_add(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int adds) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1; }"
      : WINOGRAD_SIXTEEN(d, 0), WINOGRAD_SIXTEEN(d, 16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

// Registers that the next multiplications read or write are as this thread left them.
__device__ void registers_are_ready() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ void close_multiplications() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ void wait_for_multiplications() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// Tensor cores will see what this thread has written to shared memory.
__device__ void show_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ float4 load_16(const float* from, bool exists) {
  return exists ? __ldg(reinterpret_cast<const float4*>(from)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}
__device__ void store_16(uint32_t address, uint4 words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w));
}

// ---- Who waits for whom ---------------------------------------------------------------------------------------------------

__device__ void set_up_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Phases of a barrier alternate between 0 and 1.
__device__ void wait_for_phase(uint32_t barrier, int phase) {
  asm volatile(
      "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" ::"r"(barrier), "r"(phase)
      : "memory");
}
// Once all that this thread has copied with cp.async is there.
__device__ void arrive_with_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Threads of a group give registers away, or take them over.
template <int registers>
__device__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// ---- The kernel -----------------------------------------------------------------------------------------------------------

// A place in the ring, and which round of it this is: the phase of its barriers.
struct Place {
  int slot = 0, round = 0;

  __device__ void advance() {
    if (++slot == kRing) slot = 0, round ^= 1;
  }
};

// Fetches the operands of all parts of this block of threads, step after step.
template <class Tile, bool channels_last>
__device__ void fetch_operands(const MultiplyStage& stage, const Memory<Tile, channels_last>& shared, int steps) {
  using V = typename Memory<Tile, channels_last>::V;
  using U = typename Memory<Tile, channels_last>::U;
  const int thread = threadIdx.x - Tile::multiplying_threads, line = thread / U::pieces, piece = thread % U::pieces;
  const uint32_t place_of_u = U::place(line, piece);

  // U runs a step ahead, in registers: 16 bytes of every `lines_at_once`-th filter.
  float4 u[U::rounds];
  uint32_t part_of_u = blockIdx.x;
  int step_of_u = 0, filters = 0, channels = 0;
  const float* from = nullptr;
  const auto load_u = [&] {
    if (part_of_u >= stage.blocks) return;
    if (step_of_u == 0) {
      const PlaceOfBlock at = place_of_block<Tile>(stage, part_of_u);
      filters = stage.columns - at.first_column - line;
      channels = stage.depth - piece * 4;
      from = stage.b + at.matrix * stage.b_matrix + int64_t{at.first_column + line} * stage.depth + piece * 4;
    }
    WINOGRAD_UNROLL for (int round = 0; round < U::rounds; ++round) {
      const int further = round * U::lines_at_once;
      u[round] = load_16(from + further * int64_t{stage.depth}, further < filters && channels > 0);
    }
    from += kDepthOfStep;
    channels -= kDepthOfStep;
    if (++step_of_u == steps) step_of_u = 0, part_of_u += gridDim.x;
  };

  load_u();
  Place place;
  for (uint32_t part = blockIdx.x; part < stage.blocks; part += gridDim.x) {
    const PlaceOfBlock at = place_of_block<Tile>(stage, part);
    const float* matrix = stage.a + at.matrix * stage.a_matrix;
    V v(matrix, at.first_row, stage.rows, stage.depth, thread);
    for (int step = 0; step < steps; ++step) {
      wait_for_phase(shared.is_free(place.slot), 1 - place.round);
      WINOGRAD_UNROLL for (int group = 0; group < Tile::groups; ++group) v.copy(shared.v(place.slot, group), group * 64);
      v.advance();
      arrive_with_copies(shared.is_full(place.slot));
      WINOGRAD_UNROLL for (int round = 0; round < U::rounds; ++round) {
        const uint32_t to = place_of_u + round * (U::lines_at_once * U::stride * 4);
        const Split x = split(u[round].x), y = split(u[round].y), z = split(u[round].z), w = split(u[round].w);
        store_16(shared.high(place.slot) + to, make_uint4(x.high, y.high, z.high, w.high));
        store_16(shared.low(place.slot) + to, make_uint4(x.low, y.low, z.low, w.low));
      }
      show_to_tensor_cores();
      __syncwarp();
      if (thread % 32 == 0) arrive(shared.is_full(place.slot));
      load_u();
      place.advance();
    }
  }
}

template <class Tile, bool channels_last>
__device__ void write_products(const MultiplyStage& stage, const PlaceOfBlock& place, const float (&sum)[Tile::columns / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* d = stage.d + place.matrix * stage.d_matrix;
  WINOGRAD_UNROLL for (int half = 0; half < 2; ++half) {
    const int row = place.first_row + warp * 16 + half * 8 + lane / 4;
    if (row >= stage.rows) continue;
    WINOGRAD_UNROLL for (int i = 0; i < Tile::columns / 8; ++i) {
      const int column = place.first_column + i * 8 + lane % 4 * 2;
      const float first = sum[i * 4 + half * 2], second = sum[i * 4 + half * 2 + 1];
      if (channels_last && stage.by_pairs) {
        if (column < stage.columns) *reinterpret_cast<float2*>(d + int64_t{row} * stage.columns + column) = make_float2(first, second);
      } else {
        const int64_t row_distance = channels_last ? stage.columns : 1, column_distance = channels_last ? 1 : stage.rows;
        float* to = d + row * row_distance + column * column_distance;
        if (column < stage.columns) to[0] = first;
        if (column + 1 < stage.columns) to[column_distance] = second;
      }
    }
  }
}

// Multiplies 64 rows of all parts of this block of threads.
template <class Tile, bool channels_last>
__device__ void multiply_rows(const MultiplyStage& stage, const Memory<Tile, channels_last>& shared, int steps) {
  using V = typename Memory<Tile, channels_last>::V;
  constexpr int sums = Tile::columns / 2;  // of a thread
  const int group = threadIdx.x / kThreadsOfGroup, lane = threadIdx.x % 32, warp = threadIdx.x % kThreadsOfGroup / 32;
  uint32_t loaded[kParts][4], high[kParts][4], low[kParts][4];  // of V
  const auto load_v = [&](int slot) {
    WINOGRAD_UNROLL for (int part = 0; part < kParts; ++part) {
      if constexpr (channels_last) {
        load_matrices(loaded[part], shared.v(slot, group) + V::place(warp * 16 + lane % 16, part * 2 + lane / 16));
      } else {
        WINOGRAD_UNROLL for (int i = 0; i < 4; ++i) {
          const int at = (part * 8 + lane % 4 + i / 2 * 4) * V::stride + warp * 16 + lane / 4 + i % 2 * 8;
          asm volatile("ld.shared.b32 %0, [%1];" : "=r"(loaded[part][i]) : "r"(shared.v(slot, group) + at * 4));
        }
      }
    }
  };
  const auto split_v = [&] {
    WINOGRAD_UNROLL for (int part = 0; part < kParts; ++part) {
      WINOGRAD_UNROLL for (int i = 0; i < 4; ++i) {
        const Split both = split(__uint_as_float(loaded[part][i]));
        high[part][i] = both.high;
        low[part][i] = both.low;
      }
    }
  };

  Place place;
  wait_for_phase(shared.is_full(place.slot), place.round);
  load_v(place.slot);
  split_v();
  for (uint32_t block = blockIdx.x; block < stage.blocks; block += gridDim.x) {
    float sum[sums] = {};
    for (int step = 0; step < steps; ++step) {
      float part[sums];
      registers_are_ready();
      const uint64_t u_high = matrix_descriptor(shared.high(place.slot)), u_low = matrix_descriptor(shared.low(place.slot));
      constexpr int next_part = 8 * 4 >> 4;  // eight channels further on
      // Small products first: what is cut off of a sum is the less, the smaller it is.
      WINOGRAD_UNROLL for (int i = 0; i < kParts; ++i) multiply_add(part, low[i], u_high + i * next_part, i > 0);
      WINOGRAD_UNROLL for (int i = 0; i < kParts; ++i) multiply_add(part, high[i], u_low + i * next_part, 1);
      WINOGRAD_UNROLL for (int i = 0; i < kParts; ++i) multiply_add(part, high[i], u_high + i * next_part, 1);
      close_multiplications();

      const int slot = place.slot;
      place.advance();
      if (step + 1 < steps || block + gridDim.x < stage.blocks) {
        wait_for_phase(shared.is_full(place.slot), place.round);
        load_v(place.slot);
      }
      wait_for_multiplications();
      __syncwarp();  // all of them have loaded V
      if (WINOGRAD_EVERY_THREAD_ARRIVES || lane == 0) arrive(shared.is_free(slot));
      WINOGRAD_UNROLL for (int i = 0; i < sums; ++i) sum[i] += part[i];
      split_v();
    }
    write_products<Tile, channels_last>(stage, place_of_block<Tile>(stage, block), sum);
  }
}

#endif

template <class Tile, bool channels_last>
__global__ void __launch_bounds__(Tile::threads, 1) multiply_by_warpgroups_kernel(const __grid_constant__ MultiplyStage stage) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ float4 memory[];
  const Memory<Tile, channels_last> shared(memory);
  const int steps = (stage.depth + kDepthOfStep - 1) / kDepthOfStep;
  if (threadIdx.x < kRing) {
    set_up_barrier(shared.is_full(threadIdx.x), Tile::fetching_threads + Tile::fetching_threads / 32);  // copies of V, and U
    set_up_barrier(shared.is_free(threadIdx.x), Tile::multiplying_threads / (WINOGRAD_EVERY_THREAD_ARRIVES ? 1 : 32));
  }
  __syncthreads();
  wait_for_earlier_kernels();
  if (threadIdx.x >= Tile::multiplying_threads) {
    keep_registers<Tile::registers_to_fetch>();
    fetch_operands<Tile, channels_last>(stage, shared, steps);
  } else {
    take_registers<Tile::registers>();
    multiply_rows<Tile, channels_last>(stage, shared, steps);
  }
  let_next_kernel_start();
#endif
}

}  // namespace

template <class Tile, bool channels_last>
void multiply_by_warpgroups(const MultiplyStage& stage, void* stream) {
  constexpr auto kernel = multiply_by_warpgroups_kernel<Tile, channels_last>;
  constexpr int bytes = Memory<Tile, channels_last>::bytes;
  allow_shared_memory<kernel>(bytes);
  const auto processors = static_cast<uint32_t>(this_device().processors);
  launch_kernel(kernel, stage, dim3(std::min(stage.blocks, processors)), dim3(Tile::threads), bytes, stream);
}

bool warpgroups_are_compiled() {
  cudaFuncAttributes attributes{};
  require_success(cudaFuncGetAttributes(&attributes, multiply_by_warpgroups_kernel<WideTile, true>), "tell what a kernel needs");
  return attributes.numRegs > 32;  // an empty one takes fewer
}

template void multiply_by_warpgroups<WideTile, true>(const MultiplyStage&, void*);
template void multiply_by_warpgroups<WideTile, false>(const MultiplyStage&, void*);
template void multiply_by_warpgroups<HighTile, true>(const MultiplyStage&, void*);
template void multiply_by_warpgroups<HighTile, false>(const MultiplyStage&, void*);

}  // namespace winograd::cuda
