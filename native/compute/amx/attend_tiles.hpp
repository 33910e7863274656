// Pair chains of attention on matrix tiles (AMX): rows by positions by dimensions in tiles of 16 x 16 x 32. Keys and values
// of a split are interleaved in pairs once for all rows; scores and weights pass through memory, as the softmax needs them.
#pragma once

#include <immintrin.h>

#include "compute/amx/tile_config.hpp"
#include "compute/isa/attend_soften.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int64_t kTileRows = 16, kRowBlock = 2 * kTileRows;
static_assert(kLanes == 16 && kChunkRows % kRowBlock == 0 && kSplit % kRowBlock == 0);

// Few rows leave most of a tile empty; keys of an odd dimension and values of other than whole blocks have no tile form.
TREADLE_INLINE bool tiles_serve(const Work& w) {
    return w.rows > kTileRows / 2 && w.a.kv.key_dim % 2 == 0 && w.a.kv.value_dim % kBlock == 0;
}

// c[32, 32] = a[32, 32 * steps] @ b, as four tiles. b: two columns of tiles, `b_next` bytes apart; a step goes on by 64 bytes
// in a and by 1024 in b.
TREADLE_INLINE void multiply_block(const uint16_t* a, int64_t a_bytes, const std::byte* b, int64_t b_next,
                                   int64_t steps, float* c, int64_t c_bytes) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const auto* upper = reinterpret_cast<const std::byte*>(a);
    const std::byte* lower = upper + kTileRows * a_bytes;
    for (int64_t i = 0; i < steps; ++i) {
        _tile_loadd(4, upper + i * 64, a_bytes);
        _tile_loadd(6, b + i * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + b_next + i * 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + i * 64, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    auto* to = reinterpret_cast<std::byte*>(c);
    _tile_stored(0, to, c_bytes);
    _tile_stored(1, to + 64, c_bytes);
    _tile_stored(2, to + kTileRows * c_bytes, c_bytes);
    _tile_stored(3, to + kTileRows * c_bytes + 64, c_bytes);
}

// 16 pairs (a[i], b[i]) of two rows of 16 bf16.
TREADLE_INLINE __m512i interleaved(__m512i both) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                        21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                        11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}

// Keys of [range.first, range.end) of the split, range.first a multiple of 32: [groups of 16][depth / 2][16][2], up to a
// whole block of 32; dimensions past the last are zero.
TREADLE_INLINE void pair_keys(const Work& w, int64_t base, Range range, uint16_t* to) {
    const int64_t dim = w.a.kv.key_dim;
    for (int64_t i = range.first; i < range.end; i += 16) {
        const auto* from =
            reinterpret_cast<const uint16_t*>(w.pages.at(base + i)) + (base + i) % w.a.kv.page_len * dim;
        uint16_t* pairs = to + (i - range.first) * w.depth;
        for (int64_t d = 0; d < dim; d += 2)
            _mm512_storeu_si512(pairs + d * 16, interleaved(_mm512_loadu_si512(from + d * 16)));
        for (int64_t d = dim; d < w.depth; d += 2)
            _mm512_storeu_si512(pairs + d * 16, _mm512_setzero_si512());
    }
}

TREADLE_INLINE __m256i value_line(const Work& w, int64_t position, int64_t d, bool visible) {
    if (!visible) return _mm256_setzero_si256();
    const auto* from = reinterpret_cast<const uint16_t*>(w.pages.at(position) + w.pages.layout.values) +
                       position % w.a.kv.page_len * w.a.kv.value_dim + d;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Values of the same: [width / 16][positions / 2][16][2], `positions` those of whole blocks of 32; past range.end zero.
TREADLE_INLINE void pair_values(const Work& w, int64_t base, Range range, uint16_t* to) {
    const int64_t positions = round_up(range.end - range.first, kBlock);
    for (int64_t j = 0; j < positions; j += 2)
        for (int64_t d = 0; d < w.width; d += 16) {
            const int64_t i = range.first + j;
            const __m256i even = value_line(w, base + i, d, i < range.end);
            const __m256i odd = value_line(w, base + i + 1, d, i + 1 < range.end);
            _mm512_storeu_si512(to + d * positions + j * 16,
                                interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
        }
}

// The same of shared values: two groups of keys at a time, whose lines hold pairs of positions already.
TREADLE_INLINE void pair_shared_values(const Work& w, int64_t base, Range range, uint16_t* to) {
    const int64_t positions = round_up(range.end - range.first, kBlock), dim = w.a.kv.key_dim;
    const auto keys_of = [&](int64_t i) -> const uint16_t* {  // null past the last visible position
        if (i >= range.end) return nullptr;
        return reinterpret_cast<const uint16_t*>(w.pages.at(base + i)) + (base + i) % w.a.kv.page_len * dim;
    };
    const auto line = [](const uint16_t* keys, int64_t d) {
        if (keys == nullptr) return _mm256_setzero_si256();
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + d * 16));
    };
    for (int64_t j = 0; j < positions; j += kBlock) {
        const int64_t i = range.first + j;
        const uint16_t *first = keys_of(i), *second = keys_of(i + 16);
        for (int64_t d = 0; d < w.width; d += 16) {
            F lines[16];
            for (int k = 0; k < 16; ++k)
                lines[k] = _mm512_castsi512_ps(
                    _mm512_inserti64x4(_mm512_castsi256_si512(line(first, d + k)), line(second, d + k), 1));
            transpose(lines);
            for (int pair = 0; pair < 16; ++pair) {
                __m512i values = _mm512_castps_si512(lines[pair]);
                const int64_t left = range.end - i - 2 * pair;
                if (left < 2) values = _mm512_and_si512(values, _mm512_set1_epi32(left == 1 ? 0xffff : 0));
                _mm512_storeu_si512(to + d * positions + (j + 2 * pair) * 16, values);
            }
        }
    }
}

// Weights go where the scores were, as bf16.
struct NarrowWeights {
    uint16_t* row;
    TREADLE_METHOD void put(int64_t i, const V16& a, const V16& b) const {
        alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                            23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                            45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        _mm512_storeu_si512(
            row + i, _mm512_permutex2var_epi16(_mm512_castps_si512(a.part[0]), _mm512_load_si512(kUpper),
                                               _mm512_castps_si512(b.part[0])));
    }
};

// run_split() on tiles. Rows past the chunk's last are computed from what lies in the scratch, and never used.
template <class Chain>
void run_split_on_tiles(const Work& w, int64_t base, Range seen) {
    const Range all{seen.first / kBlock * kBlock, seen.end};
    auto* pairs = reinterpret_cast<uint16_t*>(w.unit);
    const auto* bytes = reinterpret_cast<const std::byte*>(w.unit);
    const TileConfig config(whole_tiles());
    const auto row_blocks = [&](auto body) {
        for (int64_t row = 0; row < w.rows; row += kRowBlock) {
            const Range range = w.seen(row, least(kRowBlock, w.rows - row), all);
            body(row, Range{range.first / kBlock * kBlock,
                            range.empty() ? range.first / kBlock * kBlock : round_up(range.end, kBlock)});
        }
    };
    pair_keys(w, base, all, pairs);
    row_blocks([&](int64_t row, Range blocks) {
        for (int64_t i = blocks.first; i < blocks.end; i += kBlock)
            multiply_block(w.narrow + row * w.depth, w.depth * 2, bytes + (i - all.first) * w.depth * 2,
                           16 * w.depth * 2, w.depth / kBlock, w.scores + row * kScoreStride + i,
                           kScoreStride * 4);
    });
    for (int64_t row = 0; row < w.rows; ++row) {
        float* scores = w.scores + row * kScoreStride;
        soften_row<Chain>(w, row, base, NarrowWeights{reinterpret_cast<uint16_t*>(scores)});
    }
    if (w.a.kv.shared) pair_shared_values(w, base, all, pairs);
    else pair_values(w, base, all, pairs);
    const int64_t group = round_up(all.end - all.first, kBlock) * 16 * 2;  // bytes of 16 dimensions
    row_blocks([&](int64_t row, Range blocks) {
        const auto* weights = reinterpret_cast<const uint16_t*>(w.scores + row * kScoreStride) + blocks.first;
        for (int64_t d = 0; d < w.width; d += kBlock)
            multiply_block(weights, kScoreStride * 4,
                           bytes + d / 16 * group + (blocks.first - all.first) * 32, group,
                           (blocks.end - blocks.first) / kBlock, w.part + row * w.stride + d, w.stride * 4);
    });
}

}  // namespace treadle::compute::TREADLE_ISA_NS
