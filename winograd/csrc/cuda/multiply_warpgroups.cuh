// M = V U^T of float32 numbers by groups of four warps (wgmma), which sm_90 alone has: launched from multiply.cu.
#pragma once

#include "multiply.hpp"

namespace winograd::cuda {

// Defined for WideTile and HighTile, in both orders of memory. Rows are tiles, columns are filters, in either order.
template <class Tile, bool channels_last>
void multiply_by_warpgroups(const MultiplyStage& stage, void* stream);

// Whether they were compiled for this device: not where sm_90 was asked for instead of sm_90a, which has more.
bool warpgroups_are_compiled();

}  // namespace winograd::cuda
