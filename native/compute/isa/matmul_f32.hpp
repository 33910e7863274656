// f32 matrix product on any packed type: one fma chain over ascending columns for every output element. Types other
// than f32 are widened a panel of a strip group at a time, or read directly when there are few rows.
#pragma once

#include "compute/isa/float_tile.hpp"
#include "compute/isa/panels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kFloatStrips =
    kFloatVectors > kParts ? kFloatVectors / kParts : 1;  // strips of one register tile
inline constexpr int64_t kPanelCols = 128;                // a multiple of kBlock
inline constexpr int64_t kWidenedBytes = kFloatStrips * kPanelCols * kStripRows * 4;

struct FloatProduct {
    const PackedMatrix& w;
    const float* x;
    int64_t ldx, rows;
    Output out;
    std::byte* scratch;
    int64_t panel;  // columns of a panel
};

// Columns [k, k + depth) of one strip of `cols` columns, exactly, to [depth][16].
using Widen = void (*)(const std::byte* strip, int64_t cols, int64_t k, int64_t depth, float* dst);

template <int R, int V, class Columns>
__attribute__((noinline)) void float_rows(const float* x, int64_t ldx, const Columns& columns, int64_t depth,
                                          const PanelEnds& ends) {
    F acc[R][V];
    begin_panel<R, V>(ends, acc);
    float_tile<R, V>(x, ldx, columns, depth, acc);
    end_panel<R, V>(ends, acc);
}

template <int R, int V, class Columns>
TREADLE_INLINE void float_rows_of(int64_t count, const float* x, int64_t ldx, const Columns& columns,
                                  int64_t depth, const PanelEnds& ends) {
    if constexpr (R > 0) {
        if (count == R) float_rows<R, V>(x, ldx, columns, depth, ends);
        else float_rows_of<R - 1, V>(count, x, ldx, columns, depth, ends);
    }
}

// Rows [row0, row1) against one panel, whose first column is k and whose columns start at `columns`.
template <int V, class Columns>
TREADLE_INLINE void float_panel(const FloatProduct& p, const Columns& columns, int64_t k, int64_t depth,
                                int64_t row0, int64_t row1, PanelEnds ends) {
    for (int64_t row = row0; row < row1; row += kFloatRows) {
        ends.row = row;
        ends.stash_row = row - row0;
        float_rows_of<kFloatRows, V>(least(kFloatRows, row1 - row), p.x + row * p.ldx + k, p.ldx, columns,
                                     depth, ends);
    }
}

// All rows against `count` strips of V vectors; panel_of(strip, count, k, depth) yields the columns of a panel.
template <int V, class PanelOf>
TREADLE_INLINE void float_strips(const FloatProduct& p, int64_t strip, int64_t count, int64_t row0,
                                 int64_t row1, PanelOf panel_of) {
    float* stash = reinterpret_cast<float*>(p.scratch + kWidenedBytes);
    for (int64_t k = 0; k < p.w.cols; k += p.panel) {
        const int64_t depth = least(p.panel, p.w.cols - k);
        float_panel<V>(p, panel_of(strip, count, k, depth), k, depth, row0, row1,
                       {stash, k == 0, k + depth == p.w.cols, 0, 0, strip * kStripRows, &p.out});
    }
}

template <class PanelOf>
TREADLE_INLINE void float_matmul(const FloatProduct& p, int64_t strip0, int64_t strip1, PanelOf panel_of) {
    const int64_t step = chunk_rows(p.w.cols * 4, kFloatRows);
    for (int64_t row0 = 0; row0 < p.rows; row0 += step) {
        const int64_t row1 = least(row0 + step, p.rows);
        int64_t s = strip0;
        for (; s + kFloatStrips <= strip1; s += kFloatStrips)
            float_strips<kFloatStrips * kParts>(p, s, kFloatStrips, row0, row1, panel_of);
        for (; s < strip1; ++s) float_strips<kParts>(p, s, 1, row0, row1, panel_of);
    }
}

// Straight from the packed strips; `step` elements for each k (or pair of k, with `pairs` 2).
template <class Columns>
void matmul_direct(const FloatProduct& p, int64_t step, int64_t pairs, int64_t strip0, int64_t strip1) {
    using Element = decltype(Columns{}.base);
    float_matmul(p, strip0, strip1, [&](int64_t s, int64_t, int64_t k, int64_t) {
        return Columns{reinterpret_cast<Element>(p.w.data + s * p.w.strip_bytes) + k / pairs * step, step,
                       p.w.strip_bytes / static_cast<int64_t>(sizeof(*Element{}))};
    });
}

// Through f32 copies of at most kPanelCols columns.
inline void matmul_widened(const FloatProduct& p, int64_t strip0, int64_t strip1, Widen widen) {
    float* columns = reinterpret_cast<float*>(p.scratch);
    float_matmul(p, strip0, strip1, [&](int64_t s, int64_t count, int64_t k, int64_t depth) {
        for (int64_t i = 0; i < count; ++i)
            widen(p.w.data + (s + i) * p.w.strip_bytes, p.w.cols, k, depth, columns + i * kPanelCols * 16);
        return ColumnsF32{columns, 16, kPanelCols * 16};
    });
}

TREADLE_INLINE const uint16_t* halves(const std::byte* p) { return reinterpret_cast<const uint16_t*>(p); }

inline void widen_f16(const std::byte* strip, int64_t /*cols*/, int64_t k, int64_t depth, float* dst) {
    for (int64_t i = 0; i < depth * 16; i += kLanes) store(dst + i, load_f16(halves(strip) + k * 16 + i));
}

inline void widen_bf16_pairs(const std::byte* strip, int64_t /*cols*/, int64_t k, int64_t depth, float* dst) {
    for (int64_t i = 0; i < depth; ++i)
        for (int part = 0; part < kParts; ++part) {
            const uint16_t* pair = halves(strip) + (k + i) / 2 * 32 + part * kLanes * 2;
            store(dst + i * 16 + part * kLanes,
                  (k + i) % 2 == 0 ? load_bf16_even(pair) : load_bf16_odd(pair));
        }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
