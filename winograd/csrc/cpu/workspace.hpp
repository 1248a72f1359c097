// Memory that calls borrow and give back, so that a call allocates nothing once its like has run before.
#pragma once

#include <cstdint>

namespace winograd {

// A borrowed buffer of at least `floats`, aligned to a page; null when there is no memory.
class Workspace {
 public:
  explicit Workspace(int64_t floats);
  ~Workspace();
  Workspace(const Workspace &) = delete;
  Workspace &operator=(const Workspace &) = delete;
  float *start() const { return start_; }

 private:
  float *start_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace winograd
