// Weights of any packed type, dequantised exactly to f32 and rounded to bf16, in the packed form of bf16.
#pragma once

#include "compute/isa/epilogue.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Columns [k, k + depth) of one strip of `cols` columns to [depth / 2, rounded up][16][2], an odd last column being followed
// by zeros. k is a multiple of 32, and so is depth or it reaches the last column.
// What lies `ahead` bytes further is fetched meanwhile, a few lines a block: widening takes bytes too slowly for the
// processor's own look-ahead.
using WidenBf16 = void (*)(const std::byte* strip, int64_t cols, int64_t k, int64_t depth, int64_t ahead,
                           uint16_t* dst);

WidenBf16 bf16_widener(DType type);  // null for bf16, which is read as it is

}  // namespace treadle::compute::TREADLE_ISA_NS
