// Writes one row's accumulators of a strip through the epilogue.
#pragma once

#include "compute/kernels.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

struct Output {
    float* y;
    int64_t ldy;
    int64_t cols;  // matrix rows: no column at or past this is touched
    const Epilogue* epilogue;
};

TREADLE_INLINE bool is_plain(const Epilogue& e) {
    return e.bias == nullptr && e.residual == nullptr && e.scale == 1.0f;
}

TREADLE_INLINE F finish(F v, const Epilogue& e, F bias, F residual) {
    if (e.bias != nullptr) v = add(v, bias);
    if (e.residual != nullptr) return fma(set1(e.scale), v, residual);
    return mul(set1(e.scale), v);
}

// The last columns of a row, fewer than kLanes.
__attribute__((noinline)) static void write_tail(const Output& out, int64_t row, int64_t col, F v) {
    const Epilogue& e = *out.epilogue;
    float* y = out.y + row * out.ldy + col;
    const float* residual = e.residual == nullptr ? nullptr : e.residual + row * e.ld_residual + col;
    alignas(64) float b[kLanes] = {}, r[kLanes] = {}, t[kLanes];
    const int64_t n = out.cols - col;
    for (int64_t i = 0; i < n; ++i) {
        if (e.bias != nullptr) b[i] = e.bias[col + i];
        if (residual != nullptr) r[i] = residual[i];
    }
    store(t, finish(v, e, load(b), load(r)));
    for (int64_t i = 0; i < n; ++i) y[i] = t[i];
}

// kLanes columns from `col`, of row `row`.
TREADLE_INLINE void write(const Output& out, int64_t row, int64_t col, F v) {
    if (col + kLanes > out.cols) return write_tail(out, row, col, v);
    const Epilogue& e = *out.epilogue;
    store(out.y + row * out.ldy + col,
          finish(v, e, e.bias != nullptr ? load(e.bias + col) : zero(),
                 e.residual != nullptr ? load(e.residual + row * e.ld_residual + col) : zero()));
}

}  // namespace treadle::compute::TREADLE_ISA_NS
