#include "prepared_block.hpp"

#include <algorithm>
#include <random>
#include <utility>

namespace winograd::programs {

BlockHead BlockHead::of(int32_t kind, int64_t bytes) {
  static const uint64_t mark_of_this_process = [] {
    std::random_device source;
    return static_cast<uint64_t>(source()) << 32 | source();
  }();
  return {mark_of_this_process + static_cast<uint32_t>(kind), bytes};
}

Arena place_in_arena(const std::vector<Lifetime> &lifetimes, const std::vector<int32_t> &order) {
  Arena arena{std::vector<int64_t>(lifetimes.size()), 0};
  std::vector<int32_t> placed;
  for (const int32_t number : order) {
    const Lifetime &mine = lifetimes[number];
    // What is no longer needed by anything that comes can't be in the way again.
    placed.erase(std::remove_if(placed.begin(), placed.end(), [&](int32_t other) { return lifetimes[other].last < mine.first; }),
                 placed.end());
    std::vector<std::pair<int64_t, int64_t>> taken;  // from, to
    for (const int32_t other : placed) taken.push_back({arena.places[other], arena.places[other] + lifetimes[other].size});
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto &[from, to] : taken) {
      if (from - at >= mine.size) break;
      at = std::max(at, to);
    }
    arena.places[number] = at;
    arena.size = std::max(arena.size, at + mine.size);
    placed.push_back(number);
  }
  return arena;
}

}  // namespace winograd::programs
