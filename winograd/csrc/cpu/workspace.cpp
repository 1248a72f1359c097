#include "workspace.hpp"

#include <cstdlib>
#include <mutex>
#include <vector>

#include "../winograd.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace winograd {
namespace {

constexpr int64_t kHugePage = 2 << 20;

struct Buffer {
  float *start;
  int64_t bytes;
};

std::mutex mutex;
// Buffers that nobody uses at the moment: as many as calls ever ran at once. Never destroyed: threads may outlive main().
std::vector<Buffer> &idle = *new std::vector<Buffer>;
int64_t total_bytes = 0;

Buffer allocate(int64_t bytes) {
  void *start = std::aligned_alloc(kHugePage, static_cast<size_t>(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Fewer misses of the address cache: V and M are walked with large strides.
  if (start != nullptr) madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return {static_cast<float *>(start), bytes};
}

}  // namespace

Workspace::Workspace(int64_t floats) {
  const int64_t wanted = (floats * static_cast<int64_t>(sizeof(float)) + kHugePage) / kHugePage * kHugePage;
  std::lock_guard<std::mutex> lock(mutex);
  if (!idle.empty()) {
    const Buffer last = idle.back();
    idle.pop_back();
    start_ = last.start;
    bytes_ = last.bytes;
    if (bytes_ >= wanted) return;
    std::free(start_);
    total_bytes -= bytes_;
  }
  const Buffer fresh = allocate(wanted);
  start_ = fresh.start;
  bytes_ = fresh.start == nullptr ? 0 : wanted;
  total_bytes += bytes_;
}

Workspace::~Workspace() {
  if (start_ == nullptr) return;
  std::lock_guard<std::mutex> lock(mutex);
  idle.push_back({start_, bytes_});
}

}  // namespace winograd

extern "C" int64_t winograd_workspace_bytes(void) {
  std::lock_guard<std::mutex> lock(winograd::mutex);
  return winograd::total_bytes;
}

extern "C" void winograd_release_workspace(void) {
  std::lock_guard<std::mutex> lock(winograd::mutex);
  for (const winograd::Buffer &buffer : winograd::idle) {
    std::free(buffer.start);
    winograd::total_bytes -= buffer.bytes;
  }
  winograd::idle.clear();
}
