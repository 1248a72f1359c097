// Prepared networks: one block of memory without a pointer in it, so that a tensor can hold it, and places in it for all that a
// network needs while it runs.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "../winograd.h"
#include "check.hpp"

namespace winograd::programs {

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// What stands at the start of every block. The mark is random, so that nothing is taken for a network that this process has
// prepared but what is one, and of that kind.
struct BlockHead {
  uint64_t mark;
  int64_t bytes;

  static BlockHead of(int32_t kind, int64_t bytes);
  bool stands_at(const void *start) const {
    return start != nullptr && reinterpret_cast<uintptr_t>(start) % 16 == 0 && bytes >= static_cast<int64_t>(sizeof *this) &&
           std::memcmp(start, this, sizeof *this) == 0;
  }
};

// The network in these bytes; null, and leaves a sentence, if they are none of that kind.
template <class Prepared>
const Prepared *sound(const uint8_t *prepared, int64_t bytes, int32_t kind) {
  if (BlockHead::of(kind, bytes).stands_at(prepared)) return reinterpret_cast<const Prepared *>(prepared);
  fail("This is no network that was prepared in this process; prepare it again.");
  return nullptr;
}

// Arrays one after the other, each on cache lines of its own.
class Block {
 public:
  explicit Block(size_t head_bytes) { grow(head_bytes); }

  template <class T>
  int64_t put(const T *numbers, size_t count) {
    const int64_t place = grow(count * sizeof(T));
    if (count > 0) std::memcpy(bytes.data() + place, numbers, count * sizeof(T));
    return place;
  }
  template <class T>
  int64_t put(const std::vector<T> &numbers) { return put(numbers.data(), numbers.size()); }

  std::vector<uint8_t> bytes;

 private:
  int64_t grow(size_t by) {
    const int64_t place = static_cast<int64_t>(bytes.size());
    bytes.resize(static_cast<size_t>(round_up(place + static_cast<int64_t>(by), 64)));
    return place;
  }
};

// Copies what `make` prepares into memory of the caller's. Answers 0, or 1 and leaves a sentence.
template <class Make>
int hand_over(const Make &make, winograd_allocate allocate, void *context) {
  try {
    const std::vector<uint8_t> made = make();
    uint8_t *const prepared = allocate(context, static_cast<int64_t>(made.size()));
    if (prepared == nullptr) return fail("There is no memory for the prepared network.");
    std::memcpy(prepared, made.data(), made.size());
    return 0;
  } catch (const std::invalid_argument &problem) {
    return fail("%s", problem.what());
  } catch (const std::bad_alloc &) {
    return fail("There is no memory for the network.");
  }
}

// A tensor of a network: how much memory it takes, and between which operations, both included, it must be there.
struct Lifetime {
  int64_t size;
  int32_t first, last;
};

// Where each of these tensors lies in one arena, so that none lies on another that is still needed; and the arena's size.
struct Arena {
  std::vector<int64_t> places;
  int64_t size;
};
// `order`: that in which they come to life.
Arena place_in_arena(const std::vector<Lifetime> &lifetimes, const std::vector<int32_t> &order);

}  // namespace winograd::programs
