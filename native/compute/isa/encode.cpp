// Encoders of the block types with 32 columns, and the choice of an encoder. Those with a fixed rule (q8_0, q4_0, q4_1,
// q5_0, q5_1) give the bytes of ggml's reference rounding (ggml-quants.c).
#include "compute/isa/encode.hpp"

#include "compute/isa/encode_search.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

// Values at or past this have no scale in f16 in any type, and their squares would not sum in f32.
constexpr float kLargest = 134217728.0f;  // 2^27

struct Range {
    float low, high;
};
Range range_of(const float* x) {
    Range r{x[0], x[0]};
    for (int i = 1; i < kBlock; ++i) {
        r.low = x[i] < r.low ? x[i] : r.low;
        r.high = x[i] > r.high ? x[i] : r.high;
    }
    return r;
}

// 1 / d, and 0 where that is not finite
float inverse_of(float d) {
    const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
    return __builtin_isinf(inverse) ? 0.0f : inverse;
}

void put_f16(std::byte* dst, uint16_t half) { copy_bytes(dst, &half, 2); }

// Nibbles of columns i and i + 16 share byte i.
void put_nibbles(const int* level, std::byte* dst) {
    for (int i = 0; i < 16; ++i) dst[i] = static_cast<std::byte>((level[i] & 15) | (level[i + 16] & 15) << 4);
}

void put_fifth_bits(const int* level, std::byte* dst) {
    uint32_t bits = 0;
    for (int i = 0; i < kBlock; ++i) bits |= static_cast<uint32_t>(level[i] >> 4 & 1) << i;
    copy_bytes(dst, &bits, 4);
}

bool encode_q8_0(const float* x, std::byte* dst) {
    const float d = __builtin_fabsf(extreme_of(x, kBlock)) / 127.0f;
    const float inverse = inverse_of(d);
    for (int i = 0; i < kBlock; ++i) {
        const float scaled = x[i] * inverse;
        const int magnitude = static_cast<int>(__builtin_fabsf(scaled) + 0.5f);  // half away from zero
        dst[2 + i] = static_cast<std::byte>(scaled < 0.0f ? -magnitude : magnitude);
    }
    const uint16_t half = to_f16(d);
    put_f16(dst, half);
    return finite_f16(half);
}

// Levels around the middle of 2 * middle: the largest magnitude falls on level 0.
uint16_t centred_levels(const float* x, int middle, int* level) {
    const float d = extreme_of(x, kBlock) / static_cast<float>(-middle);
    const float inverse = inverse_of(d), half_up = static_cast<float>(middle) + 0.5f;
    for (int i = 0; i < kBlock; ++i) {
        const int l = static_cast<int>(x[i] * inverse + half_up);
        level[i] = l < 2 * middle ? l : 2 * middle - 1;
    }
    return to_f16(d);
}

// Levels 0 .. top from the smallest value to the largest.
uint16_t spanned_levels(const float* x, float low, float high, int top, int* level) {
    const float d = (high - low) / static_cast<float>(top);
    const float inverse = inverse_of(d);
    for (int i = 0; i < kBlock; ++i) {
        const int l = static_cast<int>((x[i] - low) * inverse + 0.5f);
        level[i] = l <= top ? l : top;
    }
    return to_f16(d);
}

bool encode_q4_0(const float* x, std::byte* dst) {
    int level[kBlock];
    const uint16_t d = centred_levels(x, 8, level);
    put_f16(dst, d);
    put_nibbles(level, dst + 2);
    return finite_f16(d);
}

bool encode_q5_0(const float* x, std::byte* dst) {
    int level[kBlock];
    const uint16_t d = centred_levels(x, 16, level);
    put_f16(dst, d);
    put_fifth_bits(level, dst + 2);
    put_nibbles(level, dst + 6);
    return finite_f16(d);
}

bool encode_q4_1(const float* x, std::byte* dst) {
    int level[kBlock];
    const Range r = range_of(x);
    const uint16_t d = spanned_levels(x, r.low, r.high, 15, level), low = to_f16(r.low);
    put_f16(dst, d);
    put_f16(dst + 2, low);
    put_nibbles(level, dst + 4);
    return finite_f16(d) && finite_f16(low);
}

bool encode_q5_1(const float* x, std::byte* dst) {
    int level[kBlock];
    const Range r = range_of(x);
    const uint16_t d = spanned_levels(x, r.low, r.high, 31, level), low = to_f16(r.low);
    put_f16(dst, d);
    put_f16(dst + 2, low);
    put_fifth_bits(level, dst + 4);
    put_nibbles(level, dst + 8);
    return finite_f16(d) && finite_f16(low);
}

// The codes of iq4_nl, by nibble, and the midpoints between them.
constexpr float kCodes[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float middle_below(int i) { return 0.5f * (kCodes[i - 1] + kCodes[i]); }

TREADLE_INLINE V16 nearest_code(const V16& a) {
    V16 code = vset1(kCodes[0]);
    for (int i = 1; i < 16; ++i) code = where_less(vset1(middle_below(i)), a, vset1(kCodes[i]), code);
    return code;
}

bool encode_iq4_nl(const float* x, std::byte* dst) {
    const float scale =
        fit_symmetric<kBlock>(x, kCodes[0], kCodes[15], [](const V16& a) { return nearest_code(a); });
    const uint16_t half = to_f16(scale);
    const float inverse = inverse_of(from_f16(half));
    int level[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        level[i] = 0;
        for (int j = 1; j < 16; ++j) level[i] += x[i] * inverse > middle_below(j);
    }
    put_f16(dst, half);
    put_nibbles(level, dst + 2);
    return finite_f16(half);
}

using Encode = bool (*)(const float* x, std::byte* dst);
Encode encoder_of(DType type) {
    switch (type) {
        case DType::q4_0:
            return encode_q4_0;
        case DType::q4_1:
            return encode_q4_1;
        case DType::q5_0:
            return encode_q5_0;
        case DType::q5_1:
            return encode_q5_1;
        case DType::q8_0:
            return encode_q8_0;
        case DType::q2_k:
            return encode_q2_k;
        case DType::q3_k:
            return encode_q3_k;
        case DType::q4_k:
            return encode_q4_k;
        case DType::q5_k:
            return encode_q5_k;
        case DType::q6_k:
            return encode_q6_k;
        case DType::iq4_nl:
            return encode_iq4_nl;
        default:
            return nullptr;
    }
}

}  // namespace

bool encode_row(DType type, const float* x, int64_t cols, std::byte* dst) {
    for (int64_t i = 0; i < cols; ++i)
        if (!(__builtin_fabsf(x[i]) < kLargest)) return false;
    const Encode encode = encoder_of(type);
    const EncodedBlock block = encoded_block(type);
    for (int64_t i = 0; i < cols; i += block.cols, dst += block.bytes)
        if (!encode(x + i, dst)) return false;
    return true;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
