// The kernel table of one ISA.
#include "compute/isa/table.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const Kernels& table() {
    static constexpr Kernels kTable{
        .name = TREADLE_ISA_NAME,
        .quant_bytes = quant_bytes,
        .quantise = quantise,
        .matmul_scratch_bytes = matmul_scratch_bytes,
        .matmul_i8 = matmul_i8,
        .matmul_f32 = matmul_f32,
        .round_bf16 = round_bf16,
        .matmul_bf16 = matmul_bf16,
        .takes_pairs = takes_pairs,
        .pair_bf16 = pair_bf16,
        .matmul_transposed = matmul_transposed,
        .unpack_row = unpack_row,
        .encode_row = encode_row,
        .rmsnorm = rmsnorm,
        .layernorm = layernorm,
        .rope = rope,
        .activate = activate,
        .add_scaled = add_scaled,
        .scale = scale,
        .softcap = softcap,
        .best = best,
        .weigh = weigh,
        .maxima = maxima,
        .columns_from = columns_from,
        .rank = rank,
        .kv_write = kv_write,
        .attend = attend,
        .attend_part = attend_part,
        .attend_merge = attend_merge,
        .convolve = convolve,
        .time_steps = time_steps,
        .head_scan = head_scan,
        .channel_scan = channel_scan,
        .delta_rule = delta_rule,
        .probe_dot = probe_dot,
        .probe_bf16 = probe_bf16,
        .probe_fma = probe_fma,
        .probe_read = probe_read,
    };
    return kTable;
}

}  // namespace treadle::compute::TREADLE_ISA_NS
