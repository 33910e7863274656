// The static adapter table of the CPU backend: for every opcode the function that binds an instruction, and
// its arity.
#pragma once

#include "inference/op.hpp"
#include "inference/rope_tables.hpp"

namespace treadle::inference {

using BindFunction = std::unique_ptr<Op> (*)(const Instruction&, const BindContext&, RopeTables&);

struct Adapter {
    BindFunction bind = nullptr;
    uint8_t min_inputs = 0;
    uint8_t max_inputs = 0;
    uint8_t outputs = 0;
    uint8_t weights = 0;
    uint8_t params = 0;
};

// 256 entries; bind == nullptr where the backend has no adapter.
std::span<const Adapter, 256> adapters();

std::unique_ptr<Op> bind_embedding(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_norm_op(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_residual_add(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_attention(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_latent_attention(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_mlp(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_moe(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_pool(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_shortconv(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_mamba(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_delta_net(const Instruction&, const BindContext&, RopeTables&);
std::unique_ptr<Op> bind_lm_head(const Instruction&, const BindContext&, RopeTables&);

}  // namespace treadle::inference
