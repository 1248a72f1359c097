// A whole Winograd convolution on one instruction set: which tiles, which filters, in which order, on which thread.
//
// A block of tiles is transformed (V), multiplied by a block of filters (M) and transformed back, so that V and M stay in
// the caches. Two ways to share the work:
//   own blocks      each thread takes its own tiles; U is read once for each block. For many tiles.
//   shared blocks   all threads transform one block of tiles, then each takes some of the filters; U is read once. For few
//                   tiles, or weights that are larger than the caches.
#pragma once

#include "filter_stage.hpp"
#include "gradients.hpp"
#include "input_stage.hpp"
#include "output_stage.hpp"

namespace winograd::WINOGRAD_VARIANT {

enum class Source { weights, filters };  // what is packed

template <int m, bool dense, Source source>
class Convolver {
 public:
  // Without a workspace it only counts how large one must be.
  explicit Convolver(const Convolution &convolution)
      : of_(convolution), geometry_(convolution.problem, convolution.blocking), threads_(convolution.threads.count) {
    Layout layout(of_.workspace);
    zeros_ = layout.floats(kPanel);
    bias_ = layout.floats(geometry_.runs.count * geometry_.panels * kPanel);
    const int64_t run_floats = ceil_div(static_cast<int64_t>(sizeof(RunSlots<m>)), sizeof(float));
    run_slots_ = reinterpret_cast<RunSlots<m> *>(layout.floats(run_floats * geometry_.runs.of_each_group));
    inputs_ = layout.floats(input_size() * (is_shared() ? 1 : threads_));
    products_ = layout.floats(product_size() * threads_);
    slabs_ = layout.floats(slab_size() * threads_);
    workspace_floats_ = layout.used();
  }

  int64_t workspace_floats() const { return workspace_floats_; }

  void convolve() {
    const Runs &runs = geometry_.runs;
    std::memset(zeros_, 0, sizeof(float) * kPanel);
    std::memset(bias_, 0, sizeof(float) * static_cast<size_t>(runs.count * geometry_.panels * kPanel));
    if (of_.operands.bias != nullptr)
      for (int64_t run = 0; run < runs.count; ++run)
        std::memcpy(bias_ + run * geometry_.panels * kPanel, of_.operands.bias + run * runs.filters,
                    sizeof(float) * static_cast<size_t>(runs.filters));
    for (int64_t tile = 0; tile < (geometry_.zero_floats == 0 ? 0 : geometry_.block_tiles); ++tile)
      for (int64_t thread = 0; thread < threads_; ++thread)
        std::memset(products_ + thread * product_size() + tile * geometry_.product_stride, 0,
                    sizeof(float) * static_cast<size_t>(geometry_.zero_floats));
    for (int64_t group = 0; group < of_.problem.groups; ++group) {
      const GroupSlots<m> slots = GroupSlots<m>::plan(geometry_, group, run_slots_);
      const Group of_group{*this, group, slots};
      if (is_shared())
        of_group.convolve_shared();
      else
        in_parallel([&](int64_t thread) { of_group.convolve_own(thread); });
    }
  }

 private:
  bool is_shared() const { return source == Source::filters || of_.blocking.shared == 1; }

  // Threads' parts lie on pages of their own as far as that is free.
  int64_t input_size() const { return apart_from_pages(geometry_.input_floats()); }
  int64_t product_size() const { return apart_from_pages(geometry_.product_floats()); }
  int64_t slab_size() const {
    return source == Source::filters ? apart_from_pages(geometry_.kept * slab_stride(geometry_)) : 0;
  }

  template <class Body>
  void in_parallel(const Body &body) const {
    run_parts(of_.threads, threads_, body);
  }

  // The convolution of one group of channels.
  struct Group {
    const Convolver &of;
    const int64_t group;
    const GroupSlots<m> &slots;
    const Geometry<m> &geometry = of.geometry_;
    const InputStage<m, dense> input{geometry, slots, of.of_.operands.input, group * geometry.runs.channels, of.zeros_};
    const OutputStage<m, dense> output{geometry, of.of_.operands, of.bias_};

    void convolve_own(int64_t thread) const {
      const Range mine = Range{0, geometry.tiles}.part(thread, of.threads_);
      const int64_t blocks = ceil_div(mine.count, geometry.block_tiles);
      float *const v = of.inputs_ + thread * of.input_size();
      for (int64_t block = 0; block < blocks; ++block) {
        const Range tiles = mine.part(block, blocks);
        input.transform(tiles, {0, tiles.count}, {0, geometry.vectors_of_channels()}, v);
        for (int64_t part = 0; part < filter_blocks(); ++part) multiply(tiles, v, part, thread);
      }
    }

    void convolve_shared() const {
      const int64_t blocks = ceil_div(geometry.tiles, geometry.block_tiles);
      for (int64_t block = 0; block < blocks; ++block) {
        const Range tiles = Range{0, geometry.tiles}.part(block, blocks);
        of.in_parallel([&](int64_t thread) {
          // By tiles, so that a pixel is read by one thread, unless there are too few.
          Range of_block{0, tiles.count}, vectors{0, geometry.vectors_of_channels()};
          const bool by_tiles = tiles.count >= of.threads_ * InputStage<m, dense>::kStripTiles;
          Range &divided = by_tiles ? of_block : vectors;
          divided = divided.part(thread, of.threads_);
          input.transform(tiles, of_block, vectors, of.inputs_);
        });
        of.in_parallel([&](int64_t thread) {
          const Range mine = Range{0, filter_blocks()}.part(thread, of.threads_);
          for (int64_t part = mine.first; part < mine.end(); ++part) multiply(tiles, of.inputs_, part, thread);
        });
      }
    }

    int64_t filter_blocks() const { return geometry.runs.of_each_group * geometry.blocks_of_run(); }

    // One block of filters for a block of tiles: M, and from there the output.
    void multiply(Range tiles, const float *v, int64_t part, int64_t thread) const {
      const int64_t run = part / geometry.blocks_of_run();
      const int64_t first_panel = part % geometry.blocks_of_run() * geometry.block_panels;
      const int64_t panels = smaller(geometry.block_panels, geometry.panels - first_panel);
      const int64_t whole_run = group * geometry.runs.of_each_group + run;
      float *const products = of.products_ + thread * of.product_size();
      const Panels of_run{whole_run * geometry.panels + first_panel, first_panel, panels};
      uint64_t multiplications;
      if constexpr (source == Source::weights)
        multiplications = multiply_weights(tiles.count, v, slots.runs[run], of_run, products + geometry.zero_floats);
      else
        multiplications = multiply_filters(tiles.count, v, slots.runs[run], of_run, products + geometry.zero_floats, thread);
      output.transform(tiles, whole_run, slots.runs[run], first_panel, panels, products);
      // Each GEMM is counted by the thread that finishes its first tiles and filters.
      count_operations(of.of_.counts_gemms && tiles.first == 0 && first_panel == 0 ? static_cast<uint64_t>(geometry.kept) : 0, multiplications);
    }

    struct Panels {
      int64_t packed, first, count;  // the first one's number of all that are packed, and of its run
    };

    // M at each slot, from packed weights [panel][slot][channels][32]. A slot's V is read once from the second-level cache.
    uint64_t multiply_weights(int64_t tiles, const float *v, const RunSlots<m> &run, Panels panels, float *products) const {
      const int64_t channels = geometry.runs.channels, panel_slot = channels * kPanel;
      const float *const u = of.of_.operands.packed + panels.packed * geometry.kept * panel_slot;
      uint64_t multiplications = 0;
      for (int64_t slot = 0; slot < geometry.kept; ++slot)
        for (int64_t panel = 0; panel < panels.count; ++panel)
          multiplications += multiply_tiles<false>(
              tiles, {v + run.input_slot[slot] * geometry.input_stride, 0, u + (panel * geometry.kept + slot) * panel_slot,
                      channels, geometry.filters_of(panels.first + panel),
                      products + (slot * panels.count + panel) * kPanel, geometry.product_stride});
      return multiplications;
    }

    // The same from packed filters [panel][channels][9][32].
    uint64_t multiply_filters(int64_t tiles, const float *v, const RunSlots<m> &run, Panels panels, float *products,
                              int64_t thread) const {
      const int64_t channels = geometry.runs.channels, rows = geometry.panel_rows(tiles), stride = slab_stride(geometry);
      float *const slab = of.slabs_ + thread * of.slab_size();
      uint64_t multiplications = 0;
      for (int64_t panel = 0; panel < panels.count; ++panel)
        for (int64_t channel = 0; channel < channels; channel += kSlabChannels) {
          const float *const filters =
              of.of_.operands.packed + ((panels.packed + panel) * channels + channel) * kTaps * kPanel;
          const int64_t these = smaller(kSlabChannels, channels - channel);
          transform_slab<m, dense>(filters, these, run, stride, slab);
          for (int64_t slot = 0; slot < geometry.kept; ++slot) {
            const MultiplyOperands operands{v + run.input_slot[slot] * geometry.input_stride + channel * rows, 0,
                                            slab + slot * stride, these, geometry.filters_of(panels.first + panel),
                                            products + (slot * panels.count + panel) * kPanel, geometry.product_stride};
            multiplications += channel == 0 ? multiply_tiles<false>(tiles, operands) : multiply_tiles<true>(tiles, operands);
          }
        }
      return multiplications;
    }

    // M of one slot and panel for all tiles of a block; answers how many multiplications that took.
    template <bool accumulate>
    uint64_t multiply_tiles(int64_t count, MultiplyOperands operands) const {
      const int64_t rows = geometry.panel_rows(count);
      operands.panel_rows = rows;
      for (int64_t tile = 0; tile < count; tile += rows) {
        multiply_of<accumulate>(static_cast<int>(smaller(rows, count - tile)))(operands);
        operands.v += rows * geometry.padded_channels;
        operands.products += rows * operands.row_stride;
      }
      return static_cast<uint64_t>(count * operands.channels * operands.filters);
    }
  };

  const Convolution &of_;
  const Geometry<m> geometry_;
  const int64_t threads_;
  int64_t workspace_floats_;
  float *zeros_, *bias_, *inputs_, *products_, *slabs_;
  RunSlots<m> *run_slots_;
};

// Calls use(convolver) with the convolver of this problem.
template <Source source, class Use>
void with_convolver(const Convolution &convolution, const Use &use) {
  const auto of_tile = [&](auto tile) {
    constexpr int m = decltype(tile)::value;
    constexpr int t = Matrices<m>::t;
    if (convolution.problem.kept == t * t) {
      Convolver<m, true, source> convolver(convolution);
      use(convolver);
    } else {
      Convolver<m, false, source> convolver(convolution);
      use(convolver);
    }
  };
  switch (convolution.problem.m) {
    case 2: return of_tile(Tile<2>{});
    case 4: return of_tile(Tile<4>{});
    case 6: return of_tile(Tile<6>{});
    case 7: return of_tile(Tile<7>{});
  }
}

template <Source source>
int64_t workspace_floats(const Convolution &convolution) {
  int64_t floats = 0;
  with_convolver<source>(convolution, [&](const auto &convolver) { floats = convolver.workspace_floats(); });
  return floats;
}

template <Source source>
void convolve(const Convolution &convolution) {
  with_convolver<source>(convolution, [](auto &convolver) { convolver.convolve(); });
}

#define WINOGRAD_TEXT_OF(name) #name
#define WINOGRAD_TEXT(name) WINOGRAD_TEXT_OF(name)
const Variant kVariant{WINOGRAD_TEXT(WINOGRAD_VARIANT),
                       kMostRows,
                       {workspace_floats<Source::weights>, convolve<Source::weights>},
                       {workspace_floats<Source::filters>, convolve<Source::filters>},
                       {gradients_workspace_floats, compute_gradients}};

}  // namespace winograd::WINOGRAD_VARIANT
