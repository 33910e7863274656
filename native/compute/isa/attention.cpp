// Attention over pages, split by split. The query rows of all heads of one kv head are one list of rows, worked on a chunk
// at a time; the arithmetic of a row depends on its own visible range alone, so grouping rows changes no bit:
//   per split  (kSplit positions) s = q . k;  m = max s;  p = e^(s - m);  sums of p by lane (position % 16);  o = p . v
//   splits merge in ascending order
// Products are FloatChain (f32, f16 and q8_0: exact elements in f32) or PairChain (bf16: q and p are rounded to bf16 too).
// Keys outside a row's range are computed at most, never used; values outside are never read, but for bf16 ones in the same
// block of 32 as a visible one, which are multiplied by zero.
#include "compute/attention.hpp"

#include "compute/isa/attend_products.hpp"
#include "compute/isa/kv_pages.hpp"
#include "compute/isa/table.hpp"
#include "compute/vec/math.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

constexpr float kNegativeInfinity = -__builtin_inff();

TREADLE_INLINE float exp_one(float x) {
    alignas(64) float t[kLanes];
    store(t, vexp(set1(x)));
    return t[0];
}

// Zero where |x| < limit.
TREADLE_INLINE F flushed(F x, float limit) { return select(less(abs(x), set1(limit)), zero(), x); }

struct Range {
    int64_t first, end;
    bool empty() const { return first >= end; }
};

Range overlap(Range a, Range b) { return {most(a.first, b.first), least(a.end, b.end)}; }

// A chunk of (query row, head) pairs of one kv head: pair i is row i / group, head i % group.
struct Work {
    const Attention& a;
    const AttendRows& r;
    HeadPages pages;
    int64_t group;
    int64_t row0, rows;  // the chunk's pairs [row0, row0 + rows)
    int64_t depth;       // key_dim padded to 32: floats of a query, steps of a widened key group
    int64_t width;       // value_dim padded to 16
    int64_t stride;      // floats of one partial result
    float *queries, *part, *merged, *scores, *unit;
    Range ranges[kChunkRows];  // of each row in the split at hand, relative to its base

    Work(const Attention& attention, const AttendRows& query, int64_t head, std::byte* scratch)
        : a(attention), r(query),
          pages{attention.kv, query.arena, query.pages, 0, head, HeadLayout(attention.kv)},
          group(attention.heads / attention.kv.heads), row0(0), rows(0),
          depth(round_up(attention.kv.key_dim, 32)), width(round_up(attention.kv.value_dim, 16)),
          stride(width + 16) {
        pages.page_bytes = attention.kv.heads * pages.layout.total;
        float* base = reinterpret_cast<float*>(scratch);
        const AttendScratch layout(attention);
        queries = base + layout.queries;
        part = base + layout.part;
        merged = base + layout.merged;
        scores = base + layout.scores;
        unit = base + layout.unit;
    }

    int64_t all_rows() const { return r.rows * group; }
    int64_t position(int64_t row) const { return r.position + (row0 + row) / group; }
    int64_t head(int64_t row) const { return pages.head * group + (row0 + row) % group; }

    // Positions that a row sees, relative to `base`, within the split there; {0, 0} where it sees none.
    Range visible(int64_t row, int64_t base) const {
        const int64_t i = position(row);
        int64_t first = 0, end = least(kSplit, r.kv_len - base);
        if (a.left != kUnbounded) first = most(first, i - a.left - base);
        if (a.right != kUnbounded) end = least(end, i + a.right + 1 - base);
        return first < end ? Range{first, end} : Range{0, 0};
    }
    // What any of `count` rows sees, and what all of them see, within [base, end).
    Range seen(int64_t row, int64_t count, Range within) const {
        Range all{within.end, within.first};
        for (int64_t i = row; i < row + count; ++i) {
            if (ranges[i].empty()) continue;
            all = {least(all.first, ranges[i].first), most(all.end, ranges[i].end)};
        }
        return overlap(all, within);
    }
    Range shared(int64_t row, int64_t count, Range within) const {
        for (int64_t i = row; i < row + count; ++i) within = overlap(within, ranges[i]);
        return within;
    }
};

// Scaled queries, [rows][depth], padded with zeros.
template <class Chain>
void load_queries(const Work& w) {
    const F factor = set1(w.a.scale);
    for (int64_t row = 0; row < w.rows; ++row) {
        const int64_t dim = w.a.kv.key_dim;
        const float* q = w.r.q + (w.row0 + row) / w.group * w.r.ldq + w.head(row) * dim;
        float* to = w.queries + row * w.depth;
        int64_t i = 0;
        for (; i + kLanes <= dim; i += kLanes) store(to + i, mul(load(q + i), factor));
        for (; i < dim; ++i) to[i] = q[i] * w.a.scale;
        for (; i < w.depth; ++i) to[i] = 0.0f;
        if constexpr (Chain::kPairs)
            for (i = 0; i < w.depth; i += kLanes)
                store(to + i, round_bf16(flushed(load(to + i), kSmallestBf16)));
    }
}

// Calls body.operator()<R>(row) over the chunk's rows in tiles of kFloatRows and a rest.
template <int R, class Body>
TREADLE_INLINE void rest_of_rows(int64_t row, int64_t rows, Body body) {
    if constexpr (R > 0) {
        if (rows - row == R) body.template operator()<R>(row);
        else rest_of_rows<R - 1>(row, rows, body);
    }
}
template <class Body>
TREADLE_INLINE void each_tile(int64_t rows, Body body) {
    int64_t row = 0;
    for (; row + kFloatRows <= rows; row += kFloatRows) body.template operator()<kFloatRows>(row);
    rest_of_rows<kFloatRows - 1>(row, rows, body);
}

// Scores of the rows against a unit's keys, which begin at position `unit.first` of the split.
template <class Chain, class Columns>
void score_unit(const Work& w, Range unit, const Columns& keys) {
    each_tile(w.rows, [&]<int R>(int64_t row) {
        const Range seen = w.seen(row, R, unit);
        if (seen.empty()) return;
        const int64_t first = (seen.first - unit.first) / 16 * 16, lanes = seen.end - unit.first - first;
        float* scores = w.scores + row * kScoreStride + unit.first + first;
        for (int r = 0; r < R; ++r)
            for (int64_t i = 0; i < lanes; i += kLanes) store(scores + r * kScoreStride + i, zero());
        product_rows<Chain, R>(w.queries + row * w.depth, w.depth, moved(keys, 0, first), w.a.kv.key_dim,
                               lanes, kUnit - first, scores, kScoreStride);
    });
}

// Weighted values of the rows over a unit whose values begin at position `base` of the split.
template <class Chain, int R, class Columns>
TREADLE_INLINE void add_values(const Work& w, int64_t row, Range range, int64_t base, const Columns& values) {
    if (range.empty()) return;
    product_rows<Chain, R>(w.scores + row * kScoreStride + range.first, kScoreStride,
                           moved(values, range.first - base, 0), range.end - range.first, w.width, w.width,
                           w.part + row * w.stride, w.stride);
}

template <class Chain, class Columns>
void value_unit(const Work& w, Range unit, const Columns& values) {
    const int64_t base = unit.first;
    each_tile(w.rows, [&]<int R>(int64_t row) {
        const Range seen = w.seen(row, R, unit);
        if (seen.empty()) return;
        if constexpr (Chain::kPairs) {  // whole blocks; the weights outside a row's range are zero
            const Range blocks{seen.first / kBlock * kBlock, round_up(seen.end, kBlock)};
            add_values<Chain, R>(w, row, blocks, base, values);
        } else {
            Range shared = w.shared(row, R, unit);
            if (shared.empty()) shared = {unit.end, unit.end};
            for (int r = 0; r < R; ++r)
                add_values<Chain, 1>(w, row + r, overlap(w.ranges[row + r], {unit.first, shared.first}), base,
                                     values);
            add_values<Chain, R>(w, row, shared, base, values);
            for (int r = 0; r < R; ++r)
                add_values<Chain, 1>(w, row + r, overlap(w.ranges[row + r], {shared.end, unit.end}), base,
                                     values);
        }
    });
}

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

// Largest of a row's scores in the groups of 16 that hold a visible position; masks them first where needed.
TREADLE_INLINE float largest_score(const Work& w, int64_t row, int64_t base, float* scores) {
    const Range range = w.ranges[row];
    const int64_t first = range.first / 16 * 16, end = round_up(range.end, 16);
    const auto adjust = [&](int64_t i) {
        for (int64_t p = i; p < i + 16; p += kLanes)
            store(scores + p, adjust_scores(w, row, base, p, load(scores + p)));
    };
    if (w.a.softcap > 0.0f || w.a.slopes != nullptr) {
        for (int64_t i = first; i < end; i += 16) adjust(i);
    } else {
        if (range.first % 16 != 0) adjust(first);
        if (range.end % 16 != 0) adjust(end - 16);
    }
    V16 largest = vload(scores + first);
    for (int64_t i = first + 16; i < end; i += 16) largest = vmax(vload(scores + i), largest);
    return reduce_max(largest);
}

// A row's scores to weights e^(s - m), their largest and sum to the partial result.
template <class Chain>
TREADLE_INLINE void soften_row(const Work& w, int64_t row, int64_t base) {
    const Range range = w.ranges[row];
    float* scores = w.scores + row * kScoreStride;
    float* result = w.part + row * w.stride;
    const int64_t first = range.first / 16 * 16, end = range.empty() ? first : round_up(range.end, 16);
    const float m = range.empty() ? kNegativeInfinity : largest_score(w, row, base, scores);
    V16 sum = vset1(0.0f);
    for (int64_t i = first; i < end; i += 16)
        for (int p = 0; p < kParts; ++p) {
            F weight = vexp(sub(load(scores + i + p * kLanes), set1(m)));
            if constexpr (Chain::kPairs) weight = round_bf16(flushed(weight, kSmallestBf16));
            store(scores + i + p * kLanes, weight);
            sum.part[p] = add(sum.part[p], weight);
        }
    if constexpr (Chain::kPairs) {
        for (int64_t i = 0; i < first; i += kLanes) store(scores + i, zero());
        for (int64_t i = end; i < kSplit; i += kLanes) store(scores + i, zero());
    }
    for (int64_t i = 0; i < w.width; i += kLanes) store(result + i, zero());
    result[w.width] = m;
    result[w.width + 1] = reduce_add(sum);
}

// Few rows read a page as it is: widening it first would cost more than it saves.
bool reads_pages(const Work& w) {
    return w.a.kv.page_len == kUnit && (w.rows <= 2 * kFloatRows || w.a.kv.type == DType::f32);
}

template <class Chain>
void score_positions(const Work& w, int64_t base, Range unit) {
    const KvLayout& kv = w.a.kv;
    const int64_t dim = kv.key_dim, position = base + unit.first, within = position % kUnit;
    if (!reads_pages(w)) {
        widen_keys(w.pages, position, unit.end - unit.first, w.depth, w.unit);
        return score_unit<Chain>(w, unit, ColumnsF32{w.unit, 16, 16 * w.depth});
    }
    const std::byte* page = w.pages.at(position);
    const auto* floats = reinterpret_cast<const float*>(page) + within * dim;
    const auto* halves = reinterpret_cast<const uint16_t*>(page) + within * dim;
    if constexpr (Chain::kPairs) {
        score_unit<Chain>(w, unit, ColumnsBf16{halves, 16, 16 * dim});
    } else if (kv.type == DType::f32) {
        score_unit<Chain>(w, unit, ColumnsF32{floats, 16, 16 * dim});
    } else if (kv.type == DType::f16) {
        score_unit<Chain>(w, unit, ColumnsF16{halves, 16, 16 * dim});
    } else {
        const ColumnsQ8Keys keys{reinterpret_cast<const int8_t*>(page),
                                 reinterpret_cast<const uint16_t*>(page + w.pages.layout.key_scales), dim};
        score_unit<Chain>(w, unit, moved(keys, 0, within));
    }
}

template <class Chain>
void add_positions(const Work& w, int64_t base, Range unit) {
    const KvLayout& kv = w.a.kv;
    const int64_t dim = kv.value_dim, position = base + unit.first, count = unit.end - unit.first;
    // Blocks of bf16 values are taken whole: what is not visible must be zero.
    const bool whole = !Chain::kPairs || count % kBlock == 0;
    if (!reads_pages(w) || dim % 16 != 0 || !whole) {
        widen_values(w.pages, position, count, w.width, w.unit);
        if constexpr (Chain::kPairs)
            for (int64_t i = count * w.width; i < round_up(count, kBlock) * w.width; i += kLanes)
                store(w.unit + i, zero());
        return value_unit<Chain>(w, unit, ColumnsF32{w.unit, w.width, 16});
    }
    const std::byte* page = w.pages.at(position) + w.pages.layout.values;
    const int64_t within = position % kUnit * dim;
    const auto* halves = reinterpret_cast<const uint16_t*>(page) + within;
    if constexpr (Chain::kPairs) {
        value_unit<Chain>(w, unit, ColumnsBf16{halves, dim, 16});
    } else if (kv.type == DType::f32) {
        value_unit<Chain>(w, unit, ColumnsF32{reinterpret_cast<const float*>(page) + within, dim, 16});
    } else if (kv.type == DType::f16) {
        value_unit<Chain>(w, unit, ColumnsF16{halves, dim, 16});
    } else {
        widen_value_scales(w.pages, position, w.unit);
        const ColumnsQ8Values values{reinterpret_cast<const int8_t*>(page), w.unit, dim, 0};
        value_unit<Chain>(w, unit, moved(values, position % kUnit, 0));
    }
}

// One split: the partial results of the chunk's rows over positions [split * kSplit, (split + 1) * kSplit).
template <class Chain>
void run_split(Work& w, int64_t split) {
    const int64_t base = split * kSplit;
    for (int64_t row = 0; row < w.rows; ++row) w.ranges[row] = w.visible(row, base);
    const Range seen = w.seen(0, w.rows, {0, kSplit});
    const auto units = [&](auto body) {
        for (int64_t u = seen.first / kUnit * kUnit; u < seen.end; u += kUnit)
            body(overlap({u, u + kUnit}, {seen.first / kBlock * kBlock, seen.end}));
    };
    units([&](Range unit) { score_positions<Chain>(w, base, unit); });
    for (int64_t row = 0; row < w.rows; ++row) soften_row<Chain>(w, row, base);
    units([&](Range unit) { add_positions<Chain>(w, base, unit); });
}

// merged (m, sum, o) = merged + part.
TREADLE_INLINE void merge(const Work& w, float* merged, const float* part) {
    const float m1 = merged[w.width], m2 = part[w.width];
    if (m2 == kNegativeInfinity) return;
    if (m1 == kNegativeInfinity)
        return copy_bytes(merged, part, w.stride * static_cast<int64_t>(sizeof(float)));
    const float m = m1 > m2 ? m1 : m2;
    const float f1 = exp_one(m1 - m), f2 = exp_one(m2 - m);
    merged[w.width] = m;
    merged[w.width + 1] = __builtin_fmaf(merged[w.width + 1], f1, part[w.width + 1] * f2);
    for (int64_t i = 0; i < w.width; i += 16)
        vstore(merged + i, vfma(vload(merged + i), vset1(f1), vmul(vload(part + i), vset1(f2))));
}

// out = o / sum, with the head's sink in the sum.
void write_row(const Work& w, int64_t row, const float* merged) {
    float m = merged[w.width], sum = merged[w.width + 1], factor = 1.0f;
    if (w.a.sinks != nullptr) {
        const float sink = w.a.sinks[w.head(row)], top = m > sink ? m : sink;
        factor = exp_one(m - top);
        sum = __builtin_fmaf(sum, factor, exp_one(sink - top));
    }
    factor = sum > 0.0f ? factor / sum : 0.0f;
    float* out = w.r.out + (w.row0 + row) / w.group * w.r.ldo + w.head(row) * w.a.kv.value_dim;
    const V16 by = vset1(factor);
    for (int64_t i = 0; i < w.width; i += 16) {
        const V16 v = vmul(vload(merged + i), by);
        if (i + 16 <= w.a.kv.value_dim) vstore(out + i, v);
        else vstore_n(out + i, v, w.a.kv.value_dim - i);
    }
}

void clear_merged(const Work& w) {
    for (int64_t row = 0; row < w.rows; ++row) {
        float* o = w.merged + row * w.stride;
        for (int64_t i = 0; i < w.stride; i += kLanes) store(o + i, zero());
        o[w.width] = kNegativeInfinity;
    }
}

void merge_rows(const Work& w, const float* parts) {
    for (int64_t row = 0; row < w.rows; ++row) merge(w, w.merged + row * w.stride, parts + row * w.stride);
}

void write_rows(const Work& w) {
    for (int64_t row = 0; row < w.rows; ++row) write_row(w, row, w.merged + row * w.stride);
}

// Calls body with every chunk of the rows.
template <class Body>
TREADLE_INLINE void each_chunk(Work& w, Body body) {
    for (w.row0 = 0; w.row0 < w.all_rows(); w.row0 += kChunkRows) {
        w.rows = least(kChunkRows, w.all_rows() - w.row0);
        body();
    }
}

// Calls body with the products of the pages' type.
template <class Body>
TREADLE_INLINE void with_chain(const Attention& a, Body body) {
    if (a.kv.type == DType::bf16) body(PairChain());
    else body(FloatChain());
}

}  // namespace

void attend(const Attention& a, const AttendRows& r, int64_t kv_head, std::byte* scratch) {
    Work w(a, r, kv_head, scratch);
    const SplitRange splits = attend_splits(a, r);
    with_chain(a, [&](auto chain) {
        using Chain = decltype(chain);
        each_chunk(w, [&] {
            load_queries<Chain>(w);
            clear_merged(w);
            for (int64_t split = splits.first; split < splits.last; ++split) {
                run_split<Chain>(w, split);
                merge_rows(w, w.part);
            }
            write_rows(w);
        });
    });
}

void attend_part(const Attention& a, const AttendRows& r, int64_t kv_head, int64_t split, float* parts,
                 std::byte* scratch) {
    Work w(a, r, kv_head, scratch);
    float* to = parts + (split - attend_splits(a, r).first) * w.all_rows() * w.stride;
    with_chain(a, [&](auto chain) {
        using Chain = decltype(chain);
        each_chunk(w, [&] {
            load_queries<Chain>(w);
            run_split<Chain>(w, split);
            copy_bytes(to + w.row0 * w.stride, w.part,
                       w.rows * w.stride * static_cast<int64_t>(sizeof(float)));
        });
    });
}

void attend_merge(const Attention& a, const AttendRows& r, int64_t kv_head, const float* parts,
                  std::byte* scratch) {
    Work w(a, r, kv_head, scratch);
    const SplitRange splits = attend_splits(a, r);
    each_chunk(w, [&] {
        clear_merged(w);
        for (int64_t split = 0; split < splits.last - splits.first; ++split)
            merge_rows(w, parts + (split * w.all_rows() + w.row0) * w.stride);
        write_rows(w);
    });
}

}  // namespace treadle::compute::TREADLE_ISA_NS
