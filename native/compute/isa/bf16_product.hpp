// The operands of a bf16 matrix product.
#pragma once

#include "compute/isa/epilogue.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

inline constexpr int64_t kPairs = kBlock / 2;          // of columns in a block
inline constexpr int64_t kLine = 2 * kStripRows;       // elements of a pair of columns of a strip
inline constexpr int64_t kTile = kBlock * kStripRows;  // elements of a block of a strip

struct Bf16Product {
    const PackedMatrix& w;
    const uint16_t* x;
    int64_t ldx, rows;
    Output out;
    const uint16_t* strip(int64_t s) const {
        return reinterpret_cast<const uint16_t*>(w.data + s * w.strip_bytes);
    }
    int64_t pairs() const { return (w.cols + 1) / 2; }
};

}  // namespace treadle::compute::TREADLE_ISA_NS
