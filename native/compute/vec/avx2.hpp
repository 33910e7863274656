// The native vector of AVX2 with FMA and F16C, and of AVX-VNNI, which adds the dot product to it: 8 lanes.
#pragma once
#include <immintrin.h>

#define TREADLE_INLINE static inline __attribute__((always_inline))
#define TREADLE_METHOD inline __attribute__((always_inline))

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kLanes = 8;
#if defined(__AVXVNNI__)
inline constexpr int kSignedBias = 128;  // signed weights are kept as w + 128, unsigned
inline constexpr int kDotRows = 4;       // the int8 tile: rows and vectors of columns
inline constexpr int kDotVectors = 2;
inline constexpr int kWideRows = 8;  // most rows of an int8 tile of one vector; 0: there is none
#else
inline constexpr int kSignedBias = 0;  // signed weights stay signed
inline constexpr int kDotRows = 2;     // the int8 tile: rows and vectors of columns
inline constexpr int kDotVectors = 2;
inline constexpr int kWideRows = 0;  // most rows of an int8 tile of one vector; 0: there is none
#endif
inline constexpr int kFloatRows = 6;  // the f32 tile
inline constexpr int kFloatVectors = 2;

using F = __m256;
using I = __m256i;
using B = __m256i;
using M = __m256;

TREADLE_INLINE F zero() { return _mm256_setzero_ps(); }
TREADLE_INLINE F set1(float x) { return _mm256_set1_ps(x); }
TREADLE_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
TREADLE_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a); }
TREADLE_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
TREADLE_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
TREADLE_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
TREADLE_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
TREADLE_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
TREADLE_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
TREADLE_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
TREADLE_INLINE M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
TREADLE_INLINE M unordered(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
TREADLE_INLINE uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
TREADLE_INLINE F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }
TREADLE_INLINE F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
TREADLE_INLINE F with_sign(F magnitude, F sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
}

TREADLE_INLINE F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TREADLE_INLINE F load_bf16(const uint16_t* p) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
TREADLE_INLINE I bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
TREADLE_INLINE F load_bf16_even(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(bytes_at(p), 16));
}
TREADLE_INLINE F load_bf16_odd(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_and_si256(bytes_at(p), _mm256_set1_epi32(-65536)));
}
TREADLE_INLINE void store_f16(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

// The nearest bf16, ties to even, of finite values; store_bf16 takes such values.
TREADLE_INLINE F round_bf16(F a) {
    const __m256i u = _mm256_castps_si256(a),
                  odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-65536)));
}
// The nearest bf16, ties upwards, of values that are not negative.
TREADLE_INLINE F round_weight(F a) {
    const __m256i up = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(0x8000));
    return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-65536)));
}
TREADLE_INLINE void store_bf16(uint16_t* p, F a) {
    const __m256i u = _mm256_srli_epi32(_mm256_castps_si256(a), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}
// kLanes pairs of bf16, of two vectors that round_bf16 made.
TREADLE_INLINE void store_bf16_pairs(uint16_t* p, F even, F odd) {
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_or_si256(low, _mm256_castps_si256(odd)));
}
TREADLE_INLINE F f16_everywhere(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(*p)));
}
TREADLE_INLINE F load_i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

TREADLE_INLINE I iset1(int32_t x) { return _mm256_set1_epi32(x); }
TREADLE_INLINE I iload(const int32_t* p) { return bytes_at(p); }
TREADLE_INLINE void istore(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
TREADLE_INLINE I iload_i8(const std::byte* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
TREADLE_INLINE I iload_u8(const std::byte* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
TREADLE_INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
TREADLE_INLINE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
TREADLE_INLINE I iand(I a, I b) { return _mm256_and_si256(a, b); }
TREADLE_INLINE I iright(I a, int n) { return _mm256_srli_epi32(a, n); }
TREADLE_INLINE F from_bits(I a) { return _mm256_castsi256_ps(a); }
TREADLE_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
TREADLE_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
// y * 2^n, n being the low bits of `shifted`: y and the result are normal numbers.
TREADLE_INLINE F scale_by_low_bits(F y, F shifted) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
TREADLE_INLINE void store_i8(int8_t* p, I a) {
    __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(s, s));
}
TREADLE_INLINE void store_quants(int8_t* p, const I* q, int32_t* sums) {
    const __m256i pairs = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i all = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), all);
    __m256i s = _mm256_maddubs_epi16(_mm256_set1_epi8(1), all);
    s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    sums[0] = _mm256_cvtsi256_si32(s);
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

TREADLE_INLINE B bload(const std::byte* p) { return bytes_at(p); }
TREADLE_INLINE void bstore(std::byte* p, B a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
TREADLE_INLINE B low_nibbles(B a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
TREADLE_INLINE B high_nibbles(B a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
TREADLE_INLINE B and_bits(B a, int mask) {
    return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
}
TREADLE_INLINE B insert_bits(B a, B b, int mask) { return _mm256_or_si256(a, and_bits(b, mask)); }
TREADLE_INLINE B move_bits(B a, int left) {
    return left >= 0 ? _mm256_slli_epi16(a, left) : _mm256_srli_epi16(a, -left);
}
TREADLE_INLINE B table16(const int8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
TREADLE_INLINE B lookup(B table, B nibbles) { return _mm256_shuffle_epi8(table, nibbles); }
#if defined(__AVXVNNI__)
TREADLE_INLINE B from_signed(B a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
#else
TREADLE_INLINE B from_signed(B a) { return a; }
#endif
template <bool Signed>
TREADLE_INLINE I byte_of(B a, int i) {
    if constexpr (Signed) return _mm256_srai_epi32(_mm256_slli_epi32(a, 24 - 8 * i), 24);
    return _mm256_and_si256(_mm256_srli_epi32(a, 8 * i), iset1(255));
}
// Pairs of products are added in 16 bits: |w| <= 128 and |x| <= 127 keep that below 2^15.
template <bool Signed>
TREADLE_INLINE I dot(I acc, B w, const std::byte* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    __m256i b = _mm256_set1_epi32(four);
#if defined(__AVXVNNI__)
    static_assert(!Signed, "from_signed has made the bytes unsigned");
    return _mm256_dpbusd_avx_epi32(acc, w, b);
#else
    __m256i pairs = Signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(b, w))
                           : _mm256_maddubs_epi16(w, b);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

// Lanes 4 apart, then 2, 1: the rest of the canonical tree.
TREADLE_INLINE float fold_add(F a) {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ps(d, _mm_movehdup_ps(d)));
}
TREADLE_INLINE float fold_max(F a) {
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ps(d, _mm_movehdup_ps(d)));
}

// Lane j of vector i changes places with lane i of vector j.
TREADLE_INLINE void transpose(F (&r)[kLanes]) {
    F q[8];
    for (int i = 0; i < 8; i += 4) {
        const F a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const F c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        const auto wide = [](F x) { return _mm256_castps_pd(x); };
        q[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(wide(a), wide(c)));
        q[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(wide(a), wide(c)));
        q[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(wide(b), wide(d)));
        q[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(wide(b), wide(d)));
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm256_permute2f128_ps(q[j], q[j + 4], 0x20);
        r[j + 4] = _mm256_permute2f128_ps(q[j], q[j + 4], 0x31);
    }
}

// Into the second cache.
TREADLE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
// Into the first cache.
TREADLE_INLINE void prefetch_near(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace treadle::compute::TREADLE_ISA_NS
