// The native vector of AArch64 NEON with the dot product extension and, in the i8mm table, byte matrix products: 4 lanes.
#pragma once
#include <arm_neon.h>

#define TREADLE_INLINE static inline __attribute__((always_inline))
#define TREADLE_METHOD inline __attribute__((always_inline))

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kLanes = 4;
inline constexpr int kSignedBias = 0;
inline constexpr int kDotRows = kPairedDots ? 4 : 3;  // the int8 tile: rows and vectors of columns
inline constexpr int kDotVectors = 4;
inline constexpr int kWideRows = 12;  // most rows of an int8 tile of one vector; 0: there is none
inline constexpr int kFloatRows = 6;  // the f32 tile
inline constexpr int kFloatVectors = 4;

using F = float32x4_t;
using I = int32x4_t;
using B = int8x16_t;
using M = uint32x4_t;

TREADLE_INLINE F zero() { return vdupq_n_f32(0.0f); }
TREADLE_INLINE F set1(float x) { return vdupq_n_f32(x); }
TREADLE_INLINE F load(const float* p) { return vld1q_f32(p); }
TREADLE_INLINE void store(float* p, F a) { vst1q_f32(p, a); }
TREADLE_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
TREADLE_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
TREADLE_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
TREADLE_INLINE F div(F a, F b) { return vdivq_f32(a, b); }
TREADLE_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
TREADLE_INLINE F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
TREADLE_INLINE F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
TREADLE_INLINE M less(F a, F b) { return vcltq_f32(a, b); }
TREADLE_INLINE M unordered(F a) { return vmvnq_u32(vceqq_f32(a, a)); }
TREADLE_INLINE uint32_t bits(M m) {
    const uint32_t place[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(place)));
}
TREADLE_INLINE F select(M m, F a, F b) { return vbslq_f32(m, a, b); }
TREADLE_INLINE F abs(F a) { return vabsq_f32(a); }
TREADLE_INLINE F with_sign(F magnitude, F sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
}

TREADLE_INLINE F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
TREADLE_INLINE F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
TREADLE_INLINE uint32x4_t words_at(const void* p) {
    uint32x4_t a;
    __builtin_memcpy(&a, p, 16);
    return a;
}
TREADLE_INLINE F load_bf16_even(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(words_at(p), 16));
}
TREADLE_INLINE F load_bf16_odd(const uint16_t* p) {
    return vreinterpretq_f32_u32(vandq_u32(words_at(p), vdupq_n_u32(0xffff0000u)));
}
TREADLE_INLINE void store_f16(uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

// The nearest bf16, ties to even, of finite values; store_bf16 takes such values.
TREADLE_INLINE F round_bf16(F a) {
    const uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
    return vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff0000u)));
}
// The nearest bf16, ties upwards, of values that are not negative.
TREADLE_INLINE F round_weight(F a) {
    const uint32x4_t up = vaddq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x8000));
    return vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff0000u)));
}
TREADLE_INLINE void store_bf16(uint16_t* p, F a) { vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_f32(a), 16)); }
// kLanes pairs of bf16, of two vectors that round_bf16 made.
TREADLE_INLINE void store_bf16_pairs(uint16_t* p, F even, F odd) {
    const uint32x4_t low = vshrq_n_u32(vreinterpretq_u32_f32(even), 16);
    vst1q_u16(p, vreinterpretq_u16_u32(vorrq_u32(low, vreinterpretq_u32_f32(odd))));
}
TREADLE_INLINE F f16_everywhere(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p)));
}
TREADLE_INLINE F load_i8(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}

TREADLE_INLINE I iset1(int32_t x) { return vdupq_n_s32(x); }
TREADLE_INLINE I iload(const int32_t* p) { return vld1q_s32(p); }
TREADLE_INLINE void istore(int32_t* p, I a) { vst1q_s32(p, a); }
TREADLE_INLINE uint8x8_t four_bytes(const std::byte* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}
TREADLE_INLINE I iload_i8(const std::byte* p) {
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(p)))));
}
TREADLE_INLINE I iload_u8(const std::byte* p) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))));
}
TREADLE_INLINE I iadd(I a, I b) { return vaddq_s32(a, b); }
TREADLE_INLINE I isub(I a, I b) { return vsubq_s32(a, b); }
TREADLE_INLINE I iand(I a, I b) { return vandq_s32(a, b); }
TREADLE_INLINE I iright(I a, int n) { return vshlq_s32(a, vdupq_n_s32(-n)); }
TREADLE_INLINE F from_bits(I a) { return vreinterpretq_f32_s32(a); }
TREADLE_INLINE I to_int(F a) { return vcvtnq_s32_f32(a); }
TREADLE_INLINE F to_float(I a) { return vcvtq_f32_s32(a); }
// y * 2^n, n being the low bits of `shifted`: y and the result are normal numbers.
TREADLE_INLINE F scale_by_low_bits(F y, F shifted) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(y), vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23)));
}
TREADLE_INLINE void store_i8(int8_t* p, I a) {
    int16x4_t s = vmovn_s32(a);
    int8x8_t b = vmovn_s16(vcombine_s16(s, s));
    __builtin_memcpy(p, &b, 4);
}
TREADLE_INLINE void store_quants(int8_t* p, const I* q, int32_t* sums) {
    for (int half = 0; half < 2; ++half, q += 4) {
        const int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
        vst1q_s8(p + 16 * half, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        sums[half] = vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])));
    }
}

TREADLE_INLINE B bload(const std::byte* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
TREADLE_INLINE void bstore(std::byte* p, B a) { vst1q_s8(reinterpret_cast<int8_t*>(p), a); }
TREADLE_INLINE B low_nibbles(B a) { return vandq_s8(a, vdupq_n_s8(15)); }
TREADLE_INLINE B high_nibbles(B a) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a), 4)); }
TREADLE_INLINE B and_bits(B a, int mask) { return vandq_s8(a, vdupq_n_s8(static_cast<int8_t>(mask))); }
TREADLE_INLINE B insert_bits(B a, B b, int mask) { return vorrq_s8(a, and_bits(b, mask)); }
TREADLE_INLINE B move_bits(B a, int left) {
    return vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(a), vdupq_n_s8(static_cast<int8_t>(left))));
}
TREADLE_INLINE B table16(const int8_t* values) { return vld1q_s8(values); }
TREADLE_INLINE B lookup(B table, B nibbles) { return vqtbl1q_s8(table, vreinterpretq_u8_s8(nibbles)); }
TREADLE_INLINE B from_signed(B a) { return a; }
template <bool Signed>
TREADLE_INLINE I byte_of(B a, int i) {
    int32x4_t top = vshlq_s32(vreinterpretq_s32_s8(a), vdupq_n_s32(24 - 8 * i));
    if constexpr (Signed) return vshrq_n_s32(top, 24);
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(top), 24));
}
template <bool Signed>
TREADLE_INLINE I dot(I acc, B w, const std::byte* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return vdotq_s32(acc, w, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
// A pair holds eight columns of one row, then of another. Of vectors of four columns each: the rows in lanes 0 and 1, the
// rows in lanes 2 and 3.
TREADLE_INLINE B low_pair(B a, B b) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
TREADLE_INLINE B high_pair(B a, B b) {
    return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
TREADLE_INLINE B load_pair(const std::byte* a, const std::byte* b) {
    return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(a)),
                       vld1_s8(reinterpret_cast<const int8_t*>(b)));
}
// Sums of x0 w0, x0 w1, x1 w0, x1 w1.
TREADLE_INLINE I dot_pair(I acc, B x, B w) { return vmmlaq_s32(acc, x, w); }
TREADLE_INLINE I pair_start(I x0, I x1) { return vcombine_s32(vget_low_s32(x0), vget_low_s32(x1)); }
// The sums of x0 (of x1) with four matrix rows, from those with the low and the high pair.
TREADLE_INLINE I first_of_pair(I low, I high) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high)));
}
TREADLE_INLINE I second_of_pair(I low, I high) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high)));
}
#endif

// Lanes 2 apart, then 1: the rest of the canonical tree.
TREADLE_INLINE float fold_add(F a) {
    const float32x2_t d = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
TREADLE_INLINE float fold_max(F a) {
    const F b = max(a, vextq_f32(a, a, 2)), c = max(b, vextq_f32(b, b, 1));
    return vgetq_lane_f32(c, 0);
}

// Lane j of vector i changes places with lane i of vector j.
TREADLE_INLINE void transpose(F (&r)[kLanes]) {
    const auto wide = [](F x) { return vreinterpretq_f64_f32(x); };
    const F a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    const F c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(wide(a), wide(c)));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(wide(b), wide(d)));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(wide(a), wide(c)));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(wide(b), wide(d)));
}

// Into the second cache.
TREADLE_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
// Into the first cache.
TREADLE_INLINE void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace treadle::compute::TREADLE_ISA_NS
