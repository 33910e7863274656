// Byte layouts shared by the packer and the kernels. A strip is 16 matrix rows.
//   4 bit:  per block of 32 columns 256 bytes in four 64-byte lines; byte 4r + i of line j holds q[row r][4j + i] in
//           its low nibble and q[row r][16 + 4j + i] in its high one
//   8 bit:  per block 512 bytes in eight lines; byte 4r + i of line j holds q[row r][4j + i]
//           after all blocks' lines: per block 16 f16 scales, then (types with a minimum) 16 f16 minima
//   f32, f16: [cols][16].  bf16: [cols / 2, rounded up][16][2]
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

struct BlockLayout {
    int64_t file_bytes;  // of one block of one row in a file
    int64_t line_bytes;  // of one block of a strip
    int64_t side_bytes;  // scales (and minima) of one block of a strip
};

inline constexpr BlockLayout kLayoutQ4_0{18, 256, 32};
inline constexpr BlockLayout kLayoutQ4_1{20, 256, 64};
inline constexpr BlockLayout kLayoutQ8_0{34, 512, 32};

// Quantised rows: row tiles of 12 (the last one may be lower). Per tile and block of 32 columns one record:
// [height][32] int8 quants, [height] f32 scales, [height] f32 scale * sum, [height] i32 -8 * sum, [height] i32 -128 * sum,
// the sums being those of the quants. The integer ones start an accumulator for weights kept with an offset.
inline constexpr int64_t kTileHeight = 12;
inline constexpr int64_t kQuantRowBytes = kBlock + 4 * 4;  // of one row and block

}  // namespace treadle::compute
