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

TREADLE_INLINE F finish(F v, const Epilogue& e, F bias, F residual) {
    if (e.bias != nullptr) v = add(v, bias);
    if (e.residual != nullptr) return fma(set1(e.scale), v, residual);
    return mul(set1(e.scale), v);
}

// kLanes columns from `col`, of row `row`.
TREADLE_INLINE void write(const Output& out, int64_t row, int64_t col, F v) {
    const Epilogue& e = *out.epilogue;
    float* y = out.y + row * out.ldy + col;
    const float* residual = e.residual == nullptr ? nullptr : e.residual + row * e.ld_residual + col;
    if (col + kLanes <= out.cols) {
        store(y, finish(v, e, e.bias != nullptr ? load(e.bias + col) : zero(),
                        residual != nullptr ? load(residual) : zero()));
        return;
    }
    alignas(64) float b[kLanes] = {}, r[kLanes] = {}, t[kLanes];
    const int64_t n = out.cols - col;
    for (int64_t i = 0; i < n; ++i) {
        if (e.bias != nullptr) b[i] = e.bias[col + i];
        if (residual != nullptr) r[i] = residual[i];
    }
    store(t, finish(v, e, load(b), load(r)));
    for (int64_t i = 0; i < n; ++i) y[i] = t[i];
}

}  // namespace treadle::compute::TREADLE_ISA_NS
