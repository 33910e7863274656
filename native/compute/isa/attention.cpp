// Attention over pages, split by split. The query rows of all heads of one kv head are one list of rows, worked on a chunk
// at a time; the arithmetic of a row depends on its own visible range alone, so grouping rows changes no bit:
//   per split  (kSplit positions) s = q . k;  m = max s;  p = e^(s - m);  sums of p by lane (position % 16);  o = p . v
//   splits merge in ascending order
// Products are FloatChain (f32, f16 and q8_0: exact elements in f32) or PairChain (bf16: q and p are rounded to bf16 too),
// which a matrix unit computes to the same bits.
// Keys outside a row's range are computed at most, never used; values outside are never read, but for bf16 ones before the
// first visible one in its block of 32, which are multiplied by zero. Those after the last need not be: a chain from zero is
// never -0, and adding a zero to it changes nothing.
#include "compute/attention.hpp"

#include "compute/isa/attend_products.hpp"
#include "compute/isa/attend_soften.hpp"
#include "compute/isa/table.hpp"
#if defined(__AMX_BF16__)
#include "compute/amx/attend_tiles.hpp"
#endif

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

TREADLE_INLINE float exp_one(float x) {
    alignas(64) float t[kLanes];
    store(t, vexp(set1(x)));
    return t[0];
}

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
            for (i = 0; i < w.depth; i += kLanes) {
                const F x = round_bf16(flushed(load(to + i), kSmallestBf16));
                store(to + i, x);
                store_bf16(w.narrow + row * w.depth + i, x);
            }
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
void score_unit(const Work& w, Range unit, const Columns& keys, Fetch& fetch) {
    each_tile(w.rows, [&]<int R>(int64_t row) {
        const Range seen = w.seen(row, R, unit);
        if (seen.empty()) return;
        const int64_t first = (seen.first - unit.first) / 16 * 16, lanes = seen.end - unit.first - first;
        float* scores = w.scores + row * kScoreStride + unit.first + first;
        for (int r = 0; r < R; ++r)
            for (int64_t i = 0; i < lanes; i += kLanes) store(scores + r * kScoreStride + i, zero());
        product_rows<Chain, R>(w.queries + row * w.depth, w.depth, moved(keys, 0, first), w.a.kv.key_dim,
                               lanes, kUnit - first, scores, kScoreStride, fetch);
    });
}

// Weighted values of the rows over a unit whose values begin at position `base` of the split.
template <class Chain, int R, class Columns>
TREADLE_INLINE void add_values(const Work& w, int64_t row, Range range, int64_t base, const Columns& values,
                               Fetch& fetch) {
    if (range.empty()) return;
    product_rows<Chain, R>(w.scores + row * kScoreStride + range.first, kScoreStride,
                           moved(values, range.first - base, 0), range.end - range.first, w.width, w.width,
                           w.part + row * w.stride, w.stride, fetch);
}

template <class Chain, class Columns>
void value_unit(const Work& w, Range unit, const Columns& values, Fetch& fetch) {
    const int64_t base = unit.first;
    each_tile(w.rows, [&]<int R>(int64_t row) {
        const Range seen = w.seen(row, R, unit);
        if (seen.empty()) return;
        if constexpr (Chain::kPairs) {  // from a block's first on; the weights outside a row's range are zero
            const Range blocks{seen.first / kBlock * kBlock, seen.end};
            add_values<Chain, R>(w, row, blocks, base, values, fetch);
        } else {
            Range shared = w.shared(row, R, unit);
            if (shared.empty()) shared = {unit.end, unit.end};
            for (int r = 0; r < R; ++r)
                add_values<Chain, 1>(w, row + r, overlap(w.ranges[row + r], {unit.first, shared.first}), base,
                                     values, fetch);
            add_values<Chain, R>(w, row, shared, base, values, fetch);
            for (int r = 0; r < R; ++r)
                add_values<Chain, 1>(w, row + r, overlap(w.ranges[row + r], {shared.end, unit.end}), base,
                                     values, fetch);
        }
    });
}

// Few rows read a page as it is: widening it first would cost more than it saves.
bool reads_pages(const Work& w) {
    return w.a.kv.page_len == kUnit && (w.rows <= 2 * kFloatRows || w.a.kv.type == DType::f32);
}

template <class Chain>
void score_positions(const Work& w, int64_t base, Range unit, Fetch& fetch) {
    const KvLayout& kv = w.a.kv;
    const int64_t dim = kv.key_dim, position = base + unit.first, within = position % kUnit;
    if (!reads_pages(w)) {
        widen_keys(w.pages, position, unit.end - unit.first, w.depth, w.unit);
        return score_unit<Chain>(w, unit, ColumnsF32{w.unit, 16, 16 * w.depth}, fetch);
    }
    const std::byte* page = w.pages.at(position);
    const auto* floats = reinterpret_cast<const float*>(page) + within * dim;
    const auto* halves = reinterpret_cast<const uint16_t*>(page) + within * dim;
    if constexpr (Chain::kPairs) {
        score_unit<Chain>(w, unit, ColumnsBf16{halves, 16, 16 * dim}, fetch);
    } else if (kv.type == DType::f32) {
        score_unit<Chain>(w, unit, ColumnsF32{floats, 16, 16 * dim}, fetch);
    } else if (kv.type == DType::f16) {
        score_unit<Chain>(w, unit, ColumnsF16{halves, 16, 16 * dim}, fetch);
    } else {
        const ColumnsQ8Keys keys{reinterpret_cast<const int8_t*>(page),
                                 reinterpret_cast<const uint16_t*>(page + w.pages.layout.key_scales), dim};
        score_unit<Chain>(w, unit, moved(keys, 0, within), fetch);
    }
}

template <class Chain>
void add_positions(const Work& w, int64_t base, Range unit, Fetch& fetch) {
    const KvLayout& kv = w.a.kv;
    const int64_t dim = kv.value_dim, position = base + unit.first, count = unit.end - unit.first;
    if (kv.shared || !reads_pages(w) || dim % 16 != 0) {
        widen_values(w.pages, position, count, w.width, w.unit);
        return value_unit<Chain>(w, unit, ColumnsF32{w.unit, w.width, 16}, fetch);
    }
    const std::byte* page = w.pages.at(position) + w.pages.layout.values;
    const int64_t within = position % kUnit * dim;
    const auto* halves = reinterpret_cast<const uint16_t*>(page) + within;
    if constexpr (Chain::kPairs) {
        value_unit<Chain>(w, unit, ColumnsBf16{halves, dim, 16}, fetch);
    } else if (kv.type == DType::f32) {
        value_unit<Chain>(w, unit, ColumnsF32{reinterpret_cast<const float*>(page) + within, dim, 16}, fetch);
    } else if (kv.type == DType::f16) {
        value_unit<Chain>(w, unit, ColumnsF16{halves, dim, 16}, fetch);
    } else {
        widen_value_scales(w.pages, position, w.unit);
        const ColumnsQ8Values values{reinterpret_cast<const int8_t*>(page), w.unit, dim, 0};
        value_unit<Chain>(w, unit, moved(values, position % kUnit, 0), fetch);
    }
}

// The bytes of positions that lie in one page.
TREADLE_INLINE Fetch keys_ahead(const Work& w, int64_t base, Range unit) {
    const int64_t position = base + unit.first, count = round_up(unit.end - unit.first, 16);
    const std::byte* from =
        w.pages.at(position) + kv_element_bytes(w.a.kv.type, position % kUnit * w.a.kv.key_dim);
    return {from, from + kv_element_bytes(w.a.kv.type, count * w.a.kv.key_dim)};
}
TREADLE_INLINE Fetch values_ahead(const Work& w, int64_t base, Range unit) {
    const int64_t position = base + unit.first, dim = w.a.kv.shared ? 0 : w.a.kv.value_dim;
    const std::byte* from =
        w.pages.at(position) + w.pages.layout.values + kv_element_bytes(w.a.kv.type, position % kUnit * dim);
    return {from, from + kv_element_bytes(w.a.kv.type, (unit.end - unit.first) * dim)};
}
TREADLE_INLINE Fetch nothing_ahead(const Work& w) {
    const auto* here = reinterpret_cast<const std::byte*>(w.queries);
    return {here, here};
}
// What is read after a split: the next one's first keys, or those of whoever comes next.
TREADLE_INLINE Fetch after(const Work& w, int64_t base) {
    const int64_t next = base + kSplit;
    if (next < w.r.kv_len) return keys_ahead(w, next, {0, least(kUnit, w.r.kv_len - next)});
    if (w.r.next == nullptr) return nothing_ahead(w);
    return {w.r.next, w.r.next + kv_element_bytes(w.a.kv.type, kUnit * w.a.kv.key_dim)};
}

// One split: the partial results of the chunk's rows over positions [split * kSplit, (split + 1) * kSplit).
template <class Chain>
void run_split(Work& w, int64_t split) {
    const int64_t base = split * kSplit;
    for (int64_t row = 0; row < w.rows; ++row) w.ranges[row] = w.visible(row, base);
    const Range seen = w.seen(0, w.rows, {0, kSplit});
#if defined(__AMX_BF16__)
    if constexpr (Chain::kPairs)
        if (tiles_serve(w)) return run_split_on_tiles<Chain>(w, base, seen);
#endif
    const auto unit_at = [&](int64_t u) {
        return overlap({u, u + kUnit}, {seen.first / kBlock * kBlock, seen.end});
    };
    const Range first = unit_at(seen.first / kUnit * kUnit);
    // Calls body with every unit, and with the next one, which is empty after the last.
    const auto units = [&](auto body) {
        for (Range unit = first, next; !unit.empty(); unit = next) {
            next = unit_at(unit.first / kUnit * kUnit + kUnit);
            body(unit, next);
        }
    };
    const bool ahead = reads_pages(w);
    units([&](Range unit, Range next) {
        Fetch fetch = !ahead         ? nothing_ahead(w)
                      : next.empty() ? values_ahead(w, base, first)
                                     : keys_ahead(w, base, next);
        score_positions<Chain>(w, base, unit, fetch);
        fetch.rest();
    });
    for (int64_t row = 0; row < w.rows; ++row)
        soften_row<Chain>(w, row, base, WideWeights{w.scores + row * kScoreStride});
    units([&](Range unit, Range next) {
        Fetch fetch = !ahead ? nothing_ahead(w) : next.empty() ? after(w, base) : values_ahead(w, base, next);
        add_positions<Chain>(w, base, unit, fetch);
        fetch.rest();
    });
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
