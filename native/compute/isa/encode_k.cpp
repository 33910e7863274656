// Encoders of the block types with 256 columns, whose groups of 16 or 32 columns have integer scales (and minima) under
// a common f16. Scales are searched for each group, then again as integers against the error they really leave, by
// turns with a least-squares fit of the common factors.
#include "compute/isa/encode.hpp"
#include "compute/isa/encode_search.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

constexpr int kSuper = 256;
constexpr int kRounds = 2;  // of integer search and common factor

template <int Group>
struct Levels {
    static constexpr int kGroups = kSuper / Group;
    int8_t level[kSuper];
    int32_t scale[kGroups];
    int32_t minimum[kGroups];
    float d, dmin;  // as rounded to f16
    uint16_t d_bits, dmin_bits;
    float error;  // squared, over all columns
    void set_factors(float factor, float minimum_factor) {
        d_bits = to_f16(factor), dmin_bits = to_f16(minimum_factor);
        d = from_f16(d_bits), dmin = from_f16(dmin_bits);
    }
};

TREADLE_INLINE int32_t nearest_within(float x, int32_t low, int32_t high) {
    const float bounded = x < static_cast<float>(low)
                              ? static_cast<float>(low)
                              : (x > static_cast<float>(high) ? static_cast<float>(high) : x);
    return static_cast<int32_t>(__builtin_floorf(bounded + 0.5f));
}

// ratio of two factors, 0 where the divisor is 0
TREADLE_INLINE float ratio(float a, float b) { return b == 0.0f ? 0.0f : a / b; }

// Levels of one group: level = nearest((x + minimum) / scale) in [low, high].
template <int Group>
TREADLE_INLINE void fill_levels(const float* x, float scale, float minimum, float low, float high,
                                int8_t* level) {
    const V16 inverse = inverse_or_zero(vset1(scale)), added = vset1(minimum);
    for (int i = 0; i < Group; i += 16) {
        const V16 l = clamped_levels(vmul(vadd(vload(x + i), added), inverse), low, high);
        for (int p = 0; p < kParts; ++p) store_i8(level + i + p * kLanes, to_int(l.part[p]));
    }
}

// Squared error, in each lane, of a group coded with that lane's scale and minimum.
template <int Group>
TREADLE_INLINE V16 errors_of(const float* x, const V16& scale, const V16& minimum, float low, float high) {
    const V16 inverse = inverse_or_zero(scale);
    V16 errors = vset1(0.0f);
    for (int i = 0; i < Group; ++i) {
        const V16 shifted = vadd(vset1(x[i]), minimum);
        const V16 left = vsub(vmul(scale, clamped_levels(vmul(shifted, inverse), low, high)), shifted);
        errors = vfma(left, left, errors);
    }
    return errors;
}

// --- types with minima: value = d * scale * level - dmin * minimum, all integers from 0

// The best of four neighbouring scales by four neighbouring minima for every group, and the levels that follow.
template <int Group>
void search_affine(const float* x, const Affine* wanted, int32_t top, int32_t scale_top, Levels<Group>& out) {
    out.error = 0.0f;
    const V16 d = vset1(out.d), dmin = vset1(out.dmin);
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        const float scale = ratio(wanted[g].scale, out.d), minimum = ratio(wanted[g].minimum, out.dmin);
        alignas(64) float scales[16], minima[16];
        for (int i = 0; i < 16; ++i) {
            const float steps = static_cast<float>(i / 4) - 1.5f, other = static_cast<float>(i % 4) - 1.5f;
            scales[i] = static_cast<float>(nearest_within(scale + steps, 0, scale_top));
            minima[i] = static_cast<float>(nearest_within(minimum + other, 0, scale_top));
        }
        const float* group = x + g * Group;
        const V16 errors = errors_of<Group>(group, vmul(d, vload(scales)), vmul(dmin, vload(minima)), 0.0f,
                                            static_cast<float>(top));
        const Best best = greatest(vsub(vset1(0.0f), errors));
        out.scale[g] = static_cast<int32_t>(scales[best.lane]);
        out.minimum[g] = static_cast<int32_t>(minima[best.lane]);
        out.error -= best.value;
        fill_levels<Group>(group, out.d * scales[best.lane], out.dmin * minima[best.lane], 0.0f,
                           static_cast<float>(top), out.level + g * Group);
    }
}

// d and dmin of least squared error for the integers in `levels`.
template <int Group>
void refit_affine(const float* x, Levels<Group>& levels) {
    float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;  // a = scale * level, b = -minimum
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        float l = 0, ll = 0, xl = 0, xs = 0;
        for (int i = g * Group; i < (g + 1) * Group; ++i) {
            const float level = levels.level[i];
            l += level, ll += level * level, xl += x[i] * level, xs += x[i];
        }
        const auto scale = static_cast<float>(levels.scale[g]), b = -static_cast<float>(levels.minimum[g]);
        aa += scale * scale * ll, ab += scale * b * l, bb += b * b * Group;
        ax += scale * xl, bx += b * xs;
    }
    const float determinant = aa * bb - ab * ab;
    float d = ratio(ax, aa), dmin = 0.0f;
    if (bb > 0.0f && determinant > 1e-6f * aa * bb) {
        const float both = (ax * bb - bx * ab) / determinant, minimum = (bx * aa - ax * ab) / determinant;
        if (minimum > 0.0f) d = both, dmin = minimum;
    }
    levels.set_factors(d, dmin);
}

template <int Group>
Levels<Group> encode_affine(const float* x, int32_t top, int32_t scale_top) {
    Affine wanted[Levels<Group>::kGroups];
    float scale = 0.0f, minimum = 0.0f;
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        wanted[g] = fit_affine<Group>(x + g * Group, static_cast<float>(top));
        scale = wanted[g].scale > scale ? wanted[g].scale : scale;
        minimum = wanted[g].minimum > minimum ? wanted[g].minimum : minimum;
    }
    Levels<Group> best, next;
    best.set_factors(scale / static_cast<float>(scale_top), minimum / static_cast<float>(scale_top));
    search_affine(x, wanted, top, scale_top, best);
    for (int round = 1; round < kRounds; ++round) {
        next = best;
        refit_affine(x, next);
        search_affine(x, wanted, top, scale_top, next);
        if (next.error < best.error) best = next;
    }
    return best;
}

// --- types without: value = d * scale * level, both integers of either sign

// The best of sixteen neighbouring scales for every group, and the levels that follow.
template <int Group>
void search_symmetric(const float* x, const float* wanted, int32_t low, int32_t scale_low,
                      Levels<Group>& out) {
    out.error = 0.0f;
    const auto from = static_cast<float>(low), to = static_cast<float>(-low - 1);
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        alignas(64) float scales[16];
        const float scale = ratio(wanted[g], out.d);
        for (int i = 0; i < 16; ++i) {
            const float steps = static_cast<float>(i) - 7.5f;
            scales[i] = static_cast<float>(nearest_within(scale + steps, scale_low, -scale_low - 1));
        }
        const float* group = x + g * Group;
        const V16 errors = errors_of<Group>(group, vmul(vset1(out.d), vload(scales)), vset1(0.0f), from, to);
        const Best best = greatest(vsub(vset1(0.0f), errors));
        out.scale[g] = static_cast<int32_t>(scales[best.lane]);
        out.error -= best.value;
        fill_levels<Group>(group, out.d * scales[best.lane], 0.0f, from, to, out.level + g * Group);
    }
}

template <int Group>
void refit_symmetric(const float* x, Levels<Group>& levels) {
    float aa = 0, ax = 0;  // a = scale * level
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        float ll = 0, xl = 0;
        for (int i = g * Group; i < (g + 1) * Group; ++i) {
            const float level = levels.level[i];
            ll += level * level, xl += x[i] * level;
        }
        const auto scale = static_cast<float>(levels.scale[g]);
        aa += scale * scale * ll, ax += scale * xl;
    }
    levels.set_factors(ratio(ax, aa), 0.0f);
}

template <int Group>
Levels<Group> encode_symmetric(const float* x, int32_t low, int32_t scale_low) {
    const auto from = static_cast<float>(low), to = static_cast<float>(-low - 1);
    float wanted[Levels<Group>::kGroups];
    for (int g = 0; g < Levels<Group>::kGroups; ++g) {
        wanted[g] = fit_symmetric<Group>(x + g * Group, from, to,
                                         [=](const V16& a) { return clamped_levels(a, from, to); });
    }
    Levels<Group> best, next;
    best.set_factors(extreme_of(wanted, Levels<Group>::kGroups) / static_cast<float>(scale_low), 0.0f);
    search_symmetric(x, wanted, low, scale_low, best);
    for (int round = 1; round < kRounds; ++round) {
        next = best;
        refit_symmetric(x, next);
        search_symmetric(x, wanted, low, scale_low, next);
        if (next.error < best.error) best = next;
    }
    return best;
}

// --- the bytes

uint8_t byte(int32_t value) { return static_cast<uint8_t>(value); }

void put_f16(std::byte* dst, uint16_t half) { copy_bytes(dst, &half, 2); }

// Eight 6-bit scales and eight 6-bit minima in 12 bytes: the low four of each kind whole, in the low six bits; the
// others' low nibbles in the last four bytes, their upper two bits above the first eight values.
void put_six_bits(const int32_t* scale, const int32_t* minimum, uint8_t* dst) {
    for (int g = 0; g < 4; ++g) {
        dst[g] = byte(scale[g] | (scale[g + 4] >> 4) << 6);
        dst[g + 4] = byte(minimum[g] | (minimum[g + 4] >> 4) << 6);
        dst[g + 8] = byte((scale[g + 4] & 15) | (minimum[g + 4] & 15) << 4);
    }
}

// Nibbles by 64 columns: 32 bytes, the first 32 columns low, the others high.
void put_nibbles(const int8_t* level, uint8_t* dst) {
    for (int i = 0; i < kSuper / 2; ++i) {
        const int8_t* at = level + i / 32 * 64 + i % 32;
        dst[i] = byte((at[0] & 15) | (at[32] & 15) << 4);
    }
}

// Two-bit values by 128 columns: 32 bytes, every 32 columns two bits higher.
void put_pairs(const int8_t* level, uint8_t* dst) {
    for (int i = 0; i < kSuper / 4; ++i) {
        const int8_t* at = level + i / 32 * 128 + i % 32;
        dst[i] = byte((at[0] & 3) | (at[32] & 3) << 2 | (at[64] & 3) << 4 | (at[96] & 3) << 6);
    }
}

// One bit (`bit` of each level) by column modulo 32: byte i holds columns i, i + 32, ... from its lowest bit up.
void put_bits(const int8_t* level, int bit, uint8_t* dst) {
    for (int i = 0; i < 32; ++i) {
        int32_t bits = 0;
        for (int j = 0; j < 8; ++j) bits |= ((level[i + 32 * j] >> bit) & 1) << j;
        dst[i] = byte(bits);
    }
}

}  // namespace

bool encode_q2_k(const float* x, std::byte* dst) {
    const Levels<16> found = encode_affine<16>(x, 3, 15);
    uint8_t bytes[80];
    for (int g = 0; g < 16; ++g) bytes[g] = byte(found.scale[g] | found.minimum[g] << 4);
    put_pairs(found.level, bytes + 16);
    copy_bytes(dst, bytes, 80);
    put_f16(dst + 80, found.d_bits);
    put_f16(dst + 82, found.dmin_bits);
    return finite_f16(found.d_bits) && finite_f16(found.dmin_bits);
}

bool encode_q3_k(const float* x, std::byte* dst) {
    Levels<16> found = encode_symmetric<16>(x, -4, -32);
    for (int8_t& level : found.level) level = static_cast<int8_t>(level + 4);
    uint8_t bytes[108] = {};
    put_bits(found.level, 2, bytes);
    put_pairs(found.level, bytes + 32);
    for (int g = 0; g < 16; ++g) {  // six bits: nibbles as in q2_k's levels, then pairs of upper bits
        const int32_t scale = found.scale[g] + 32;
        bytes[96 + g % 8] |= byte((scale & 15) << 4 * (g / 8));
        bytes[104 + g % 4] |= byte((scale >> 4) << 2 * (g / 4));
    }
    copy_bytes(dst, bytes, 108);
    put_f16(dst + 108, found.d_bits);
    return finite_f16(found.d_bits);
}

bool encode_q4_k(const float* x, std::byte* dst) {
    const Levels<32> found = encode_affine<32>(x, 15, 63);
    uint8_t bytes[140];
    put_six_bits(found.scale, found.minimum, bytes);
    put_nibbles(found.level, bytes + 12);
    put_f16(dst, found.d_bits);
    put_f16(dst + 2, found.dmin_bits);
    copy_bytes(dst + 4, bytes, 140);
    return finite_f16(found.d_bits) && finite_f16(found.dmin_bits);
}

bool encode_q5_k(const float* x, std::byte* dst) {
    const Levels<32> found = encode_affine<32>(x, 31, 63);
    uint8_t bytes[172];
    put_six_bits(found.scale, found.minimum, bytes);
    put_bits(found.level, 4, bytes + 12);
    put_nibbles(found.level, bytes + 44);
    put_f16(dst, found.d_bits);
    put_f16(dst + 2, found.dmin_bits);
    copy_bytes(dst + 4, bytes, 172);
    return finite_f16(found.d_bits) && finite_f16(found.dmin_bits);
}

bool encode_q6_k(const float* x, std::byte* dst) {
    const Levels<16> found = encode_symmetric<16>(x, -32, -128);
    uint8_t bytes[208];
    for (int i = 0; i < 64; ++i) {  // nibbles by 128 columns: 64 bytes, columns i and i + 64
        const int8_t* at = found.level + i / 32 * 128 + i % 32;
        for (int j = 0; j < 2; ++j) {
            const int low = at[32 * j] + 32, high = at[32 * j + 64] + 32;
            bytes[i / 32 * 64 + i % 32 + 32 * j] = byte((low & 15) | (high & 15) << 4);
        }
        int32_t upper = 0;
        for (int j = 0; j < 4; ++j) upper |= ((at[32 * j] + 32) >> 4) << 2 * j;
        bytes[128 + i] = byte(upper);
    }
    for (int g = 0; g < 16; ++g) bytes[192 + g] = byte(found.scale[g]);
    copy_bytes(dst, bytes, 208);
    put_f16(dst + 208, found.d_bits);
    return finite_f16(found.d_bits);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
