// Mirror of plan/params.py: the packed parameter structs that adapters cast and read. Each field is declared
// once, in a list that makes both the struct and the table of offsets which the Python side compares when the
// backend loads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace treadle::contract {

using u32 = uint32_t;
using f32 = float;

// clang-format off
#define TREADLE_RMSNORM_V1(F) F(f32, eps) F(f32, gain_offset)
#define TREADLE_LAYERNORM_V1(F) F(f32, eps) F(f32, gain_offset)
#define TREADLE_ATTENTION_V1(F) \
    F(u32, num_heads) F(u32, num_kv_heads) F(u32, head_dim) F(u32, v_head_dim) F(f32, scale) F(u32, causal) \
    F(u32, window) F(u32, rotary_dim) F(u32, rope_style) F(f32, rope_scale) F(f32, softcap) F(u32, qk_norm) \
    F(f32, qk_norm_eps) F(f32, qk_norm_gain_offset) F(f32, qkv_clip) F(u32, output_gate) F(u32, kv_dtype)
#define TREADLE_SWIGLU_V1(F) F(u32, intermediate) F(u32, gated) F(u32, activation) F(f32, alpha) F(f32, limit)
#define TREADLE_MOE_V1(F) \
    F(u32, num_experts) F(u32, experts_per_token) F(u32, intermediate) F(u32, gated) F(u32, activation) F(f32, alpha) \
    F(f32, limit) F(u32, router_score) F(u32, normalise) F(f32, normalise_eps) F(f32, routed_scale) \
    F(u32, num_groups) F(u32, top_groups) F(u32, group_score) F(u32, shared_intermediate)
#define TREADLE_MAMBA_V1(F) \
    F(u32, generation) F(u32, inner) F(u32, state) F(u32, conv_width) F(u32, dt_rank) F(u32, heads) F(u32, groups) \
    F(u32, norm) F(u32, norm_groups) F(f32, norm_eps) F(f32, dt_min) F(f32, dt_max) F(u32, activation)
#define TREADLE_SHORTCONV_V1(F) F(u32, inner) F(u32, conv_width)
#define TREADLE_MLA_V1(F) \
    F(u32, num_heads) F(u32, q_lora_rank) F(u32, kv_lora_rank) F(u32, nope_dim) F(u32, rope_dim) F(u32, v_head_dim) \
    F(f32, scale) F(f32, norm_eps) F(u32, rope_style) F(f32, rope_scale) F(u32, causal) F(u32, kv_dtype)
#define TREADLE_EMBEDDING_V1(F) \
    F(u32, vocab) F(f32, scale) F(u32, max_positions) F(u32, position_offset) F(u32, types)
#define TREADLE_RESIDUAL_ADD_V1(F) F(f32, scale)
#define TREADLE_GATED_DELTA_NET_V1(F) \
    F(u32, num_k_heads) F(u32, num_v_heads) F(u32, k_head_dim) F(u32, v_head_dim) F(u32, conv_width) F(f32, norm_eps) \
    F(u32, activation)
#define TREADLE_LM_HEAD_V1(F) F(u32, vocab) F(f32, scale) F(f32, softcap)
#define TREADLE_POOL_V1(F) \
    F(u32, out_dim) F(u32, pooling) F(u32, normalise) F(u32, head_activation) F(f32, norm_eps) F(u32, out_activation)
#define TREADLE_VISION_PATCH_EMBED_V1(F) \
    F(u32, patch_size) F(u32, temporal_patch_size) F(u32, channels) F(u32, grid_positions)
#define TREADLE_VISION_SPATIAL_MERGE_V1(F) \
    F(u32, merge) F(u32, hidden) F(u32, intermediate) F(f32, norm_eps) F(u32, norm_after_merge) F(u32, activation)
#define TREADLE_VISION_DEEPSTACK_EXTRACT_V1(F) TREADLE_VISION_SPATIAL_MERGE_V1(F)
#define TREADLE_VISION_SCATTER_V1(F) F(u32, placeholder)

// Opcode number, struct name, field list: every published layout.
#define TREADLE_PARAMS_V1(P) \
    P(0, RMSNormParams, TREADLE_RMSNORM_V1) \
    P(1, AttentionParams, TREADLE_ATTENTION_V1) \
    P(2, SwiGLUParams, TREADLE_SWIGLU_V1) \
    P(3, MoEParams, TREADLE_MOE_V1) \
    P(4, MambaParams, TREADLE_MAMBA_V1) \
    P(5, ShortConvParams, TREADLE_SHORTCONV_V1) \
    P(6, MLAParams, TREADLE_MLA_V1) \
    P(7, EmbeddingParams, TREADLE_EMBEDDING_V1) \
    P(8, ResidualAddParams, TREADLE_RESIDUAL_ADD_V1) \
    P(9, GatedDeltaNetParams, TREADLE_GATED_DELTA_NET_V1) \
    P(10, LayerNormParams, TREADLE_LAYERNORM_V1) \
    P(11, LMHeadParams, TREADLE_LM_HEAD_V1) \
    P(12, PoolParams, TREADLE_POOL_V1) \
    P(16, VisionPatchEmbedParams, TREADLE_VISION_PATCH_EMBED_V1) \
    P(17, VisionSpatialMergeParams, TREADLE_VISION_SPATIAL_MERGE_V1) \
    P(18, VisionDeepstackExtractParams, TREADLE_VISION_DEEPSTACK_EXTRACT_V1) \
    P(19, VisionScatterParams, TREADLE_VISION_SCATTER_V1)

#define TREADLE_FIELD(type, name) type name = {};
#define TREADLE_STRUCT(opcode, name, fields) \
    struct alignas(8) name { \
        static constexpr uint8_t kOpcode = opcode; \
        static constexpr uint8_t kVersion = 1; \
        fields(TREADLE_FIELD) \
    };
TREADLE_PARAMS_V1(TREADLE_STRUCT)
#undef TREADLE_STRUCT
#undef TREADLE_FIELD
// clang-format on

inline constexpr size_t kMaxPayload = 256;

struct ParamField {
    const char* name;
    char type;  // 'I': u32, 'f': f32
    uint32_t offset;
};

struct ParamLayout {
    uint8_t opcode;
    uint8_t version;
    uint32_t size;
    std::span<const ParamField> fields;
};

// Every layout of this build, for the handshake with plan/params.py.
std::span<const ParamLayout> param_layouts();

}  // namespace treadle::contract
