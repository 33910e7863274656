// The native vector in plain C++: 16 lanes in arrays. The definition of what the other ISAs compute.
#pragma once

#define TREADLE_INLINE static inline __attribute__((always_inline))
#define TREADLE_METHOD inline __attribute__((always_inline))

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kLanes = 16;
inline constexpr int kSignedBias = 0;
inline constexpr int kDotRows = 1;  // the int8 tile: rows and vectors of columns
inline constexpr int kDotVectors = 1;
inline constexpr int kWideRows = 0;   // most rows of an int8 tile of one vector; 0: there is none
inline constexpr int kFloatRows = 1;  // the f32 tile
inline constexpr int kFloatVectors = 1;

struct F {
    float v[kLanes];
};
struct I {
    int32_t v[kLanes];
};
struct B {
    int8_t v[4 * kLanes];
};
struct M {
    bool v[kLanes];
};

#define TREADLE_EACH(Type, expression)                      \
    Type r;                                                 \
    for (int i = 0; i < kLanes; ++i) r.v[i] = (expression); \
    return r

TREADLE_INLINE float bits_to_float(uint32_t u) {
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
TREADLE_INLINE uint32_t float_to_bits(float f) {
    uint32_t u;
    __builtin_memcpy(&u, &f, 4);
    return u;
}

TREADLE_INLINE F set1(float x) { TREADLE_EACH(F, x); }
TREADLE_INLINE F zero() { return set1(0.0f); }
TREADLE_INLINE F load(const float* p) { TREADLE_EACH(F, p[i]); }
TREADLE_INLINE void store(float* p, F a) { __builtin_memcpy(p, a.v, sizeof a.v); }
TREADLE_INLINE F add(F a, F b) { TREADLE_EACH(F, a.v[i] + b.v[i]); }
TREADLE_INLINE F sub(F a, F b) { TREADLE_EACH(F, a.v[i] - b.v[i]); }
TREADLE_INLINE F mul(F a, F b) { TREADLE_EACH(F, a.v[i] * b.v[i]); }
TREADLE_INLINE F div(F a, F b) { TREADLE_EACH(F, a.v[i] / b.v[i]); }
TREADLE_INLINE F fma(F a, F b, F c) { TREADLE_EACH(F, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
TREADLE_INLINE F max(F a, F b) { TREADLE_EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
TREADLE_INLINE F min(F a, F b) { TREADLE_EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
TREADLE_INLINE M less(F a, F b) { TREADLE_EACH(M, a.v[i] < b.v[i]); }
TREADLE_INLINE M unordered(F a) { TREADLE_EACH(M, a.v[i] != a.v[i]); }
TREADLE_INLINE uint32_t bits(M m) {
    uint32_t r = 0;
    for (int i = 0; i < kLanes; ++i) r |= static_cast<uint32_t>(m.v[i]) << i;
    return r;
}
TREADLE_INLINE F select(M m, F a, F b) { TREADLE_EACH(F, m.v[i] ? a.v[i] : b.v[i]); }
TREADLE_INLINE F abs(F a) { TREADLE_EACH(F, bits_to_float(float_to_bits(a.v[i]) & 0x7fffffffu)); }
TREADLE_INLINE F with_sign(F magnitude, F sign) {
    TREADLE_EACH(F, bits_to_float(float_to_bits(magnitude.v[i]) | (float_to_bits(sign.v[i]) & 0x80000000u)));
}

TREADLE_INLINE float f16_to_float(uint16_t h) {
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
    if (rest >= 0x0400u) return bits_to_float(sign | ((rest + 0x1c000u) << 13));
    float subnormal = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
    return bits_to_float(sign | float_to_bits(subnormal));
}
TREADLE_INLINE uint16_t float_to_f16(float f) {  // nearest, ties to even
    uint32_t u = float_to_bits(f), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (rest < 0x38800000u) {  // subnormal: let the FPU round at 2^-24
        float shifted = bits_to_float(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}
TREADLE_INLINE F load_f16(const uint16_t* p) { TREADLE_EACH(F, f16_to_float(p[i])); }
TREADLE_INLINE F load_bf16(const uint16_t* p) { TREADLE_EACH(F, bits_to_float(uint32_t{p[i]} << 16)); }
TREADLE_INLINE F load_bf16_even(const uint16_t* p) {
    TREADLE_EACH(F, bits_to_float(uint32_t{p[2 * i]} << 16));
}
TREADLE_INLINE F load_bf16_odd(const uint16_t* p) {
    TREADLE_EACH(F, bits_to_float(uint32_t{p[2 * i + 1]} << 16));
}
TREADLE_INLINE void store_f16(uint16_t* p, F a) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_f16(a.v[i]);
}

// The nearest bf16, ties to even, of finite values; store_bf16 takes such values.
TREADLE_INLINE F round_bf16(F a) {
    for (float& x : a.v) {
        const uint32_t u = float_to_bits(x);
        x = bits_to_float((u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u);
    }
    return a;
}
// The nearest bf16, ties upwards, of values that are not negative.
TREADLE_INLINE F round_weight(F a) {
    TREADLE_EACH(F, bits_to_float((float_to_bits(a.v[i]) + 0x8000u) & 0xffff0000u));
}
TREADLE_INLINE void store_bf16(uint16_t* p, F a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(float_to_bits(a.v[i]) >> 16);
}
// kLanes pairs of bf16, of two vectors that round_bf16 made.
TREADLE_INLINE void store_bf16_pairs(uint16_t* p, F even, F odd) {
    for (int i = 0; i < kLanes; ++i) {
        p[2 * i] = static_cast<uint16_t>(float_to_bits(even.v[i]) >> 16);
        p[2 * i + 1] = static_cast<uint16_t>(float_to_bits(odd.v[i]) >> 16);
    }
}
TREADLE_INLINE F f16_everywhere(const uint16_t* p) { return set1(f16_to_float(*p)); }
TREADLE_INLINE F load_i8(const int8_t* p) { TREADLE_EACH(F, static_cast<float>(p[i])); }

TREADLE_INLINE I iset1(int32_t x) { TREADLE_EACH(I, x); }
TREADLE_INLINE I iload(const int32_t* p) { TREADLE_EACH(I, p[i]); }
TREADLE_INLINE void istore(int32_t* p, I a) { __builtin_memcpy(p, a.v, sizeof a.v); }
TREADLE_INLINE I iload_i8(const std::byte* p) { TREADLE_EACH(I, static_cast<int8_t>(p[i])); }
TREADLE_INLINE I iload_u8(const std::byte* p) { TREADLE_EACH(I, static_cast<uint8_t>(p[i])); }
TREADLE_INLINE I isub(I a, I b) { TREADLE_EACH(I, a.v[i] - b.v[i]); }
TREADLE_INLINE I iand(I a, I b) { TREADLE_EACH(I, a.v[i] & b.v[i]); }
TREADLE_INLINE I iright(I a, int n) { TREADLE_EACH(I, a.v[i] >> n); }
TREADLE_INLINE F from_bits(I a) { TREADLE_EACH(F, bits_to_float(static_cast<uint32_t>(a.v[i]))); }
TREADLE_INLINE I iadd(I a, I b) { TREADLE_EACH(I, a.v[i] + b.v[i]); }
TREADLE_INLINE I to_int(F a) {  // adding 1.5 * 2^23 leaves the rounded integer in the low bits
    TREADLE_EACH(I, static_cast<int32_t>(float_to_bits(a.v[i] + 12582912.0f) - 0x4b400000u));
}
TREADLE_INLINE F to_float(I a) { TREADLE_EACH(F, static_cast<float>(a.v[i])); }
// y * 2^n, n being the low bits of `shifted`: y and the result are normal numbers.
TREADLE_INLINE F scale_by_low_bits(F y, F shifted) {
    TREADLE_EACH(F, bits_to_float(float_to_bits(y.v[i]) + (float_to_bits(shifted.v[i]) << 23)));
}
TREADLE_INLINE void store_i8(int8_t* p, I a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
TREADLE_INLINE void store_quants(int8_t* p, const I* q, int32_t* sums) {
    for (int half = 0; half < 2; ++half) {
        sums[half] = 0;
        for (int i = 0; i < kLanes; ++i) {
            p[half * kLanes + i] = static_cast<int8_t>(q[half].v[i]);
            sums[half] += q[half].v[i];
        }
    }
}

TREADLE_INLINE B bload(const std::byte* p) {
    B b;
    __builtin_memcpy(b.v, p, sizeof b.v);
    return b;
}
TREADLE_INLINE void bstore(std::byte* p, B a) { __builtin_memcpy(p, a.v, sizeof a.v); }
TREADLE_INLINE B low_nibbles(B a) {
    for (auto& x : a.v) x = static_cast<int8_t>(x & 15);
    return a;
}
TREADLE_INLINE B high_nibbles(B a) {
    for (auto& x : a.v) x = static_cast<int8_t>((x >> 4) & 15);
    return a;
}
TREADLE_INLINE B and_bits(B a, int mask) {
    for (auto& x : a.v) x = static_cast<int8_t>(x & mask);
    return a;
}
TREADLE_INLINE B insert_bits(B a, B b, int mask) {
    for (int i = 0; i < 4 * kLanes; ++i) a.v[i] = static_cast<int8_t>(a.v[i] | (b.v[i] & mask));
    return a;
}
TREADLE_INLINE B move_bits(B a, int left) {
    for (auto& x : a.v) x = static_cast<int8_t>(left >= 0 ? (x & 255) << left : (x & 255) >> -left);
    return a;
}
TREADLE_INLINE B table16(const int8_t* values) {
    B table;
    for (int i = 0; i < 4 * kLanes; ++i) table.v[i] = values[i % 16];
    return table;
}
TREADLE_INLINE B lookup(B table, B nibbles) {
    for (auto& x : nibbles.v) x = table.v[x];
    return nibbles;
}
TREADLE_INLINE B from_signed(B a) { return a; }
template <bool Signed>
TREADLE_INLINE I byte_of(B a, int k) {
    TREADLE_EACH(I, Signed ? int32_t{a.v[4 * i + k]} : int32_t{a.v[4 * i + k] & 255});
}
template <bool Signed>
TREADLE_INLINE I dot(I acc, B w, const std::byte* x) {
    for (int i = 0; i < kLanes; ++i)
        for (int k = 0; k < 4; ++k) {
            int32_t weight = Signed ? int32_t{w.v[4 * i + k]} : int32_t{w.v[4 * i + k] & 255};
            acc.v[i] += weight * static_cast<int8_t>(x[k]);
        }
    return acc;
}

// Lanes 8 apart, then 4, 2, 1: the canonical tree.
TREADLE_INLINE float fold_add(F a) {
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
    return a.v[0];
}
TREADLE_INLINE float fold_max(F a) {
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
    return a.v[0];
}
// Lane j of vector i changes places with lane i of vector j.
TREADLE_INLINE void transpose(F (&r)[kLanes]) {
    for (int i = 0; i < kLanes; ++i)
        for (int j = 0; j < i; ++j) {
            const float x = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = x;
        }
}
TREADLE_INLINE void prefetch(const void*) {}
TREADLE_INLINE void prefetch_near(const void*) {}

#undef TREADLE_EACH
}  // namespace treadle::compute::TREADLE_ISA_NS
