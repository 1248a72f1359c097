// Puts weights into the order in which the multiplication reads them. Done once, ahead of time.
//
//   weights [kept, K, C/groups]     ->  [run][panel of 32 filters][slot][C/groups][32]
//   filters [K, C/groups, 3, 3]     ->  [run][panel of 32 filters][C/groups][9][32]
//
// The last panel of a run is filled up with zeros.
#include <cstring>

#include "check.hpp"
#include "convolution.hpp"

namespace winograd {
namespace {

constexpr int64_t kPanel = 32;
constexpr int64_t kTaps = 9;

int64_t panels_of(const Runs &runs) { return (runs.filters + kPanel - 1) / kPanel; }

// Calls put(filter, place) for each filter with the start of its column of floats within its panel.
template <class Put>
void for_each_filter(const Runs &runs, int64_t panel_size, float *packed, const Put &put) {
  for (int64_t run = 0; run < runs.count; ++run)
    for (int64_t filter = 0; filter < runs.filters; ++filter)
      put(run * runs.filters + filter,
          packed + (run * panels_of(runs) + filter / kPanel) * panel_size + filter % kPanel);
}

}  // namespace
}  // namespace winograd

using namespace winograd;

extern "C" int64_t winograd_packed_weights_size(const winograd_problem *problem) {
  if (!is_sound(*problem)) return -1;
  const Runs runs(*problem);
  return runs.count * panels_of(runs) * problem->kept * runs.channels * kPanel;
}

extern "C" int winograd_pack_weights(const winograd_problem *problem, const float *weights, float *packed) {
  const int64_t size = winograd_packed_weights_size(problem);
  if (size < 0) return 1;
  std::memset(packed, 0, sizeof(float) * static_cast<size_t>(size));
  const Runs runs(*problem);
  const int64_t panel_size = problem->kept * runs.channels * kPanel;
  for_each_filter(runs, panel_size, packed, [&](int64_t filter, float *to) {
    for (int64_t slot = 0; slot < problem->kept; ++slot)
      for (int64_t channel = 0; channel < runs.channels; ++channel)
        to[(slot * runs.channels + channel) * kPanel] =
            weights[(slot * problem->filters + filter) * runs.channels + channel];
  });
  return 0;
}

extern "C" int64_t winograd_packed_filters_size(const winograd_problem *problem) {
  if (!is_sound(*problem)) return -1;
  const Runs runs(*problem);
  return runs.count * panels_of(runs) * runs.channels * kTaps * kPanel;
}

extern "C" int winograd_pack_filters(const winograd_problem *problem, const float *filters, float *packed) {
  const int64_t size = winograd_packed_filters_size(problem);
  if (size < 0) return 1;
  std::memset(packed, 0, sizeof(float) * static_cast<size_t>(size));
  const Runs runs(*problem);
  for_each_filter(runs, runs.channels * kTaps * kPanel, packed, [&](int64_t filter, float *to) {
    for (int64_t tap = 0; tap < runs.channels * kTaps; ++tap) to[tap * kPanel] = filters[filter * runs.channels * kTaps + tap];
  });
  return 0;
}
