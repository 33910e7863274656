#include "compute/isa/bf16_product.hpp"
#include "compute/isa/fetch_block.hpp"
#include "compute/isa/float_tile.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

// Only f32 and the powers of two of mxfp4 reach below kSmallestBf16: the least step of an f16 scale is 2^-24.
TREADLE_INLINE F without_small(F x) { return flushed(x, kSmallestBf16); }
template <class Format>
inline constexpr bool kPowers = Format::kLayout.head_bytes == 0;

// One part of a block. Where codes have an offset, -offset * scale is the minimum: it is exact, so that one fma gives the
// nearest f32 of (code - offset) * scale. It could overflow only if the scale were a power of two of mxfp4.
template <class Format>
struct BlockValues {
    const PackedStrip<Format>& strip;
    int64_t block;
    int part;
    F scale, minimum;

    TREADLE_METHOD void enter_half(int half) {
        strip.scales(block, part, half, scale, minimum);
        if constexpr (!Format::kHasMinimum && !kPowers<Format>)
            minimum = mul(scale, set1(static_cast<float>(-kByteOffset<Format>)));
    }
    TREADLE_METHOD F value(F code) const {
        if constexpr (kPowers<Format>)
            return without_small(mul(scale, sub(code, set1(static_cast<float>(kByteOffset<Format>)))));
        else return fma(scale, code, minimum);
    }
};

template <class Format>
void widen_blocks(const std::byte* data, int64_t cols, int64_t k, int64_t depth, int64_t ahead,
                  uint16_t* dst) {
    const PackedStrip<Format> strip(data, cols / kBlock);
    for (int64_t block = k / kBlock; block < (k + depth) / kBlock; ++block, dst += kTile) {
        fetch_block(strip, block, ahead);
        for (int part = 0; part < kParts; ++part) {
            BlockValues<Format> values{strip, block, part, zero(), zero()};
#pragma GCC unroll 8
            for (int index = 0; index < 8; ++index) {
                if (index % (8 / Format::kScales) == 0) values.enter_half(index / 4 % Format::kScales);
                const B bytes = strip.vector(block, part, index);
                F w[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i)
                    w[i] = values.value(to_float(byte_of<kSignedBytes<Format>>(bytes, i)));
                uint16_t* to = dst + 2 * index * kLine + part * kLanes * 2;
                store_nearest_pairs(to, w[0], w[1]);
                store_nearest_pairs(to + kLine, w[2], w[3]);
            }
        }
    }
}

template <class Columns>
void widen_floats(const std::byte* data, int64_t /*cols*/, int64_t k, int64_t depth, int64_t ahead,
                  uint16_t* dst) {
    constexpr int64_t kElement = sizeof(*Columns{}.base);
    const Columns columns{reinterpret_cast<decltype(Columns{}.base)>(data) + k * kStripRows, kStripRows, 0};
    for (int64_t i = 0; i < depth; i += 2, dst += kLine) {
        for (int64_t byte = 0; byte < 2 * kStripRows * kElement; byte += 64)
            prefetch(data + (k + i) * kStripRows * kElement + byte + ahead);
        for (int part = 0; part < kParts; ++part) {
            const F even = columns.at(i, part), odd = i + 1 < depth ? columns.at(i + 1, part) : zero();
            store_nearest_pairs(dst + part * kLanes * 2, without_small(even), without_small(odd));
        }
    }
}

}  // namespace

WidenBf16 bf16_widener(DType type) {
    switch (type) {
        case DType::f32:
            return widen_floats<ColumnsF32>;
        case DType::f16:
            return widen_floats<ColumnsF16>;
        case DType::q4_0:
            return widen_blocks<FormatQ4_0>;
        case DType::q4_1:
            return widen_blocks<FormatQ4_1>;
        case DType::q5_0:
            return widen_blocks<FormatQ5_0>;
        case DType::q5_1:
            return widen_blocks<FormatQ5_1>;
        case DType::q8_0:
            return widen_blocks<FormatQ8_0>;
        case DType::q2_k:
            return widen_blocks<FormatQ2_K>;
        case DType::q3_k:
            return widen_blocks<FormatQ3_K>;
        case DType::q4_k:
            return widen_blocks<FormatQ4_K>;
        case DType::q5_k:
            return widen_blocks<FormatQ5_K>;
        case DType::q6_k:
            return widen_blocks<FormatQ6_K>;
        case DType::iq4_nl:
            return widen_blocks<FormatIQ4_NL>;
        case DType::iq4_xs:
            return widen_blocks<FormatIQ4_XS>;
        case DType::mxfp4:
            return widen_blocks<FormatMXFP4>;
        default:
            return nullptr;
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
