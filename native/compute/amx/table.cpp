// The kernel table of machines with matrix tiles (AMX): that of AVX-512 with what tiles do better. int8 products are not
// among it: each 32 columns bring scales of their own, so a tile's sums would leave it after one instruction, and tile and
// vector instructions take turns instead of overlapping.
#include "compute/isa/table.hpp"
#include "compute/isa/tables.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const Kernels& table() {
    static const Kernels kTable = [] {
        Kernels k = avx512::table();
        k.name = TREADLE_ISA_NAME;
        k.matmul_scratch_bytes = matmul_scratch_bytes;
        k.matmul_bf16 = matmul_bf16;
        k.takes_pairs = takes_pairs;
        k.pair_bf16 = pair_bf16;
        k.attend = attend;
        k.attend_part = attend_part;
        k.attend_merge = attend_merge;
        k.probe_dot = probe_dot;
        k.probe_bf16 = probe_bf16;
        return k;
    }();
    return kTable;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
