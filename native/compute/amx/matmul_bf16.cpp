// bf16 matrix product on matrix tiles: two by two tiles of sums. The order of additions is what isa/matmul_bf16.cpp says.
#include "compute/amx/few_rows_bf16.hpp"
#include "compute/amx/four_bits.hpp"
#include "compute/amx/tile_config.hpp"
#include "compute/isa/bf16_product.hpp"
#include "compute/isa/table.hpp"
#include "compute/isa/tables.hpp"

namespace treadle::compute::TREADLE_ISA_NS {
namespace {

constexpr int64_t kTileRows = 16, kHeight = 2 * kTileRows;
constexpr int64_t kWidth = 2 * kStripRows;  // columns of two strips
constexpr int64_t kFewestRows = 3;          // that go to matrix tiles where weights are bf16

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

// Columns of two strips in bf16, the same one twice where there is one.
struct StripPair {
    const uint16_t *first, *second;
};

// One block of columns. `lower`: the second row tile has rows. The rows of a tile are met by many strips, which pass by:
// tileloaddt1 leaves the first cache to the rows.
TREADLE_INLINE void tile_block(const uint16_t* x, int64_t ldx, bool lower, StripPair w) {
    const int64_t line = 64, stride = 2 * ldx;
    asm volatile(
        "tileloadd (%0,%2,1), %%tmm4\n\t"
        "tileloaddt1 (%1,%3,1), %%tmm6\n\t" TREADLE_TILE_SUM(
            0, 4, 6) "tileloaddt1 (%4,%3,1), %%tmm7\n\t" TREADLE_TILE_SUM(1, 4, 7)::"r"(x),
        "r"(w.first), "r"(stride), "r"(line), "r"(w.second)
        : "memory");
    if (lower)
        asm volatile("tileloadd (%0,%1,1), %%tmm5\n\t" TREADLE_TILE_SUM(2, 5, 6)
                         TREADLE_TILE_SUM(3, 5, 7)::"r"(x + kTileRows * ldx),
                     "r"(stride)
                     : "memory");
}

void clear_sums() { asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3"); }

// Rows that will be met soon: `count` of them are fetched into the second cache, a line each for a block of columns.
struct NextRows {
    const uint16_t* x = nullptr;
    int64_t count = 0;
};

// `depth` columns from k on of up to 32 rows from `row` on, added to the sums. Only the last columns are no whole blocks.
void add_columns(const Bf16Product& p, StripPair w, int64_t row, int64_t rows, int64_t k, int64_t depth,
                 NextRows next = {}) {
    const bool lower = rows > kTileRows;
    const uint16_t* x = p.x + row * p.ldx + k;
    for (; depth >= kBlock; depth -= kBlock, x += kBlock, w.first += kTile, w.second += kTile) {
        for (int64_t r = 0; r < next.count; ++r) prefetch(next.x + r * p.ldx);
        next.x += kBlock;
        tile_block(x, p.ldx, lower, w);
    }
    if (depth == 0) return;
    alignas(64) uint16_t tail[kHeight * kBlock] = {}, ends[2][kTile] = {};  // padded with zeros
    for (int64_t r = 0; r < rows; ++r) copy_bytes(tail + r * kBlock, x + r * p.ldx, 2 * depth);
    copy_bytes(ends[0], w.first, 2 * bf16_strip_elements(depth));
    copy_bytes(ends[1], w.second, 2 * bf16_strip_elements(depth));
    tile_block(tail, kBlock, lower, {ends[0], ends[1]});
}

// A row of tiles of both strips: 16 rows of 32 columns.
TREADLE_INLINE void store_sums(float* y, int64_t ldy, int tile_row) {
    const int64_t stride = 4 * ldy;
    if (tile_row == 0)
        asm volatile("tilestored %%tmm0, (%0,%1,1)\n\ttilestored %%tmm1, 64(%0,%1,1)" ::"r"(y), "r"(stride)
                     : "memory");
    else
        asm volatile("tilestored %%tmm2, (%0,%1,1)\n\ttilestored %%tmm3, 64(%0,%1,1)" ::"r"(y), "r"(stride)
                     : "memory");
}

// All four to where they wait, [32 rows][32], and back.
void keep_sums(float* kept) {
    store_sums(kept, kWidth, 0);
    store_sums(kept + kTileRows * kWidth, kWidth, 1);
}
void load_sums(const float* kept) {
    asm volatile(
        "tileloadd (%0,%2,1), %%tmm0\n\ttileloadd 64(%0,%2,1), %%tmm1\n\t"
        "tileloadd (%1,%2,1), %%tmm2\n\ttileloadd 64(%1,%2,1), %%tmm3" ::"r"(kept),
        "r"(kept + kTileRows * kWidth), "r"(4 * kWidth)
        : "memory");
}

// To the output: as they are where nothing is added to them, else by way of the first cache.
void write_sums(const Bf16Product& p, int64_t row, int64_t rows, int64_t col, bool single) {
    const bool direct = is_plain(*p.out.epilogue) && !single && col + kWidth <= p.out.cols;
    alignas(64) float sums[kTileRows * kWidth];
    for (int tile_row = 0; tile_row < (rows > kTileRows ? 2 : 1); ++tile_row) {
        const int64_t first = row + tile_row * kTileRows;
        if (direct) {
            store_sums(p.out.y + first * p.out.ldy + col, p.out.ldy, tile_row);
            continue;
        }
        store_sums(sums, kWidth, tile_row);
        for (int64_t r = 0; r < least(kTileRows, row + rows - first); ++r)
            for (int64_t c = 0; c < (single ? kStripRows : kWidth) && col + c < p.out.cols; c += kStripRows)
                write(p.out, first + r, col + c, load(sums + r * kWidth + c));
    }
}

// Columns [k, k + depth) of strips [first, end), which pass rows while they lie in the second cache, and 32 rows at a time
// in the first. The rows' sums wait in the second cache until the last columns have passed.
struct Panel {
    int64_t first, end, k, depth;
};
constexpr int64_t kPanelRows = 512, kPanelStrips = 16, kPanelColumns = 576;  // at most
constexpr int64_t kKept = kHeight * kWidth;                                  // sums of 32 rows and two strips

// `size` in equal parts of at most `limit`, which are multiples of `grain`; the last may be smaller.
int64_t equal_part(int64_t size, int64_t limit, int64_t grain) {
    const int64_t parts = (size + limit - 1) / limit;
    return (size + parts * grain - 1) / (parts * grain) * grain;
}
int64_t panel_depth(int64_t cols) { return equal_part(cols, kPanelColumns, kBlock); }
int64_t panel_elements(int64_t cols) { return kPanelStrips * kStripRows * panel_depth(cols); }

const uint16_t* strip_columns(const Bf16Product& p, const Panel& panel, int64_t s) {
    return p.widen == nullptr ? reinterpret_cast<const uint16_t*>(p.strip(s)) + panel.k * kStripRows
                              : p.scratch + (s - panel.first) * bf16_strip_elements(panel.depth);
}

// Rows [row0, row1), `height` at a time, against a panel. `kept`: where the sums wait, of the rows from row0 on.
void pass_rows(const Bf16Product& p, const Panel& panel, int64_t row0, int64_t row1, int64_t height,
               float* kept) {
    const TileConfig config(sum_shapes(height));
    const int64_t pairs = (panel.end - panel.first + 1) / 2, share = (kHeight + pairs - 1) / pairs;
    const bool fresh = panel.k == 0, complete = panel.k + panel.depth == p.w.cols;
    const bool stays = fresh && complete;  // rows of so few columns have not left the second cache
    int64_t at = 0;
    for (int64_t row = row0; row < row1; row += height) {
        int64_t soon = row + height;
        for (int64_t s = panel.first; s < panel.end; s += 2, at += kKept) {
            const StripPair w{strip_columns(p, panel, s),
                              strip_columns(p, panel, least(s + 1, panel.end - 1))};
            const int64_t count = stays ? 0 : most(0, least(share, row1 - soon));
            if (fresh) clear_sums();
            else load_sums(kept + at);
            add_columns(p, w, row, height, panel.k, panel.depth, {p.x + soon * p.ldx + panel.k, count});
            soon += count;
            if (complete) write_sums(p, row, height, s * kStripRows, s + 1 == panel.end);
            else keep_sums(kept + at);
        }
    }
}

void widen_panel(const Bf16Product& p, const Panel& panel) {
    if (p.widen == nullptr) return;
    for (int64_t s = panel.first; s < panel.end; ++s)
        p.widen(p.strip(s), p.w.cols, panel.k, panel.depth, p.ahead(s, 1),
                p.scratch + (s - panel.first) * bf16_strip_elements(panel.depth));
}

// More than 32 rows: strips are widened once for up to kPanelRows of them.
void many_rows(const Bf16Product& p, int64_t strip0, int64_t strip1) {
    const int64_t width = equal_part(strip1 - strip0, kPanelStrips, 2), depth = panel_depth(p.w.cols);
    const int64_t height = equal_part(p.rows, kPanelRows, kHeight);
    auto* kept = reinterpret_cast<float*>(p.scratch + panel_elements(p.w.cols));
    for (int64_t first = strip0; first < strip1; first += width)
        for (int64_t row0 = 0; row0 < p.rows; row0 += height) {
            const int64_t row1 = least(row0 + height, p.rows),
                          whole = row0 + (row1 - row0) / kHeight * kHeight;
            for (int64_t k = 0; k < p.w.cols; k += depth) {
                const Panel panel{first, least(first + width, strip1), k, least(depth, p.w.cols - k)};
                widen_panel(p, panel);
                pass_rows(p, panel, row0, whole, kHeight, kept);
                if (whole < row1)
                    pass_rows(p, panel, whole, row1, row1 - whole,
                              kept + (whole - row0) * kPanelStrips * kStripRows);
            }
        }
}

// Up to 32 rows: pieces of two strips are widened and met before they leave the first cache.
void one_tile_of_rows(const Bf16Product& p, int64_t strip0, int64_t strip1) {
    constexpr int64_t kPiece = 256;  // columns
    if (p.widen == nullptr) return pass_rows(p, {strip0, strip1, 0, p.w.cols}, 0, p.rows, p.rows, nullptr);
    const TileConfig config(sum_shapes(p.rows));
    for (int64_t s = strip0; s < strip1; s += 2) {
        const bool single = s + 1 == strip1;
        uint16_t* second = single ? p.scratch : p.scratch + kPiece * kStripRows;
        clear_sums();
        for (int64_t k = 0; k < p.w.cols; k += kPiece) {
            const int64_t depth = least(kPiece, p.w.cols - k);
            p.widen(p.strip(s), p.w.cols, k, depth, p.ahead(s, 2), p.scratch);
            if (!single) p.widen(p.strip(s + 1), p.w.cols, k, depth, p.ahead(s, 2), second);
            add_columns(p, {p.scratch, second}, 0, p.rows, k, depth);
        }
        write_sums(p, 0, p.rows, s * kStripRows, single);
    }
}

}  // namespace

int64_t matmul_scratch_bytes(int64_t cols) {
    const int64_t panel = 2 * panel_elements(cols) + 4 * kPanelRows * kPanelStrips * kStripRows;
    return most(panel, avx512::table().matmul_scratch_bytes(cols));
}

void matmul_bf16(const PackedMatrix& w, int64_t strip0, int64_t strip1, const uint16_t* x, int64_t ldx,
                 const uint16_t* pairs, int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue,
                 std::byte* scratch) {
    if (strip0 == strip1) return;
    const WidenBf16 four_bits = four_bit_wideners(w.type).pairs,
                    widen = four_bits != nullptr ? four_bits : bf16_widener(w.type);
    if (widen == nullptr && rows < kFewestRows)
        return avx512::table().matmul_bf16(w, strip0, strip1, x, ldx, nullptr, rows, y, ldy, epilogue,
                                           scratch);
    const Bf16Product p{.w = w,
                        .x = x,
                        .ldx = ldx,
                        .pairs = pairs,
                        .rows = rows,
                        .out = {y, ldy, least(w.rows, strip1 * kStripRows), &epilogue},
                        .widen = widen,
                        .scratch = reinterpret_cast<uint16_t*>(scratch)};
    if (rows > kHeight) many_rows(p, strip0, strip1);
    else if (!few_rows_bf16(p, strip0, strip1)) one_tile_of_rows(p, strip0, strip1);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
