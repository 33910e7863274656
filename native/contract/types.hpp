// Mirror of the enums of plan/ir.py and plan/params.py that the CPU backend reads, and of ExecutionContext.
#pragma once

#include <cstdint>
#include <span>

#include "contract/sampling.hpp"

namespace treadle::contract {

enum class Opcode : uint8_t {
    rmsnorm = 0,
    multihead_attention = 1,
    swiglu = 2,
    moe = 3,
    mamba_mixer = 4,
    shortconv = 5,
    mla_attention = 6,
    embedding = 7,
    residual_add = 8,
    gated_delta_net = 9,
    layernorm = 10,
    lm_head = 11,
    pool = 12,
    vision_patch_embed = 16,
    vision_spatial_merge = 17,
    vision_deepstack_extract = 18,
    vision_scatter = 19,
    // 128-255: fusions of this backend, made by its lowering pass, never in a plan file.
    attention_block = 128,  // norm -> multihead_attention -> residual_add
    mlp_block = 129,        // norm -> swiglu -> residual_add
    norm_lm_head = 130,     // norm -> lm_head
    moe_block = 131,        // norm -> moe -> residual_add
    shortconv_block = 132,  // norm -> shortconv -> residual_add
    mamba_block = 133,      // norm -> mamba_mixer -> residual_add
    delta_block = 134,      // norm -> gated_delta_net -> residual_add
    latent_block = 135,     // norm -> mla_attention -> residual_add
};

enum class ActivationKind : uint32_t {
    silu = 0,
    gelu = 1,
    gelu_tanh = 2,
    relu = 3,
    relu2 = 4,
    tanh = 5,
    sigmoid = 6,
    identity = 7,
    swiglu_clamped = 8,
};

enum class RouterScore : uint32_t { softmax_then_topk = 0, topk_then_softmax = 1, sigmoid = 2 };
enum class GroupScore : uint32_t { max = 0, sum_top2 = 1 };
enum class MambaNorm : uint32_t { none = 0, gated_rms = 1, rms_dt_b_c = 2 };

enum class QKNorm : uint32_t { none = 0, rms_per_head = 1, layernorm_per_head = 2, rms_whole = 3 };

inline constexpr uint16_t kNoRegister = 0xFFFF;
inline constexpr uint32_t kNoWeight = 0xFFFFFFFF;

// The largest step a program admits (plan/views.py StepLimits).
struct StepLimits {
    int64_t max_rows;
    int64_t max_batch;
    int64_t max_sampled;
    int64_t max_seq_len;
    int64_t state_pages;
};

// One ragged step (plan/context.py ExecutionContext). Slot i brings query_lens[i] rows from positions[i] on.
struct ExecutionContext {
    std::span<const int32_t> query_lens;
    std::span<const int32_t> positions;
    std::span<const int32_t> page_table;  // [batch, pages], -1 padded
    int64_t pages;
    std::span<const int32_t> state_slots;
    std::span<const int32_t> sampled_rows;
    const Sampling* sampling = nullptr;  // null: the sampled rows' values are all that is wanted
};

}  // namespace treadle::contract
