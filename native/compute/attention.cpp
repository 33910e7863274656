// Sizes and split ranges of attention, the same on every ISA.
#include "compute/attention.hpp"

#include <algorithm>

namespace treadle::compute {

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
