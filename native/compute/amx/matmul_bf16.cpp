// bf16 matrix product on matrix tiles: two by two tiles of sums, which stay in tile registers over all columns. The order
// of additions is what isa/matmul_bf16.cpp says.
#include "compute/amx/tile_config.hpp"
#include "compute/isa/bf16_product.hpp"
#include "compute/isa/table.hpp"
#include "compute/isa/tables.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kFewestRows = 3;  // that go to matrix tiles

// Two by two tiles: 0-3 the sums, 4 and 5 the rows, 6 and 7 the strips.
TileShapes sum_shapes(int64_t rows) {
    TileShapes shapes = whole_tiles();
    const auto upper = static_cast<uint8_t>(least(rows, kTileRows));
    const auto lower = static_cast<uint8_t>(most(1, least(rows - kTileRows, kTileRows)));
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = upper;
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = lower;
    return shapes;
}

#define TREADLE_TILE_SUM(c, a, b) "tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c "\n\t"

// One block of columns. `lower`: the second row tile has rows.
TREADLE_INLINE void tile_block(const uint16_t* x, int64_t ldx, bool lower, const uint16_t* first,
                               const uint16_t* second) {
    const int64_t line = 64, stride = 2 * ldx;
    asm volatile(
        "tileloadd (%0,%2,1), %%tmm4\n\t"
        "tileloadd (%1,%3,1), %%tmm6\n\t" TREADLE_TILE_SUM(
            0, 4, 6) "tileloadd (%4,%3,1), %%tmm7\n\t" TREADLE_TILE_SUM(1, 4, 7)::"r"(x),
        "r"(first), "r"(stride), "r"(line), "r"(second)
        : "memory");
    if (lower)
        asm volatile("tileloadd (%0,%1,1), %%tmm5\n\t" TREADLE_TILE_SUM(2, 5, 6)
                         TREADLE_TILE_SUM(3, 5, 7)::"r"(x + kTileRows * ldx),
                     "r"(stride)
                     : "memory");
}

// Up to 32 rows by two strips.
void matrix_tile(const Bf16Product& p, const uint16_t* first, const uint16_t* second, int64_t row,
                 int64_t rows, int64_t col) {
    const bool lower = rows > kTileRows;
    const int64_t whole = p.w.cols / kBlock;
    const uint16_t* x = p.x + row * p.ldx;
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
    for (int64_t block = 0; block < whole; ++block)
        tile_block(x + block * kBlock, p.ldx, lower, first + block * kTile, second + block * kTile);
    if (p.w.cols % kBlock != 0) {  // the last columns, padded with zeros
        alignas(64) uint16_t tail[2 * kTileRows * kBlock] = {}, ends[2][kTile] = {};
        const int64_t cols = p.w.cols - whole * kBlock, lines = p.pairs() - whole * kPairs;
        for (int64_t r = 0; r < rows; ++r)
            copy_bytes(tail + r * kBlock, x + r * p.ldx + whole * kBlock, 2 * cols);
        copy_bytes(ends[0], first + whole * kTile, 2 * lines * kLine);
        copy_bytes(ends[1], second + whole * kTile, 2 * lines * kLine);
        tile_block(tail, kBlock, lower, ends[0], ends[1]);
    }
    alignas(64) float sums[4][kTileRows * kStripRows];
    asm volatile(
        "tilestored %%tmm0, (%0,%4,1)\n\ttilestored %%tmm1, (%1,%4,1)\n\t"
        "tilestored %%tmm2, (%2,%4,1)\n\ttilestored %%tmm3, (%3,%4,1)" ::"r"(sums[0]),
        "r"(sums[1]), "r"(sums[2]), "r"(sums[3]), "r"(int64_t{64})
        : "memory");
    for (int64_t r = 0; r < rows; ++r)
        for (int strip = 0; strip < 2; ++strip)
            if (col + strip * kStripRows < p.out.cols)
                write(p.out, row + r, col + strip * kStripRows,
                      load(sums[r / kTileRows * 2 + strip] + r % kTileRows * kStripRows));
}

void matrix_rows(const Bf16Product& p, int64_t strip0, int64_t strip1, int64_t row0, int64_t row1) {
    const int64_t most_rows = least(2 * kTileRows, row1 - row0);
    const TileConfig config(sum_shapes(most_rows));
    for (int64_t s = strip0; s < strip1; s += 2)
        for (int64_t row = row0; row < row1; row += most_rows)
            matrix_tile(p, p.strip(s), p.strip(least(s + 1, strip1 - 1)), row, most_rows, s * kStripRows);
}

// Whole pairs of tiles, then the rows that are left, in chunks whose rows stay in the second cache.
void matrix_product(const Bf16Product& p, int64_t strip0, int64_t strip1) {
    constexpr int64_t kStep = 2 * kTileRows;
    const int64_t chunk = most(kStep, (int64_t{768} << 10) / (2 * p.ldx) / kStep * kStep);
    for (int64_t row0 = 0; row0 < p.rows; row0 += chunk) {
        const int64_t row1 = least(row0 + chunk, p.rows), whole = row0 + (row1 - row0) / kStep * kStep;
        if (whole > row0) matrix_rows(p, strip0, strip1, row0, whole);
        if (whole < row1) matrix_rows(p, strip0, strip1, whole, row1);
    }
}

}  // namespace

void matmul_bf16(const PackedMatrix& w, int64_t strip0, int64_t strip1, const uint16_t* x, int64_t ldx,
                 int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue) {
    if (rows < kFewestRows)
        return avx512::table().matmul_bf16(w, strip0, strip1, x, ldx, rows, y, ldy, epilogue);
    const Bf16Product p{w, x, ldx, rows, {y, ldy, least(w.rows, strip1 * kStripRows), &epilogue}};
    matrix_product(p, strip0, strip1);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
