#include "reorder.hpp"

#include "../matrices.hpp"

namespace winograd {
namespace {

constexpr int64_t kSide = 16;  // a square of this many rows and columns stays in the first-level cache

int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

struct Size {
  int64_t images, channels, pixels;
  int64_t floats() const { return images * channels * pixels; }
};

Size input_size(const winograd_problem &of) { return {of.batch, of.channels, of.height * of.width}; }
Size output_size(const winograd_problem &of) {
  const int64_t cut = kFilterSize - 1;
  return {of.batch, of.filters, (of.height + 2 * of.pad_height - cut) * (of.width + 2 * of.pad_width - cut)};
}

// to[column][row] = from[row][column] for columns [begin, end); both dense.
void transpose(const float *from, float *to, int64_t rows, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += kSide)
    for (int64_t row = 0; row < rows; row += kSide) {
      const int64_t last_row = row + kSide < rows ? row + kSide : rows, last_column = column + kSide < end ? column + kSide : end;
      if (last_row - row == kSide && last_column - column == kSide) {
        for (int64_t j = 0; j < kSide; ++j)
          for (int64_t i = 0; i < kSide; ++i) to[(column + j) * rows + row + i] = from[(row + i) * columns + column + j];
        continue;
      }
      for (int64_t j = column; j < last_column; ++j)
        for (int64_t i = row; i < last_row; ++i) to[j * rows + i] = from[i * columns + j];
    }
}

// Transposes `images` matrices [rows][columns], the threads dividing the columns of each.
void transpose_all(const winograd_threads &threads, const float *from, float *to, int64_t images, int64_t rows,
                   int64_t columns) {
  struct Call {
    const float *from;
    float *to;
    int64_t images, rows, columns, parts;
  } call{from, to, images, rows, columns, threads.count};
  const auto run_part = [](void *context, int64_t part) {
    const Call &of = *static_cast<const Call *>(context);
    const int64_t squares = (of.columns + kSide - 1) / kSide;
    const int64_t begin = squares * part / of.parts * kSide;
    const int64_t last = squares * (part + 1) / of.parts * kSide, end = last < of.columns ? last : of.columns;
    for (int64_t image = 0; image < of.images; ++image)
      transpose(of.from + image * of.rows * of.columns, of.to + image * of.rows * of.columns, of.rows, of.columns, begin, end);
  };
  if (threads.run == nullptr || threads.count == 1)
    for (int64_t part = 0; part < call.parts; ++part) run_part(&call, part);
  else
    threads.run(threads.runner, call.parts, run_part, &call);
}

}  // namespace

ChannelsLastCopies::ChannelsLastCopies(const Convolution &convolution) {
  if (convolution.operands.memory == WINOGRAD_CHANNELS_LAST) return;
  input_ = lines(input_size(convolution.problem).floats());
  output_ = lines(output_size(convolution.problem).floats());
  if (convolution.operands.residual != nullptr) residual_ = output_;
}

void ChannelsLastCopies::make(Convolution &convolution, float *space) const {
  if (input_ == 0) return;
  const Size input = input_size(convolution.problem), output = output_size(convolution.problem);
  transpose_all(convolution.threads, convolution.operands.input, space, input.images, input.channels, input.pixels);
  convolution.operands.input = space;
  convolution.operands.output = space + input_;
  if (residual_ != 0) {
    float *const residual = space + input_ + output_;
    transpose_all(convolution.threads, convolution.operands.residual, residual, output.images, output.channels, output.pixels);
    convolution.operands.residual = residual;
  }
}

ChannelsLastGradients::ChannelsLastGradients(const Backward &backward) {
  if (backward.operands.memory == WINOGRAD_CHANNELS_LAST) return;
  output_ = lines(output_size(backward.problem).floats());
  if (backward.operands.weight_gradient != nullptr) input_ = lines(input_size(backward.problem).floats());
  if (backward.operands.input_gradient != nullptr) input_gradient_ = lines(input_size(backward.problem).floats());
}

void ChannelsLastGradients::make(Backward &backward, float *space) const {
  if (output_ == 0) return;
  const Size input = input_size(backward.problem), output = output_size(backward.problem);
  transpose_all(backward.threads, backward.operands.output_gradient, space, output.images, output.channels, output.pixels);
  backward.operands.output_gradient = space;
  if (input_ != 0) transpose_all(backward.threads, backward.operands.input, space + output_, input.images, input.channels, input.pixels);
  backward.operands.input = space + output_;
  if (input_gradient_ != 0) backward.operands.input_gradient = space + output_ + input_;
}

void ChannelsLastGradients::give_back(const Backward &backward, const winograd_gradients &wanted) const {
  if (input_gradient_ == 0) return;
  const Size input = input_size(backward.problem);
  transpose_all(backward.threads, backward.operands.input_gradient, wanted.input_gradient, input.images, input.pixels, input.channels);
}

void ChannelsLastCopies::give_back(const Convolution &convolution, const winograd_operands &wanted) const {
  if (input_ == 0) return;
  const Size output = output_size(convolution.problem);
  transpose_all(convolution.threads, convolution.operands.output, wanted.output, output.images, output.pixels, output.channels);
}

}  // namespace winograd
