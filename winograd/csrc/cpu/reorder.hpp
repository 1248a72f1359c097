// Channels-first operands are brought into channels-last order and back: the convolution itself knows channels last alone.
#pragma once

#include "convolution.hpp"

namespace winograd {

class ChannelsLastCopies {
 public:
  explicit ChannelsLastCopies(const Convolution &convolution);
  int64_t floats() const { return input_ + output_ + residual_; }
  // Copies what is channels first into `space`, and points the operands there.
  void make(Convolution &convolution, float *space) const;
  // Copies the output to where the caller wants it.
  void give_back(const Convolution &convolution, const winograd_operands &wanted) const;

 private:
  int64_t input_ = 0, output_ = 0, residual_ = 0;  // floats of each copy
};

class ChannelsLastGradients {
 public:
  explicit ChannelsLastGradients(const Backward &backward);
  int64_t floats() const { return input_ + output_ + input_gradient_; }
  // Copies what is channels first into `space`, and points the operands there.
  void make(Backward &backward, float *space) const;
  // Copies the gradient of the input to where the caller wants it.
  void give_back(const Backward &backward, const winograd_gradients &wanted) const;

 private:
  int64_t input_ = 0, output_ = 0, input_gradient_ = 0;  // floats of each copy
};

}  // namespace winograd
