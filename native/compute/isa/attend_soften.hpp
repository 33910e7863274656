// The softmax step of one split: scores to weights, their largest and sum.
#pragma once

#include "compute/isa/attend_work.hpp"
#include "compute/vec/math.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// One vector of scores: softcap, slope, mask. `offset` counts positions from `base`.
TREADLE_INLINE F adjust_scores(const Work& w, int64_t row, int64_t base, int64_t offset, F s) {
    alignas(64) static constexpr float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Range range = w.ranges[row];
    if (w.a.softcap > 0.0f) s = mul(set1(w.a.softcap), vtanh(div(s, set1(w.a.softcap))));
    const F lane = add(load(kIota), set1(static_cast<float>(offset)));
    if (w.a.slopes != nullptr)
        s = fma(set1(w.a.slopes[w.head(row)]), add(lane, set1(static_cast<float>(base - w.position(row)))),
                s);
    s = select(less(lane, set1(static_cast<float>(range.end))), s, set1(kNegativeInfinity));
    return select(less(lane, set1(static_cast<float>(range.first))), set1(kNegativeInfinity), s);
}

// e^x for x <= 0 to 1e-4, and zero below -34.6, where it would be less than 2^-50: as good as bf16 weights can show.
TREADLE_INLINE F weight_exp(F x) {
    const F magic = set1(12582912.0f);
    const F shifted = fma(x, set1(1.44269504f), magic);
    const F r = fma(sub(shifted, magic), set1(-0.693147181f), x);
    F p = fma(set1(0.165667430f), r, set1(0.504968226f));
    p = fma(p, r, set1(1.000164509f));
    p = fma(p, r, set1(0.999927938f));
    return select(less(x, set1(-34.6f)), zero(), scale_by_low_bits(p, shifted));
}

// Largest of a row's scores in [first, end), which hold all visible positions; masks them first where needed.
TREADLE_INLINE float largest_score(const Work& w, int64_t row, int64_t base, Range within, float* scores) {
    const Range range = w.ranges[row];
    const auto adjust = [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i += kLanes)
            store(scores + i, adjust_scores(w, row, base, i, load(scores + i)));
    };
    if (w.a.softcap > 0.0f || w.a.slopes != nullptr) {
        adjust(within.first, within.end);
    } else {
        if (range.first > within.first) adjust(within.first, round_up(range.first, 16));
        if (range.end < within.end) adjust(range.end / 16 * 16, within.end);
    }
    V16 largest = vload(scores + within.first);
    for (int64_t i = within.first + 16; i < within.end; i += 16) largest = vmax(vload(scores + i), largest);
    return reduce_max(largest);
}

// Weights go where the scores were, as f32.
struct WideWeights {
    float* row;
    TREADLE_METHOD void put(int64_t i, const V16& a, const V16& b) const {
        vstore(row + i, a);
        vstore(row + i + 16, b);
    }
};

// A row's scores to weights, their largest and sum to the partial result. Weights of pair chains are there for the whole
// split, zero where the row sees nothing.
template <class Chain, class Weights>
TREADLE_INLINE void soften_row(const Work& w, int64_t row, int64_t base, const Weights& weights) {
    const Range range = w.ranges[row];
    float* scores = w.scores + row * kScoreStride;
    float* result = w.part + row * w.stride;
    const Range within{range.first / kBlock * kBlock,
                       range.empty() ? range.first : round_up(range.end, kBlock)};
    const float m = range.empty() ? kNegativeInfinity : largest_score(w, row, base, within, scores);
    const V16 none = vset1(0.0f);
    V16 sum = none;
    const auto soften = [&](int64_t i) {
        V16 weight;
        for (int p = 0; p < kParts; ++p) {
            const F x = sub(load(scores + i + p * kLanes), set1(m));
            if constexpr (Chain::kPairs) weight.part[p] = round_weight(weight_exp(x));
            else weight.part[p] = vexp(x);
        }
        sum = vadd(sum, weight);
        return weight;
    };
    if constexpr (Chain::kPairs)
        for (int64_t i = 0; i < within.first; i += kBlock) weights.put(i, none, none);
    for (int64_t i = within.first; i < within.end; i += kBlock) {
        const V16 a = soften(i), b = soften(i + 16);
        weights.put(i, a, b);
    }
    if constexpr (Chain::kPairs)
        for (int64_t i = within.end; i < kSplit; i += kBlock) weights.put(i, none, none);
    for (int64_t i = 0; i < w.width; i += kLanes) store(result + i, zero());
    result[w.width] = m;
    result[w.width + 1] = reduce_add(sum);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
