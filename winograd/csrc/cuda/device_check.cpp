// The kernels on a device against the definition: stage_checks.hpp with every operand in an allocation of its own, so that
// compute-sanitizer sees each access beside one. Linked with the kernels; tests/winograd/test_cuda.py builds and runs it.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace winograd::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

template <class T>
class Placed {
 public:
  explicit Placed(std::vector<T>& numbers) : numbers_(numbers) {
    if (bytes() == 0) return;
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&on_device_), bytes()), "cudaMalloc");
    check_cuda(cudaMemcpy(on_device_, numbers_.data(), bytes(), cudaMemcpyHostToDevice), "copy to the device");
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;
  ~Placed() {
    check_cuda(cudaDeviceSynchronize(), "a kernel");
    if (on_device_ == nullptr) return;
    check_cuda(cudaMemcpy(numbers_.data(), on_device_, bytes(), cudaMemcpyDeviceToHost), "copy from the device");
    check_cuda(cudaFree(on_device_), "cudaFree");
  }
  T* data() { return on_device_; }

 private:
  size_t bytes() const { return numbers_.size() * sizeof(T); }

  std::vector<T>& numbers_;
  T* on_device_ = nullptr;
};

}  // namespace winograd::cuda

#include "stage_checks.hpp"

// device_check [LEAST_CHANNELS]
int main(int count, char** arguments) {
  const int cases = winograd::cuda::check_stages(count > 1 ? std::atoi(arguments[1]) : 0);
  std::printf("%d cases, %d failures\n", cases, winograd::cuda::failures);
  return winograd::cuda::failures == 0 ? 0 : 1;
}
