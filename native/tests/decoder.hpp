// A random decoder or encoder of any small shape bound to the native core, and the memory that its steps need. For tests, the
// stress program and the thread benchmark.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "inference/program.hpp"

namespace treadle::test {

using compute::DType;
using namespace inference;

struct Shape {
    int64_t hidden = 64, heads = 4, kv_heads = 2, head_dim = 16, inner = 96, vocab = 50, layers = 2;
    int64_t page_tokens = 16;
    bool causal = true;   // else it keeps no state and pools each slot's rows
    int64_t experts = 0;  // a multiple of 3, of which a row takes two; 0: a plain MLP
    contract::StepLimits limits{
        .max_rows = 128, .max_batch = 8, .max_sampled = 128, .max_seq_len = 640, .state_pages = 180};

    int64_t page_bytes() const { return page_tokens * kv_heads * 2 * head_dim * 4; }
    int64_t widest() const { return std::max({hidden, vocab, inner}); }
};

inline Buffer zeroed(int64_t bytes) {
    Buffer buffer(bytes);
    std::memset(buffer.data(), 0, static_cast<size_t>(bytes));
    return buffer;
}

// What one program of a decoder writes: registers and the pages of every layer's state.
struct Memory {
    explicit Memory(const Shape& shape) {
        for (int i = 0; i < 12; ++i) registers.push_back(zeroed(shape.limits.max_rows * shape.widest() * 4));
        for (int i = 0; i < shape.layers; ++i)
            states.push_back(zeroed(shape.page_bytes() * shape.limits.state_pages));
    }
    Register reg(int index, int64_t cols) const { return {registers[index].data(), cols}; }
    int32_t* ids() const { return reinterpret_cast<int32_t*>(registers[0].data()); }
    const float* logits() const { return reinterpret_cast<const float*>(registers[11].data()); }

    std::vector<Buffer> registers, states;
};

template <typename T>
ParamBlock block(const T& params) {
    ParamBlock out;
    out.abi_version = T::kVersion;
    out.opcode = T::kOpcode;
    std::memcpy(out.payload.data(), &params, sizeof(T));
    return out;
}

// A decoder's random weights and its instructions.
class Model {
  public:
    Model(const Shape& shape, DType type, DType kv = DType::f32) : shape_(shape), type_(type), kv_(kv) {
        table_ = matrix(shape_.vocab, shape_.hidden);
        inv_freq_ = vector(shape_.head_dim / 2);
        for (int i = 0; i < shape_.layers; ++i) {
            const int64_t q = shape_.heads * shape_.head_dim, k = shape_.kv_heads * shape_.head_dim;
            const int64_t hidden = shape_.hidden, inner = shape_.inner;
            layers_.push_back({vector(hidden), matrix(q, hidden), matrix(k, hidden), matrix(k, hidden),
                               matrix(hidden, q), vector(hidden), matrix(inner, hidden),
                               matrix(inner, hidden), matrix(hidden, inner)});
            if (shape_.experts) layers_.back().experts = experts();
        }
        norm_ = vector(shape_.hidden);
        pool_ = {matrix(32, shape_.hidden), vector(32), vector(32), {}, matrix(shape_.inner, 32), {}};
    }

    const Shape& shape() const { return shape_; }

    std::vector<Instruction> instructions(const Memory& memory, bool fused) const {
        const auto reg = [&](int index, int64_t cols) { return memory.reg(index, cols); };
        const auto vocab = static_cast<uint32_t>(shape_.vocab);
        std::vector<Instruction> out;
        out.push_back({7,
                       {reg(0, 1)},
                       {reg(1, shape_.hidden)},
                       {table_, {}, {}},
                       {block(contract::EmbeddingParams{.vocab = vocab, .scale = 1.0f})},
                       {}});
        Register x = reg(1, shape_.hidden);
        for (int i = 0; i < shape_.layers; ++i) {
            const Register middle = reg(i % 2 ? 6 : 2, shape_.hidden);
            // Register mapping may give the head's output the buffer of its norm's input, which dies at the norm.
            const Register end = reg(i == shape_.layers - 1 ? 11 : i % 2 ? 7 : 3, shape_.hidden);
            add_layer(out, memory, fused, i, x, middle, end);
            x = end;
        }
        if (!shape_.causal) {
            const contract::PoolParams pool{.out_dim = static_cast<uint32_t>(shape_.inner),
                                            .normalise = 1,
                                            .head_activation = 5,
                                            .norm_eps = 1e-5f,
                                            .out_activation = 7};
            out.push_back({12, {x}, {reg(11, shape_.inner)}, pool_, {block(pool)}, {}});
            return out;
        }
        const ParamBlock norm = block(contract::RMSNormParams{.eps = 1e-5f});
        const ParamBlock head = block(contract::LMHeadParams{.vocab = vocab, .scale = 1.0f});
        if (fused) {
            out.push_back({130, {x}, {reg(11, shape_.vocab)}, {table_, {}, norm_}, {norm, head}, {}});
        } else {
            out.push_back({0, {x}, {reg(10, shape_.hidden)}, {norm_}, {norm}, {}});
            out.push_back({11, {reg(10, shape_.hidden)}, {reg(11, shape_.vocab)}, {table_, {}}, {head}, {}});
        }
        return out;
    }

  private:
    struct Layer {
        Weight attention_norm, q, k, v, o, mlp_norm, gate, up, down;
        std::vector<Weight> experts = {};  // the weights of moe but those of the shared expert
    };

    // `count` matrices of whole strips.
    Weight stacked(int64_t count, int64_t rows, int64_t cols) {
        Weight w = matrix(count * rows, cols);
        w.matrix.rows = rows;
        w.matrices = count;
        return w;
    }

    std::vector<Weight> experts() {
        const int64_t n = shape_.experts, hidden = shape_.hidden, inner = shape_.inner;
        std::vector<Weight> w{matrix(n, hidden),
                              {},
                              vector(n),
                              stacked(n, inner, hidden),
                              stacked(n, inner, hidden),
                              stacked(n, hidden, inner),
                              {},
                              {},
                              {}};
        if (type_ == DType::f32) w[6] = matrix(n, inner), w[7] = matrix(n, inner), w[8] = matrix(n, hidden);
        return w;
    }

    void add_layer(std::vector<Instruction>& out, const Memory& memory, bool fused, int i, Register x,
                   Register middle, Register end) const {
        const Layer& l = layers_[i];
        contract::AttentionParams a{.num_heads = static_cast<uint32_t>(shape_.heads),
                                    .num_kv_heads = static_cast<uint32_t>(shape_.kv_heads),
                                    .head_dim = static_cast<uint32_t>(shape_.head_dim),
                                    .v_head_dim = static_cast<uint32_t>(shape_.head_dim),
                                    .scale = 0.25f,
                                    .causal = shape_.causal};
        a.window = i % 2 ? (shape_.causal ? 100 : 20) : 0;
        a.rotary_dim = static_cast<uint32_t>(shape_.head_dim);
        a.rope_scale = 1.0f;
        a.kv_dtype = static_cast<uint32_t>(kv_);
        const std::vector<Weight> attention{l.q, l.k, l.v, l.o, {}, {},        {},
                                            {},  {},  {},  {},  {}, inv_freq_, {}};
        const State kept{memory.states[i].data(), shape_.page_bytes(), shape_.page_tokens};
        const State state = shape_.causal ? kept : State{};
        add_block(out, memory, fused, {1, 128}, x, middle, attention, l.attention_norm, block(a), state);
        if (shape_.experts) {
            std::vector<Weight> moe = l.experts;
            moe.insert(moe.end(), {l.gate, l.up, l.down, {}});
            const contract::MoEParams p{.num_experts = static_cast<uint32_t>(shape_.experts),
                                        .experts_per_token = 2,
                                        .intermediate = static_cast<uint32_t>(shape_.inner),
                                        .gated = 1,
                                        .router_score = 2,
                                        .normalise = 1,
                                        .routed_scale = 1.5f,
                                        .num_groups = 3,
                                        .top_groups = 2,
                                        .shared_intermediate = static_cast<uint32_t>(shape_.inner)};
            add_block(out, memory, fused, {3, 131}, middle, end, moe, l.mlp_norm, block(p), {});
            return;
        }
        const std::vector<Weight> mlp{l.gate, l.up, l.down, {}, {}, {}};
        const contract::SwiGLUParams p{.intermediate = static_cast<uint32_t>(shape_.inner), .gated = 1};
        add_block(out, memory, fused, {2, 129}, middle, end, mlp, l.mlp_norm, block(p), {});
    }

    // norm, op, residual add; or the fusion of the three. opcodes: of the op, of the fusion.
    void add_block(std::vector<Instruction>& out, const Memory& memory, bool fused,
                   std::pair<uint8_t, uint8_t> opcodes, Register x, Register y, std::vector<Weight> weights,
                   const Weight& gain, const ParamBlock& params, State state) const {
        const ParamBlock norm = block(contract::RMSNormParams{.eps = 1e-5f});
        const ParamBlock add = block(contract::ResidualAddParams{.scale = 1.0f});
        if (fused) {
            weights.push_back(gain);
            out.push_back({opcodes.second, {x, x}, {y}, weights, {norm, params, add}, state});
            return;
        }
        const Register normed = memory.reg(9, shape_.hidden), result = memory.reg(10, shape_.hidden);
        out.push_back({0, {x}, {normed}, {gain}, {norm}, {}});
        out.push_back({opcodes.first, {normed}, {result}, weights, {params}, state});
        out.push_back({8, {x, result}, {y}, {}, {add}, {}});
    }

    Weight matrix(int64_t rows, int64_t cols) {
        const int64_t stored = compute::row_bytes(type_, cols), strip = compute::strip_bytes(type_, cols);
        std::vector<std::byte> raw(static_cast<size_t>(rows * stored));
        if (type_ == DType::f32) {
            std::normal_distribution<float> normal(0.0f, 0.15f);
            for (int64_t i = 0; i < rows * cols; ++i) {
                const float value = normal(random_);
                std::memcpy(raw.data() + 4 * i, &value, 4);
            }
        } else {  // q8_0: f16 scale, 32 int8
            for (int64_t b = 0; b < rows * cols / 32; ++b) {
                const uint16_t scale = 0x1400 + static_cast<uint16_t>(random_() % 0x100);  // about 0.001
                std::memcpy(raw.data() + 34 * b, &scale, 2);
                for (int i = 0; i < 32; ++i) raw[34 * b + 2 + i] = static_cast<std::byte>(random_());
            }
        }
        const int64_t strips = (rows + 15) / 16;
        memory_.push_back(zeroed(strips * strip));
        for (int64_t s = 0; s < strips; ++s) {
            const std::byte* source[16];
            for (int64_t r = 0; r < 16; ++r)
                source[r] = 16 * s + r < rows ? raw.data() + (16 * s + r) * stored : nullptr;
            compute::pack_strip(type_, source, cols, memory_.back().data() + s * strip);
        }
        return {
            .present = true, .is_matrix = true, .matrix = {type_, rows, cols, strip, memory_.back().data()}};
    }

    Weight vector(int64_t size) {
        memory_.push_back(zeroed(size * 4));
        float* values = reinterpret_cast<float*>(memory_.back().data());
        for (int64_t i = 0; i < size; ++i) values[i] = 0.5f + static_cast<float>(random_() % 1000) / 1000.0f;
        return {.present = true, .vector = values, .size = size};
    }

    Shape shape_;
    DType type_, kv_;
    std::mt19937 random_{7};
    std::vector<Buffer> memory_;
    Weight table_, inv_freq_, norm_;
    std::vector<Weight> pool_;
    std::vector<Layer> layers_;
};

// One request's rows in a step.
struct Part {
    int slot;
    int64_t position;
    std::vector<int32_t> ids;
};

// A program over a model with memory of its own. A sequence has 40 pages at most.
struct Runner {
    Runner(const Model& m, std::shared_ptr<ThreadPool> pool, bool fused, Numerics numerics,
           const compute::Kernels& kernels = compute::kernels())
        : model(m), memory(m.shape()),
          program(std::move(pool), kernels, numerics, m.shape().limits, m.instructions(memory, fused)),
          workspace(zeroed(program.workspace_bytes())) {
        program.set_workspace(workspace.data(), program.workspace_bytes());
    }
    Runner(const Model& m, int threads, bool fused, Numerics numerics)
        : Runner(m, std::make_shared<ThreadPool>(threads), fused, numerics) {}

    // Runs a step; returns every row's logits, or every slot's vector. Slot s owns pages from 20 s on, in reverse order: 20, and slot 7 has 40.
    std::vector<float> step(const std::vector<Part>& parts) {
        std::vector<int32_t> query, positions, table, slots, sampled;
        int64_t rows = 0;
        for (const Part& part : parts) {
            query.push_back(static_cast<int32_t>(part.ids.size()));
            positions.push_back(static_cast<int32_t>(part.position));
            slots.push_back(part.slot);
            const int own = part.slot == 7 ? 40 : 20;
            for (int p = 0; p < 40; ++p) table.push_back(p < own ? part.slot * 20 + own - 1 - p : -1);
            for (const int32_t id : part.ids) {
                memory.ids()[rows] = id;
                sampled.push_back(static_cast<int32_t>(rows++));
            }
        }
        chosen.assign(sampled.size(), -1);
        best.assign(sampled.size(), 0.0f);
        const contract::Sampling sampling{asked, edits,   chosen.data(), best.data(),
                                          0,     nullptr, nullptr,       nullptr};
        finished = program.run(
            {query, positions, table, 40, slots, sampled, asked.empty() ? nullptr : &sampling}, &counters);
        const Shape& shape = model.shape();
        const int64_t values = shape.causal ? rows * shape.vocab : std::ssize(parts) * shape.inner;
        return {memory.logits(), memory.logits() + values};
    }

    const Model& model;
    Memory memory;
    Program program;
    Buffer workspace;
    Counters counters;
    bool finished = true;

    // What is asked of every sampled row; `step` fills `chosen` and `best` where there is something.
    std::vector<contract::SampledRow> asked;
    std::vector<contract::RowEdits> edits;
    std::vector<int32_t> chosen;
    std::vector<float> best;
};

}  // namespace treadle::test
