// Byte layouts shared by the packer and the kernels. A strip is 16 matrix rows.
//   f32, f16: [cols][16].  bf16: [cols / 2, rounded up][16][2]
//   block types of 256 columns a superblock: the superblocks ascending, each the lines of its blocks, then its side record,
//     padded to 64 bytes. So a strip is read as one ascending stream, which the processor fetches best.
//   block types of 32 columns a superblock: first every block's lines, then every side record (the lines stay aligned).
// Lines of a block of 32 columns, planes in this order, each only where the type has it; q is the code as the file keeps it:
//   8 bits: eight 64-byte lines; byte 4r + i of line j holds q[row r][4j + i]
//   4 bits: four lines; byte 4r + i of line j holds q[row r][4j + i] in its low nibble and q[row r][16 + 4j + i] in its high one
//   2 bits: two lines; bits 2s, 2s + 1 of byte 4r + i of line h hold two bits of q[row r][16h + 4s + i]
//   1 bit:  one line; bit j of byte 4r + i holds a bit of q[row r][4j + i]
// A superblock is what shares the file's f16 scale: 32 columns, or 256 in the K types and IQ4_XS.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

struct BlockLayout {
    int64_t file_cols;   // columns of a superblock
    int64_t file_bytes;  // of a superblock of one row in a file
    int64_t line_bytes;  // of one block of a strip
    int64_t head_bytes;  // of a side record: 16 f16 scales, then 16 f16 minimum scales
    int64_t side_bytes;  // of each of its blocks after that: what the type's struct in isa/formats.hpp says
    constexpr int64_t blocks() const { return file_cols / kBlock; }  // of a superblock
    constexpr int64_t side_record() const { return head_bytes + blocks() * side_bytes; }
    constexpr bool together() const { return blocks() > 1; }  // a superblock's side record follows its lines
    // From a superblock's lines to those of the next, and from its side record to the next one's.
    constexpr int64_t lines_stride() const {
        const int64_t bytes = blocks() * line_bytes + (together() ? side_record() : 0);
        return (bytes + kAlign - 1) / kAlign * kAlign;
    }
    constexpr int64_t side_stride() const { return together() ? lines_stride() : side_record(); }
    // Where the side records of a strip start, and where its last superblock ends.
    constexpr int64_t sides_at(int64_t superblocks) const {
        return together() ? blocks() * line_bytes : superblocks * line_bytes;
    }
    constexpr int64_t end(int64_t superblocks) const {
        return superblocks * (lines_stride() + (together() ? 0 : side_record()));
    }
};

// file_cols is 0 for types that have no blocks.
constexpr BlockLayout layout_of(DType type) {
    switch (type) {
        case DType::q4_0:
        case DType::iq4_nl:
            return {32, 18, 256, 32, 0};
        case DType::q4_1:
            return {32, 20, 256, 64, 0};
        case DType::q5_0:
            return {32, 22, 256 + 64, 32, 0};
        case DType::q5_1:
            return {32, 24, 256 + 64, 64, 0};
        case DType::q8_0:
            return {32, 34, 512, 32, 0};
        case DType::mxfp4:
            return {32, 17, 256, 0, 16};
        case DType::q2_k:
            return {256, 84, 128, 64, 32};
        case DType::q3_k:
            return {256, 110, 128 + 64, 32, 32};
        case DType::q4_k:
            return {256, 144, 256, 64, 32};
        case DType::q5_k:
            return {256, 176, 256 + 64, 64, 32};
        case DType::q6_k:
            return {256, 210, 256 + 128, 32, 32};
        case DType::iq4_xs:
            return {256, 136, 256, 32, 16};
        default:
            return {};
    }
}

// Quantised rows: row tiles of 12 (the last one may be lower). Per tile and block of 32 columns one record:
// [height][32] int8 quants, [height] f32 scales, [height] f32 scale * sum, [height] i32 -8 * sum, [height] i32 -128 * sum,
// the sums being those of the quants. The integer ones start an accumulator for weights kept with an offset.
// After all records, in the same order, for weights with two scales a block: [height] i32 -32 * sum of the first 16 columns'
// quants, then of the last 16 columns', then scale * sum as [height] f32 of each.
inline constexpr int64_t kTileHeight = 12;
inline constexpr int64_t kQuantRowBytes = kBlock + 4 * 4;  // of one row and block
inline constexpr int64_t kHalvesRowBytes = 4 * 4;

}  // namespace treadle::compute
