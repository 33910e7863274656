// How each block type unpacks: 32 columns of kLanes matrix rows become eight byte vectors (vector j: columns 4j..4j+3 of
// every row), a scale and, for some types, a minimum a row. A new type is one struct here and a packer in pack.cpp.
#pragma once

#include "compute/layout.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// What the unpacked bytes hold beyond the weight's own integer, and so where the integer accumulator starts.
enum class Offset { none, eight, signed_bias };

// Vectors come in four steps of two, so that a product needs only two at a time.
struct NibbleLines {
    static constexpr bool kSigned = false;
    TREADLE_INLINE void unpack(const std::byte* lines, int part, int step, B& first, B& second) {
        B line = bload(lines + 64 * step + 4 * kLanes * part);
        first = low_nibbles(line);
        second = high_nibbles(line);
    }
};

struct ByteLines {
    static constexpr bool kSigned = true;
    TREADLE_INLINE void unpack(const std::byte* lines, int part, int step, B& first, B& second) {
        const std::byte* line = lines + 64 * step + 4 * kLanes * part;
        first = from_signed(bload(line));
        second = from_signed(bload(line + 256));
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

// Reads blocks straight from a packed strip. vectors(step) yields the vectors `step` and `step + 4` of the block.
template <class Format>
struct PackedStrip {
    using Type = Format;
    const std::byte* lines;
    const std::byte* sides;

    PackedStrip() = default;
    PackedStrip(const std::byte* strip, int64_t blocks)
        : lines(strip), sides(strip + blocks * Format::kLayout.line_bytes) {}

    TREADLE_METHOD void vectors(int64_t block, int part, int step, B& first, B& second) const {
        Format::unpack(lines + block * Format::kLayout.line_bytes, part, step, first, second);
    }
    TREADLE_METHOD void scales(int64_t block, int part, F& scale, F& minimum) const {
        const std::byte* side = sides + block * Format::kLayout.side_bytes + 2 * kLanes * part;
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

    TREADLE_METHOD void vectors(int64_t block, int part, int step, B& first, B& second) const {
        const std::byte* line = data + block * kRecord + 64 * step + 4 * kLanes * part;
        first = bload(line);
        second = bload(line + 256);
    }
    TREADLE_METHOD void scales(int64_t block, int part, F& scale, F& minimum) const {
        const float* side = reinterpret_cast<const float*>(data + block * kRecord + 512) + kLanes * part;
        scale = load(side);
        if constexpr (Format::kHasMinimum) minimum = load(side + 16);
    }

    // Blocks [first, first + count) of the strip become blocks [0, count) here.
    void unpack_blocks(const PackedStrip<Format>& strip, int64_t first_block, int64_t count) const {
        for (int64_t block = 0; block < count; ++block)
            for (int part = 0; part < kParts; ++part) {
                std::byte* line = data + block * kRecord + 4 * kLanes * part;
                for (int step = 0; step < 4; ++step) {
                    B first, second;
                    strip.vectors(first_block + block, part, step, first, second);
                    bstore(line + 64 * step, first);
                    bstore(line + 64 * step + 256, second);
                }
                F scale, minimum;
                strip.scales(first_block + block, part, scale, minimum);
                float* side = reinterpret_cast<float*>(data + block * kRecord + 512) + kLanes * part;
                store(side, scale);
                if constexpr (Format::kHasMinimum) store(side + 16, minimum);
            }
    }
};

template <class Format>
inline constexpr int kByteOffset = Format::kOffset == Offset::eight  ? 8
                                   : Format::kOffset == Offset::none ? 0
                                                                     : kSignedBias;
template <class Format>
inline constexpr bool kSignedBytes = Format::kSigned && kSignedBias == 0;

// Dequantises blocks [first_block, first_block + count) of a strip exactly to [columns][16] f32.
template <class Format>
void dequantise_blocks(const PackedStrip<Format>& strip, int64_t first_block, int64_t count, float* dst) {
    for (int64_t block = first_block; block < first_block + count; ++block)
        for (int part = 0; part < kParts; ++part) {
            F scale, minimum;
            strip.scales(block, part, scale, minimum);
            const auto put = [&](B bytes, int vector) {
                for (int i = 0; i < 4; ++i) {
                    F q =
                        to_float(iadd(byte_of<kSignedBytes<Format>>(bytes, i), iset1(-kByteOffset<Format>)));
                    F v;
                    if constexpr (Format::kHasMinimum) v = fma(scale, q, minimum);
                    else v = mul(scale, q);
                    store(dst + ((block - first_block) * kBlock + 4 * vector + i) * 16 + kLanes * part, v);
                }
            };
            for (int step = 0; step < 4; ++step) {
                B first, second;
                strip.vectors(block, part, step, first, second);
                put(first, step);
                put(second, step + 4);
            }
        }
}

// Dequantises one row (lane) of a strip exactly to dst[cols].
template <class Format>
void dequantise_row(const PackedStrip<Format>& strip, int64_t lane, int64_t blocks, float* dst) {
    const int part = static_cast<int>(lane / kLanes);
    const int64_t in_part = lane % kLanes;
    for (int64_t block = 0; block < blocks; ++block) {
        F scale, minimum = zero();
        strip.scales(block, part, scale, minimum);
        alignas(64) float scales[kLanes], minima[kLanes];
        store(scales, scale);
        store(minima, minimum);
        const auto put = [&](B vector, int index) {
            alignas(64) std::byte bytes[4 * kLanes];
            bstore(bytes, vector);
            for (int i = 0; i < 4; ++i) {
                const std::byte raw = bytes[4 * in_part + i];
                const int q = kSignedBytes<Format> ? static_cast<int8_t>(raw) : static_cast<uint8_t>(raw);
                const float value = static_cast<float>(q - kByteOffset<Format>);
                dst[block * kBlock + 4 * index + i] =
                    Format::kHasMinimum ? __builtin_fmaf(scales[in_part], value, minima[in_part])
                                        : scales[in_part] * value;
            }
        };
        for (int step = 0; step < 4; ++step) {
            B first, second;
            strip.vectors(block, part, step, first, second);
            put(first, step);
            put(second, step + 4);
        }
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
