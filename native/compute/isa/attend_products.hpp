// The two products of attention, q . k and weights . values, in the two orders that numerics know:
//   FloatChain  one fma chain over ascending k
//   PairChain   of bf16 values: per block of 32 k a chain over the even and one over the odd ones, both from zero; their
//               sum is added to the result. It is what a matrix unit's bf16 tile product does. Operands below 2^-50 are
//               zero, so every intermediate is a multiple of 2^-114 and none is subnormal: a unit that flushes those gives
//               the same bits.
// Columns are f32 that was made ready, or elements as they lie in a page.
#pragma once

#include "compute/isa/float_tile.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// What is asked for while something else is multiplied, two lines a step, so that it is in the second cache when its turn
// comes: the pages of a sequence lie anywhere, and the processor's own look-ahead ends with each piece of them.
struct Fetch {
    const std::byte *at, *end;
    int64_t half;
    Fetch(const std::byte* from, const std::byte* to)
        : at(from), end(from + (to - from) / 2), half((to - from) / 2) {}
    TREADLE_METHOD void step() {
        prefetch(at);
        prefetch(at + half);
        at = at + 64 < end ? at + 64 : at;
    }
    void rest() const {
        for (const std::byte* p = at; p < end; p += 64) prefetch(p), prefetch(p + half);
    }
};

// The columns from (k, lane) on; `lane` is a multiple of the native vector.
template <class Columns>
TREADLE_INLINE Columns moved(const Columns& c, int64_t k, int64_t lane) {
    return {c.base + k * c.step + lane / 16 * c.group + lane % 16, c.step, c.group};
}

// q8_0 keys: [groups of 16][dim][16] quants, [groups][dim / 32][16] f16 scales. k: dimension, lane: position.
struct ColumnsQ8Keys {
    const int8_t* base;
    const uint16_t* scales;
    int64_t dim;
};
TREADLE_INLINE ColumnsQ8Keys moved(const ColumnsQ8Keys& c, int64_t k, int64_t lane) {
    return {c.base + k * 16 + lane / 16 * (c.dim * 16) + lane % 16,
            c.scales + k / kBlock * 16 + lane / 16 * (c.dim / kBlock * 16) + lane % 16, c.dim};
}
// Those of one block of 32 dimensions.
template <int V>
struct BlockQ8Keys {
    const int8_t* base;
    int64_t group;
    F scale[V];
    TREADLE_METHOD F at(int64_t k, int v) const {
        return mul(load_i8(base + k * 16 + v / kParts * group + v % kParts * kLanes), scale[v]);
    }
};

// q8_0 values: [positions][dim] quants, [positions][dim / 32] scales, widened to f32. k: position, lane: dimension.
struct ColumnsQ8Values {
    const int8_t* base;
    const float* scales;
    int64_t dim, lane;
    TREADLE_METHOD F at(int64_t k, int v) const {
        return mul(load_i8(base + k * dim + v * kLanes),
                   set1(scales[k * (dim / kBlock) + (lane + v * kLanes) / kBlock]));
    }
};
TREADLE_INLINE ColumnsQ8Values moved(const ColumnsQ8Values& c, int64_t k, int64_t lane) {
    return {c.base + k * c.dim + lane, c.scales + k * (c.dim / kBlock), c.dim, c.lane + lane};
}

template <int R, int V, class Columns>
TREADLE_INLINE void chain(const float* a, int64_t lda, const Columns& columns, int64_t depth, F acc[R][V],
                          Fetch& fetch) {
    float_tile<R, V>(a, lda, columns, depth, acc, fetch);
}
template <int R, int V>
TREADLE_INLINE void chain(const float* a, int64_t lda, const ColumnsQ8Keys& columns, int64_t depth,
                          F acc[R][V], Fetch& fetch) {
    for (int64_t k = 0; k < depth; k += kBlock) {
        const ColumnsQ8Keys here = moved(columns, k, 0);
        BlockQ8Keys<V> block{here.base, here.dim * 16, {}};
        for (int v = 0; v < V; ++v) block.scale[v] = load_f16(moved(here, 0, v * kLanes).scales);
        float_tile<R, V>(a + k, lda, block, kBlock, acc, fetch);
    }
}

struct FloatChain {
    static constexpr bool kPairs = false;
    static constexpr int vectors(int /*rows*/) { return kFloatVectors; }
    template <int R, int V, class Columns>
    TREADLE_INLINE void accumulate(const float* a, int64_t lda, const Columns& columns, int64_t depth,
                                   float* y, int64_t ldy, Fetch& fetch) {
        F acc[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) acc[r][v] = load(y + r * ldy + v * kLanes);
        chain<R, V>(a, lda, columns, depth, acc, fetch);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) store(y + r * ldy + v * kLanes, acc[r][v]);
    }
};

struct PairChain {
    static constexpr bool kPairs = true;
    static constexpr int vectors(int rows) {  // two accumulators an element
        return 2 * rows <= kFloatRows || kFloatVectors == 1 ? kFloatVectors : kFloatVectors / 2;
    }
    template <int R, int V, class Columns>
    TREADLE_INLINE void accumulate(const float* a, int64_t lda, const Columns& columns, int64_t depth,
                                   float* y, int64_t ldy, Fetch& fetch) {
        for (int64_t first = 0; first < depth; first += kBlock) {
            const int64_t steps = least(depth - first, kBlock);
            F even[R][V], odd[R][V];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) even[r][v] = odd[r][v] = zero();
            pair_tile<R, V>(a + first, lda, moved(columns, first, 0), steps, even, odd, fetch);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    float* to = y + r * ldy + v * kLanes;
                    store(to, add(load(to), add(even[r][v], odd[r][v])));
                }
        }
    }

  private:
    template <int R, int V, class Columns>
    TREADLE_INLINE void pair_tile(const float* a, int64_t lda, const Columns& columns, int64_t steps,
                                  F even[R][V], F odd[R][V], Fetch& fetch) {
        int64_t k = 0;
        for (; k + 2 <= steps; k += 2) {
            float_step<R, V>(a + k, lda, columns, k, even);
            fetch.step();
            float_step<R, V>(a + k + 1, lda, columns, k + 1, odd);
            fetch.step();
        }
        if (k < steps) float_step<R, V>(a + k, lda, columns, k, even);
    }
};

// y[R, ldy] += a[R, lda] @ `lanes` columns over k in [0, depth); whole tiles may reach beyond `lanes`, up to `room`.
template <class Chain, int R, int V, class Columns>
__attribute__((noinline)) void product_tile(const float* a, int64_t lda, const Columns& columns,
                                            int64_t depth, float* y, int64_t ldy, Fetch& fetch) {
    Fetch own = fetch;
    Chain::template accumulate<R, V>(a, lda, columns, depth, y, ldy, own);
    fetch = own;
}

template <class Chain, int R, class Columns>
TREADLE_INLINE void product_rows(const float* a, int64_t lda, const Columns& columns, int64_t depth,
                                 int64_t lanes, int64_t room, float* y, int64_t ldy, Fetch& fetch) {
    constexpr int kVectors = Chain::vectors(R), kWide = kVectors * kLanes;
    for (int64_t lane = 0; lane < lanes;) {
        const Columns from = moved(columns, 0, lane);
        if (lane + kWide <= room && lanes - lane > kWide / 2) {
            product_tile<Chain, R, kVectors>(a, lda, from, depth, y + lane, ldy, fetch);
            lane += kWide;
        } else {
            product_tile<Chain, R, 1>(a, lda, from, depth, y + lane, ldy, fetch);
            lane += kLanes;
        }
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
