// Matrix products: quantising rows, and the choice of kernel by weight type.
#include "compute/isa/bf16_product.hpp"
#include "compute/isa/block_kernels.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

int64_t quant_bytes(int64_t rows, int64_t cols) {
    return rows * (cols / kBlock) * (kQuantRowBytes + kHalvesRowBytes);
}

// The quants of 32 columns at 1 / scale = `inverse`, and the sums of their halves.
TREADLE_INLINE void quantise_block(const float* x, float inverse, int8_t* quants, int32_t* sums) {
    I q[2 * kParts];
    for (int i = 0; i < 2 * kParts; ++i) q[i] = to_int(mul(load(x + i * kLanes), set1(inverse)));
    store_quants(quants, q, sums);
}

// Up to 16 blocks of row `row` of a tile. Per block scale = max|x| / 127, quants = round(x * (127 / max|x|)), ties to even.
TREADLE_INLINE void quantise_blocks(const float* x, int64_t count, std::byte* records, std::byte* halves,
                                    int64_t height, int64_t row) {
    alignas(64) float largest[16] = {}, scales[16], inverses[16];
    for (int64_t b = 0; b < count; ++b)
        largest[b] = reduce_max(vmax(vabs(vload(x + b * kBlock)), vabs(vload(x + b * kBlock + 16))));
    for (int i = 0; i < 16; i += kLanes) {
        const F m = load(largest + i);
        store(scales + i, div(m, set1(127.0f)));
        store(inverses + i, select(less(zero(), m), div(set1(127.0f), m), zero()));
    }
    for (int64_t b = 0; b < count; ++b) {
        std::byte* record = records + b * height * kQuantRowBytes;
        int32_t sums[2];
        quantise_block(x + b * kBlock, inverses[b], reinterpret_cast<int8_t*>(record + row * kBlock), sums);
        const int32_t total = sums[0] + sums[1];
        float* sides = reinterpret_cast<float*>(record + height * kBlock) + row;
        int32_t* starts = reinterpret_cast<int32_t*>(sides + 2 * height);
        sides[0] = scales[b];
        sides[height] = scales[b] * static_cast<float>(total);
        starts[0] = -8 * total;
        starts[height] = -128 * total;
        int32_t* half_starts = reinterpret_cast<int32_t*>(halves + b * height * kHalvesRowBytes) + row;
        half_starts[0] = -32 * sums[0];
        half_starts[height] = -32 * sums[1];
        float* half_sums = reinterpret_cast<float*>(half_starts + 2 * height);
        half_sums[0] = scales[b] * static_cast<float>(sums[0]);
        half_sums[height] = scales[b] * static_cast<float>(sums[1]);
    }
}

void quantise(const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t rows, int64_t col0,
              int64_t col1, int64_t cols, std::byte* dst) {
    const int64_t blocks = cols / kBlock, begin = col0 / kBlock, end = col1 / kBlock;
    std::byte* all_halves = dst + rows * blocks * kQuantRowBytes;
    for (int64_t r = row0; r < row1; ++r) {
        const int64_t first = r / kTileHeight * kTileHeight, height = least(kTileHeight, rows - first);
        std::byte* data = dst + first * blocks * kQuantRowBytes;
        std::byte* halves = all_halves + first * blocks * kHalvesRowBytes;
        for (int64_t b = begin; b < end; b += 16)
            quantise_blocks(x + r * ldx + (b - begin) * kBlock, least(16, end - b),
                            data + b * height * kQuantRowBytes, halves + b * height * kHalvesRowBytes, height,
                            r - first);
    }
}

int64_t matmul_scratch_bytes(int64_t cols) {
    constexpr int64_t kInt8 = kUnpackedBytes + kChunkRows * kDotVectors * kLanes * 4;
    constexpr int64_t kFloat = kWidenedBytes + kChunkRows * kFloatStrips * kStripRows * 4;
    constexpr int64_t kTransposed = kMostTransposed * kBlock * 4;
    return most(most(kTransposed, most(kInt8, kFloat)), bf16_scratch_bytes(cols));
}

const BlockKernels& block_kernels(DType type) {
    switch (type) {
        case DType::q4_0:
            return kKernelsQ4_0;
        case DType::q4_1:
            return kKernelsQ4_1;
        case DType::q5_0:
            return kKernelsQ5_0;
        case DType::q5_1:
            return kKernelsQ5_1;
        case DType::q8_0:
            return kKernelsQ8_0;
        case DType::q2_k:
            return kKernelsQ2_K;
        case DType::q3_k:
            return kKernelsQ3_K;
        case DType::q4_k:
            return kKernelsQ4_K;
        case DType::q5_k:
            return kKernelsQ5_K;
        case DType::q6_k:
            return kKernelsQ6_K;
        case DType::iq4_nl:
            return kKernelsIQ4_NL;
        case DType::iq4_xs:
            return kKernelsIQ4_XS;
        case DType::mxfp4:
            return kKernelsMXFP4;
        default:
            __builtin_trap();  // packable() has refused every other
    }
}

void matmul_i8(const PackedMatrix& w, int64_t strip0, int64_t strip1, const std::byte* xq, int64_t rows,
               float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch) {
    block_kernels(w.type).dot({w, xq, rows, w.cols / kBlock, {y, ldy, w.rows, &epilogue}, scratch}, strip0,
                              strip1);
}

void matmul_f32(const PackedMatrix& w, int64_t strip0, int64_t strip1, const float* x, int64_t ldx,
                int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch) {
    const bool few = rows <= kFloatRows;  // then one pass over the weights, read as they are
    const int64_t panel = few && is_float(w.type) ? w.cols : kPanelCols;
    const FloatProduct p{w, x, ldx, rows, {y, ldy, w.rows, &epilogue}, scratch, panel};
    switch (w.type) {
        case DType::f32:
            return matmul_direct<ColumnsF32>(p, 16, 1, strip0, strip1);
        case DType::f16:
            if (few) return matmul_direct<ColumnsF16>(p, 16, 1, strip0, strip1);
            return matmul_widened(p, strip0, strip1, widen_f16);
        case DType::bf16:
            if (few) return matmul_direct<ColumnsBf16Pairs>(p, 32, 2, strip0, strip1);
            return matmul_widened(p, strip0, strip1, widen_bf16_pairs);
        default:
            return matmul_widened(p, strip0, strip1, block_kernels(w.type).widen);
    }
}

void unpack_row(const PackedMatrix& w, int64_t row, float* dst) {
    const std::byte* strip = w.data + row / kStripRows * w.strip_bytes;
    const int64_t lane = row % kStripRows;
    switch (w.type) {
        case DType::f32:
            for (int64_t k = 0; k < w.cols; ++k)
                dst[k] = reinterpret_cast<const float*>(strip)[k * 16 + lane];
            return;
        case DType::f16:
            for (int64_t k = 0; k < w.cols; ++k) {
                alignas(64) uint16_t half[kLanes] = {};
                alignas(64) float value[kLanes];
                half[0] = halves(strip)[k * 16 + lane];
                store(value, load_f16(half));
                dst[k] = value[0];
            }
            return;
        case DType::bf16:
            for (int64_t k = 0; k < w.cols; ++k) {
                const uint32_t bits = uint32_t{halves(strip)[(k / 2 * 16 + lane) * 2 + k % 2]} << 16;
                copy_bytes(dst + k, &bits, 4);
            }
            return;
        default:
            return block_kernels(w.type).row(strip, lane, w.cols / kBlock, dst);
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
