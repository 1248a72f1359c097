/* The C interface of the Winograd core: pointers, sizes and, on devices, a stream. No torch, no C++ types, no exceptions.
 *
 *   y = activation(conv2d(x, w) + bias + residual)      3x3 filters, stride 1, dilation 1
 *
 * computed as A^T [ sum_c U . (B^T d B) ] A with the weights U at the kept positions only. Every function that can fail
 * returns 0, or a nonzero code after which winograd_last_error() of the same thread says in a sentence what was wrong.
 */
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define WINOGRAD_API __attribute__((visibility("default")))
#else
#define WINOGRAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A convolution: sizes of the input (N C H W), the filters, and which of the t x t positions (t = m + 2) have weights.
 *
 * The K filters form `kernel_groups` equal runs; each run has its own `kept` positions, ascending, in
 * positions[group * kept .. (group + 1) * kept). Position = row * t + column. `groups` is that of a grouped convolution;
 * it divides C and K, and a run of filters with common positions never straddles two groups, or holds whole ones. */
typedef struct winograd_problem {
  int64_t batch, channels, height, width; /* N C H W */
  int64_t filters;                        /* K */
  int64_t groups;
  int32_t pad_height, pad_width; /* zeros on both sides */
  int32_t m;                     /* outputs of a tile: 2, 4, 6 or 7 */
  int32_t kernel_groups, kept;
  const int32_t *positions; /* kernel_groups * kept */
} winograd_problem;

enum winograd_memory { WINOGRAD_CHANNELS_FIRST = 0, WINOGRAD_CHANNELS_LAST = 1 };
enum winograd_activation { WINOGRAD_NONE = 0, WINOGRAD_RELU = 1 };

/* Operands of one call. Input, residual and output lie in the same order of memory, dense. */
typedef struct winograd_operands {
  const float *input;    /* N C H W */
  const float *packed;   /* as winograd_pack_weights or winograd_pack_filters made it */
  const float *bias;     /* K, or null */
  const float *residual; /* like output, or null */
  float *output;         /* N K (H + 2 pad_height - 2) (W + 2 pad_width - 2) */
  int32_t memory;        /* enum winograd_memory */
  int32_t activation;    /* enum winograd_activation */
} winograd_operands;

/* How the work is cut up; zeros let the library choose. selection.py has the tables. */
typedef struct winograd_blocking {
  int32_t tiles;        /* tiles of a block */
  int32_t filters;      /* filters of a block, a multiple of 32 */
  int32_t shared;       /* 1: threads share a block and divide its filters; 0: each has its own blocks; -1: choose */
} winograd_blocking;

/* Runs body(context, part) for part = 0 .. parts-1, on as many threads as it likes, and returns when all have ended. */
typedef void (*winograd_parallel_for)(void *runner, int64_t parts, void (*body)(void *context, int64_t part), void *context);
typedef struct winograd_threads {
  int32_t count;
  winograd_parallel_for run; /* null: one after the other on the calling thread */
  void *runner;
} winograd_threads;

/* Memory of the caller's, aligned to 16 bytes; null where there is none. */
typedef uint8_t *(*winograd_allocate)(void *context, int64_t bytes);

WINOGRAD_API const char *winograd_last_error(void);

/* B^T (t*t), G (t*3), A^T (m*t) of F(m, 3), row by row; for comparison with matrices.py. */
WINOGRAD_API int winograd_matrices(int32_t m, double *bt, double *g, double *at);

/* ---- CPU ------------------------------------------------------------------------------------------------------- */

/* "avx512", "avx2" or "portable": the best that this build and processor have, or what winograd_cpu_force() said. */
WINOGRAD_API const char *winograd_cpu_variant(void);
WINOGRAD_API int winograd_cpu_force(const char *variant); /* null: back to the best */

/* Weights [kept, K, C/groups] of the Winograd domain, or filters [K, C/groups, 3, 3], in the order that the convolution reads.
 * Packed filters are transformed again in every call: fewer bytes to read, worth it for few tiles. */
WINOGRAD_API int64_t winograd_packed_weights_size(const winograd_problem *problem); /* floats */
WINOGRAD_API int winograd_pack_weights(const winograd_problem *problem, const float *weights, float *packed);
WINOGRAD_API int64_t winograd_packed_filters_size(const winograd_problem *problem); /* floats */
WINOGRAD_API int winograd_pack_filters(const winograd_problem *problem, const float *filters, float *packed);

WINOGRAD_API int winograd_conv2d(const winograd_problem *problem, const winograd_operands *operands, const winograd_blocking *blocking,
                    const winograd_threads *threads);
WINOGRAD_API int winograd_conv2d_from_filters(const winograd_problem *problem, const winograd_operands *operands,
                                 const winograd_blocking *blocking, const winograd_threads *threads);

/* Gradients of a convolution without bias, residual and activation, which the caller takes apart; either may be null. The weights are
 * those of the Winograd domain, [kept, K, C/groups], not packed. Threads take whole images. */
typedef struct winograd_gradients {
  const float *output_gradient; /* N K (H + 2 pad_height - 2) (W + 2 pad_width - 2) */
  const float *input;           /* N C H W */
  const float *weights;
  float *input_gradient;  /* like input */
  float *weight_gradient; /* like weights */
  int32_t memory;         /* enum winograd_memory, of all images */
} winograd_gradients;

WINOGRAD_API int winograd_conv2d_gradients(const winograd_problem *problem, const winograd_gradients *operands,
                                           const winograd_threads *threads);

/* ---- Networks of integers on CPU --------------------------------------------------------------------------------
 *
 * A program is a whole network of fixed-point integers: tensors of at most 8 bits, weights of 8 bits, sums of 32 bits, shifts.
 * Its format, and what each operation computes, is in integer_program.py; words are int32 in little-endian order. Sums wrap
 * at 32 bits: whoever writes a program proves that they don't need to. Any bytes may be passed: what is no program is refused.
 *
 * Preparing packs weights and lays out memory. It calls `allocate` once for the prepared network, which has no pointers in it,
 * may be copied (to 16 bytes again), and is taken by the process that made it only. */
WINOGRAD_API int winograd_prepare_integer_network(const uint8_t *program, int64_t bytes, winograd_allocate allocate, void *context);
WINOGRAD_API int winograd_integer_network_shape(const uint8_t *prepared, int64_t bytes, int64_t *input /* C H W */, int64_t *outputs);

/* Input is N C H W of float (quantized here) or of int32, output N x outputs in the order C H W. */
WINOGRAD_API int winograd_run_integer_network(const uint8_t *prepared, int64_t bytes, int64_t batch, const void *input, int32_t is_float,
                                 int32_t *output, const winograd_threads *threads);

/* Whether networks may be computed in tile registers (AMX), to compare; and whether they are, with "avx512". */
WINOGRAD_API void winograd_integer_allow_tiles(int32_t allowed);
WINOGRAD_API int winograd_integer_tiles_in_use(void);

/* ---- Networks of floats on CPU ----------------------------------------------------------------------------------
 *
 * The same for float32: Winograd convolutions, direct ones, linear layers, what stands between them. float_program.py has the
 * format. Input is N C H W in either order of memory, output N C H W with its channels first. */
WINOGRAD_API int winograd_prepare_float_network(const uint8_t *program, int64_t bytes, winograd_allocate allocate, void *context);
WINOGRAD_API int winograd_float_network_shape(const uint8_t *prepared, int64_t bytes, int64_t *input /* C H W */, int64_t *output);
WINOGRAD_API int winograd_run_float_network(const uint8_t *prepared, int64_t bytes, int64_t batch, const float *input, int32_t memory,
                               float *output, const winograd_threads *threads);

/* Operations that all calls of the process have executed since the last reset (claim element W-8): GEMMs are counted once
 * for each call (of a convolution, or of a network for each convolution in it), group and kept position; multiplications are
 * those inside them. */
WINOGRAD_API void winograd_operation_counts(uint64_t *gemms, uint64_t *multiplications);
WINOGRAD_API void winograd_reset_operation_counts(void);

/* Bytes of workspace that the process keeps for later calls, and giving them back. */
WINOGRAD_API int64_t winograd_workspace_bytes(void);
WINOGRAD_API void winograd_release_workspace(void);

#ifdef __cplusplus
}
#endif
