// int8 matrix product: groups of matrix strips against tiles of quantised rows. Blocks of 32 columns ascend; each adds
// fma(f32(integer dot), weight scale * row scale, acc), then fma(minimum, row scale * row sum, acc).
#pragma once

#include "compute/isa/formats.hpp"
#include "compute/isa/panels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kDotStrips =
    kDotVectors > kParts ? kDotVectors / kParts : 1;  // strips of one register tile
static_assert(kDotVectors % kParts == 0 || kParts == 1, "a register tile holds whole strips");
inline constexpr int64_t kPanelBlocks = 20;
inline constexpr int64_t kUnpackedBytes = kDotStrips * kPanelBlocks * (512 + 128);

// Row tile of a quantised buffer, from some block on.
struct QuantTile {
    const std::byte* data;
    int64_t height;
};

TREADLE_INLINE QuantTile quant_tile(const std::byte* xq, int64_t rows, int64_t blocks, int64_t first_row,
                                    int64_t block) {
    const int64_t height = least(kTileHeight, rows - first_row);
    return {xq + (first_row * blocks + block * height) * kQuantRowBytes, height};
}

template <Offset kOffset>
TREADLE_INLINE I start(const int32_t* by_eight, const int32_t* by_bias) {
    if constexpr (kOffset == Offset::eight) return iset1(*by_eight);
    if constexpr (kOffset == Offset::signed_bias && kSignedBias != 0) return iset1(*by_bias);
    return iset1(0);
}

// Integer dots of rows [0, T) with all vectors of one block. The chains lie side by side to hide a dot's latency, and
// each broadcast of four activations serves every vector.
template <int T, class Strip>
TREADLE_INLINE void dot_block(const Strip* strips, int64_t block, const std::byte* quants,
                              I d[T][kDotVectors]) {
    constexpr bool kSigned = kSignedBytes<typename Strip::Type>;
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
        B w[2][kDotVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kDotVectors; ++v)
            strips[v / kParts].vectors(block, v % kParts, step, w[0][v], w[1][v]);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
                for (int v = 0; v < kDotVectors; ++v)
                    d[t][v] = dot<kSigned>(d[t][v], w[half][v], quants + t * kBlock + 4 * step + 16 * half);
    }
}

// Rows [row, row + T) of a tile against the strips, over `blocks` blocks.
template <int T, class Strip>
__attribute__((noinline)) void dot_tile(const Strip* strips, int64_t blocks, const QuantTile& x, int64_t row,
                                        const PanelEnds& ends) {
    using Format = typename Strip::Type;
    const int64_t height = x.height, record_bytes = height * kQuantRowBytes;
    const std::byte* quants = x.data + row * kBlock;
    const std::byte* sides = x.data + height * kBlock + row * 4;
    F acc[T][kDotVectors];
    begin_panel<T, kDotVectors>(ends, acc);
    for (int64_t block = 0; block < blocks; ++block, quants += record_bytes, sides += record_bytes) {
        const float* row_scale = reinterpret_cast<const float*>(sides);
        const float* row_sum = row_scale + height;
        const int32_t* by_eight = reinterpret_cast<const int32_t*>(row_sum + height);
        const int32_t* by_bias = by_eight + height;
        I d[T][kDotVectors];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int v = 0; v < kDotVectors; ++v) d[t][v] = start<Format::kOffset>(by_eight + t, by_bias + t);
        dot_block<T>(strips, block, quants, d);
#pragma GCC unroll 4
        for (int v = 0; v < kDotVectors; ++v) {
            F scale, minimum;
            strips[v / kParts].scales(block, v % kParts, scale, minimum);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                acc[t][v] = fma(to_float(d[t][v]), mul(scale, set1(row_scale[t])), acc[t][v]);
                if constexpr (Format::kHasMinimum) acc[t][v] = fma(minimum, set1(row_sum[t]), acc[t][v]);
            }
        }
    }
    end_panel<T, kDotVectors>(ends, acc);
}

template <int T, class Strip>
TREADLE_INLINE void dot_tile_of(int64_t count, const Strip* strips, int64_t blocks, const QuantTile& x,
                                int64_t row, const PanelEnds& ends) {
    if constexpr (T > 0) {
        if (count == T) dot_tile<T>(strips, blocks, x, row, ends);
        else dot_tile_of<T - 1>(count, strips, blocks, x, row, ends);
    }
}

// All rows of a tile, in even register tiles of at most kDotRows.
template <class Strip>
TREADLE_INLINE void whole_tile(const Strip* strips, int64_t blocks, const QuantTile& x, PanelEnds ends) {
    const int64_t parts = (x.height + kDotRows - 1) / kDotRows;
    int64_t row = 0;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t end = x.height * (part + 1) / parts;
        dot_tile_of<kDotRows>(end - row, strips, blocks, x, row, ends);
        ends.row += end - row;
        ends.stash_row += end - row;
        row = end;
    }
}

// Fetches packed bytes that are unpacked next, an even share with every row tile.
struct Ahead {
    const std::byte* at;
    int64_t distance;  // of two strips
    int64_t left;      // bytes of each strip
    int64_t share;

    void step() {
        const int64_t n = least(left, share);
        for (int i = 0; i < kDotStrips; ++i)
            for (int64_t b = 0; b < n; b += 64) prefetch(at + i * distance + b);
        at += n;
        left -= n;
    }
};

struct DotProduct {
    const PackedMatrix& w;
    const std::byte* xq;
    int64_t rows, blocks;
    Output out;
    std::byte* scratch;
};

// One group of strips against rows [row0, row1), panel by panel, unpacked into scratch. `more`: other strips follow.
template <class Format>
void dot_chunk(const DotProduct& p, const PackedStrip<Format>* packed, int64_t col, int64_t row0,
               int64_t row1, bool more) {
    const int64_t panel = panel_units(p.blocks, kPanelBlocks);
    const int64_t tiles = (row1 - row0 + kTileHeight - 1) / kTileHeight;
    float* stash = reinterpret_cast<float*>(p.scratch + kUnpackedBytes);
    UnpackedStrip<Format> strips[kDotStrips];
    for (int i = 0; i < kDotStrips; ++i)
        strips[i].data = p.scratch + i * kPanelBlocks * UnpackedStrip<Format>::kRecord;
    for (int64_t block = 0; block < p.blocks; block += panel) {
        const int64_t count = least(panel, p.blocks - block), next = block + count;
        const bool last = next == p.blocks;
        for (int i = 0; i < kDotStrips; ++i) strips[i].unpack_blocks(packed[i], block, count);
        Ahead ahead{packed[0].lines + next * Format::kLayout.line_bytes, p.w.strip_bytes,
                    least(panel, p.blocks - next) * Format::kLayout.line_bytes, 0};
        if (last && more) {
            ahead.at = packed[0].lines + kDotStrips * p.w.strip_bytes;
            ahead.left = panel == p.blocks ? p.w.strip_bytes : panel * Format::kLayout.line_bytes;
        }
        ahead.share = (ahead.left / tiles + 63) / 64 * 64;
        for (int64_t row = row0; row < row1; row += kTileHeight) {
            ahead.step();
            whole_tile(strips, count, quant_tile(p.xq, p.rows, p.blocks, row, block),
                       {stash, block == 0, last, row - row0, row, col, &p.out});
        }
    }
}

template <class Format>
void matmul_format(DotProduct p, int64_t strip0, int64_t strip1) {
    p.out.cols = least(p.out.cols, strip1 * kStripRows);
    const int64_t step = chunk_rows(p.blocks * kQuantRowBytes, kTileHeight);
    for (int64_t row0 = 0; row0 < p.rows; row0 += step)
        for (int64_t s = strip0; s < strip1; s += kDotStrips) {
            PackedStrip<Format>
                packed[kDotStrips];  // past the last strip: that one again, its results dropped
            for (int i = 0; i < kDotStrips; ++i) {
                const int64_t strip = least(s + i, strip1 - 1);
                packed[i] = PackedStrip<Format>(p.w.data + strip * p.w.strip_bytes, p.blocks);
            }
            if (p.rows > kDotRows) {
                const int64_t row1 = least(row0 + step, p.rows);
                dot_chunk(p, packed, s * kStripRows, row0, row1, s + 2 * kDotStrips <= strip1);
            } else {
                whole_tile(packed, p.blocks, QuantTile{p.xq, p.rows},
                           {nullptr, true, true, 0, 0, s * kStripRows, &p.out});
            }
        }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
