// The operands of a bf16 matrix product.
#pragma once

#include "compute/isa/widen_bf16.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int64_t kPairs = kBlock / 2;          // of columns in a block
inline constexpr int64_t kLine = 2 * kStripRows;       // elements of a pair of columns of a strip
inline constexpr int64_t kTile = kBlock * kStripRows;  // elements of a block of a strip

// Where all rows meet some strips before the next ones: as many as stay in the second cache, in bf16, and at least two.
inline constexpr int64_t kStripsBytes = int64_t{256} << 10;

TREADLE_INLINE int64_t bf16_strip_elements(int64_t cols) { return (cols + cols % 2) * kStripRows; }
TREADLE_INLINE int64_t bf16_scratch_bytes(int64_t cols) {
    return most(kStripsBytes, 2 * 2 * bf16_strip_elements(cols));
}

struct Bf16Product {
    const PackedMatrix& w;
    const uint16_t* x;
    int64_t ldx;
    const uint16_t* pairs;  // of the rows, or null
    int64_t rows;
    Output out;
    WidenBf16 widen;
    uint16_t* scratch;  // of bf16_scratch_bytes

    TREADLE_METHOD const std::byte* strip(int64_t s) const { return w.data + s * w.strip_bytes; }
    // Bytes to the strip `strips` further, 0 past the last.
    TREADLE_METHOD int64_t ahead(int64_t s, int64_t strips) const {
        return s + strips < w.strips() ? strips * w.strip_bytes : 0;
    }
};

}  // namespace treadle::compute::TREADLE_ISA_NS
