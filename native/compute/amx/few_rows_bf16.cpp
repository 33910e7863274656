// bf16 products of up to 16 rows with weights of four bits: widened row by row, the weights are the first operand of a
// matrix tile and the rows the second.
#include "compute/amx/few_rows_bf16.hpp"

#include "compute/amx/four_bits.hpp"
#include "compute/amx/tile_config.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

constexpr int64_t kPiece = 256;  // columns that are widened at a time and stay in the first cache
static_assert(kMostPaired == 16, "a tile takes no more");

// Tiles 0 and 1 the sums of two strips, 4 and 5 the strips, 6 the rows as pairs of columns: [16 pairs][width].
TileShapes few_shapes(int64_t width) {
    TileShapes shapes = whole_tiles();
    for (const int tile : {0, 1, 6}) shapes.row_bytes[tile] = static_cast<uint16_t>(4 * width);
    return shapes;
}

// Blocks [0, count) of two strips with the same blocks of the rows.
TREADLE_INLINE void add_blocks(const uint16_t* first, const uint16_t* second, const uint16_t* pairs,
                               int64_t width, int64_t count) {
    const int64_t line = 64, stride = 4 * width;
    for (int64_t i = 0; i < count; ++i)
        asm volatile(
            "tileloadd (%2,%4,1), %%tmm6\n\ttileloadd (%0,%3,1), %%tmm4\n\ttdpbf16ps %%tmm6, %%tmm4, "
            "%%tmm0\n\t"
            "tileloadd (%1,%3,1), %%tmm5\n\ttdpbf16ps %%tmm6, %%tmm5, %%tmm1" ::"r"(first + i * kTile),
            "r"(second + i * kTile), "r"(pairs + i * 2 * kPairs * width), "r"(line), "r"(stride)
            : "memory");
}

using Sums = float[kStripRows * kMostPaired];  // [16 columns of a strip][16 rows]

void write_sums(const Bf16Product& p, float* sums, int64_t col) {
    if (col >= p.out.cols) return;
    if (p.rows <= 4) {
        const auto lanes =
            _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
        for (int64_t row = 0; row < p.rows; ++row)
            write(p.out, row, col, _mm512_i32gather_ps(lanes, sums + row, 4));
        return;
    }
    F lines[kMostPaired];
    for (int i = 0; i < kMostPaired; ++i) lines[i] = load(sums + i * kMostPaired);
    transpose(lines);
    for (int i = 0; i < kMostPaired; ++i) store(sums + i * kMostPaired, lines[i]);
    for (int64_t row = 0; row < p.rows; ++row) write(p.out, row, col, load(sums + row * kMostPaired));
}

// Four rows by 32 columns at a time; rows that are not there are zero.
void pair_rows(const uint16_t* x, int64_t ldx, int64_t rows, int64_t cols, int64_t width, uint16_t* dst) {
    for (int64_t row = 0; row < rows; row += 4)
        for (int64_t k = 0; k < cols; k += kBlock) {
            const auto pairs = [&](int64_t i) {
                return row + i < rows ? _mm512_loadu_si512(x + (row + i) * ldx + k) : _mm512_setzero_si512();
            };
            const __m512i a = pairs(0), b = pairs(1), c = pairs(2), d = pairs(3);
            const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
            const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
            alignas(64) std::byte four[4][64];  // quarter q of four[j]: pair 4q + j of the four rows
            bstore(four[0], _mm512_unpacklo_epi64(ab0, cd0));
            bstore(four[1], _mm512_unpackhi_epi64(ab0, cd0));
            bstore(four[2], _mm512_unpacklo_epi64(ab1, cd1));
            bstore(four[3], _mm512_unpackhi_epi64(ab1, cd1));
            for (int64_t pair = 0; pair < kPairs; ++pair)
                copy_bytes(dst + 2 * ((k / 2 + pair) * width + row), four[pair % 4] + 16 * (pair / 4), 16);
        }
}

// 16 rows by 32 columns at a time.
void pair_tile(const uint16_t* x, int64_t ldx, int64_t rows, int64_t cols, uint16_t* dst) {
    for (int64_t k = 0; k < cols; k += kBlock, dst += kTile) {
        F lines[kMostPaired];  // a pair is moved as if it were a number
        for (int64_t i = 0; i < kMostPaired; ++i)
            lines[i] = i < rows ? load(reinterpret_cast<const float*>(x + i * ldx + k)) : zero();
        transpose(lines);
        for (int64_t i = 0; i < kMostPaired; ++i) store(reinterpret_cast<float*>(dst + i * kLine), lines[i]);
    }
}

}  // namespace

bool takes_pairs(DType type) { return four_bit_wideners(type).rows != nullptr; }

void pair_bf16(const uint16_t* x, int64_t ldx, int64_t rows, int64_t cols, uint16_t* pairs) {
    const int64_t width = pair_width(rows);
    if (width == kMostPaired) pair_tile(x, ldx, rows, cols, pairs);
    else pair_rows(x, ldx, rows, cols, width, pairs);
}

bool few_rows_bf16(const Bf16Product& p, int64_t strip0, int64_t strip1) {
    const WidenRows widen = four_bit_wideners(p.w.type).rows;
    if (widen == nullptr || p.rows > kMostPaired) return false;
    const int64_t cols = p.w.cols, width = p.rows == 1 ? 1 : pair_width(p.rows);
    uint16_t* widened = p.scratch;                        // [2][kPiece][16]
    const uint16_t* pairs = p.rows == 1 ? p.x : p.pairs;  // one row is its own pairs
    if (pairs == nullptr) {
        uint16_t* own = widened + 2 * kPiece * kStripRows;
        pair_bf16(p.x, p.ldx, p.rows, cols, own);
        pairs = own;
    }
    const TileConfig config(few_shapes(width));
    for (int64_t s = strip0; s < strip1; s += 2) {
        const bool single = s + 1 == strip1;
        const std::byte* strip = p.w.data + s * p.w.strip_bytes;
        const int64_t ahead = p.ahead(s, 2);
        uint16_t* second = single ? widened : widened + kPiece * kStripRows;
        asm volatile("tilezero %tmm0\n\ttilezero %tmm1");
        for (int64_t k = 0; k < cols; k += kPiece) {
            const int64_t depth = least(kPiece, cols - k);
            widen(strip, cols, k, depth, ahead, widened);
            if (!single) widen(strip + p.w.strip_bytes, cols, k, depth, ahead, second);
            add_blocks(widened, second, pairs + k * width, width, depth / kBlock);
        }
        alignas(64) Sums sums[2] = {};
        asm volatile("tilestored %%tmm0, (%0,%2,1)\n\ttilestored %%tmm1, (%1,%2,1)" ::"r"(sums[0]),
                     "r"(sums[1]), "r"(int64_t{4} * kMostPaired)
                     : "memory");
        write_sums(p, sums[0], s * kStripRows);
        if (!single) write_sums(p, sums[1], (s + 1) * kStripRows);
    }
    return true;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
