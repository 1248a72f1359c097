// How large everything is and where it lies: tiles of the output, blocks of tiles and filters, strides of V and M.
#pragma once

#include "convolution.hpp"
#include "multiply.hpp"
#include "transforms.hpp"

namespace winograd::WINOGRAD_VARIANT {

// An odd number of cache lines that is far from a multiple of 4 KiB (64 lines), where few sets of a cache would be used.
WINOGRAD_INLINE int64_t apart_from_pages(int64_t floats) {
  int64_t lines = ceil_div(floats, 16);
  while (lines % 4 != 1) ++lines;
  return lines * 16;
}

struct Place {
  int64_t image, row, column;  // of a tile's first output
};

// Some of many: tiles, vectors, blocks of filters.
struct Range {
  int64_t first, count;
  int64_t end() const { return first + count; }
  // The part of this range that is one of `parts` nearly equal ones.
  Range part(int64_t part, int64_t parts) const {
    const int64_t begin = count * part / parts;
    return {first + begin, count * (part + 1) / parts - begin};
  }
};

// Calls body(part) for each of `parts`, on the caller's threads.
template <class Body>
void run_parts(const winograd_threads &threads, int64_t parts, const Body &body) {
  const auto run_part = [](void *context, int64_t part) { (*static_cast<const Body *>(context))(part); };
  void *const context = const_cast<Body *>(&body);
  if (threads.run == nullptr || parts == 1)
    for (int64_t part = 0; part < parts; ++part) run_part(context, part);
  else
    threads.run(threads.runner, parts, run_part, context);
}

template <int m>
struct Geometry {
  static constexpr int t = Matrices<m>::t;

  const winograd_problem &problem;
  const Runs runs;
  const int64_t out_height, out_width, tiles_high, tiles_wide, tiles;
  const int64_t kept;             // positions of a run: slots of U and M
  const int64_t slots;            // of V: positions that any run of a group keeps, at the most
  const int64_t padded_channels;  // to whole blocks of 16
  const int64_t panels;           // of 32 filters, in a run
  const int64_t block_tiles, block_panels;
  const int64_t input_stride;     // of a slot in V
  const int64_t zero_floats;      // before the slots of a tile in M: what the output stage reads for pruned positions
  const int64_t product_stride;   // of a tile in M

  Geometry(const winograd_problem &problem_, const winograd_blocking &blocking)
      : problem(problem_),
        runs(problem),
        out_height(problem.height + 2 * problem.pad_height - (kFilterSize - 1)),
        out_width(problem.width + 2 * problem.pad_width - (kFilterSize - 1)),
        tiles_high(ceil_div(out_height, m)),
        tiles_wide(ceil_div(out_width, m)),
        tiles(problem.batch * tiles_high * tiles_wide),
        kept(problem.kept),
        slots(smaller<int64_t>(t * t, kept * runs.of_each_group)),
        padded_channels(round_up(runs.channels, kChannelBlock)),
        panels(ceil_div(runs.filters, kPanel)),
        block_tiles(smaller<int64_t>(tiles, blocking.tiles)),
        block_panels(smaller<int64_t>(panels, blocking.filters / kPanel)),
        input_stride(apart_from_pages((block_tiles + kMostRows) * padded_channels)),
        zero_floats(kept == t * t ? 0 : block_panels * kPanel),
        product_stride(apart_from_pages(zero_floats + kept * block_panels * kPanel)) {}

  int64_t input_floats() const { return slots * input_stride; }
  int64_t product_floats() const { return block_tiles * product_stride; }
  int64_t vectors_of_channels() const { return ceil_div(runs.channels, kLanes); }
  int64_t filters_of(int64_t panel) const { return smaller<int64_t>(kPanel, runs.filters - panel * kPanel); }
  int64_t blocks_of_run() const { return ceil_div(panels, block_panels); }

  // A block's tiles lie in equal panels of at most kMostRows rows; the last may have fewer.
  static int64_t panel_rows(int64_t count) { return ceil_div(count, ceil_div(count, kMostRows)); }

  Place place_of(int64_t tile) const {
    const int64_t of_image = tile % (tiles_high * tiles_wide);
    return {tile / (tiles_high * tiles_wide), of_image / tiles_wide * m, of_image % tiles_wide * m};
  }
};

// Filters with common positions.
template <int m>
struct RunSlots {
  KeptSome<Matrices<m>::t> kept;
  int input_slot[kMostPositions];                     // in V, of each slot of U
  int product_slot[Matrices<m>::t][Matrices<m>::t];   // in M, of the positions that are kept
};

// The runs of one group of channels, and which positions of its V are needed by any of them.
template <int m>
struct GroupSlots {
  static constexpr int t = Matrices<m>::t;
  KeptSome<t> kept;
  int input_slot[t][t];
  RunSlots<m> *runs;

  // `space` has room for the runs of a group.
  static GroupSlots plan(const Geometry<m> &geometry, int64_t group, RunSlots<m> *space) {
    GroupSlots found{};
    found.runs = space;
    const int64_t runs = geometry.runs.of_each_group;
    const auto positions = [&](int64_t run) { return geometry.runs.positions(geometry.problem, group * runs + run); };
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t slot = 0; slot < geometry.kept; ++slot) found.kept.keep(positions(run)[slot] / t, positions(run)[slot] % t);
    int next = 0;
    for (int position = 0; position < t * t; ++position)
      found.input_slot[position / t][position % t] = found.kept.at(position / t, position % t) ? next++ : -1;
    for (int64_t run = 0; run < runs; ++run) {
      space[run] = RunSlots<m>{};
      for (int64_t slot = 0; slot < geometry.kept; ++slot) {
        const int row = positions(run)[slot] / t, column = positions(run)[slot] % t;
        space[run].kept.keep(row, column);
        space[run].input_slot[slot] = found.input_slot[row][column];
        space[run].product_slot[row][column] = static_cast<int>(slot);
      }
    }
    return found;
  }
};

}  // namespace winograd::WINOGRAD_VARIANT
