// Integer dots where the ISA multiplies the bytes of two rows by two at once (AArch64's i8mm): 2 by 2 sums over 8 columns.
// They are the same integers as single dots give. Vectors have 4 lanes.
#pragma once

#include "compute/isa/formats.hpp"

#if defined(__ARM_FEATURE_MATMUL_INT8)

namespace treadle::compute::TREADLE_ISA_NS {

// Columns 8i .. 8i + 7 of the matrix rows in lanes 0 and 1, and in lanes 2 and 3.
struct Pairs {
    B low, high;
};

template <class Format>
TREADLE_INLINE Pairs pairs_of(const PackedStrip<Format>& strip, int64_t block, int part, int i) {
    const B first = strip.vector(block, part, 2 * i), second = strip.vector(block, part, 2 * i + 1);
    return {low_pair(first, second), high_pair(first, second)};
}
template <class Format>
TREADLE_INLINE Pairs pairs_of(const UnpackedStrip<Format>& strip, int64_t block, int part, int i) {
    return {strip.vector(block, part, 2 * i), strip.vector(block, part, 2 * i + 1)};
}

// The vectors of one block of an unpacked strip, as pairs_of() takes them.
template <class Format>
TREADLE_INLINE void unpack_pairs(const PackedStrip<Format>& strip, int64_t block, int part, std::byte* at) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Pairs pairs = pairs_of(strip, block, part, i);
        bstore(at + 128 * i, pairs.low);
        bstore(at + 128 * i + 64, pairs.high);
    }
}

// The second row of pair p of T rows. Of an odd count, the last row is a pair by itself.
template <int T>
TREADLE_INLINE int second_row(int p) {
    return 2 * p + 1 < T ? 2 * p + 1 : 2 * p;
}

// dot_block() in pairs; quants and starts are those of row 0.
template <int T, int V, class Strip>
TREADLE_INLINE void dot_pairs(const Strip* strips, int first, int64_t block, int half,
                              const std::byte* quants, const I (&starts)[T], I (&d)[T][V]) {
    constexpr int kPairs = (T + 1) / 2, kScales = Strip::Type::kScales;
    I low[kPairs][V], high[kPairs][V];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            low[p][v] = high[p][v] = pair_start(starts[2 * p], starts[second_row<T>(p)]);
#pragma GCC unroll 4
    for (int step = 0; step < 4 / kScales; ++step) {
        const int i = kScales == 2 ? 2 * half + step : step / 2 + step % 2 * 2;
        B x[kPairs];
#pragma GCC unroll 8
        for (int p = 0; p < kPairs; ++p)
            x[p] = load_pair(quants + 2 * p * kBlock + 8 * i, quants + second_row<T>(p) * kBlock + 8 * i);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Pairs w = pairs_of(strips[(first + v) / kParts], block, (first + v) % kParts, i);
#pragma GCC unroll 8
            for (int p = 0; p < kPairs; ++p) {
                low[p][v] = dot_pair(low[p][v], x[p], w.low);
                high[p][v] = dot_pair(high[p][v], x[p], w.high);
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            d[t][v] = t % 2 == 0 ? first_of_pair(low[t / 2][v], high[t / 2][v])
                                 : second_of_pair(low[t / 2][v], high[t / 2][v]);
}

}  // namespace treadle::compute::TREADLE_ISA_NS

#endif
