// int8 matrix product: groups of matrix strips against tiles of quantised rows. Runs of columns that share a weight scale
// ascend (32 columns, or 16 in types with two scales a block); each adds fma(f32(integer dot), weight scale * row scale, acc),
// then, in types with a minimum, fma(minimum, row scale * row sum, acc).
#pragma once

#include <type_traits>

#include "compute/isa/dot_pairs.hpp"
#include "compute/isa/formats.hpp"
#include "compute/isa/panels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kDotStrips =
    kDotVectors > kParts ? kDotVectors / kParts : 1;  // strips of one register tile
static_assert(kDotVectors % kParts == 0 || kParts == 1, "a register tile holds whole strips");
inline constexpr int64_t kPanelBlocks = 20;
inline constexpr int64_t kUnpackedBytes = kDotStrips * kPanelBlocks * (512 + 4 * 64);

// Row tile of a quantised buffer, from some block on.
struct QuantTile {
    const std::byte* data;
    const std::byte* halves;
    int64_t height;
};

TREADLE_INLINE QuantTile quant_tile(const std::byte* xq, int64_t rows, int64_t blocks, int64_t first_row,
                                    int64_t block) {
    const int64_t height = least(kTileHeight, rows - first_row);
    const int64_t before = first_row * blocks + block * height;
    return {xq + before * kQuantRowBytes, xq + rows * blocks * kQuantRowBytes + before * kHalvesRowBytes,
            height};
}

// What rows bring to one run of columns beside their quants; element t is row t's.
struct RowSides {
    const float* scale;
    const float* scaled_sum;  // row scale * row sum
    const int32_t* starts;
};

// Of the rows from `row` on, for part `half` of a block.
template <class Format>
TREADLE_INLINE RowSides row_sides(const QuantTile& x, int64_t block, int64_t row, int half) {
    const int64_t height = x.height;
    const std::byte* record = x.data + block * height * kQuantRowBytes + height * kBlock;
    const float *scale = reinterpret_cast<const float*>(record) + row, *scaled_sum = scale + height;
    const int32_t* starts = reinterpret_cast<const int32_t*>(scale + 2 * height);
    if constexpr (Format::kScales == 2) {
        const std::byte* halves = x.halves + block * height * kHalvesRowBytes;
        starts = reinterpret_cast<const int32_t*>(halves) + half * height + row;
        scaled_sum = reinterpret_cast<const float*>(halves) + (2 + half) * height + row;
    } else if constexpr (Format::kOffset == Offset::signed_bias) {
        starts += height;
    }
    return {scale, scaled_sum, starts};
}

template <class Format>
TREADLE_INLINE I start(const int32_t* from) {
    static_assert((Format::kOffset == Offset::thirty_two) == (Format::kScales == 2 && !Format::kHasMinimum),
                  "the halves' integers are -32 * sum");
    if constexpr (kByteOffset<Format> == 0) return iset1(0);
    const I value = iset1(*from);
    return Format::kOffset == Offset::sixteen ? iadd(value, value) : value;
}

// Prefetching for strips that are unpacked panel by panel: packed bytes that are read next, a few lines of each strip with
// every block.
struct PanelAhead {
    const std::byte* at = nullptr;
    int64_t distance = 0;  // of two strips
    int64_t left = 0;      // lines of each strip
    int64_t share = 0;     // lines a block

    // `bytes` of each strip over `steps` blocks.
    static TREADLE_METHOD PanelAhead over(const std::byte* from, int64_t distance, int64_t bytes,
                                          int64_t steps) {
        const int64_t lines = (bytes + 63) / 64;
        return {from, distance, lines, (lines + steps - 1) / steps};
    }
    TREADLE_METHOD void step(int64_t /*block*/) {
        for (int64_t i = least(share, left); i > 0; --i, --left, at += 64)
            for (int strip = 0; strip < kDotStrips; ++strip) prefetch(at + strip * distance);
    }
};

// Prefetching for strips that are read as they are packed: what comes some KB later, past their end from as many strips that
// follow. Memory is slower than the work on a block, so what counts is that reads are always in flight: every line is asked
// for. Superblocks that lie in one piece go to the first cache, where a load does not need a place among those reads.
template <class Format>
struct StripAhead {
    static constexpr BlockLayout kLayout = Format::kLayout;
    static constexpr int64_t kNear = 2560, kFar = 3072;  // bytes
    static constexpr int64_t kGroup = 8;  // side records asked for together, where they lie apart
    const PackedStrip<Format>* first;
    int64_t blocks, strip_bytes;
    int strips;

    TREADLE_METHOD void step(int64_t block) const {
        if constexpr (kLayout.together()) {
            constexpr int64_t kShare = kLayout.lines_stride() / kLayout.blocks();  // of a block
            const int64_t at = block * kShare + kNear;
            fetch<kShare, prefetch_near>(first->lines + at + (at < strip_bytes ? 0 : skipped()));
        } else {
            constexpr int64_t kBytes = kLayout.line_bytes;
            const int64_t at = block + kFar / kBytes, group = (block / kGroup + 1) * kGroup;
            fetch<kBytes, prefetch>(first->lines + at * kBytes +
                                    (at < blocks ? 0 : skipped() + strip_bytes - blocks * kBytes));
            if (block % kGroup == 0)
                fetch<kGroup * kLayout.side_record(), prefetch>(
                    first->sides +
                    (group < blocks ? group * kLayout.side_record() : skipped() + strip_bytes));
        }
    }

  private:
    // From the end of the first strip to what is read after the last.
    TREADLE_METHOD int64_t skipped() const { return (strips - 1) * strip_bytes; }

    template <int64_t kBytes, void (*kPrefetch)(const void*)>
    TREADLE_METHOD void fetch(const std::byte* from) const {
        for (int strip = 0; strip < strips; ++strip)
#pragma GCC unroll 8
            for (int64_t at = 0; at < kBytes; at += 64) kPrefetch(from + strip * strip_bytes + at);
    }
};

// Integer dots of rows [0, T) with V vectors of one block (its part `half`), from vector `first` of the strips on. The
// chains lie side by side to hide a dot's latency, and each broadcast of four activations serves every vector.
template <int T, int V, class Strip>
TREADLE_INLINE void dot_block(const Strip* strips, int first, int64_t block, int half,
                              const std::byte* quants, const I (&starts)[T], I (&d)[T][V]) {
    using Format = typename Strip::Type;
    constexpr bool kPacked = std::is_same_v<Strip, PackedStrip<Format>>;
    if constexpr (kPairedDots && !(T == 1 && kPacked))
        return dot_pairs(strips, first, block, half, quants, starts, d);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) d[t][v] = starts[t];
#pragma GCC unroll 8
    for (int i = 0; i < 8 / Format::kScales; ++i) {
        const int index = Format::kScales == 2 ? 4 * half + i : in_line_order(i);
        B w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            w[v] = strips[(first + v) / kParts].vector(block, (first + v) % kParts, index);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                d[t][v] = dot<kSignedBytes<Format>>(d[t][v], w[v], quants + t * kBlock + 4 * index);
    }
}

// Rows [row, row + T) of a tile against V vectors of the strips, over `blocks` blocks.
template <int T, int V, class Strip, class Ahead>
__attribute__((noinline)) void dot_tile(const Strip* strips, int first, int64_t blocks, const QuantTile& x,
                                        int64_t row, const PanelEnds& ends, Ahead& ahead_of_all) {
    using Format = typename Strip::Type;
    Ahead ahead = ahead_of_all;
    F acc[T][V];
    begin_panel<T, V>(ends, acc);
    for (int64_t block = 0; block < blocks; ++block) {
        const std::byte* quants = x.data + block * x.height * kQuantRowBytes + row * kBlock;
        ahead.step(block);
#pragma GCC unroll 2
        for (int half = 0; half < Format::kScales; ++half) {
            const RowSides sides = row_sides<Format>(x, block, row, half);
            I starts[T], d[T][V];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) starts[t] = start<Format>(sides.starts + t);
            dot_block(strips, first, block, half, quants, starts, d);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                F scale, minimum;
                strips[(first + v) / kParts].scales(block, (first + v) % kParts, half, scale, minimum);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) {
                    acc[t][v] = fma(to_float(d[t][v]), mul(scale, set1(sides.scale[t])), acc[t][v]);
                    if constexpr (Format::kHasMinimum)
                        acc[t][v] = fma(minimum, set1(sides.scaled_sum[t]), acc[t][v]);
                }
            }
        }
    }
    end_panel<T, V>(ends, acc);
    ahead_of_all = ahead;
}

template <int T, int Least, int V, class Strip, class Ahead>
TREADLE_INLINE void dot_tile_of(int64_t count, const Strip* strips, int first, int64_t blocks,
                                const QuantTile& x, int64_t row, const PanelEnds& ends, Ahead& ahead) {
    if constexpr (T >= Least) {
        if (count == T) dot_tile<T, V>(strips, first, blocks, x, row, ends, ahead);
        else dot_tile_of<T - 1, Least, V>(count, strips, first, blocks, x, row, ends, ahead);
    }
}

// Register tiles that cover a row tile of this height.
TREADLE_INLINE int64_t register_tiles(int64_t height) { return (height + kDotRows - 1) / kDotRows; }

// All rows of a tile, in even register tiles of at most kDotRows.
template <class Strip, class Ahead>
TREADLE_INLINE void whole_tile(const Strip* strips, int64_t blocks, const QuantTile& x, PanelEnds ends,
                               Ahead& ahead) {
    const int64_t parts = register_tiles(x.height);
    int64_t row = 0;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t end = x.height * (part + 1) / parts;
        dot_tile_of<kDotRows, 1, kDotVectors>(end - row, strips, 0, blocks, x, row, ends, ahead);
        ends.row += end - row;
        ends.stash_row += end - row;
        row = end;
    }
}

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
    const int64_t tiles = (row1 - row0 + kTileHeight - 1) / kTileHeight * register_tiles(kTileHeight);
    float* stash = reinterpret_cast<float*>(p.scratch + kUnpackedBytes);
    UnpackedStrip<Format> strips[kDotStrips];
    for (int i = 0; i < kDotStrips; ++i)
        strips[i].data = p.scratch + i * kPanelBlocks * UnpackedStrip<Format>::kRecord;
    for (int64_t block = 0; block < p.blocks; block += panel) {
        const int64_t count = least(panel, p.blocks - block), next = block + count;
        const bool last = next == p.blocks;
        for (int i = 0; i < kDotStrips; ++i) strips[i].unpack_blocks(packed[i], block, count);
        const std::byte* from = packed[0].lines_of(next);
        int64_t bytes = packed[0].lines_of(least(next + panel, p.blocks)) - from;
        if (last && more) {
            from = packed[0].lines + kDotStrips * p.w.strip_bytes;
            bytes = panel == p.blocks ? p.w.strip_bytes : packed[0].lines_of(panel) - packed[0].lines;
        }
        PanelAhead ahead = PanelAhead::over(from, p.w.strip_bytes, bytes, tiles * count);
        for (int64_t row = row0; row < row1; row += kTileHeight)
            whole_tile(strips, count, quant_tile(p.xq, p.rows, p.blocks, row, block),
                       {stash, block == 0, last, row - row0, row, col, &p.out}, ahead);
    }
}

// Few rows: one register tile takes them all, straight from the packed strips.
template <class Format>
void dot_few(const DotProduct& p, const PackedStrip<Format>* packed, int64_t col) {
    const QuantTile x = quant_tile(p.xq, p.rows, p.blocks, 0, 0);
    StripAhead<Format> ahead{packed, p.blocks, p.w.strip_bytes, kDotStrips};
    if (p.rows <= kDotRows)
        return whole_tile(packed, p.blocks, x, {nullptr, true, true, 0, 0, col, &p.out}, ahead);
    for (int v = 0; v < kDotStrips * kParts && col + v * kLanes < p.out.cols; ++v) {
        ahead = {packed + v / kParts, p.blocks, p.w.strip_bytes, v % kParts == 0 ? 1 : 0};
        dot_tile_of<kWideRows, kDotRows + 1, 1>(p.rows, packed, v, p.blocks, x, 0,
                                                {nullptr, true, true, 0, 0, col + v * kLanes, &p.out}, ahead);
    }
}

template <class Format>
void matmul_format(DotProduct p, int64_t strip0, int64_t strip1) {
    p.out.cols = least(p.out.cols, strip1 * kStripRows);
    const bool few = p.rows <= kDotRows || p.rows <= kWideRows;
    const int64_t step = chunk_rows(p.blocks * kQuantRowBytes, kTileHeight);
    for (int64_t row0 = 0; row0 < p.rows; row0 += step)
        for (int64_t s = strip0; s < strip1; s += kDotStrips) {
            PackedStrip<Format>
                packed[kDotStrips];  // past the last strip: that one again, its results dropped
            for (int i = 0; i < kDotStrips; ++i) {
                const int64_t strip = least(s + i, strip1 - 1);
                packed[i] = PackedStrip<Format>(p.w.data + strip * p.w.strip_bytes, p.blocks);
            }
            if (few) dot_few(p, packed, s * kStripRows);
            else
                dot_chunk(p, packed, s * kStripRows, row0, least(row0 + step, p.rows),
                          s + 2 * kDotStrips <= strip1);
        }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
