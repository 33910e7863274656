// Blocks of four-bit codes to bf16, in two forms; a look-up makes a code a float. As pairs of columns, every column is
// converted. Row by row, where a row has only 16 values in a block, one fma and half a conversion make them all, and one
// permute puts 32 of them in place: two thirds of the time. Rows of 32 columns are what a matrix tile takes as its first
// operand, so that the sums come out transposed, which is worth it for few of them.
#pragma once

#include "compute/isa/bf16_product.hpp"
#include "compute/isa/fetch_block.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Columns [k, k + depth) of one strip, both multiples of 32, to [depth / 32][16 rows][32 columns]. What lies `ahead` bytes
// further is fetched into the second cache meanwhile.
using WidenRows = void (*)(const std::byte* strip, int64_t cols, int64_t k, int64_t depth, int64_t ahead,
                           uint16_t* dst);

struct CodeTable {
    alignas(64) float values[16];
    constexpr CodeTable(int offset) : values() {
        for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(i - offset);
    }
    constexpr CodeTable(const int8_t* codes) : values() {
        for (int i = 0; i < 16; ++i) values[i] = codes[i];
    }
};

// Blocks whose rows are worked on together: what one step stores has left the store buffer before the next reads it.
inline constexpr int64_t kTogether = 4;

struct BlockRows {
    alignas(64) float scales[kTogether][16], minima[kTogether][16];
    alignas(64) std::byte codes[kTogether][16 * 16];  // 16 bytes a row, row r at 64 (r % 4) + 16 (r / 4)
    alignas(64) uint16_t values[kTogether][16 * 16];  // 16 a row
};

// Four lines of 16 rows by four bytes become 16 rows of 16 bytes, bytes 2i and 2i + 1 of a row being i and i + 8 of the
// lines: columns i, i + 8, i + 16 and i + 24 are the nibbles of one word.
TREADLE_INLINE void gather_codes(const std::byte* lines, std::byte* codes) {
    const __m512i a = bload(lines), b = bload(lines + 64), c = bload(lines + 128), d = bload(lines + 192);
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    const __m512i turns =
        _mm512_broadcast_i32x4(_mm_set_epi8(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0));
    const auto put = [&](int at, __m512i rows) { bstore(codes + at, _mm512_shuffle_epi8(rows, turns)); };
    put(0, _mm512_unpacklo_epi64(ab0, cd0));
    put(64, _mm512_unpackhi_epi64(ab0, cd0));
    put(128, _mm512_unpacklo_epi64(ab1, cd1));
    put(192, _mm512_unpackhi_epi64(ab1, cd1));
}

// As widen_bf16.cpp has them.
template <class Format>
TREADLE_INLINE F values_of(F scale, F codes, F minimum) {
    if constexpr (Format::kHasMinimum) return fma(scale, codes, minimum);
    else if constexpr (Format::kLayout.head_bytes == 0) return flushed(mul(scale, codes), kSmallestBf16);
    else return mul(scale, codes);
}

// The 16 values of row `row`.
template <class Format>
TREADLE_INLINE F row_values(const BlockRows& rows, int64_t block, int row, F codes) {
    return values_of<Format>(set1(rows.scales[block][row]), codes, set1(rows.minima[block][row]));
}

template <class Format>
TREADLE_INLINE void tabulate_rows(BlockRows& rows, int64_t block, F codes) {
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        const __m512bh pair = _mm512_cvtne2ps_pbh(row_values<Format>(rows, block, r + 1, codes),
                                                  row_values<Format>(rows, block, r, codes));
        _mm512_store_si512(rows.values[block] + 16 * r, reinterpret_cast<__m512i>(pair));
    }
}

// Where the code of each of a row's columns lies in its word.
struct Expansion {
    alignas(64) uint16_t shifts[32];
    constexpr Expansion() : shifts() {
        for (int column = 0; column < 32; ++column)
            shifts[column] = static_cast<uint16_t>(column / 8 % 2 * 8 + column / 16 * 4);
    }
};
inline constexpr Expansion kExpansion;

// The permute reads the lowest five bits; the fifth is not the code's, so a row's values lie there twice.
TREADLE_INLINE void expand_rows(const BlockRows& rows, int64_t block, uint16_t* dst) {
    const __m512i shifts = _mm512_load_si512(kExpansion.shifts);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
        const auto* codes = reinterpret_cast<const __m128i*>(rows.codes[block] + 64 * (r % 4) + 16 * (r / 4));
        const auto* values = reinterpret_cast<const __m256i*>(rows.values[block] + 16 * r);
        const __m512i words = _mm512_broadcast_i32x4(_mm_load_si128(codes));
        _mm512_store_si512(dst + kBlock * r,
                           _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, shifts),
                                                    _mm512_broadcast_i64x4(_mm256_load_si256(values))));
    }
}

template <class Format, const CodeTable& kCodes>
void widen_rows(const std::byte* data, int64_t cols, int64_t k, int64_t depth, int64_t ahead, uint16_t* dst) {
    const PackedStrip<Format> strip(data, cols / kBlock);
    const F codes = load(kCodes.values);
    for (int64_t first = k / kBlock, end = (k + depth) / kBlock; first < end; first += kTogether) {
        BlockRows rows;
        const int64_t count = least(kTogether, end - first);
        for (int64_t i = 0; i < count; ++i) {
            F scale, minimum = zero();
            strip.scales(first + i, 0, 0, scale, minimum);
            store(rows.scales[i], scale);
            if constexpr (Format::kHasMinimum) store(rows.minima[i], minimum);
            gather_codes(strip.lines_of(first + i), rows.codes[i]);
            fetch_block(strip, first + i, ahead);
        }
        // GCC would take the first block's scales from the registers that were stored, one permute each, on the port that
        // all else here waits for.
        asm volatile("" : "+m"(rows));
        for (int64_t i = 0; i < count; ++i) tabulate_rows<Format>(rows, i, codes);
        for (int64_t i = 0; i < count; ++i, dst += kBlock * kStripRows) expand_rows(rows, i, dst);
    }
}

// WidenBf16 of such a type.
template <class Format, const CodeTable& kCodes>
void widen_pairs(const std::byte* data, int64_t cols, int64_t k, int64_t depth, int64_t ahead,
                 uint16_t* dst) {
    const PackedStrip<Format> strip(data, cols / kBlock);
    const F codes = load(kCodes.values);
    for (int64_t block = k / kBlock; block < (k + depth) / kBlock; ++block, dst += kTile) {
        fetch_block(strip, block, ahead);
        F scale, minimum = zero();
        strip.scales(block, 0, 0, scale, minimum);
#pragma GCC unroll 8
        for (int index = 0; index < 8; ++index) {
            const B line = bload(strip.lines_of(block) + 64 * (index % 4));
            F w[4];
#pragma GCC unroll 4
            for (unsigned i = 0; i < 4; ++i) {  // the permute reads the lowest four bits
                const __m512i code = _mm512_srli_epi32(line, 8 * i + (index < 4 ? 0 : 4));
                w[i] = values_of<Format>(scale, _mm512_permutexvar_ps(code, codes), minimum);
            }
            store_nearest_pairs(dst + 2 * index * kLine, w[0], w[1]);
            store_nearest_pairs(dst + 2 * index * kLine + kLine, w[2], w[3]);
        }
    }
}

struct FourBitWideners {
    WidenRows rows;
    WidenBf16 pairs;
};
template <class Format, const CodeTable& kCodes>
inline constexpr FourBitWideners kWideners{widen_rows<Format, kCodes>, widen_pairs<Format, kCodes>};

inline constexpr CodeTable kPlain(0), kCentred(8), kIQ4(kTableIQ4), kE2M1(kTableE2M1);

// Null for types of other widths.
inline FourBitWideners four_bit_wideners(DType type) {
    switch (type) {
        case DType::q4_0:
            return kWideners<FormatQ4_0, kCentred>;
        case DType::q4_1:
            return kWideners<FormatQ4_1, kPlain>;
        case DType::q4_k:
            return kWideners<FormatQ4_K, kPlain>;
        case DType::iq4_nl:
            return kWideners<FormatIQ4_NL, kIQ4>;
        case DType::iq4_xs:
            return kWideners<FormatIQ4_XS, kIQ4>;
        case DType::mxfp4:
            return kWideners<FormatMXFP4, kE2M1>;
        default:
            return {nullptr, nullptr};
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
