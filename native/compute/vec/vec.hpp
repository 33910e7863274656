// Picks the native vector by the compiler's target flags and builds on it: V16, sixteen f32 lanes on every ISA, and
// canonical reductions, so that sums come out the same whatever the native width is.
// Code in the ISA namespace calls no std:: function template: a linker may keep any one ISA's copy of those.
#pragma once

#include <cstddef>
#include <cstdint>

namespace treadle::compute::TREADLE_ISA_NS {

// Does the ISA multiply the bytes of two rows by two at once (isa/dot_pairs.hpp)?
#if defined(__ARM_FEATURE_MATMUL_INT8)
inline constexpr bool kPairedDots = true;
#else
inline constexpr bool kPairedDots = false;
#endif

}  // namespace treadle::compute::TREADLE_ISA_NS

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "compute/vec/avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__)
#include "compute/vec/avx2.hpp"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "compute/vec/neon.hpp"
#else
#include "compute/vec/plain.hpp"
#endif

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int kParts = 16 / kLanes;

struct V16 {
    F part[kParts];
};

#define TREADLE_PARTS(expression)                              \
    V16 r;                                                     \
    for (int i = 0; i < kParts; ++i) r.part[i] = (expression); \
    return r

TREADLE_INLINE V16 vset1(float x) { TREADLE_PARTS(set1(x)); }
TREADLE_INLINE V16 vload(const float* p) { TREADLE_PARTS(load(p + i * kLanes)); }
TREADLE_INLINE void vstore(float* p, const V16& a) {
    for (int i = 0; i < kParts; ++i) store(p + i * kLanes, a.part[i]);
}
TREADLE_INLINE V16 vadd(const V16& a, const V16& b) { TREADLE_PARTS(add(a.part[i], b.part[i])); }
TREADLE_INLINE V16 vsub(const V16& a, const V16& b) { TREADLE_PARTS(sub(a.part[i], b.part[i])); }
TREADLE_INLINE V16 vmul(const V16& a, const V16& b) { TREADLE_PARTS(mul(a.part[i], b.part[i])); }
TREADLE_INLINE V16 vmax(const V16& a, const V16& b) { TREADLE_PARTS(max(a.part[i], b.part[i])); }
TREADLE_INLINE V16 vabs(const V16& a) { TREADLE_PARTS(abs(a.part[i])); }
TREADLE_INLINE V16 vfma(const V16& a, const V16& b, const V16& c) {
    TREADLE_PARTS(fma(a.part[i], b.part[i], c.part[i]));
}
#undef TREADLE_PARTS

// The first n (1..16) elements; the lanes past them are `fill`.
TREADLE_INLINE V16 vload_n(const float* p, int64_t n, float fill) {
    alignas(64) float t[16];
    for (int i = 0; i < 16; ++i) t[i] = i < n ? p[i] : fill;
    return vload(t);
}
TREADLE_INLINE void vstore_n(float* p, const V16& a, int64_t n) {
    alignas(64) float t[16];
    vstore(t, a);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}

// Zero where |x| < limit.
TREADLE_INLINE F flushed(F x, float limit) { return select(less(abs(x), set1(limit)), zero(), x); }

// Pairs of the nearest bf16, ties to even; of NaN a NaN.
#if defined(__AVX512BF16__)
alignas(64) inline constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                         21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                         11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
TREADLE_INLINE void store_nearest_pairs(uint16_t* p, F even, F odd) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_loadu_si512(kInterleave), halves));
}
#else
TREADLE_INLINE F nearest_bf16(F a) { return select(unordered(a), set1(__builtin_nanf("")), round_bf16(a)); }
TREADLE_INLINE void store_nearest_pairs(uint16_t* p, F even, F odd) {
    store_bf16_pairs(p, nearest_bf16(even), nearest_bf16(odd));
}
#endif

// Canonical trees: lanes 8 apart, then 4, 2, 1.
TREADLE_INLINE float reduce_add(V16 a) {
    for (int parts = kParts / 2; parts > 0; parts /= 2)
        for (int i = 0; i < parts; ++i) a.part[i] = add(a.part[i], a.part[i + parts]);
    return fold_add(a.part[0]);
}
TREADLE_INLINE float reduce_max(V16 a) {
    for (int parts = kParts / 2; parts > 0; parts /= 2)
        for (int i = 0; i < parts; ++i) a.part[i] = max(a.part[i], a.part[i + parts]);
    return fold_max(a.part[0]);
}

TREADLE_INLINE void copy_bytes(void* to, const void* from, int64_t n) {
    __builtin_memcpy(to, from, static_cast<size_t>(n));
}
TREADLE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TREADLE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace treadle::compute::TREADLE_ISA_NS
