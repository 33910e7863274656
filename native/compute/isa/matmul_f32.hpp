// f32 matrix product on any packed type: one fma chain over ascending columns for every output element. Types other
// than f32 are dequantised a strip group at a time, or read directly when there are few rows.
#pragma once

#include "compute/isa/epilogue.hpp"
#include "compute/isa/float_tile.hpp"
#include "compute/isa/formats.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kStripGroup = kFloatVectors > kParts ? kFloatVectors / kParts : 1;

struct FloatRows {
    const float* x;
    int64_t ldx, rows, depth;
};

template <int R, int V, class Columns>
__attribute__((noinline)) void float_rows(const FloatRows& in, int64_t row, const Columns& columns, int64_t col,
                                          const Output& out) {
    F acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = zero();
    float_tile<R, V>(in.x + row * in.ldx, in.ldx, columns, in.depth, acc);
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v)
            if (col + v * kLanes < out.cols) write(out, row + r, col + v * kLanes, acc[r][v]);
}

// The last 1..R rows.
template <int R, int V, class Columns>
TREADLE_INLINE void float_rest(const FloatRows& in, int64_t row, const Columns& columns, int64_t col, const Output& out) {
    if constexpr (R > 0) {
        if (in.rows - row == R) float_rows<R, V>(in, row, columns, col, out);
        else float_rest<R - 1, V>(in, row, columns, col, out);
    }
}

template <int V, class Columns>
void float_all_rows(const FloatRows& in, const Columns& columns, int64_t col, const Output& out) {
    int64_t row = 0;
    for (; row + kFloatRows <= in.rows; row += kFloatRows) float_rows<kFloatRows, V>(in, row, columns, col, out);
    float_rest<kFloatRows - 1, V>(in, row, columns, col, out);
}

// Calls run(strip, count, columns) over strip groups; `columns_of(strip, count)` yields their columns.
template <class ColumnsOf>
TREADLE_INLINE void each_group(int64_t strip0, int64_t strip1, const FloatRows& in, const Output& out,
                               ColumnsOf columns_of) {
    int64_t s = strip0;
    for (; s + kStripGroup <= strip1; s += kStripGroup)
        float_all_rows<kStripGroup * kParts>(in, columns_of(s, kStripGroup), s * kStripRows, out);
    for (; s < strip1; ++s) float_all_rows<kParts>(in, columns_of(s, 1), s * kStripRows, out);
}

TREADLE_INLINE void widen_f16(const uint16_t* strip, int64_t cols, float* dst) {
    for (int64_t i = 0; i < cols * 16; i += kLanes) store(dst + i, load_f16(strip + i));
}

TREADLE_INLINE void widen_bf16_pairs(const uint16_t* strip, int64_t cols, float* dst) {
    for (int64_t k = 0; k < cols; ++k)
        for (int part = 0; part < kParts; ++part) {
            const uint16_t* p = strip + k / 2 * 32 + part * kLanes * 2;
            store(dst + k * 16 + part * kLanes, k % 2 == 0 ? load_bf16_even(p) : load_bf16_odd(p));
        }
}

// Through f32 copies of a strip group in `scratch`, made by widen(strip data, dst).
template <class Widen>
TREADLE_INLINE void each_widened(const PackedMatrix& w, int64_t strip0, int64_t strip1, const FloatRows& in,
                                 const Output& out, std::byte* scratch, Widen widen) {
    float* columns = reinterpret_cast<float*>(scratch);
    each_group(strip0, strip1, in, out, [&](int64_t s, int64_t count) {
        for (int64_t i = 0; i < count; ++i) widen(w.data + (s + i) * w.strip_bytes, columns + i * w.cols * 16);
        return ColumnsF32{columns, 16, w.cols * 16};
    });
}

TREADLE_INLINE const uint16_t* halves(const std::byte* p) { return reinterpret_cast<const uint16_t*>(p); }

template <class Format>
void matmul_dequantised(const PackedMatrix& w, int64_t strip0, int64_t strip1, const FloatRows& in, const Output& out,
                        std::byte* scratch) {
    const int64_t blocks = w.cols / kBlock;
    each_widened(w, strip0, strip1, in, out, scratch, [&](const std::byte* strip, float* dst) {
        dequantise_strip(PackedStrip<Format>(strip, blocks), blocks, dst);
    });
}

template <class Columns>
void matmul_direct(const PackedMatrix& w, int64_t step, int64_t strip0, int64_t strip1, const FloatRows& in,
                   const Output& out) {
    each_group(strip0, strip1, in, out, [&](int64_t s, int64_t) {
        using Element = decltype(Columns{}.base);
        return Columns{reinterpret_cast<Element>(w.data + s * w.strip_bytes), step,
                       w.strip_bytes / static_cast<int64_t>(sizeof(*Element{}))};
    });
}

}  // namespace treadle::compute::TREADLE_ISA_NS
