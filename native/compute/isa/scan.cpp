// Recurrences over rows. A tile of the state stays in registers while all rows pass; where a row's output sums over more
// than a tile, it waits in y and its chain of fmas goes on, so tiles of any size give the same bits.
#include "compute/isa/spans.hpp"
#include "compute/isa/table.hpp"
#include "compute/recurrent.hpp"
#include "compute/vec/math.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

inline constexpr int kDepth = kLanes == 16 ? 8 : 4;  // a tile's n
inline constexpr int kSpans = kLanes == 16 ? 2 : 1;  // a head scan tile's spans of sixteen columns
inline constexpr int kDeltaSpans = kLanes == 16 ? 4 : 2;

// Columns [column, column + width) with D rows of the state from n on.
template <int D, int S>
TREADLE_INLINE void head_tile(const HeadScan& s, int64_t n, int64_t column, int64_t width) {
    V16 h[D][S];
    int64_t lanes[S];
#pragma GCC unroll 4
    for (int v = 0; v < S; ++v) lanes[v] = least(16, width - 16 * v);
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v) h[d][v] = take(s.state + (n + d) * s.dim + column + 16 * v, lanes[v]);
    for (int64_t t = 0; t < s.rows; ++t) {
        const V16 dt = vset1(s.dt[t * s.ld_steps]), decay = vset1(s.decay[t * s.ld_steps]);
        const float* b = s.b + t * s.ld_bc + n;
        const float* c = s.c + t * s.ld_bc + n;
        V16 u[S], y[S];
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v) {
            const V16 x = take(s.x + t * s.ldx + column + 16 * v, lanes[v]);
            u[v] = vmul(dt, x);
            y[v] = n == 0 ? vmul(vset1(s.skip), x) : take(s.y + t * s.ldy + column + 16 * v, lanes[v]);
        }
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
            for (int v = 0; v < S; ++v) {
                h[d][v] = vfma(u[v], vset1(b[d]), vmul(decay, h[d][v]));
                y[v] = vfma(h[d][v], vset1(c[d]), y[v]);
            }
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v) put(s.y + t * s.ldy + column + 16 * v, y[v], lanes[v]);
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v) put(s.state + (n + d) * s.dim + column + 16 * v, h[d][v], lanes[v]);
}

template <int S>
TREADLE_INLINE void head_columns(const HeadScan& s, int64_t column, int64_t width) {
    int64_t n = 0;
    for (; n + kDepth <= s.depth; n += kDepth) head_tile<kDepth, S>(s, n, column, width);
    for (; n < s.depth; ++n) head_tile<1, S>(s, n, column, width);
}

template <int D>
TREADLE_INLINE void channel_tile(const ChannelScan& s, int64_t n, int64_t channel, int64_t lanes) {
    V16 h[D], rate[D];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
        h[d] = take(s.state + (n + d) * s.ld_state + channel, lanes);
        rate[d] = take(s.rate + (n + d) * s.ld_state + channel, lanes);
    }
    for (int64_t t = 0; t < s.rows; ++t) {
        const V16 x = take(s.x + t * s.ldx + channel, lanes), dt = take(s.dt + t * s.ld_dt + channel, lanes);
        const V16 u = vmul(dt, x);
        float* to = s.y + t * s.ldy + channel;
        V16 y = n == 0 ? vmul(take(s.skip + channel, lanes), x) : take(to, lanes);
        const float* b = s.b + t * s.ld_bc + n;
        const float* c = s.c + t * s.ld_bc + n;
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) {
            V16 decay = vmul(dt, rate[d]);
            for (int p = 0; p < kParts; ++p) decay.part[p] = vexp(decay.part[p]);
            h[d] = vfma(u, vset1(b[d]), vmul(decay, h[d]));
            y = vfma(h[d], vset1(c[d]), y);
        }
        put(to, y, lanes);
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) put(s.state + (n + d) * s.ld_state + channel, h[d], lanes);
}

// One row of the delta rule for S spans of columns: the state moves on, y sums over it and, for the row after this one,
// so does `held` = S^T k_next.
template <int S, bool More>
TREADLE_INLINE void delta_row(const DeltaRule& r, int64_t t, int64_t column, const int64_t lanes[S],
                              V16 held[S]) {
    const float decay = r.decay[t * r.ld_steps], beta = r.beta[t * r.ld_steps];
    V16 delta[S], y[S];
#pragma GCC unroll 4
    for (int v = 0; v < S; ++v) {
        const V16 value = take(r.v + t * r.ldv + column + 16 * v, lanes[v]);
        delta[v] = vmul(vset1(beta), vfma(vset1(-decay), held[v], value));
        y[v] = held[v] = vset1(0.0f);
    }
    const float *q = r.q + t * r.ld_qk, *k = r.k + t * r.ld_qk, *next = k + (More ? r.ld_qk : 0);
    for (int64_t i = 0; i < r.key_dim; ++i) {
        float* state = r.state + i * r.dim + column;
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v) {
            const V16 s = vfma(vset1(k[i]), delta[v], vmul(vset1(decay), take(state + 16 * v, lanes[v])));
            put(state + 16 * v, s, lanes[v]);
            y[v] = vfma(s, vset1(q[i]), y[v]);
            if constexpr (More) held[v] = vfma(s, vset1(next[i]), held[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < S; ++v) put(r.y + t * r.ldy + column + 16 * v, y[v], lanes[v]);
}

template <int S>
TREADLE_INLINE void delta_columns(const DeltaRule& r, int64_t column, int64_t width) {
    int64_t lanes[S];
    V16 held[S];
#pragma GCC unroll 4
    for (int v = 0; v < S; ++v) {
        lanes[v] = least(16, width - 16 * v);
        held[v] = vset1(0.0f);
    }
    for (int64_t i = 0; i < r.key_dim; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < S; ++v)
            held[v] = vfma(take(r.state + i * r.dim + column + 16 * v, lanes[v]), vset1(r.k[i]), held[v]);
    for (int64_t t = 0; t + 1 < r.rows; ++t) delta_row<S, true>(r, t, column, lanes, held);
    delta_row<S, false>(r, r.rows - 1, column, lanes, held);
}

}  // namespace

void time_steps(const float* x, const float* bias, const float* rate, float low, float high, int64_t n,
                float* dt, float* decay) {
    each_16(n, [&](int64_t i, int64_t count) {
        V16 v = vadd(take(x + i, count), take(bias + i, count));
        for (int p = 0; p < kParts; ++p) v.part[p] = min(max(softplus(v.part[p]), set1(low)), set1(high));
        put(dt + i, v, count);
        if (decay == nullptr) return;
        v = vmul(v, take(rate + i, count));
        for (int p = 0; p < kParts; ++p) v.part[p] = vexp(v.part[p]);
        put(decay + i, v, count);
    });
}

void head_scan(const HeadScan& s) {
    int64_t column = 0;
    for (; column + 16 * kSpans <= s.dim; column += 16 * kSpans) head_columns<kSpans>(s, column, 16 * kSpans);
    for (; column < s.dim; column += 16) head_columns<1>(s, column, least(16, s.dim - column));
}

void channel_scan(const ChannelScan& s) {
    each_16(s.channels, [&](int64_t channel, int64_t lanes) {
        int64_t n = 0;
        for (; n + kDepth <= s.depth; n += kDepth) channel_tile<kDepth>(s, n, channel, lanes);
        for (; n < s.depth; ++n) channel_tile<1>(s, n, channel, lanes);
    });
}

void delta_rule(const DeltaRule& r) {
    int64_t column = 0;
    for (; column + 16 * kDeltaSpans <= r.dim; column += 16 * kDeltaSpans)
        delta_columns<kDeltaSpans>(r, column, 16 * kDeltaSpans);
    for (; column < r.dim; column += 16) delta_columns<1>(r, column, least(16, r.dim - column));
}

}  // namespace treadle::compute::TREADLE_ISA_NS
