// Passes over a row of values from which a column is chosen: the largest, weights and their sums, those above a bound.
#include "compute/isa/table.hpp"
#include "compute/vec/math.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr float kLowest = -__builtin_inff();

// The 16 values from `i` on; lanes past the row's end are -inf.
TREADLE_INLINE V16 values_at(const float* x, int64_t i, int64_t n) {
    return i + 16 <= n ? vload(x + i) : vload_n(x + i, n - i, kLowest);
}

// Bit j: lane j of `a` is less than that of `b`.
TREADLE_INLINE uint32_t less_bits(const V16& a, const V16& b) {
    uint32_t r = 0;
    for (int p = 0; p < kParts; ++p) r |= bits(less(a.part[p], b.part[p])) << (p * kLanes);
    return r;
}

static Best first_nan(const float* x) {
    int64_t i = 0;
    while (x[i] == x[i]) ++i;
    return {x[i], i};
}

// Each lane keeps its first largest value and, as a float, which 16 columns that was in (below 2^24, so exact).
Best best(const float* x, int64_t n) {
    V16 largest = vset1(kLowest), group = vset1(0.0f);
    uint32_t nan = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const V16 v = values_at(x, i, n);
        const F here = set1(static_cast<float>(i / 16));
        for (int p = 0; p < kParts; ++p) {
            const M more = less(largest.part[p], v.part[p]);
            largest.part[p] = select(more, v.part[p], largest.part[p]);
            group.part[p] = select(more, here, group.part[p]);
            nan |= bits(unordered(v.part[p]));
        }
    }
    if (nan != 0) return first_nan(x);
    alignas(64) float value[16], at[16];
    vstore(value, largest);
    vstore(at, group);
    Best found{value[0], static_cast<int64_t>(at[0]) * 16};
    for (int lane = 1; lane < 16; ++lane) {
        const int64_t col = static_cast<int64_t>(at[lane]) * 16 + lane;
        if (value[lane] > found.value || (value[lane] == found.value && col < found.col))
            found = {value[lane], col};
    }
    return found;
}

TREADLE_INLINE int64_t lane_sum(I a) {
    alignas(64) int32_t lanes[kLanes];
    istore(lanes, a);
    int64_t total = 0;
    for (const int32_t lane : lanes) total += lane;
    return total;
}

// A weight in two exact parts of 20 bits: round(w * 2^20), and what that left, times 2^20 again.
void weigh(const float* x, float largest, float inverse, int64_t n, float* y, int64_t* masses) {
    constexpr int kHalf = kMassBits / 2;
    const F top = set1(largest), by = set1(inverse), unit = set1(static_cast<float>(1 << kHalf));
    for (int64_t start = 0; start < n; start += kMassBlock, ++masses) {
        const int64_t end = least(n, start + kMassBlock);
        I high = iset1(0), low = iset1(0);
        for (int64_t i = start; i < end; i += 16) {
            V16 v = values_at(x, i, end);
            for (int p = 0; p < kParts; ++p) {
                const F w = vexp(mul(sub(v.part[p], top), by)), scaled = mul(w, unit);
                const I whole = to_int(scaled);
                high = iadd(high, whole);
                low = iadd(low, to_int(mul(sub(scaled, to_float(whole)), unit)));
                v.part[p] = w;
            }
            if (i + 16 <= end) vstore(y + i, v);
            else vstore_n(y + i, v, end - i);
        }
        *masses = (lane_sum(high) << kHalf) + lane_sum(low);
    }
}

void maxima(const float* x, int64_t n, float* y) {
    for (int64_t start = 0; start < n; start += kMaximaBlock) {
        V16 largest = vset1(kLowest);
        for (int64_t i = start; i < least(n, start + kMaximaBlock); i += 16)
            largest = vmax(values_at(x, i, n), largest);
        *y++ = reduce_max(largest);
    }
}

int64_t columns_from(const float* x, float bound, int64_t n, int32_t* cols) {
    const V16 limit = vset1(bound);
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 16) {
        uint32_t kept = ~less_bits(values_at(x, i, n), limit) & (i + 16 <= n ? 0xffffu : (1u << (n - i)) - 1);
        for (; kept != 0; kept &= kept - 1) cols[count++] = static_cast<int32_t>(i) + __builtin_ctz(kept);
    }
    return count;
}

int64_t rank(const float* x, int64_t col, int64_t n) {
    const V16 limit = vset1(x[col]);
    int64_t before = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const V16 v = values_at(x, i, n);
        const uint32_t more = less_bits(limit, v), less = less_bits(v, limit);
        const int64_t earlier = least(16, most(0, col - i));  // of these 16: the ones before `col`
        before += __builtin_popcount(more | (~less & ((1u << earlier) - 1)));
    }
    return before;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
