// Sizes and split ranges of attention, the same on every ISA.
#include "compute/attention.hpp"

#include <algorithm>

namespace treadle::compute {

bool kv_storable(DType type, int64_t key_dim, int64_t value_dim) {
    if (type == DType::q8_0) return key_dim % kBlock == 0 && value_dim % kBlock == 0;
    return type == DType::f32 || type == DType::f16 || type == DType::bf16;
}

int64_t kv_page_bytes(const KvLayout& kv) { return kv.heads * HeadLayout(kv).total; }

int64_t attend_scratch_bytes(const Attention& a) {
    return AttendScratch(a).total * static_cast<int64_t>(sizeof(float));
}

int64_t attend_part_floats(const Attention& a) { return part_floats(a); }

SplitRange attend_splits(const Attention& a, const AttendRows& r) {
    const int64_t last_row = r.position + r.rows - 1;
    const int64_t first = a.left == kUnbounded ? 0 : std::max<int64_t>(0, r.position - a.left);
    const int64_t end = a.right == kUnbounded ? r.kv_len : std::min(r.kv_len, last_row + a.right + 1);
    if (first >= end) return {0, 0};
    return {first / kSplit, (end + kSplit - 1) / kSplit};
}

}  // namespace treadle::compute
