// int8 matrix product: strips of 16 matrix rows against tiles of quantised rows. Blocks of 32 columns ascend; each adds
// fma(f32(integer dot), weight scale * row scale, acc), then fma(minimum, row scale * row sum, acc).
#pragma once

#include "compute/isa/epilogue.hpp"
#include "compute/isa/formats.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Row tile `tile` of a quantised buffer.
struct QuantTile {
    const std::byte* data;
    int64_t height;
};

TREADLE_INLINE QuantTile quant_tile(const std::byte* xq, int64_t rows, int64_t blocks, int64_t tile) {
    return {xq + tile * kTileHeight * blocks * kQuantRowBytes, least(kTileHeight, rows - tile * kTileHeight)};
}

template <Offset kOffset>
TREADLE_INLINE I start(const int32_t* by_eight, const int32_t* by_bias) {
    if constexpr (kOffset == Offset::eight) return iset1(*by_eight);
    if constexpr (kOffset == Offset::signed_bias && kSignedBias != 0) return iset1(*by_bias);
    return iset1(0);
}

// Rows [row, row + T) of the tile against `part` of the strip.
template <int T, class Strip>
TREADLE_INLINE void dot_tile(const Strip& strip, int part, int64_t blocks, const QuantTile& x, int64_t row, F acc[T]) {
    using Format = typename Strip::Type;
    constexpr bool kSignedDot = Format::kSigned && kSignedBias == 0;
    for (int t = 0; t < T; ++t) acc[t] = zero();
    const int64_t height = T == kTileHeight ? kTileHeight : x.height;
    const int64_t record_bytes = height * kQuantRowBytes;
    const std::byte* quants = x.data + row * kBlock;
    const std::byte* sides = x.data + height * kBlock + row * 4;
    for (int64_t block = 0; block < blocks; ++block, quants += record_bytes, sides += record_bytes) {
        B w[8];
        F scale, minimum;
        strip.load_block(block, part, w, scale, minimum);
        const float* row_scale = reinterpret_cast<const float*>(sides);
        const float* row_sum = row_scale + height;
        const int32_t* by_eight = reinterpret_cast<const int32_t*>(sides + 8 * height);
        const int32_t* by_bias = by_eight + height;
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            I d = start<Format::kOffset>(by_eight + t, by_bias + t);
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) d = dot<kSignedDot>(d, w[j], quants + t * kBlock + 4 * j);
            acc[t] = fma(to_float(d), mul(scale, set1(row_scale[t])), acc[t]);
            if constexpr (Format::kHasMinimum) acc[t] = fma(minimum, set1(row_sum[t]), acc[t]);
        }
    }
}

template <int T, class Strip>
__attribute__((noinline)) void tile_rows(const Strip& strip, int64_t blocks, const QuantTile& x, int64_t row,
                                         int64_t first_row, int64_t col, const Output& out) {
    for (int part = 0; part < kParts; ++part) {
        F acc[T];
        dot_tile<T>(strip, part, blocks, x, row, acc);
        if (col + part * kLanes >= out.cols) return;
        for (int t = 0; t < T; ++t) write(out, first_row + t, col + part * kLanes, acc[t]);
    }
}

// All rows of a tile, in register tiles of at most kTileRows.
template <class Strip>
TREADLE_INLINE void whole_tile(const Strip& strip, int64_t blocks, const QuantTile& x, int64_t first_row, int64_t col,
                          const Output& out) {
    int64_t row = 0;
    while (row < x.height) {
        const int64_t left = x.height - row;
        int64_t step = 1;
        if constexpr (kTileRows >= 16) { if (left >= 16) step = 16; }
        if constexpr (kTileRows >= 8) { if (step == 1 && left >= 8) step = 8; }
        if constexpr (kTileRows >= 4) { if (step == 1 && left >= 4) step = 4; }
        if constexpr (kTileRows >= 2) { if (step == 1 && left >= 2) step = 2; }
        if constexpr (kTileRows >= 16) { if (step == 16) tile_rows<16>(strip, blocks, x, row, first_row + row, col, out); }
        if constexpr (kTileRows >= 8) { if (step == 8) tile_rows<8>(strip, blocks, x, row, first_row + row, col, out); }
        if constexpr (kTileRows >= 4) { if (step == 4) tile_rows<4>(strip, blocks, x, row, first_row + row, col, out); }
        if constexpr (kTileRows >= 2) { if (step == 2) tile_rows<2>(strip, blocks, x, row, first_row + row, col, out); }
        if (step == 1) tile_rows<1>(strip, blocks, x, row, first_row + row, col, out);
        row += step;
    }
}

template <class Format>
void matmul_format(const PackedMatrix& w, int64_t strip0, int64_t strip1, const std::byte* xq, int64_t rows,
                   const Output& out, std::byte* scratch) {
    const int64_t blocks = w.cols / kBlock, tiles = (rows + kTileHeight - 1) / kTileHeight;
    const bool unpack = rows > kTileRows || (rows & (rows - 1)) != 0;  // else one register tile takes all rows
    for (int64_t s = strip0; s < strip1; ++s) {
        const PackedStrip<Format> packed(w.data + s * w.strip_bytes, blocks);
        if (!unpack) {
            whole_tile(packed, blocks, quant_tile(xq, rows, blocks, 0), 0, s * kStripRows, out);
            continue;
        }
        const UnpackedStrip<Format> strip{scratch};
        strip.unpack_blocks(packed, blocks);
        for (int64_t t = 0; t < tiles; ++t)
            whole_tile(strip, blocks, quant_tile(xq, rows, blocks, t), t * kTileHeight, s * kStripRows, out);
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
