// What each block type brings to the matrix products. The types are compiled in several files to keep each one short to
// build.
#pragma once

#include "compute/isa/matmul_f32.hpp"
#include "compute/isa/matmul_i8.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

struct BlockKernels {
    void (*dot)(DotProduct p, int64_t strip0, int64_t strip1);
    Widen widen;
    // Row `lane` of a strip of so many blocks, exactly, to dst.
    void (*row)(const std::byte* strip, int64_t lane, int64_t blocks, float* dst);
};

template <class Format>
void widen_blocks(const std::byte* strip, int64_t cols, int64_t k, int64_t depth, float* dst) {
    dequantise_blocks(PackedStrip<Format>(strip, cols / kBlock), k / kBlock, depth / kBlock, dst);
}

template <class Format>
void unpack_block_row(const std::byte* strip, int64_t lane, int64_t blocks, float* dst) {
    dequantise_row(PackedStrip<Format>(strip, blocks), lane, blocks, dst);
}

template <class Format>
inline constexpr BlockKernels kKernelsOf{matmul_format<Format>, widen_blocks<Format>,
                                         unpack_block_row<Format>};

const BlockKernels& block_kernels(DType type);

extern const BlockKernels kKernelsQ4_0, kKernelsQ4_1, kKernelsQ5_0, kKernelsQ5_1, kKernelsQ8_0;
extern const BlockKernels kKernelsQ2_K, kKernelsQ3_K, kKernelsQ4_K, kKernelsQ5_K, kKernelsQ6_K;
extern const BlockKernels kKernelsIQ4_NL, kKernelsIQ4_XS, kKernelsMXFP4;

}  // namespace treadle::compute::TREADLE_ISA_NS
