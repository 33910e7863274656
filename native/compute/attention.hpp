// Sizes inside an attention kernel's scratch and partial results, shared by all ISAs. Always inlined: a shared function
// must not exist as one copy compiled for one of them.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

inline constexpr int64_t kMaxPage = 64;

[[gnu::always_inline]] constexpr int64_t round_up_16(int64_t n) { return (n + 15) / 16 * 16; }

// A partial result of one query row and head: value_dim accumulators (padded to 16), then max and sum of weights.
[[gnu::always_inline]] constexpr int64_t part_floats(const Attention& a) {
    return round_up_16(a.kv.value_dim) + 16;
}

// Scratch, in units of 4 bytes: scaled queries, running and merged results, the rows' positions (i32), scores, one page's
// keys and values in f32.
struct AttendScratch {
    int64_t queries, running, merged, sums, positions, scores, keys, values, total;

    [[gnu::always_inline]] explicit constexpr AttendScratch(const Attention& a) {
        const int64_t rows = kAttendRows * (a.heads / a.kv.heads);
        queries = 0;
        running = queries + rows * round_up_16(a.kv.key_dim);
        merged = running + rows * part_floats(a);
        sums = merged + rows * part_floats(a);
        positions = sums + rows * 16;
        scores = positions + round_up_16(rows);
        keys = scores + 16 * kMaxPage;
        values = keys + kMaxPage * round_up_16(a.kv.key_dim);
        total = values + kMaxPage * round_up_16(a.kv.value_dim);
    }
};

}  // namespace treadle::compute
