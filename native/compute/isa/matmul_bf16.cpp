// bf16 matrix product. Columns go in blocks of 32; in each the even and the odd columns are summed apart,
// by fma from 0 in ascending order, and acc += evens + odds. That is what a bf16 matrix tile (AMX) does with one
// instruction, so every ISA gives its bits (but for products below the normal range, which a matrix tile takes as 0).
#include "compute/isa/bf16_product.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

TREADLE_INLINE F widened(uint32_t bits) {
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return set1(f);
}

// R rows by V vectors over up to kPairs pairs of columns from `pair` on.
template <int R, int V>
TREADLE_INLINE void add_block(const Bf16Product& p, const uint16_t* const strips[], int64_t row, int64_t pair,
                              int64_t count, F acc[R][V]) {
    F even[R][V], odd[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) even[r][v] = odd[r][v] = zero();
    for (int64_t i = pair; i < pair + count; ++i) {
        F we[V], wo[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const uint16_t* line = strips[v / kParts] + i * kLine + v % kParts * kLanes * 2;
            we[v] = load_bf16_even(line);
            wo[v] = load_bf16_odd(line);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            uint32_t both;
            __builtin_memcpy(&both, p.x + (row + r) * p.ldx + 2 * i, 4);
            const F xe = widened(both << 16), xo = widened(both & 0xffff0000u);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                even[r][v] = fma(xe, we[v], even[r][v]);
                odd[r][v] = fma(xo, wo[v], odd[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = add(acc[r][v], add(even[r][v], odd[r][v]));
}

template <int R, int V>
__attribute__((noinline)) void vector_tile(const Bf16Product& p, const uint16_t* const strips[], int64_t row,
                                           int64_t col) {
    F acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = zero();
    const int64_t pairs = (p.w.cols + 1) / 2;
    for (int64_t pair = 0; pair < pairs; pair += kPairs)
        add_block<R, V>(p, strips, row, pair, least(kPairs, pairs - pair), acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            if (col + v * kLanes < p.out.cols) write(p.out, row + r, col + v * kLanes, acc[r][v]);
}

constexpr int kBf16Rows = kLanes == 16 ? 4 : 1;
constexpr int kGroup = kLanes == 16 ? 2 : 1;  // strips of a register tile
constexpr int64_t kRowChunk = 64;             // rows that pass a group of strips before the next group

// Strip s of a group that begins with `first`, in bf16.
const uint16_t* strip_columns(const Bf16Product& p, int64_t first, int64_t s) {
    return p.widen == nullptr ? reinterpret_cast<const uint16_t*>(p.strip(s))
                              : p.scratch + (s - first) * bf16_strip_elements(p.w.cols);
}

void vector_product(const Bf16Product& p, int64_t strip0, int64_t strip1) {
    const int64_t group = most(2, kStripsBytes / (2 * bf16_strip_elements(p.w.cols)) / 2 * 2);
    for (int64_t first = strip0; first < strip1; first += group) {
        const int64_t end = least(first + group, strip1);
        for (int64_t s = first; p.widen != nullptr && s < end; ++s)
            p.widen(p.strip(s), p.w.cols, 0, p.w.cols, p.ahead(s, 1),
                    p.scratch + (s - first) * bf16_strip_elements(p.w.cols));
        for (int64_t row0 = 0; row0 < p.rows; row0 += kRowChunk)
            for (int64_t s = first; s < end; s += kGroup) {
                const uint16_t* strips[kGroup];  // past the last strip: that one again, its results dropped
                for (int i = 0; i < kGroup; ++i) strips[i] = strip_columns(p, first, least(s + i, end - 1));
                const int64_t col = s * kStripRows, row1 = least(row0 + kRowChunk, p.rows);
                int64_t row = row0;
                for (; row + kBf16Rows <= row1; row += kBf16Rows)
                    vector_tile<kBf16Rows, kGroup * kParts>(p, strips, row, col);
                for (; row < row1; ++row) vector_tile<1, kGroup * kParts>(p, strips, row, col);
            }
    }
}

}  // namespace

void round_bf16(const float* x, int64_t cols, uint16_t* y) {
    uint32_t smallest;
    __builtin_memcpy(&smallest, &kSmallestBf16, 4);
    for (int64_t i = 0; i < cols; ++i) {
        uint32_t u;
        __builtin_memcpy(&u, x + i, 4);
        const uint32_t size = u & 0x7fffffffu;
        const uint32_t nearest = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, quiet = u >> 16 | 0x40u;
        y[i] = static_cast<uint16_t>(size > 0x7f800000u ? quiet : size < smallest ? 0 : nearest);
    }
    if (cols % 2 != 0) y[cols] = 0;
}

// Only matrix tiles take them.
bool takes_pairs(DType /*type*/) { return false; }
void pair_bf16(const uint16_t* /*x*/, int64_t /*ldx*/, int64_t /*rows*/, int64_t /*cols*/,
               uint16_t* /*pairs*/) {
    __builtin_trap();
}

void matmul_bf16(const PackedMatrix& w, int64_t strip0, int64_t strip1, const uint16_t* x, int64_t ldx,
                 const uint16_t* /*pairs*/, int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue,
                 std::byte* scratch) {
    const Bf16Product p{.w = w,
                        .x = x,
                        .ldx = ldx,
                        .pairs = nullptr,
                        .rows = rows,
                        .out = {y, ldy, least(w.rows, strip1 * kStripRows), &epilogue},
                        .widen = bf16_widener(w.type),
                        .scratch = reinterpret_cast<uint16_t*>(scratch)};
    vector_product(p, strip0, strip1);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
