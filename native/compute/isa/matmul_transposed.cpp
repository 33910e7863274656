// Product with a transposed matrix: the rows of a strip lie side by side in its lanes, so that a column's sum is one over
// lanes. Sums of kLanes columns are made at once and turned.
#include "compute/isa/block_kernels.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

void widen_f32(const std::byte* strip, int64_t /*cols*/, int64_t k, int64_t depth, float* dst) {
    copy_bytes(dst, reinterpret_cast<const float*>(strip) + k * 16, depth * 16 * 4);
}

Widen widener(DType type) {
    switch (type) {
        case DType::f32:
            return widen_f32;
        case DType::f16:
            return widen_f16;
        case DType::bf16:
            return widen_bf16_pairs;
        default:
            return block_kernels(type).widen;
    }
}

// The sums of `columns` (at most kLanes) columns, which begin at `panel`, [strips][kBlock][16].
TREADLE_INLINE F column_sums(const float* panel, int64_t columns, int64_t strips, const float* x) {
    V16 acc[kLanes];
    for (V16& a : acc) a = vset1(0.0f);
    for (int64_t s = 0; s < strips; ++s) {
        const V16 row = vload(x + s * kStripRows);
        const float* column = panel + s * kBlock * kStripRows;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
            if (i < columns) acc[i] = vfma(vload(column + i * kStripRows), row, acc[i]);
    }
    F sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        for (int parts = kParts / 2; parts > 0; parts /= 2)
            for (int p = 0; p < parts; ++p) acc[i].part[p] = add(acc[i].part[p], acc[i].part[p + parts]);
        sums[i] = acc[i].part[0];
    }
    transpose(sums);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] = add(sums[i], sums[i + width]);
    return sums[0];
}

}  // namespace

void matmul_transposed(const PackedMatrix& w, const float* x, int64_t ldx, int64_t rows, float* y,
                       int64_t ldy, std::byte* scratch) {
    const Widen widen = widener(w.type);
    const int64_t strips = w.strips();
    float* panel = reinterpret_cast<float*>(scratch);
    for (int64_t k = 0; k < w.cols; k += kBlock) {
        const int64_t depth = least(kBlock, w.cols - k);
        for (int64_t s = 0; s < strips; ++s)
            widen(w.data + s * w.strip_bytes, w.cols, k, depth, panel + s * kBlock * kStripRows);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < depth; c += kLanes) {
                float* to = y + r * ldy + k + c;
                const float* columns = panel + c * kStripRows;
                if (c + kLanes <= depth) {
                    store(to, column_sums(columns, kLanes, strips, x + r * ldx));
                } else {
                    alignas(64) float tail[kLanes];
                    store(tail, column_sums(columns, depth - c, strips, x + r * ldx));
                    copy_bytes(to, tail, (depth - c) * 4);
                }
            }
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
