// How fast matrix tiles multiply.
#include <immintrin.h>

#include "compute/amx/tile_config.hpp"
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Two by two matrix tiles of 16 rows of 64 bytes at once, as a matrix product has; zeros, which take as long as any.
// `kBf16`: of bf16, else of int8. Returns the operations done.
template <bool kBf16>
int64_t probe_tiles(int64_t rounds) {
    const TileConfig config(whole_tiles());
    for (int64_t r = 0; r < rounds; ++r) {
        if constexpr (kBf16) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    return rounds * 4 * 16 * 16 * (kBf16 ? 32 : 64) * 2;
}

int64_t probe_dot(int64_t rounds, int32_t* /*sink*/) { return probe_tiles<false>(rounds); }
int64_t probe_bf16(int64_t rounds, float* /*sink*/) { return probe_tiles<true>(rounds); }

}  // namespace treadle::compute::TREADLE_ISA_NS
