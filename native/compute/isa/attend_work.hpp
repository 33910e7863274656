// A chunk of attention's rows, and what each of them sees.
#pragma once

#include "compute/isa/kv_pages.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr float kNegativeInfinity = -__builtin_inff();

struct Range {
    int64_t first, end;
    bool empty() const { return first >= end; }
};

TREADLE_INLINE Range overlap(Range a, Range b) { return {most(a.first, b.first), least(a.end, b.end)}; }

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
    uint16_t* narrow;          // the queries as bf16, [kChunkRows][depth]
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
        narrow = reinterpret_cast<uint16_t*>(base + layout.narrow);
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

}  // namespace treadle::compute::TREADLE_ISA_NS
