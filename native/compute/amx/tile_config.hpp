// The shapes of a thread's matrix tiles (AMX).
#pragma once

#include <cstdint>

namespace treadle::compute::TREADLE_ISA_NS {

struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Eight tiles of 16 rows of 64 bytes.
inline TileShapes whole_tiles() {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    return shapes;
}

// In force while it lives.
class TileConfig {
  public:
    explicit TileConfig(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
    ~TileConfig() { asm volatile("tilerelease"); }
    TileConfig(const TileConfig&) = delete;
    TileConfig& operator=(const TileConfig&) = delete;
};

}  // namespace treadle::compute::TREADLE_ISA_NS
