// The native vector of AVX-512 (F, BW, DQ, VL, VNNI): 16 lanes.
#pragma once
// GCC 12 warns about its own undefined vectors (bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#define TREADLE_INLINE static inline __attribute__((always_inline))
#define TREADLE_METHOD inline __attribute__((always_inline))

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kLanes = 16;
inline constexpr int kSignedBias = 128;  // signed weights are kept as w + 128, unsigned
inline constexpr int kDotRows = 6;       // the int8 tile: rows and vectors of columns
inline constexpr int kDotVectors = 2;
inline constexpr int kWideRows = 12;  // most rows of an int8 tile of one vector; 0: there is none
inline constexpr int kFloatRows = 6;  // the f32 tile
inline constexpr int kFloatVectors = 4;

using F = __m512;
using I = __m512i;
using B = __m512i;
using M = __mmask16;

TREADLE_INLINE F zero() { return _mm512_setzero_ps(); }
TREADLE_INLINE F set1(float x) { return _mm512_set1_ps(x); }
TREADLE_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
TREADLE_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a); }
TREADLE_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
TREADLE_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
TREADLE_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
TREADLE_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
TREADLE_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
TREADLE_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // a > b ? a : b
TREADLE_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }  // a < b ? a : b
TREADLE_INLINE M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
TREADLE_INLINE M unordered(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }  // where a is NaN
TREADLE_INLINE uint32_t bits(M m) { return m; }                                     // bit i: lane i
TREADLE_INLINE F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }    // m ? a : b
TREADLE_INLINE F abs(F a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
TREADLE_INLINE F with_sign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
}

TREADLE_INLINE F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TREADLE_INLINE F load_bf16(const uint16_t* p) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
// kLanes pairs of bf16: the even elements, the odd ones.
TREADLE_INLINE F load_bf16_even(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
TREADLE_INLINE F load_bf16_odd(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)));
}
TREADLE_INLINE void store_f16(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

// The nearest bf16, ties to even, of finite values; store_bf16 takes such values.
TREADLE_INLINE F round_bf16(F a) {
    const __m512i u = _mm512_castps_si512(a),
                  odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-65536)));
}
// The nearest bf16, ties upwards, of values that are not negative.
TREADLE_INLINE F round_weight(F a) {
    const __m512i up = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-65536)));
}
TREADLE_INLINE void store_bf16(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16)));
}
// kLanes pairs of bf16, of two vectors that round_bf16 made.
TREADLE_INLINE void store_bf16_pairs(uint16_t* p, F even, F odd) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_castps_si512(odd)));
}
TREADLE_INLINE F f16_everywhere(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(*p)));
}
TREADLE_INLINE F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

TREADLE_INLINE I iset1(int32_t x) { return _mm512_set1_epi32(x); }
TREADLE_INLINE I iload(const int32_t* p) { return _mm512_loadu_si512(p); }
TREADLE_INLINE void istore(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
// kLanes bytes, widened.
TREADLE_INLINE I iload_i8(const std::byte* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TREADLE_INLINE I iload_u8(const std::byte* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TREADLE_INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
TREADLE_INLINE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
TREADLE_INLINE I iand(I a, I b) { return _mm512_and_si512(a, b); }
TREADLE_INLINE I iright(I a, unsigned n) { return _mm512_srli_epi32(a, n); }  // a >= 0
TREADLE_INLINE F from_bits(I a) { return _mm512_castsi512_ps(a); }
TREADLE_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }  // nearest, ties to even; |a| < 2^22
TREADLE_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
// y * 2^n, n being the low bits of `shifted`: y and the result are normal numbers.
TREADLE_INLINE F scale_by_low_bits(F y, F shifted) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
TREADLE_INLINE void store_i8(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
// Stores 32 quants, the lanes of q[2 * 16 / kLanes] narrowed, and the sums of the first and of the last 16.
TREADLE_INLINE void store_quants(int8_t* p, const I* q, int32_t* sums) {
    const __m256i all = _mm256_set_m128i(_mm512_cvtepi32_epi8(q[1]), _mm512_cvtepi32_epi8(q[0]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), all);
    __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), all);
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    sums[0] = _mm256_cvtsi256_si32(s);
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

TREADLE_INLINE B bload(const std::byte* p) { return _mm512_loadu_si512(p); }
TREADLE_INLINE void bstore(std::byte* p, B a) { _mm512_storeu_si512(p, a); }
TREADLE_INLINE B low_nibbles(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
TREADLE_INLINE B high_nibbles(B a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
TREADLE_INLINE B and_bits(B a, int mask) {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
}
TREADLE_INLINE B insert_bits(B a, B b, int mask) {  // a | (b & mask)
    return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi8(static_cast<char>(mask)), 0xf8);
}
// Bits of every byte `left` places up (down where negative); what comes in from outside the byte is to be masked off.
TREADLE_INLINE B move_bits(B a, int left) {
    return left >= 0 ? _mm512_slli_epi16(a, static_cast<unsigned>(left))
                     : _mm512_srli_epi16(a, static_cast<unsigned>(-left));
}
TREADLE_INLINE B table16(const int8_t* values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
TREADLE_INLINE B lookup(B table, B nibbles) { return _mm512_shuffle_epi8(table, nibbles); }
TREADLE_INLINE B from_signed(B a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
// Byte i (0..3) of every lane, as from_signed() or the nibble functions left it.
template <bool Signed>
TREADLE_INLINE I byte_of(B a, int i) {
    return _mm512_and_si512(_mm512_srli_epi32(a, static_cast<unsigned>(8 * i)), iset1(255));
}
// acc[lane] += sum over 4 bytes w[lane, i] * x[i].
template <bool Signed>
TREADLE_INLINE I dot(I acc, B w, const std::byte* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}

// Lanes 8 apart, then 4, 2, 1: the canonical tree.
template <class Combine>
TREADLE_INLINE float fold(F a, Combine combine) {
    const __m256 h = combine(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 q = combine(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = combine(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(combine(d, _mm_movehdup_ps(d)));
}
struct Sum {
    __m256 operator()(__m256 a, __m256 b) const { return _mm256_add_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const { return _mm_add_ps(a, b); }
};
struct Largest {
    __m256 operator()(__m256 a, __m256 b) const { return _mm256_max_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const { return _mm_max_ps(a, b); }
};
TREADLE_INLINE float fold_add(F a) { return fold(a, Sum()); }
TREADLE_INLINE float fold_max(F a) { return fold(a, Largest()); }

// Lane j of vector i changes places with lane i of vector j.
TREADLE_INLINE void transpose(F (&r)[kLanes]) {
    F q[16];
    for (int i = 0; i < 16; i += 4) {
        const F a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const F c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        const auto wide = [](F x) { return _mm512_castps_pd(x); };
        q[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(wide(a), wide(c)));
        q[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(wide(a), wide(c)));
        q[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(wide(b), wide(d)));
        q[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(wide(b), wide(d)));
    }
    for (int j = 0; j < 4; ++j) {  // quarters of q[j], q[j + 4], q[j + 8], q[j + 12]
        const F a = _mm512_shuffle_f32x4(q[j], q[j + 4], 0x88),
                b = _mm512_shuffle_f32x4(q[j], q[j + 4], 0xdd);
        const F c = _mm512_shuffle_f32x4(q[j + 8], q[j + 12], 0x88);
        const F d = _mm512_shuffle_f32x4(q[j + 8], q[j + 12], 0xdd);
        r[j] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[j + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[j + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

// Into the second cache.
TREADLE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
// Into the first cache.
TREADLE_INLINE void prefetch_near(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace treadle::compute::TREADLE_ISA_NS
