// How each block type unpacks: 32 columns of kLanes matrix rows become eight byte vectors (vector j: columns 4j..4j+3 of
// every row), a scale and, for some types, a minimum a row. A new type is one struct here and a packer in pack.cpp.
#pragma once

#include "compute/layout.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// What the unpacked bytes hold beyond the weight's own integer, and so where the integer accumulator starts.
enum class Offset { none, eight, signed_bias };

struct NibbleLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE void unpack(const std::byte* lines, int part, B w[8]) {
        for (int j = 0; j < 4; ++j) {
            B line = bload(lines + 64 * j + 4 * kLanes * part);
            w[j] = low_nibbles(line);
            w[4 + j] = high_nibbles(line);
        }
    }
};

struct ByteLines {
    static constexpr bool kSigned = true;
    TREADLE_INLINE void unpack(const std::byte* lines, int part, B w[8]) {
        for (int j = 0; j < 8; ++j) w[j] = from_signed(bload(lines + 64 * j + 4 * kLanes * part));
    }
};

struct FormatQ4_0 : NibbleLines {
    static constexpr BlockLayout kLayout = kLayoutQ4_0;
    static constexpr Offset kOffset = Offset::eight;
    static constexpr bool kHasMinimum = false;
};

struct FormatQ4_1 : NibbleLines {
    static constexpr BlockLayout kLayout = kLayoutQ4_1;
    static constexpr Offset kOffset = Offset::none;
    static constexpr bool kHasMinimum = true;
};

struct FormatQ8_0 : ByteLines {
    static constexpr BlockLayout kLayout = kLayoutQ8_0;
    static constexpr Offset kOffset = Offset::signed_bias;
    static constexpr bool kHasMinimum = false;
};

// Reads blocks straight from a packed strip.
template <class Format>
struct PackedStrip {
    using Type = Format;
    const std::byte* lines;
    const std::byte* sides;

    PackedStrip(const std::byte* strip, int64_t blocks)
        : lines(strip), sides(strip + blocks * Format::kLayout.line_bytes) {}

    __attribute__((always_inline)) void load_block(int64_t block, int part, B w[8], F& scale, F& minimum) const {
        const std::byte* side = sides + block * Format::kLayout.side_bytes + 2 * kLanes * part;
        Format::unpack(lines + block * Format::kLayout.line_bytes, part, w);
        scale = load_f16(reinterpret_cast<const uint16_t*>(side));
        if constexpr (Format::kHasMinimum) minimum = load_f16(reinterpret_cast<const uint16_t*>(side + 32));
    }
};

// Reads blocks that unpack_blocks() has laid out: per block eight 64-byte vectors, 16 f32 scales, 16 f32 minima.
template <class Format>
struct UnpackedStrip {
    using Type = Format;
    static constexpr int64_t kRecord = 512 + 64 + (Format::kHasMinimum ? 64 : 0);
    std::byte* data;

    __attribute__((always_inline)) void load_block(int64_t block, int part, B w[8], F& scale, F& minimum) const {
        const std::byte* record = data + block * kRecord;
        for (int j = 0; j < 8; ++j) w[j] = bload(record + 64 * j + 4 * kLanes * part);
        const float* side = reinterpret_cast<const float*>(record + 512) + kLanes * part;
        scale = load(side);
        if constexpr (Format::kHasMinimum) minimum = load(side + 16);
    }

    void unpack_blocks(const PackedStrip<Format>& strip, int64_t blocks) const {
        for (int64_t block = 0; block < blocks; ++block) {
            std::byte* record = data + block * kRecord;
            for (int part = 0; part < kParts; ++part) {
                B w[8];
                F scale, minimum;
                strip.load_block(block, part, w, scale, minimum);
                for (int j = 0; j < 8; ++j) bstore(record + 64 * j + 4 * kLanes * part, w[j]);
                float* side = reinterpret_cast<float*>(record + 512) + kLanes * part;
                store(side, scale);
                if constexpr (Format::kHasMinimum) store(side + 16, minimum);
            }
        }
    }
};

// Dequantises a strip exactly to [cols][16] f32.
template <class Format>
void dequantise_strip(const PackedStrip<Format>& strip, int64_t blocks, float* dst) {
    constexpr int kShift = Format::kOffset == Offset::eight ? 8 : Format::kOffset == Offset::none ? 0 : kSignedBias;
    for (int64_t block = 0; block < blocks; ++block)
        for (int part = 0; part < kParts; ++part) {
            B w[8];
            F scale, minimum;
            strip.load_block(block, part, w, scale, minimum);
            for (int k = 0; k < 32; ++k) {
                F q = to_float(iadd(byte_of<Format::kSigned && kSignedBias == 0>(w[k / 4], k % 4), iset1(-kShift)));
                F v;
                if constexpr (Format::kHasMinimum) v = fma(scale, q, minimum);
                else v = mul(scale, q);
                store(dst + (block * 32 + k) * 16 + kLanes * part, v);
            }
        }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
