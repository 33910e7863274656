// Sizes and offsets inside KV pages, an attention kernel's scratch and partial results, shared by all ISAs. Always
// inlined: a shared function must not exist as one copy compiled for one of them.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

inline constexpr int64_t kUnit = 64;  // positions that are made ready together; a whole number of pages
inline constexpr int64_t kChunkRows =
    192;  // (query row, head) pairs that are worked on together; a multiple of 16
inline constexpr int64_t kScoreStride = kSplit + 16;  // of two rows of scores: rows must not share cache sets

[[gnu::always_inline]] constexpr int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Bytes of `count` elements, and of the f16 scales that belong to them: one for 32 elements of q8_0.
[[gnu::always_inline]] constexpr int64_t kv_element_bytes(DType type, int64_t count) {
    return type == DType::q8_0 ? count : type == DType::f32 ? count * 4 : count * 2;
}
[[gnu::always_inline]] constexpr int64_t kv_scale_bytes(DType type, int64_t count) {
    return type == DType::q8_0 ? count / kBlock * 2 : 0;
}

// Offsets in bytes from the start of one head's part of a page.
struct HeadLayout {
    int64_t key_scales, values, value_scales, total;

    [[gnu::always_inline]] explicit constexpr HeadLayout(const KvLayout& kv) {
        const int64_t keys = kv.page_len * kv.key_dim, width = kv.shared ? 0 : kv.page_len * kv.value_dim;
        key_scales = kv_element_bytes(kv.type, keys);
        values = key_scales + kv_scale_bytes(kv.type, keys);
        value_scales = values + kv_element_bytes(kv.type, width);
        total = value_scales + kv_scale_bytes(kv.type, width);
    }
};

// A partial result of one query row and head: value_dim accumulators (padded to 16), then max and sum of weights.
[[gnu::always_inline]] constexpr int64_t part_floats(const Attention& a) {
    return round_up(a.kv.value_dim, 16) + 16;
}

// Scratch, in units of 4 bytes: scaled queries (as f32, then as bf16), partial and merged results, scores, and keys or
// values made ready for the products: of a unit in f32, or of a split in bf16.
struct AttendScratch {
    int64_t queries, narrow, part, merged, scores, unit, total;

    [[gnu::always_inline]] explicit constexpr AttendScratch(const Attention& a) {
        const int64_t key_width = round_up(a.kv.key_dim, 32), width = round_up(a.kv.value_dim, 16);
        queries = 0;
        narrow = queries + kChunkRows * key_width;
        part = narrow + kChunkRows * key_width / 2;
        merged = part + kChunkRows * part_floats(a);
        scores = merged + kChunkRows * part_floats(a);
        unit = scores + kChunkRows * kScoreStride;
        total = unit + kSplit / 2 * (key_width > width ? key_width : width);
    }
};

}  // namespace treadle::compute
