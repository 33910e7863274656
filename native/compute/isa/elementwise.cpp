// Row kernels: norms, rotary embedding, activations, scaled sums.
#include "compute/isa/spans.hpp"
#include "compute/isa/table.hpp"
#include "compute/vec/math.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// y[i] = f(a[i]) and y[i] = f(a[i], b[i]) over native vectors.
template <class Function>
TREADLE_INLINE void map(const float* a, int64_t n, float* y, Function f) {
    each_16(n, [&](int64_t i, int64_t count) {
        V16 v = take(a + i, count);
        for (int p = 0; p < kParts; ++p) v.part[p] = f(v.part[p]);
        put(y + i, v, count);
    });
}

template <class Function>
TREADLE_INLINE void map2(const float* a, const float* b, int64_t n, float* y, Function f) {
    each_16(n, [&](int64_t i, int64_t count) {
        V16 v = take(a + i, count), u = take(b + i, count);
        for (int p = 0; p < kParts; ++p) v.part[p] = f(v.part[p], u.part[p]);
        put(y + i, v, count);
    });
}

// Sum over i of f(x[i])-like terms: four accumulators by turns, then ((0 + 1) + (2 + 3)), then the lane tree.
template <class Accumulate>
TREADLE_INLINE float sum_row(const float* x, int64_t n, float fill, Accumulate accumulate) {
    V16 sums[4] = {vset1(0.0f), vset1(0.0f), vset1(0.0f), vset1(0.0f)};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; ++j) sums[j] = accumulate(sums[j], vload(x + i + 16 * j));
    for (int j = 0; i < n; i += 16, ++j) sums[j] = accumulate(sums[j], take(x + i, least(16, n - i), fill));
    return reduce_add(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));
}

void rmsnorm(const float* x, const float* gain, float gain_offset, float eps, int64_t cols, float* y) {
    const float squares =
        sum_row(x, cols, 0.0f, [](const V16& sum, const V16& v) { return vfma(v, v, sum); });
    const V16 inverse = vset1(1.0f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps));
    each_16(cols, [&](int64_t i, int64_t count) {
        V16 v = vmul(take(x + i, count), inverse);
        if (gain != nullptr) v = vmul(v, vadd(take(gain + i, count), vset1(gain_offset)));
        put(y + i, v, count);
    });
}

void layernorm(const float* x, const float* gain, const float* bias, float eps, int64_t cols, float* y) {
    const float total = sum_row(x, cols, 0.0f, [](const V16& sum, const V16& v) { return vadd(sum, v); });
    const float mean = total / static_cast<float>(cols);
    const V16 centre = vset1(mean);
    const float squares = sum_row(x, cols, mean, [&](const V16& sum, const V16& v) {
        const V16 d = vsub(v, centre);
        return vfma(d, d, sum);
    });
    const V16 inverse = vset1(1.0f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps));
    each_16(cols, [&](int64_t i, int64_t count) {
        V16 v = vmul(vsub(take(x + i, count), centre), inverse);
        if (gain != nullptr) v = vmul(v, take(gain + i, count));
        if (bias != nullptr) v = vadd(v, take(bias + i, count));
        put(y + i, v, count);
    });
}

// (a, b) -> (a cos - b sin, b cos + a sin), each with one rounded product and one fma.
TREADLE_INLINE void rotate(V16& a, V16& b, const V16& c, const V16& s) {
    const V16 turned = vfma(b, c, vmul(a, s));
    a = vfma(vsub(vset1(0.0f), b), s, vmul(a, c));
    b = turned;
}

void rope(float* head, const float* cosine, const float* sine, int64_t half, RopeStyle style) {
    each_16(half, [&](int64_t i, int64_t count) {
        const V16 c = take(cosine + i, count), s = take(sine + i, count);
        V16 a, b;
        if (style == RopeStyle::halves) {
            a = take(head + i, count);
            b = take(head + half + i, count);
        } else {
            alignas(64) float even[16] = {}, odd[16] = {};
            for (int64_t j = 0; j < count; ++j) {
                even[j] = head[2 * (i + j)];
                odd[j] = head[2 * (i + j) + 1];
            }
            a = vload(even);
            b = vload(odd);
        }
        rotate(a, b, c, s);
        if (style == RopeStyle::halves) {
            put(head + i, a, count);
            put(head + half + i, b, count);
        } else {
            alignas(64) float even[16], odd[16];
            vstore(even, a);
            vstore(odd, b);
            for (int64_t j = 0; j < count; ++j) {
                head[2 * (i + j)] = even[j];
                head[2 * (i + j) + 1] = odd[j];
            }
        }
    });
}

template <class Function>
TREADLE_INLINE void gated(const float* gate, const float* up, int64_t n, float* y, Function f) {
    if (up == nullptr) map(gate, n, y, f);
    else map2(gate, up, n, y, [&](F g, F u) { return mul(f(g), u); });
}

void activate(const float* gate, const float* up, int64_t n, const ActivationParams& params, float* y) {
    switch (params.kind) {
        case Activation::none:
            return gated(gate, up, n, y, [](F x) { return x; });
        case Activation::silu:
            return gated(gate, up, n, y, [](F x) { return mul(x, sigmoid(x)); });
        case Activation::gelu:
            return gated(gate, up, n, y, [](F x) { return gelu(x); });
        case Activation::gelu_tanh:
            return gated(gate, up, n, y, [](F x) { return gelu_tanh(x); });
        case Activation::quick_gelu:
            return gated(gate, up, n, y, [](F x) { return mul(x, sigmoid(mul(x, set1(1.702f)))); });
        case Activation::relu:
            return gated(gate, up, n, y, [](F x) { return max(x, zero()); });
        case Activation::relu2:
            return gated(gate, up, n, y, [](F x) {
                F p = max(x, zero());
                return mul(p, p);
            });
        case Activation::sigmoid:
            return gated(gate, up, n, y, [](F x) { return sigmoid(x); });
        case Activation::tanh:
            return gated(gate, up, n, y, [](F x) { return vtanh(x); });
        case Activation::swiglu_clamped: {
            const F high = set1(params.limit), low = set1(-params.limit), alpha = set1(params.alpha);
            const auto f = [&](F g) {
                F x = min(g, high);
                return mul(x, sigmoid(mul(x, alpha)));
            };
            if (up == nullptr) return map(gate, n, y, f);
            return map2(gate, up, n, y, [&](F g, F u) {
                F x = f(g);
                return fma(x, min(max(u, low), high), x);
            });
        }
    }
}

void add_scaled(const float* a, const float* b, float factor, int64_t n, float* y) {
    map2(a, b, n, y, [&](F u, F v) { return fma(set1(factor), v, u); });
}

void scale(const float* x, float factor, int64_t n, float* y) {
    map(x, n, y, [&](F v) { return mul(v, set1(factor)); });
}

void softcap(const float* x, float cap, int64_t n, float* y) {
    map(x, n, y, [&](F v) { return mul(set1(cap), vtanh(div(v, set1(cap)))); });
}

}  // namespace treadle::compute::TREADLE_ISA_NS
