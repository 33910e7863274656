// The f32 register tile: R rows of a times V vectors of columns, one fma chain over ascending k for every element.
// Serves float weights, exact products, q . k and p . v.
#pragma once

#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Columns come in groups of 16; element (k, group g, lane i) is at base + k * step + g * group + i (in elements).
struct ColumnsF32 {
    const float* base;
    int64_t step, group;
    TREADLE_METHOD F at(int64_t k, int v) const {
        return load(base + k * step + v / kParts * group + v % kParts * kLanes);
    }
};
struct ColumnsF16 {
    const uint16_t* base;
    int64_t step, group;
    TREADLE_METHOD F at(int64_t k, int v) const {
        return load_f16(base + k * step + v / kParts * group + v % kParts * kLanes);
    }
};
struct ColumnsBf16 {
    const uint16_t* base;
    int64_t step, group;
    TREADLE_METHOD F at(int64_t k, int v) const {
        return load_bf16(base + k * step + v / kParts * group + v % kParts * kLanes);
    }
};
// Pairs of k beside each other: [k / 2][16][2].
struct ColumnsBf16Pairs {
    const uint16_t* base;
    int64_t step, group;  // step: of two k
    TREADLE_METHOD F at(int64_t k, int v) const {
        const uint16_t* p = base + k / 2 * step + v / kParts * group + v % kParts * kLanes * 2;
        return k % 2 == 0 ? load_bf16_even(p) : load_bf16_odd(p);
    }
};

// acc += column k of a[R rows, lda], which begins there, times the columns' row k.
template <int R, int V, class Columns>
TREADLE_INLINE void float_step(const float* a, int64_t lda, const Columns& columns, int64_t k, F acc[R][V]) {
    F b[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) b[v] = columns.at(k, v);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const F x = set1(a[r * lda]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = fma(x, b[v], acc[r][v]);
    }
}

struct Nothing {
    TREADLE_METHOD void step() const {}
};

// acc += a[R rows, lda] @ columns over k in [0, depth). aside.step() is called with every k.
template <int R, int V, class Columns, class Aside = const Nothing>
TREADLE_INLINE void float_tile(const float* a, int64_t lda, const Columns& columns, int64_t depth,
                               F acc[R][V], Aside& aside = {}) {
    for (int64_t k = 0; k < depth; ++k) {
        aside.step();
        float_step<R, V>(a + k, lda, columns, k, acc);
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
