/* The C interface of the CUDA side: stages of a convolution, and for float32 the whole.
 *
 *   weights U = G w G^T      V = B^T d B      M = V U^T      y = activation(A^T M A + bias + residual)
 *
 * M is made by winograd_cuda_multiply, for float32, or by any batched matrix multiplication that the caller runs.
 *
 * All pointers but those inside winograd_problem are device memory. Nothing is allocated, nothing waits: every function
 * puts its kernels on `stream` of the current device and can be captured in a CUDA graph. Each returns 0, or a nonzero code
 * after which winograd_cuda_last_error() of the same thread says in a sentence what was wrong.
 *
 * Layouts. `positions` and `groups` cut the work into B = max(kernel_groups, groups) blocks, of which each has its channels
 * and its filters; matrix i * B + b belongs to the i-th kept position of block b:
 *
 *                                  WINOGRAD_CHANNELS_LAST             WINOGRAD_CHANNELS_FIRST
 *   U  [kept * B]                  [K/B, C/groups]                    the same: weights [kept, K, C/groups] as they are
 *   V  [kept * B]                  [tiles, C/groups]                  [C/groups, T]
 *   M  [kept * B]                  [tiles, K/B] = V U^T               [K/B, T] = U V
 *
 * (T: the chunk's tiles, filled up to a multiple of 4 with what is never used)
 *
 * so that one batched multiplication of kept * B matrices does all of it, whatever is pruned or grouped.
 *
 * All elements of one call have one type, arithmetic in the transforms is float32 (double for the filters) with one
 * rounding at the end. An integer type would get the next number of winograd_cuda_type, with its scales in the chunk
 * (for V) and in the epilogue (for M).
 */
#pragma once

#include "winograd.h"

#ifdef __cplusplus
extern "C" {
#endif

enum winograd_cuda_type { WINOGRAD_FLOAT32 = 0, WINOGRAD_FLOAT16 = 1, WINOGRAD_BFLOAT16 = 2 };

/* How a convolution is cut up: V and M are made for a chunk of tiles at a time, so that their memory is bounded. */
typedef struct winograd_cuda_plan {
  int64_t tiles;       /* of the whole batch; tile = (image * tile_rows + tile_row) * tile_columns + tile_column */
  int64_t chunk_tiles; /* of every chunk but perhaps the last */
  int64_t blocks;      /* B */
} winograd_cuda_plan;

/* The tiles [first_tile, first_tile + tiles) that V and M hold. */
typedef struct winograd_cuda_chunk {
  int64_t first_tile, tiles;
} winograd_cuda_chunk;

typedef struct winograd_cuda_epilogue {
  const void *bias;     /* K, or null */
  const void *residual; /* like the output, or null */
  int32_t activation;   /* enum winograd_activation */
} winograd_cuda_epilogue;

WINOGRAD_API const char *winograd_cuda_last_error(void);

/* Chunks as large as V and M fit into workspace_bytes, of equal size, but of at least 64 tiles: fewer would leave the
 * tiles of a matrix multiplication empty. */
WINOGRAD_API int winograd_cuda_make_plan(const winograd_problem *problem, int32_t type, int64_t workspace_bytes,
                                         winograd_cuda_plan *plan);

/* Filters [K, C/groups, 3, 3] -> weights [kept, K, C/groups]. */
WINOGRAD_API int winograd_cuda_transform_filters(const winograd_problem *problem, int32_t type, const void *filters, void *weights,
                                                 void *stream);

/* Input, dense in the order of `memory` -> V of a chunk. */
WINOGRAD_API int winograd_cuda_transform_input(const winograd_problem *problem, const winograd_cuda_chunk *chunk, int32_t type,
                                               int32_t memory, const void *input, void *v, void *stream);

/* Weights and V -> M of a chunk, all of float32, with an error as if float32 units had multiplied: see cuda/multiply.hpp.
 * C/groups must be a multiple of 4, and weights and V begin at multiples of 16 bytes. `tile` numbers the parts into which the work
 * may be cut, from 1 to WINOGRAD_CUDA_TILES (tests and benchmarks try each; the last two exist on sm_90 alone), or leaves the
 * choice to the library. */
enum { WINOGRAD_CUDA_ANY_TILE = 0, WINOGRAD_CUDA_TILES = 6 };

WINOGRAD_API int winograd_cuda_multiply(const winograd_problem *problem, const winograd_cuda_chunk *chunk, int32_t memory, int32_t tile,
                                        const void *weights, const void *v, void *m, void *stream);

/* M of a chunk -> these tiles of the output, dense in the order of `memory`, like the residual. */
WINOGRAD_API int winograd_cuda_transform_output(const winograd_problem *problem, const winograd_cuda_chunk *chunk, int32_t type,
                                                int32_t memory, const void *m, const winograd_cuda_epilogue *epilogue,
                                                void *output, void *stream);

/* What a call has put on the stream: matrix multiplications, and multiplications in them. */
typedef struct winograd_cuda_done {
  int64_t gemms, multiplications;
} winograd_cuda_done;

/* How many floats of workspace a convolution of float32 takes that is cut into such chunks. */
WINOGRAD_API int winograd_cuda_workspace_floats(const winograd_problem *problem, int64_t chunk_tiles, int64_t *floats);

/* The whole convolution of float32, chunk after chunk. */
WINOGRAD_API int winograd_cuda_convolve(const winograd_problem *problem, int64_t chunk_tiles, int32_t memory, const void *input,
                                        const void *weights, const winograd_cuda_epilogue *epilogue, void *workspace, void *output,
                                        void *stream, winograd_cuda_done *done);

#ifdef __cplusplus
}
#endif
