#include "check.hpp"

#include <cstdarg>
#include <cstdio>

#include "../matrices.hpp"

namespace winograd {
namespace {

thread_local char last_error[256] = "";

// Larger than any real layer, small enough that products of sizes fit 64 bits.
constexpr int64_t kLargestSize = int64_t{1} << 31;
constexpr int32_t kLargestPadding = (1 << 29) - 1;  // so that twice of it fits its type
constexpr double kMostElements = 4e18;

bool positions_are_sound(const winograd_problem &problem) {
  const int32_t t = problem.m + kFilterSize - 1;
  if (problem.kept < 1 || problem.kept > t * t)
    return fail("Of the %d positions of a tile of F(%dx%d, 3x3), between 1 and all must be kept; %d were given.", t * t,
                problem.m, problem.m, problem.kept) == 0;
  if (problem.positions == nullptr) return fail("The kept positions are missing.") == 0;
  for (int64_t group = 0; group < problem.kernel_groups; ++group) {
    int32_t before = -1;
    for (int32_t slot = 0; slot < problem.kept; ++slot) {
      const int32_t position = problem.positions[group * problem.kept + slot];
      if (position < 0 || position >= t * t)
        return fail("Position %d does not exist: F(%dx%d, 3x3) has positions 0 to %d.", position, problem.m, problem.m,
                    t * t - 1) == 0;
      if (position <= before)
        return fail("Kept positions must rise: %d stands after %d.", position, before) == 0;
      before = position;
    }
  }
  return true;
}

}  // namespace

int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return 1;
}

bool is_sound(const winograd_problem &of) {
  if (of.m != 2 && of.m != 4 && of.m != 6 && of.m != 7)
    return fail("F(%dx%d, 3x3) is not implemented; m may be 2, 4, 6 or 7.", of.m, of.m) == 0;
  const struct {
    const char *name;
    int64_t value, least;
  } sizes[] = {{"batch", of.batch, 0},     {"channels", of.channels, 1}, {"height", of.height, 1},
               {"width", of.width, 1},     {"filters", of.filters, 1},   {"groups", of.groups, 1},
               {"padding", of.pad_height, 0}, {"padding", of.pad_width, 0}, {"kernel groups", of.kernel_groups, 1}};
  for (const auto &size : sizes)
    if (size.value < size.least || size.value >= kLargestSize)
      return fail("The number of %s is %lld; it must be at least %lld and below 2^31.", size.name,
                  static_cast<long long>(size.value), static_cast<long long>(size.least)) == 0;
  if (of.pad_height > kLargestPadding || of.pad_width > kLargestPadding)
    return fail("Padding of %d, %d is too large; it must be below 2^29.", of.pad_height, of.pad_width) == 0;
  if (of.height + 2 * of.pad_height < kFilterSize || of.width + 2 * of.pad_width < kFilterSize)
    return fail("An input of %lld x %lld with padding %d, %d is smaller than a 3x3 filter.",
                static_cast<long long>(of.height), static_cast<long long>(of.width), of.pad_height, of.pad_width) == 0;
  if (of.channels % of.groups != 0 || of.filters % of.groups != 0)
    return fail("%lld groups must divide %lld channels and %lld filters.", static_cast<long long>(of.groups),
                static_cast<long long>(of.channels), static_cast<long long>(of.filters)) == 0;
  if (of.filters % of.kernel_groups != 0)
    return fail("%d kernel groups must divide %lld filters.", of.kernel_groups, static_cast<long long>(of.filters)) == 0;
  if (of.groups % of.kernel_groups != 0 && of.kernel_groups % of.groups != 0)
    return fail("Of %lld groups and %d kernel groups, one must divide the other.", static_cast<long long>(of.groups),
                of.kernel_groups) == 0;
  const double padded = static_cast<double>(of.height + 2 * of.pad_height + 7) * (of.width + 2 * of.pad_width + 7);
  const double images = of.batch > 0 ? static_cast<double>(of.batch) : 1.0;
  if (images * padded * static_cast<double>(of.channels) > kMostElements ||
      images * padded * static_cast<double>(of.filters) > kMostElements ||
      81.0 * static_cast<double>(of.channels) * static_cast<double>(of.filters + 32 * of.kernel_groups) > kMostElements)
    return fail("The convolution is too large to be addressed.") == 0;
  return positions_are_sound(of);
}

}  // namespace winograd

extern "C" const char *winograd_last_error(void) { return winograd::last_error; }
