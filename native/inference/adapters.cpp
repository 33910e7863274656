#include "inference/adapters.hpp"

#include <initializer_list>

namespace treadle::inference {
namespace {

using contract::Opcode;

// What this backend claims. The table below must have an adapter for each of these, and for nothing else.
constexpr Opcode kClaimed[] = {
    Opcode::rmsnorm,
    Opcode::multihead_attention,
    Opcode::swiglu,
    Opcode::embedding,
    Opcode::residual_add,
    Opcode::layernorm,
    Opcode::lm_head,
    Opcode::attention_block,
    Opcode::mlp_block,
    Opcode::norm_lm_head,
    Opcode::moe,
    Opcode::moe_block,
    Opcode::pool,
    Opcode::shortconv,
    Opcode::mamba_mixer,
    Opcode::gated_delta_net,
    Opcode::shortconv_block,
    Opcode::mamba_block,
    Opcode::delta_block,
    Opcode::mla_attention,
    Opcode::latent_block,
};

constexpr std::array<Adapter, 256> make_table() {
    std::array<Adapter, 256> table{};
    const auto set = [&](Opcode opcode, Adapter adapter) { table[static_cast<size_t>(opcode)] = adapter; };
    // A fusion takes the operands of the instructions it replaces: the op's own, then norm weights; params in
    // order.
    set(Opcode::embedding, {bind_embedding, 1, 2, 1, 3, 1});
    set(Opcode::rmsnorm, {bind_norm_op, 1, 1, 1, 1, 1});
    set(Opcode::layernorm, {bind_norm_op, 1, 1, 1, 2, 1});
    set(Opcode::residual_add, {bind_residual_add, 2, 2, 1, 0, 1});
    set(Opcode::multihead_attention, {bind_attention, 1, 1, 1, 14, 1});
    set(Opcode::mla_attention, {bind_latent_attention, 1, 1, 1, 12, 1});
    set(Opcode::swiglu, {bind_mlp, 1, 1, 1, 6, 1});
    set(Opcode::moe, {bind_moe, 1, 1, 1, 13, 1});
    set(Opcode::lm_head, {bind_lm_head, 1, 1, 1, 2, 1});
    set(Opcode::pool, {bind_pool, 1, 1, 1, 6, 1});
    set(Opcode::shortconv, {bind_shortconv, 1, 1, 1, 6, 1});
    set(Opcode::mamba_mixer, {bind_mamba, 1, 1, 1, 15, 1});
    set(Opcode::gated_delta_net, {bind_delta_net, 1, 1, 1, 10, 1});
    set(Opcode::shortconv_block, {bind_shortconv, 2, 2, 1, 8, 3});
    set(Opcode::mamba_block, {bind_mamba, 2, 2, 1, 17, 3});
    set(Opcode::delta_block, {bind_delta_net, 2, 2, 1, 12, 3});
    set(Opcode::attention_block, {bind_attention, 2, 2, 1, 16, 3});
    set(Opcode::latent_block, {bind_latent_attention, 2, 2, 1, 14, 3});
    set(Opcode::mlp_block, {bind_mlp, 2, 2, 1, 8, 3});
    set(Opcode::moe_block, {bind_moe, 2, 2, 1, 15, 3});
    set(Opcode::norm_lm_head, {bind_lm_head, 1, 1, 1, 4, 2});
    return table;
}

constexpr std::array<Adapter, 256> kTable = make_table();

// Every op has parameters; comparing function pointers is no constant expression under UBSan.
constexpr bool complete() {
    size_t found = 0;
    for (const Adapter& adapter : kTable) found += adapter.params != 0;
    for (Opcode opcode : kClaimed) {
        if (kTable[static_cast<size_t>(opcode)].params == 0) return false;
    }
    return found == std::size(kClaimed);
}

static_assert(complete(), "the adapter table must hold exactly the claimed opcodes");

}  // namespace

std::span<const Adapter, 256> adapters() { return kTable; }

}  // namespace treadle::inference
