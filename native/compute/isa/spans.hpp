// Rows of any length in steps of sixteen elements.
#pragma once

#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Calls body(offset, count) over n elements; count is 16 but for the last one.
template <class Body>
TREADLE_INLINE void each_16(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) body(i, int64_t{16});
    if (i < n) body(i, n - i);
}

TREADLE_INLINE V16 take(const float* p, int64_t count, float fill = 0.0f) {
    return count == 16 ? vload(p) : vload_n(p, count, fill);
}

TREADLE_INLINE void put(float* p, const V16& a, int64_t count) {
    if (count == 16) vstore(p, a);
    else vstore_n(p, a, count);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
