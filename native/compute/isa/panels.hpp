// Blocking of both matrix products. A tile's accumulators run over a panel of columns at a time, so that the panel's
// weights stay in the first cache while all rows of a chunk pass; between panels they wait in `stash`. The order of
// additions within an output does not change.
#pragma once

#include "compute/isa/epilogue.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int64_t kChunkRows = 528;  // most rows of a chunk
inline constexpr int64_t kChunkBytes =
    448 << 10;  // most bytes of their activations: they stay in the second cache

// Where the accumulators of `R` rows by `V` vectors come from and go to.
struct PanelEnds {
    float* stash;      // of the chunk: [rows][V * kLanes]
    bool first, last;  // panel of the columns
    int64_t stash_row, row, col;
    const Output* out;
};

// Finished rows through the epilogue.
template <int R, int V>
TREADLE_INLINE void write_rows(const PanelEnds& ends, const F acc[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t col = ends.col + v * kLanes;
            if (col < ends.out->cols) write(*ends.out, ends.row + r, col, acc[r][v]);
        }
}

template <int R, int V>
TREADLE_INLINE void begin_panel(const PanelEnds& ends, F acc[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = zero();
    if (ends.last) {  // the output's lines, ahead of time
        const float* y = ends.out->y + ends.row * ends.out->ldy + ends.col;
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; v += 16 / kLanes) prefetch(y + r * ends.out->ldy + v * kLanes);
    }
    if (ends.first) return;
    const float* stash = ends.stash + ends.stash_row * V * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = load(stash + (r * V + v) * kLanes);
}

template <int R, int V>
TREADLE_INLINE void end_panel(const PanelEnds& ends, const F acc[R][V]) {
    float* to = ends.stash + ends.stash_row * V * kLanes;
    int64_t stride = V * kLanes;
    if (ends.last) {
        if (ends.col + V * kLanes > ends.out->cols || !is_plain(*ends.out->epilogue))
            return write_rows<R, V>(ends, acc);
        to = ends.out->y + ends.row * ends.out->ldy + ends.col;
        stride = ends.out->ldy;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(to + r * stride + v * kLanes, acc[r][v]);
}

// Rows of a chunk: a multiple of `unit` with at most kChunkBytes at `row_bytes` each.
TREADLE_INLINE int64_t chunk_rows(int64_t row_bytes, int64_t unit) {
    const int64_t rows = least(kChunkRows, kChunkBytes / row_bytes);
    return most(unit, rows / unit * unit);
}

// The smallest number of panels of at most `most_units`, evenly: the units of each.
TREADLE_INLINE int64_t panel_units(int64_t units, int64_t most_units) {
    const int64_t panels = (units + most_units - 1) / most_units;
    return (units + panels - 1) / panels;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
