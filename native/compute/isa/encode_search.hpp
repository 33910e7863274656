// Searches for the scale (and minimum) of a group of values: sixteen candidates at a time, one in each lane, so that
// sums over the group need no reduction and come out the same on every ISA.
#pragma once

#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Candidates start from grids of slightly different width and are refined by turns: the nearest levels for the scale,
// then the least-squares scale for the levels (Lloyd 1982). Each turn can only lower the squared error.
inline constexpr int kTurns = 3;
inline constexpr float kTiny = 1e-30f;  // squares and scales below count as zero

TREADLE_INLINE V16 vmin(const V16& a, const V16& b) {
    V16 r;
    for (int i = 0; i < kParts; ++i) r.part[i] = min(a.part[i], b.part[i]);
    return r;
}
TREADLE_INLINE V16 vdiv(const V16& a, const V16& b) {
    V16 r;
    for (int i = 0; i < kParts; ++i) r.part[i] = div(a.part[i], b.part[i]);
    return r;
}
// a < b ? x : y
TREADLE_INLINE V16 where_less(const V16& a, const V16& b, const V16& x, const V16& y) {
    V16 r;
    for (int i = 0; i < kParts; ++i) r.part[i] = select(less(a.part[i], b.part[i]), x.part[i], y.part[i]);
    return r;
}
// Nearest integers, ties to even, of |a| < 2^22.
TREADLE_INLINE V16 vround(const V16& a) {
    const V16 magic = vset1(12582912.0f);  // 1.5 * 2^23
    return vsub(vadd(a, magic), magic);
}
TREADLE_INLINE V16 clamped_levels(const V16& a, float low, float high) {
    return vround(vmin(vmax(a, vset1(low)), vset1(high)));
}
// 1 / a, and 0 where a is not above kTiny in magnitude.
TREADLE_INLINE V16 inverse_or_zero(const V16& a) {
    return where_less(vset1(kTiny), vabs(a), vdiv(vset1(1.0f), a), vset1(0.0f));
}

struct Best {
    int lane;
    float value;
};
// The first lane of the greatest value.
TREADLE_INLINE Best greatest(const V16& a) {
    alignas(64) float v[16];
    vstore(v, a);
    Best best{0, v[0]};
    for (int i = 1; i < 16; ++i)
        if (v[i] > best.value) best = {i, v[i]};
    return best;
}
TREADLE_INLINE float lane(const V16& a, int i) {
    alignas(64) float v[16];
    vstore(v, a);
    return v[i];
}

// value = scale * level - minimum, level in [0, top], minimum >= 0
struct Affine {
    float scale;
    float minimum;
};

// The affine code of least squared error over x[N].
template <int N>
TREADLE_INLINE Affine fit_affine(const float* x, float top) {
    float low = 0.0f, high = x[0], total = 0.0f;
    for (int i = 0; i < N; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        total += x[i];
    }
    if (!(high - low > kTiny)) return {0.0f, -low};
    alignas(64) static constexpr float kWiden[16] = {-1.3f, -1.1f, -0.9f, -0.75f, -0.6f, -0.45f, -0.3f, -0.2f,
                                                     -0.1f, 0.0f,  0.1f,  0.25f,  0.4f,  0.6f,   0.8f,  1.0f};
    const float count = N;
    V16 minimum = vset1(-low), scale = vset1(0.0f), gain = vset1(0.0f);
    V16 inverse = vdiv(vadd(vset1(top), vload(kWiden)), vset1(high - low));
    for (int turn = 0; turn < kTurns; ++turn) {
        V16 sum_l = vset1(0.0f), sum_ll = sum_l, sum_xl = sum_l;
        for (int i = 0; i < N; ++i) {
            const V16 xi = vset1(x[i]);
            const V16 level = clamped_levels(vmul(vadd(xi, minimum), inverse), 0.0f, top);
            sum_l = vadd(sum_l, level);
            sum_ll = vfma(level, level, sum_ll);
            sum_xl = vfma(level, xi, sum_xl);
        }
        // Least squares for scale and offset = -minimum; an offset above zero is held at zero. Where all levels are
        // equal the determinant (a whole number) is 0, and the mean is the offset.
        const V16 determinant = vsub(vmul(vset1(count), sum_ll), vmul(sum_l, sum_l));
        const V16 inverse_determinant = inverse_or_zero(determinant), zero = vset1(0.0f);
        scale = vmul(vsub(vmul(vset1(count), sum_xl), vmul(vset1(total), sum_l)), inverse_determinant);
        V16 offset = vmul(vsub(vmul(vset1(total), sum_ll), vmul(sum_l, sum_xl)), inverse_determinant);
        offset = where_less(zero, determinant, offset, vset1(total / count));
        scale = where_less(zero, offset, vmul(sum_xl, inverse_or_zero(sum_ll)), scale);
        offset = vmin(offset, zero);
        gain = vfma(scale, sum_xl, vmul(offset, vset1(total)));  // sum x^2 less the squared error
        minimum = vsub(zero, offset);
        inverse = inverse_or_zero(scale);
    }
    const int best = greatest(gain).lane;
    const float found = lane(scale, best);
    return {found > 0.0f ? found : 0.0f, lane(minimum, best)};
}

// Magnitudes of the outermost level that the candidates start from: the largest |x| falls on the lower end (which
// reaches one further) in the first twelve lanes, on the upper end in the others.
TREADLE_INLINE V16 symmetric_starts(float low, float high, float extreme) {
    alignas(64) static constexpr float kWiden[16] = {-0.9f, -0.7f, -0.55f, -0.4f, -0.25f, -0.1f, 0.0f, 0.1f,
                                                     0.25f, 0.4f,  0.6f,   0.9f,  -0.3f,  0.0f,  0.3f, 0.6f};
    alignas(64) float starts[16];
    for (int i = 0; i < 16; ++i) starts[i] = i < 12 ? low - kWiden[i] : high + kWiden[i];
    return vdiv(vload(starts), vset1(extreme));
}

TREADLE_INLINE float extreme_of(const float* x, int n) {  // the first of the largest magnitude
    float extreme = x[0];
    for (int i = 1; i < n; ++i)
        if (__builtin_fabsf(x[i]) > __builtin_fabsf(extreme)) extreme = x[i];
    return extreme;
}

// The scale of least squared error over x[N] where value = scale * code(x / scale). `code` maps lanes to the nearest
// codes; its outermost ones are low and high.
template <int N, class Code>
TREADLE_INLINE float fit_symmetric(const float* x, float low, float high, Code code) {
    const float extreme = extreme_of(x, N);
    if (!(__builtin_fabsf(extreme) > kTiny)) return 0.0f;
    V16 inverse = symmetric_starts(low, high, extreme), scale = vset1(0.0f), gain = vset1(0.0f);
    for (int turn = 0; turn < kTurns; ++turn) {
        V16 sum_cc = vset1(0.0f), sum_xc = sum_cc;
        for (int i = 0; i < N; ++i) {
            const V16 xi = vset1(x[i]);
            const V16 c = code(vmul(xi, inverse));
            sum_cc = vfma(c, c, sum_cc);
            sum_xc = vfma(c, xi, sum_xc);
        }
        scale = vmul(sum_xc, inverse_or_zero(sum_cc));
        gain = vmul(scale, sum_xc);
        inverse = inverse_or_zero(scale);
    }
    return lane(scale, greatest(gain).lane);
}

TREADLE_INLINE uint16_t to_f16(float value) {
    uint16_t halves[kLanes];
    store_f16(halves, set1(value));
    return halves[0];
}
TREADLE_INLINE float from_f16(uint16_t half) {
    uint16_t halves[kLanes];
    for (uint16_t& h : halves) h = half;
    alignas(64) float values[kLanes];
    store(values, load_f16(halves));
    return values[0];
}
TREADLE_INLINE bool finite_f16(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

}  // namespace treadle::compute::TREADLE_ISA_NS
