// Matrix products: quantising rows, and the choice of kernel by weight type.
#include "compute/isa/matmul_f32.hpp"
#include "compute/isa/matmul_i8.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

int64_t quant_bytes(int64_t rows, int64_t cols) { return rows * (cols / kBlock) * kQuantRowBytes; }

// One row's block of 32: scale = max|x| / 127, quants = round(x / scale), nearest with ties to even.
TREADLE_INLINE void quantise_block(const float* x, std::byte* record, int64_t height, int64_t row) {
    const V16 a = vload(x), b = vload(x + 16);
    const float largest = reduce_max(vmax(vabs(a), vabs(b)));
    const float scale = largest / 127.0f;
    const F inverse = set1(largest > 0.0f ? 127.0f / largest : 0.0f);
    int8_t* quants = reinterpret_cast<int8_t*>(record + row * kBlock);
    alignas(64) int32_t sums[kLanes];
    I sum = iset1(0);
    for (int i = 0; i < kParts; ++i) {
        const I qa = to_int(mul(a.part[i], inverse)), qb = to_int(mul(b.part[i], inverse));
        store_i8(quants + i * kLanes, qa);
        store_i8(quants + 16 + i * kLanes, qb);
        sum = iadd(sum, iadd(qa, qb));
    }
    istore(sums, sum);
    int32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += sums[i];
    float* sides = reinterpret_cast<float*>(record + height * kBlock) + row;
    int32_t* starts = reinterpret_cast<int32_t*>(sides + 2 * height);
    sides[0] = scale;
    sides[height] = scale * static_cast<float>(total);
    starts[0] = -8 * total;
    starts[height] = -128 * total;
}

void quantise(const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t rows, int64_t cols, std::byte* dst) {
    const int64_t blocks = cols / kBlock;
    for (int64_t r = row0; r < row1; ++r) {
        const int64_t tile = r / kTileHeight, first = tile * kTileHeight, height = least(kTileHeight, rows - first);
        std::byte* data = dst + first * blocks * kQuantRowBytes;
        for (int64_t b = 0; b < blocks; ++b)
            quantise_block(x + r * ldx + b * kBlock, data + b * height * kQuantRowBytes, height, r - first);
    }
}

int64_t matmul_scratch_bytes(int64_t cols) {
    const int64_t unpacked = (cols + kBlock - 1) / kBlock * (512 + 128), widened = kStripGroup * cols * 64;
    return (most(unpacked, widened) + kAlign - 1) / kAlign * kAlign;
}

void matmul_i8(const PackedMatrix& w, int64_t strip0, int64_t strip1, const std::byte* xq, int64_t rows, float* y,
               int64_t ldy, const Epilogue& epilogue, std::byte* scratch) {
    const Output out{y, ldy, w.rows, &epilogue};
    switch (w.type) {
        case DType::q4_0: return matmul_format<FormatQ4_0>(w, strip0, strip1, xq, rows, out, scratch);
        case DType::q4_1: return matmul_format<FormatQ4_1>(w, strip0, strip1, xq, rows, out, scratch);
        case DType::q8_0: return matmul_format<FormatQ8_0>(w, strip0, strip1, xq, rows, out, scratch);
        default: __builtin_trap();  // float types have no int8 product; packable() has refused every other
    }
}

void matmul_f32(const PackedMatrix& w, int64_t strip0, int64_t strip1, const float* x, int64_t ldx, int64_t rows,
                float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch) {
    const Output out{y, ldy, w.rows, &epilogue};
    const FloatRows in{x, ldx, rows, w.cols};
    const bool direct = rows <= kFloatRows;
    switch (w.type) {
        case DType::f32: return matmul_direct<ColumnsF32>(w, 16, strip0, strip1, in, out);
        case DType::f16:
            if (direct) return matmul_direct<ColumnsF16>(w, 16, strip0, strip1, in, out);
            return each_widened(w, strip0, strip1, in, out, scratch,
                                [&](const std::byte* strip, float* dst) { widen_f16(halves(strip), w.cols, dst); });
        case DType::bf16:
            if (direct) return matmul_direct<ColumnsBf16Pairs>(w, 32, strip0, strip1, in, out);
            return each_widened(w, strip0, strip1, in, out, scratch, [&](const std::byte* strip, float* dst) {
                widen_bf16_pairs(halves(strip), w.cols, dst);
            });
        case DType::q4_0: return matmul_dequantised<FormatQ4_0>(w, strip0, strip1, in, out, scratch);
        case DType::q4_1: return matmul_dequantised<FormatQ4_1>(w, strip0, strip1, in, out, scratch);
        case DType::q8_0: return matmul_dequantised<FormatQ8_0>(w, strip0, strip1, in, out, scratch);
        default: __builtin_trap();
    }
}

template <class Format>
void unpack_block_row(const std::byte* strip, int64_t lane, int64_t blocks, float* dst) {
    constexpr int kShift = Format::kOffset == Offset::eight ? 8 : Format::kOffset == Offset::none ? 0 : kSignedBias;
    const PackedStrip<Format> packed(strip, blocks);
    const int64_t in_part = lane % kLanes;
    for (int64_t block = 0; block < blocks; ++block) {
        B w[8];
        F scale, minimum = zero();
        packed.load_block(block, static_cast<int>(lane / kLanes), w, scale, minimum);
        alignas(64) std::byte bytes[4 * kLanes];
        alignas(64) float scales[kLanes], minima[kLanes];
        store(scales, scale);
        store(minima, minimum);
        for (int j = 0; j < 8; ++j) {
            bstore(bytes, w[j]);
            for (int i = 0; i < 4; ++i) {
                const std::byte raw = bytes[4 * in_part + i];
                const int q = (Format::kSigned && kSignedBias == 0 ? static_cast<int8_t>(raw) : static_cast<uint8_t>(raw)) - kShift;
                const float value = static_cast<float>(q);
                dst[block * kBlock + 4 * j + i] = Format::kHasMinimum
                    ? __builtin_fmaf(scales[in_part], value, minima[in_part]) : scales[in_part] * value;
            }
        }
    }
}

void unpack_row(const PackedMatrix& w, int64_t row, float* dst) {
    const std::byte* strip = w.data + row / kStripRows * w.strip_bytes;
    const int64_t lane = row % kStripRows, blocks = w.cols / kBlock;
    switch (w.type) {
        case DType::f32:
            for (int64_t k = 0; k < w.cols; ++k) dst[k] = reinterpret_cast<const float*>(strip)[k * 16 + lane];
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
        case DType::q4_0: return unpack_block_row<FormatQ4_0>(strip, lane, blocks, dst);
        case DType::q4_1: return unpack_block_row<FormatQ4_1>(strip, lane, blocks, dst);
        case DType::q8_0: return unpack_block_row<FormatQ8_0>(strip, lane, blocks, dst);
        default: __builtin_trap();
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
