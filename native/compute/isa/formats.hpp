// How each block type unpacks: 32 columns of kLanes matrix rows become eight byte vectors (vector j: columns 4j..4j+3 of
// every row), and a scale and, for some types, a minimum for each of kScales equal parts of the columns. A new type is one
// struct here, its layout in layout.hpp and a packer in pack.cpp.
#pragma once

#include "compute/layout.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// What the unpacked bytes hold beyond the weight's own integer, and so where the integer accumulator starts.
enum class Offset { none, eight, sixteen, thirty_two, signed_bias };

// Vectors in the order 0, 4, 1, 5, ...: those that share a nibble line follow each other, and one load serves both.
TREADLE_INLINE int in_line_order(int i) { return i / 2 + i % 2 * 4; }

// Planes of a block's lines (layout.hpp); `index` of the vector is a constant wherever loops are unrolled.
TREADLE_INLINE B plane_line(const std::byte* plane, int part, int line) {
    return bload(plane + 64 * line + 4 * kLanes * part);
}
TREADLE_INLINE B nibbles_of(const std::byte* plane, int part, int index) {
    const B line = plane_line(plane, part, index % 4);
    return index < 4 ? low_nibbles(line) : high_nibbles(line);
}
// Two bits (one bit) of vector `index`, moved to bits `to` and up; the other bits are to be masked off.
TREADLE_INLINE B pairs_of(const std::byte* plane, int part, int index, int to) {
    return move_bits(plane_line(plane, part, index / 4), to - 2 * (index % 4));
}
TREADLE_INLINE B bits_of(const std::byte* plane, int part, int index, int to) {
    return move_bits(plane_line(plane, part, 0), to - index);
}

struct NibbleLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return nibbles_of(lines, part, index);
    }
};

struct FiveBitLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return insert_bits(nibbles_of(lines, part, index), bits_of(lines + 256, part, index, 4), 16);
    }
};

struct SixBitLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return insert_bits(nibbles_of(lines, part, index), pairs_of(lines + 256, part, index, 4), 48);
    }
};

struct TwoBitLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return and_bits(pairs_of(lines, part, index, 0), 3);
    }
};

// Eight times the code, so that its offset of 4 becomes 32.
struct ThreeBitLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return insert_bits(and_bits(pairs_of(lines, part, index, 3), 24),
                           bits_of(lines + 128, part, index, 5), 32);
    }
};

struct ByteLines {
    static constexpr bool kSigned = true;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return from_signed(plane_line(lines, part, index));
    }
};

template <const int8_t* kTable>
struct TableLines {
    static constexpr bool kSigned = true;
    TREADLE_INLINE B vector(const std::byte* lines, int part, int index) {
        return lookup(from_signed(table16(kTable)), nibbles_of(lines, part, index));
    }
};

inline constexpr int8_t kTableIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t kTableE2M1[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                          0, -1, -2, -3, -4, -6, -8, -12};  // doubled

// The side record of a superblock and the bytes in it that are a block's, both from lane `part` * kLanes on.
struct Side {
    const std::byte* head;
    const std::byte* block;
    TREADLE_METHOD F scale() const { return load_f16(reinterpret_cast<const uint16_t*>(head)); }
    TREADLE_METHOD F minimum() const { return load_f16(reinterpret_cast<const uint16_t*>(head + 32)); }
    TREADLE_METHOD F byte(int field) const { return to_float(iload_u8(block + 16 * field)); }
    TREADLE_METHOD F signed_byte(int field) const { return to_float(iload_i8(block + 16 * field)); }
};

// scales(): of part `half` of a block. Every product here is exact in f32.
struct HalfPrecisionScale {
    static constexpr int kScales = 1;
    static constexpr bool kHasMinimum = false;
    TREADLE_INLINE void scales(const Side& side, int, F& scale, F&) { scale = side.scale(); }
};

struct HalfPrecisionScaleMinimum {
    static constexpr int kScales = 1;
    static constexpr bool kHasMinimum = true;
    TREADLE_INLINE void scales(const Side& side, int, F& scale, F& minimum) {
        scale = side.scale();
        minimum = side.minimum();
    }
};

struct ByteScaleMinimum {
    static constexpr int kScales = 1;
    static constexpr bool kHasMinimum = true;
    TREADLE_INLINE void scales(const Side& side, int, F& scale, F& minimum) {
        scale = mul(side.scale(), side.byte(0));
        minimum = mul(side.minimum(), side.byte(1));
    }
};

struct ByteScale {
    static constexpr int kScales = 1;
    static constexpr bool kHasMinimum = false;
    TREADLE_INLINE void scales(const Side& side, int, F& scale, F&) {
        scale = mul(side.scale(), side.signed_byte(0));
    }
};

// 2^(e - 128) for a byte e; in two factors, since the smallest results are subnormal.
struct PowerScale {
    static constexpr int kScales = 1;
    static constexpr bool kHasMinimum = false;
    TREADLE_INLINE void scales(const Side& side, int, F& scale, F&) {
        const I e = iload_u8(side.block), half = iright(e, 1);
        const F tiny = set1(0x1p-64f);
        scale =
            mul(scale_by_low_bits(tiny, from_bits(half)), scale_by_low_bits(tiny, from_bits(isub(e, half))));
    }
};

struct TwoByteScales {
    static constexpr int kScales = 2;
    static constexpr bool kHasMinimum = false;
    TREADLE_INLINE void scales(const Side& side, int half, F& scale, F&) {
        scale = mul(side.scale(), side.signed_byte(half));
    }
};

struct TwoByteScalesOfEight {
    static constexpr int kScales = 2;
    static constexpr bool kHasMinimum = false;
    TREADLE_INLINE void scales(const Side& side, int half, F& scale, F&) {
        scale = mul(mul(side.scale(), set1(0.125f)), side.signed_byte(half));
    }
};

// A byte for each half: scale in the low nibble, minimum in the high one.
struct TwoNibbleScalesMinima {
    static constexpr int kScales = 2;
    static constexpr bool kHasMinimum = true;
    TREADLE_INLINE void scales(const Side& side, int half, F& scale, F& minimum) {
        const I both = iload_u8(side.block + 16 * half);
        scale = mul(side.scale(), to_float(iand(both, iset1(15))));
        minimum = mul(side.minimum(), to_float(iright(both, 4)));
    }
};

template <DType kType, class Lines, class Scales, Offset kBias>
struct Format : Lines, Scales {
    static constexpr BlockLayout kLayout = layout_of(kType);
    static constexpr Offset kOffset = kBias;
};

using FormatQ4_0 = Format<DType::q4_0, NibbleLines, HalfPrecisionScale, Offset::eight>;
using FormatQ4_1 = Format<DType::q4_1, NibbleLines, HalfPrecisionScaleMinimum, Offset::none>;
using FormatQ5_0 = Format<DType::q5_0, FiveBitLines, HalfPrecisionScale, Offset::sixteen>;
using FormatQ5_1 = Format<DType::q5_1, FiveBitLines, HalfPrecisionScaleMinimum, Offset::none>;
using FormatQ8_0 = Format<DType::q8_0, ByteLines, HalfPrecisionScale, Offset::signed_bias>;
using FormatQ2_K = Format<DType::q2_k, TwoBitLines, TwoNibbleScalesMinima, Offset::none>;
using FormatQ3_K = Format<DType::q3_k, ThreeBitLines, TwoByteScalesOfEight, Offset::thirty_two>;
using FormatQ4_K = Format<DType::q4_k, NibbleLines, ByteScaleMinimum, Offset::none>;
using FormatQ5_K = Format<DType::q5_k, FiveBitLines, ByteScaleMinimum, Offset::none>;
using FormatQ6_K = Format<DType::q6_k, SixBitLines, TwoByteScales, Offset::thirty_two>;
using FormatIQ4_NL = Format<DType::iq4_nl, TableLines<kTableIQ4>, HalfPrecisionScale, Offset::signed_bias>;
using FormatIQ4_XS = Format<DType::iq4_xs, TableLines<kTableIQ4>, ByteScale, Offset::signed_bias>;
using FormatMXFP4 = Format<DType::mxfp4, TableLines<kTableE2M1>, PowerScale, Offset::signed_bias>;

// Reads blocks straight from a packed strip.
template <class Format>
struct PackedStrip {
    using Type = Format;
    static constexpr BlockLayout kLayout = Format::kLayout;
    static constexpr int64_t kBlocks = kLayout.blocks();  // of a superblock
    const std::byte* lines;
    const std::byte* sides;

    PackedStrip() = default;
    PackedStrip(const std::byte* strip, int64_t blocks)
        : lines(strip), sides(strip + kLayout.sides_at(blocks / kBlocks)) {}

    TREADLE_METHOD const std::byte* lines_of(int64_t block) const {
        return lines + block / kBlocks * kLayout.lines_stride() + block % kBlocks * kLayout.line_bytes;
    }
    TREADLE_METHOD B vector(int64_t block, int part, int index) const {
        return Format::vector(lines_of(block), part, index);
    }
    TREADLE_METHOD void scales(int64_t block, int part, int half, F& scale, F& minimum) const {
        const std::byte* record = sides + block / kBlocks * kLayout.side_stride();
        const std::byte* own = record + kLayout.head_bytes + block % kBlocks * kLayout.side_bytes;
        Format::scales({record + 2 * kLanes * part, own + kLanes * part}, half, scale, minimum);
    }
};

// Reads blocks that unpack_blocks() has laid out: per block eight 64-byte vectors (rearranged by unpack_pairs() where
// kPairedDots), then 16 f32 scales for each of kScales parts, then 16 f32 minima for each.
template <class Format>
struct UnpackedStrip {
    using Type = Format;
    static constexpr int64_t kMinima = 512 + 64 * Format::kScales;
    static constexpr int64_t kRecord = kMinima + (Format::kHasMinimum ? 64 * Format::kScales : 0);
    std::byte* data;

    TREADLE_METHOD B vector(int64_t block, int part, int index) const {
        return bload(data + block * kRecord + 64 * index + 4 * kLanes * part);
    }
    TREADLE_METHOD void scales(int64_t block, int part, int half, F& scale, F& minimum) const {
        const std::byte* side = data + block * kRecord + 64 * half + 4 * kLanes * part;
        scale = load(reinterpret_cast<const float*>(side + 512));
        if constexpr (Format::kHasMinimum) minimum = load(reinterpret_cast<const float*>(side + kMinima));
    }

    // Blocks [first, first + count) of the strip become blocks [0, count) here.
    void unpack_blocks(const PackedStrip<Format>& strip, int64_t first_block, int64_t count) const {
        for (int64_t block = 0; block < count; ++block)
            for (int part = 0; part < kParts; ++part) {
                std::byte* at = data + block * kRecord + 4 * kLanes * part;
                if constexpr (kPairedDots) {
                    unpack_pairs(strip, first_block + block, part, at);
                } else {
#pragma GCC unroll 8
                    for (int i = 0; i < 8; ++i)
                        bstore(at + 64 * in_line_order(i),
                               strip.vector(first_block + block, part, in_line_order(i)));
                }
#pragma GCC unroll 2
                for (int half = 0; half < Format::kScales; ++half) {
                    F scale, minimum;
                    strip.scales(first_block + block, part, half, scale, minimum);
                    store(reinterpret_cast<float*>(at + 512 + 64 * half), scale);
                    if constexpr (Format::kHasMinimum)
                        store(reinterpret_cast<float*>(at + kMinima + 64 * half), minimum);
                }
            }
    }
};

template <class Format>
inline constexpr int kByteOffset = Format::kOffset == Offset::eight        ? 8
                                   : Format::kOffset == Offset::sixteen    ? 16
                                   : Format::kOffset == Offset::thirty_two ? 32
                                   : Format::kOffset == Offset::none       ? 0
                                                                           : kSignedBias;
template <class Format>
inline constexpr bool kSignedBytes = Format::kSigned && kSignedBias == 0;

// Dequantises blocks [first_block, first_block + count) of a strip exactly to [columns][16] f32.
template <class Format>
void dequantise_blocks(const PackedStrip<Format>& strip, int64_t first_block, int64_t count, float* dst) {
    for (int64_t block = first_block; block < first_block + count; ++block)
        for (int part = 0; part < kParts; ++part) {
            F scale, minimum;
            float* at = dst + (block - first_block) * kBlock * 16 + kLanes * part;
#pragma GCC unroll 8
            for (int index = 0; index < 8; ++index) {
                if (index % (8 / Format::kScales) == 0)
                    strip.scales(block, part, index / 4 % Format::kScales, scale, minimum);
                const B bytes = strip.vector(block, part, index);
                for (int i = 0; i < 4; ++i) {
                    const F q =
                        to_float(iadd(byte_of<kSignedBytes<Format>>(bytes, i), iset1(-kByteOffset<Format>)));
                    F v;
                    if constexpr (Format::kHasMinimum) v = fma(scale, q, minimum);
                    else v = mul(scale, q);
                    store(at + (4 * index + i) * 16, v);
                }
            }
        }
}

// Dequantises one row (lane) of a strip exactly to dst[cols].
template <class Format>
void dequantise_row(const PackedStrip<Format>& strip, int64_t lane, int64_t blocks, float* dst) {
    const int part = static_cast<int>(lane / kLanes);
    const int64_t in_part = lane % kLanes;
    for (int64_t block = 0; block < blocks; ++block) {
        alignas(64) float scales[kLanes], minima[kLanes];
#pragma GCC unroll 8
        for (int index = 0; index < 8; ++index) {
            if (index % (8 / Format::kScales) == 0) {
                F scale, minimum = zero();
                strip.scales(block, part, index / 4 % Format::kScales, scale, minimum);
                store(scales, scale);
                store(minima, minimum);
            }
            alignas(64) std::byte bytes[4 * kLanes];
            bstore(bytes, strip.vector(block, part, index));
            for (int i = 0; i < 4; ++i) {
                const std::byte raw = bytes[4 * in_part + i];
                const int q = kSignedBytes<Format> ? static_cast<int8_t>(raw) : static_cast<uint8_t>(raw);
                const float value = static_cast<float>(q - kByteOffset<Format>);
                dst[block * kBlock + 4 * index + i] =
                    Format::kHasMinimum ? __builtin_fmaf(scales[in_part], value, minima[in_part])
                                        : scales[in_part] * value;
            }
        }
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
