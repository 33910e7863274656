// Packed blocks ahead of their turn.
#pragma once

#include "compute/isa/formats.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Into the second cache: what lies `ahead` bytes further than a block.
template <class Format>
TREADLE_INLINE void fetch_block(const PackedStrip<Format>& strip, int64_t block, int64_t ahead) {
    for (int64_t byte = 0; byte < Format::kLayout.line_bytes; byte += 64)
        prefetch(strip.lines_of(block) + byte + ahead);
    prefetch(strip.sides + block / strip.kBlocks * Format::kLayout.side_stride() + ahead);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
