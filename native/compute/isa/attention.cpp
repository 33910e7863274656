// Attention over pages with an online softmax. Query rows of all heads of one kv head are one list of rows; for every
// (row, page) the arithmetic depends on the row's own visible range alone, so grouping rows changes no bit:
//   per page   s = q . k over ascending dimensions;  p = e^(s - m);  sums and values accumulate over ascending positions
//   per split  (kSplit positions) running (m, sum, o); splits merge in ascending order
// Keys outside a row's range are computed at most, never used.
#include "compute/attention.hpp"

#include "compute/isa/float_tile.hpp"
#include "compute/isa/table.hpp"
#include "compute/vec/math.hpp"

#include <type_traits>

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

constexpr float kNegativeInfinity = -__builtin_inff();

TREADLE_INLINE float exp_one(float x) {
    alignas(64) float t[kLanes];
    store(t, vexp(set1(x)));
    return t[0];
}

struct Range {
    int64_t first, end;
};

// Everything attend() needs for one list of query rows.
struct Work {
    const Attention& a;
    const AttendRows& r;
    int64_t kv_head, group, rows;  // rows: query rows times heads of the group
    int64_t width;                 // value_dim padded to 16
    int64_t stride;                // floats of one running result
    float *queries, *running, *merged, *sums, *scores, *keys, *values;
    int32_t* positions;

    Work(const Attention& attention, const AttendRows& query, int64_t head, std::byte* scratch)
        : a(attention), r(query), kv_head(head), group(attention.heads / attention.kv.heads),
          rows(query.rows * group), width((attention.kv.value_dim + 15) / 16 * 16), stride(width + 16) {
        float* base = reinterpret_cast<float*>(scratch);
        const AttendScratch layout(attention);
        queries = base + layout.queries;
        running = base + layout.running;
        merged = base + layout.merged;
        sums = base + layout.sums;
        positions = reinterpret_cast<int32_t*>(scratch) + layout.positions;
        scores = base + layout.scores;
        keys = base + layout.keys;
        values = base + layout.values;
    }

    int64_t position(int64_t row) const { return positions[row]; }
    int64_t head(int64_t row) const { return kv_head * group + row % group; }

    // Positions in the page starting at `base` that the row sees, relative to the page.
    Range visible(int64_t row, int64_t base) const {
        const int64_t i = position(row);
        int64_t first = 0, end = least(a.kv.page_len, r.kv_len - base);
        if (a.left != kUnbounded) first = most(first, i - a.left - base);
        if (a.right != kUnbounded) end = least(end, i + a.right + 1 - base);
        return {first, most(first, end)};
    }
};

// One page's keys and values of one head, as columns of the f32 tile.
template <class Columns>
struct PageColumns {
    Columns keys;    // k: dimension, groups of 16 positions
    Columns values;  // k: position, groups of 16 dimensions
};

void load_queries(const Work& w) {
    const int64_t width = w.group * w.a.kv.key_dim;  // a row's heads of the group lie side by side
    const F factor = set1(w.a.scale);
    for (int64_t r = 0; r < w.r.rows; ++r) {
        const float* q = w.r.q + r * w.r.ldq + w.kv_head * width;
        float* to = w.queries + r * width;
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes) store(to + i, mul(load(q + i), factor));
        for (; i < width; ++i) to[i] = q[i] * w.a.scale;
        for (int64_t h = 0; h < w.group; ++h)
            w.positions[r * w.group + h] = static_cast<int32_t>(w.r.position + r);
    }
}

void clear(const Work& w, float* results) {
    for (int64_t row = 0; row < w.rows; ++row) {
        float* o = results + row * w.stride;
        for (int64_t i = 0; i < w.stride; ++i) o[i] = 0.0f;
        o[w.width] = kNegativeInfinity;
    }
}

// scores[R, kMaxPage] = q [R, depth] @ V vectors of keys.
template <int R, int V, class Columns>
__attribute__((noinline)) void score_tile(const float* q, int64_t depth, const Columns& keys, float* scores) {
    F acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = zero();
    float_tile<R, V>(q, depth, keys, depth, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(scores + r * kMaxPage + v * kLanes, acc[r][v]);
}

// o[R, stride] += weights [R, kMaxPage] @ V vectors of values over `depth` positions.
template <int R, int V, class Columns>
__attribute__((noinline)) void value_tile(const float* weights, int64_t depth, const Columns& values,
                                          float* o, int64_t stride) {
    F acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = load(o + r * stride + v * kLanes);
    float_tile<R, V>(weights, kMaxPage, values, depth, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(o + r * stride + v * kLanes, acc[r][v]);
}

// Scores of the page's first `count` positions, rounded up to whole vectors.
template <int R, class Columns>
TREADLE_INLINE void score_rows(const Work& w, int64_t row, const Columns& keys, int64_t count) {
    constexpr int kWide = kFloatVectors * kLanes;
    const float* q = w.queries + row * w.a.kv.key_dim;
    for (int64_t lane = 0; lane < count;) {
        Columns from = keys;
        from.base += lane / 16 * keys.group + lane % 16;
        if (lane + kWide <= w.a.kv.page_len) {
            score_tile<R, kFloatVectors>(q, w.a.kv.key_dim, from, w.scores + lane);
            lane += kWide;
        } else {
            score_tile<R, 1>(q, w.a.kv.key_dim, from, w.scores + lane);
            lane += kLanes;
        }
    }
}

// One vector of scores: softcap, slope, mask. `offset` counts positions from `base`.
TREADLE_INLINE F adjust_scores(const Work& w, int64_t row, int64_t base, Range range, int64_t offset, F s) {
    alignas(64) static constexpr float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (w.a.softcap > 0.0f) s = mul(set1(w.a.softcap), vtanh(div(s, set1(w.a.softcap))));
    const F lane = add(load(kIota), set1(static_cast<float>(offset)));
    if (w.a.slopes != nullptr)
        s = fma(set1(w.a.slopes[w.head(row)]), add(lane, set1(static_cast<float>(base - w.position(row)))),
                s);
    s = select(less(lane, set1(static_cast<float>(range.end))), s, set1(kNegativeInfinity));
    return select(less(lane, set1(static_cast<float>(range.first))), set1(kNegativeInfinity), s);
}

// Largest of a row's scores in the groups of 16 that hold a visible position; masks them first where needed.
TREADLE_INLINE float largest_score(const Work& w, int64_t row, int64_t base, Range range, float* scores) {
    const int64_t first = range.first / 16 * 16, end = (range.end + 15) / 16 * 16;
    if (range.first % 16 != 0 || range.end % 16 != 0 || w.a.softcap > 0.0f || w.a.slopes != nullptr)
        for (int64_t i = first; i < end; i += kLanes)
            store(scores + i, adjust_scores(w, row, base, range, i, load(scores + i)));
    V16 largest = vload(scores + first);
    for (int64_t i = first + 16; i < end; i += 16) largest = vmax(vload(scores + i), largest);
    return reduce_max(largest);
}

// Turns one row's scores into weights e^(s - m) and adds those to the row's sums.
TREADLE_INLINE void soften_row(Range range, float m, float* scores, float* sums) {
    const int64_t first = range.first / 16 * 16, end = (range.end + 15) / 16 * 16;
    V16 sum = vload(sums);
    for (int64_t i = first; i < end; i += 16)
        for (int p = 0; p < kParts; ++p) {
            const F weight = vexp(sub(load(scores + i + p * kLanes), set1(m)));
            store(scores + i + p * kLanes, weight);
            sum.part[p] = add(sum.part[p], weight);
        }
    vstore(sums, sum);
}

// Softmax step of R rows: new maxima, what was accumulated rescaled to them, scores to weights. Rows side by side, so
// that their chains overlap; a row that sees nothing keeps every bit.
template <int R>
TREADLE_INLINE void soften_rows(const Work& w, int64_t row, int64_t base, const Range ranges[R]) {
    alignas(64) float before[16] = {}, now[16] = {}, factor[16];
    for (int r = 0; r < R; ++r) {
        if (ranges[r].first >= ranges[r].end) continue;
        before[r] = w.running[(row + r) * w.stride + w.width];
        const float largest = largest_score(w, row + r, base, ranges[r], w.scores + r * kMaxPage);
        now[r] = largest > before[r] ? largest : before[r];
    }
    for (int i = 0; i < R; i += kLanes) store(factor + i, vexp(sub(load(before + i), load(now + i))));
    for (int r = 0; r < R; ++r) {
        if (!(now[r] > before[r])) continue;
        float* result = w.running + (row + r) * w.stride;
        float* sums = w.sums + (row + r) * 16;
        const V16 by = vset1(factor[r]);
        result[w.width] = now[r];
        vstore(sums, vmul(vload(sums), by));
        for (int64_t i = 0; i < w.width; i += 16) vstore(result + i, vmul(vload(result + i), by));
    }
    for (int r = 0; r < R; ++r)
        if (ranges[r].first < ranges[r].end)
            soften_row(ranges[r], now[r], w.scores + r * kMaxPage, w.sums + (row + r) * 16);
}

// Weighted values of R rows over positions [first, end).
template <int R, class Columns>
TREADLE_INLINE void add_values(const Work& w, int64_t row, const float* weights, const Columns& values,
                               int64_t first, int64_t end) {
    if (first >= end) return;
    float* o = w.running + row * w.stride;
    constexpr int kWide = kFloatVectors * kLanes;
    for (int64_t d = 0; d < w.width;) {
        Columns from = values;
        from.base += first * values.step + d;
        if (d + kWide <= w.width) {
            value_tile<R, kFloatVectors>(weights + first, end - first, from, o + d, w.stride);
            d += kWide;
        } else {
            value_tile<R, 1>(weights + first, end - first, from, o + d, w.stride);
            d += kLanes;
        }
    }
}

// R consecutive rows against one page.
template <int R, class Columns>
__attribute__((noinline)) void page_rows(const Work& w, int64_t row, int64_t base,
                                         const PageColumns<Columns>& page) {
    Range ranges[R], shared{0, kMaxPage};
    int64_t furthest = 0;
    for (int r = 0; r < R; ++r) {
        ranges[r] = w.visible(row + r, base);
        shared.first = most(shared.first, ranges[r].first);
        shared.end = least(shared.end, ranges[r].end);
        if (ranges[r].first < ranges[r].end) furthest = most(furthest, ranges[r].end);
    }
    if (furthest == 0) return;
    score_rows<R>(w, row, page.keys, furthest);
    soften_rows<R>(w, row, base, ranges);
    if (shared.first >= shared.end) shared = {kMaxPage, kMaxPage};  // no position that all rows see
    for (int r = 0; r < R; ++r)
        add_values<1>(w, row + r, w.scores + r * kMaxPage, page.values, ranges[r].first,
                      least(shared.first, ranges[r].end));
    add_values<R>(w, row, w.scores, page.values, shared.first, shared.end);
    for (int r = 0; r < R; ++r)
        add_values<1>(w, row + r, w.scores + r * kMaxPage, page.values, shared.end, ranges[r].end);
}

template <int R, class Columns>
TREADLE_INLINE void page_rest(const Work& w, int64_t row, int64_t base, const PageColumns<Columns>& page) {
    if constexpr (R > 0) {
        if (w.rows - row == R) page_rows<R>(w, row, base, page);
        else page_rest<R - 1>(w, row, base, page);
    }
}

template <class Columns>
void all_rows(const Work& w, int64_t base, const PageColumns<Columns>& page) {
    int64_t row = 0;
    for (; row + kFloatRows <= w.rows; row += kFloatRows) page_rows<kFloatRows>(w, row, base, page);
    page_rest<kFloatRows - 1>(w, row, base, page);
}

// Widens a page's keys and values of one head to f32, values padded to whole vectors. `count` positions are written.
template <class Columns>
PageColumns<ColumnsF32> widen_page(const Work& w, const PageColumns<Columns>& page, int64_t count) {
    const KvLayout& kv = w.a.kv;
    for (int64_t i = 0; i < (count + 15) / 16 * 16 * kv.key_dim; i += kLanes) {
        Columns c = page.keys;
        c.base += i;
        store(w.keys + i, c.at(0, 0));
    }
    for (int64_t j = 0; j < count; ++j)
        for (int64_t d = 0; d < w.width; d += kLanes) {
            Columns c = page.values;
            c.base += j * kv.value_dim + d;
            float* to = w.values + j * w.width + d;
            if (d + kLanes <= kv.value_dim) {
                store(to, c.at(0, 0));
                continue;
            }
            alignas(64) std::remove_cvref_t<decltype(*Columns{}.base)> tail[kLanes] = {};
            for (int64_t i = 0; d + i < kv.value_dim; ++i) tail[i] = c.base[i];
            c.base = tail;
            store(to, c.at(0, 0));
        }
    return {{w.keys, 16, kv.key_dim * 16}, {w.values, w.width, 16}};
}

// One split: running results of all rows over the pages in [split * kSplit, (split + 1) * kSplit).
template <class Columns>
void run_split(const Work& w, int64_t split) {
    using Element = decltype(Columns{}.base);
    const KvLayout& kv = w.a.kv;
    const int64_t page_bytes = kv.page_len * kv.heads * (kv.key_dim + kv.value_dim) * sizeof(*Element{});
    const int64_t head_elements = kv.page_len * (kv.key_dim + kv.value_dim);
    const bool widen =
        kv.value_dim % 16 != 0 || (w.rows > 2 * kFloatRows && sizeof(*Element{}) < sizeof(float));
    clear(w, w.running);
    for (int64_t i = 0; i < w.rows * 16; ++i) w.sums[i] = 0.0f;
    const int64_t last = (w.rows - 1) / w.group;
    int64_t first_seen = 0, end_seen = w.r.kv_len;
    if (w.a.left != kUnbounded) first_seen = most(0, w.r.position - w.a.left);
    if (w.a.right != kUnbounded) end_seen = least(end_seen, w.r.position + last + w.a.right + 1);
    const int64_t end = least((split + 1) * kSplit, end_seen);
    for (int64_t base = most(split * kSplit, first_seen / kv.page_len * kv.page_len); base < end;
         base += kv.page_len) {
        const std::byte* bytes = w.r.arena + w.r.pages[base / kv.page_len] * page_bytes;
        const Element data = reinterpret_cast<Element>(bytes) + w.kv_head * head_elements;
        const PageColumns<Columns> page{{data, 16, kv.key_dim * 16},
                                        {data + kv.page_len * kv.key_dim, kv.value_dim, 16}};
        if (widen) all_rows(w, base, widen_page(w, page, least(kv.page_len, end_seen - base)));
        else all_rows(w, base, page);
    }
    for (int64_t row = 0; row < w.rows; ++row)
        w.running[row * w.stride + w.width + 1] = reduce_add(vload(w.sums + row * 16));
}

void run_split_of_type(const Work& w, int64_t split) {
    switch (w.a.kv.type) {
        case DType::f32:
            return run_split<ColumnsF32>(w, split);
        case DType::f16:
            return run_split<ColumnsF16>(w, split);
        case DType::bf16:
            return run_split<ColumnsBf16>(w, split);
        default:
            __builtin_trap();
    }
}

// merged (m, sum, o) = merged + part.
void merge(const Work& w, float* merged, const float* part) {
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
    float* out = w.r.out + row / w.group * w.r.ldo + w.head(row) * w.a.kv.value_dim;
    const V16 by = vset1(factor);
    for (int64_t i = 0; i < w.width; i += 16) {
        const V16 v = vmul(vload(merged + i), by);
        if (i + 16 <= w.a.kv.value_dim) vstore(out + i, v);
        else vstore_n(out + i, v, w.a.kv.value_dim - i);
    }
}

}  // namespace

void attend(const Attention& a, const AttendRows& r, int64_t kv_head, std::byte* scratch) {
    const Work w(a, r, kv_head, scratch);
    load_queries(w);
    clear(w, w.merged);
    const SplitRange splits = attend_splits(a, r);
    for (int64_t split = splits.first; split < splits.last; ++split) {
        run_split_of_type(w, split);
        for (int64_t row = 0; row < w.rows; ++row)
            merge(w, w.merged + row * w.stride, w.running + row * w.stride);
    }
    for (int64_t row = 0; row < w.rows; ++row) write_row(w, row, w.merged + row * w.stride);
}

void attend_part(const Attention& a, const AttendRows& r, int64_t kv_head, int64_t split, float* parts,
                 std::byte* scratch) {
    const Work w(a, r, kv_head, scratch);
    load_queries(w);
    run_split_of_type(w, split);
    const int64_t floats = w.rows * w.stride;
    copy_bytes(parts + (split - attend_splits(a, r).first) * floats, w.running,
               floats * static_cast<int64_t>(sizeof(float)));
}

void attend_merge(const Attention& a, const AttendRows& r, int64_t kv_head, const float* parts,
                  std::byte* scratch) {
    const Work w(a, r, kv_head, scratch);
    clear(w, w.merged);
    const SplitRange splits = attend_splits(a, r);
    for (int64_t split = 0; split < splits.last - splits.first; ++split)
        for (int64_t row = 0; row < w.rows; ++row)
            merge(w, w.merged + row * w.stride, parts + (split * w.rows + row) * w.stride);
    for (int64_t row = 0; row < w.rows; ++row) write_row(w, row, w.merged + row * w.stride);
}

void kv_write(const KvLayout& kv, std::byte* page, int64_t position_in_page, int64_t head0, int64_t head1,
              const float* k, const float* v) {
    const int64_t head_elements = kv.page_len * (kv.key_dim + kv.value_dim);
    const auto put = [&](auto* data, auto convert) {
        for (int64_t h = head0; h < head1; ++h) {
            auto* keys =
                data + h * head_elements + position_in_page / 16 * 16 * kv.key_dim + position_in_page % 16;
            auto* values =
                data + h * head_elements + kv.page_len * kv.key_dim + position_in_page * kv.value_dim;
            for (int64_t d = 0; d < kv.key_dim; ++d) keys[d * 16] = convert(k[h * kv.key_dim + d]);
            for (int64_t d = 0; d < kv.value_dim; ++d) values[d] = convert(v[h * kv.value_dim + d]);
        }
    };
    switch (kv.type) {
        case DType::f32:
            return put(reinterpret_cast<float*>(page), [](float x) { return x; });
        case DType::f16:
            return put(reinterpret_cast<uint16_t*>(page), [](float x) {
                alignas(64) uint16_t t[kLanes];
                store_f16(t, set1(x));
                return t[0];
            });
        case DType::bf16:
            return put(reinterpret_cast<uint16_t*>(page), [](float x) {
                uint32_t u;
                __builtin_memcpy(&u, &x, 4);
                if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
                return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
            });
        default:
            __builtin_trap();
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
