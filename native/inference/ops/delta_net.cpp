// gated_delta_net and its fusion with the norm before and the residual after it.
//
// A step has these phases, with a barrier between them:
//   1 products of q, k, v, z, b, a     2 convolution, q and k made unit vectors, decay and beta of every row
//   3 delta rule of each (slot, value head), its norm and gate     4 output product
#include <cmath>
#include <numeric>

#include "inference/ops/mixer.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kQKV, kZ, kB, kA, kConv, kConvBias, kDtBias, kDecay, kNorm, kOut, kSlots };

constexpr float kUnitEps = 1e-6f;  // added to |q|^2 and |k|^2
constexpr float kInfinity = __builtin_inff();
constexpr compute::ActivationParams kSilu{.kind = compute::Activation::silu};
constexpr compute::ActivationParams kSigmoid{.kind = compute::Activation::sigmoid};

class DeltaNetOp final : public MixerOp {
  public:
    DeltaNetOp(const Instruction& in, const BindContext& context)
        : MixerOp(in, context, kSlots), p_(params_of<contract::GatedDeltaNetParams>(in)) {
        expect(p_.num_k_heads != 0 && p_.num_v_heads % p_.num_k_heads == 0,
               "delta net: value heads are not a multiple of key heads");
        const std::vector<Weight>& w = in.weights;
        k_heads_ = p_.num_k_heads;
        v_heads_ = p_.num_v_heads;
        k_dim_ = p_.k_head_dim;
        v_dim_ = p_.v_head_dim;
        keys_ = k_heads_ * k_dim_;
        inner_ = v_heads_ * v_dim_;
        qkv_ = bind_input(w[kQKV], 2 * keys_ + inner_, "qkv");
        z_ = bind_input(w[kZ], inner_, "z");
        b_ = bind_input(w[kB], v_heads_, "b");
        a_ = bind_input(w[kA], v_heads_, "a");
        conv_ = bind_conv(w[kConv], w[kConvBias], qkv_.rows, p_.conv_width, p_.activation);
        dt_bias_ = vector(w[kDtBias], v_heads_, "dt_bias");
        rate_ = vector(w[kDecay], v_heads_, "decay");
        norm_ = vector(w[kNorm], v_dim_, "norm");
        expect(dt_bias_ && rate_ && norm_, "delta net: dt_bias, decay and norm are needed");
        bind_output(w[kOut], nullptr, inner_);
        tail_ = qkv_.rows * (p_.conv_width - 1);
        bind_state(tail_ + v_heads_ * k_dim_ * v_dim_);
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = pieces(team, own);
        const Product products[] = {{&qkv_, p.qkv, qkv_.rows, {}},
                                    {&z_, p.z, inner_, {}},
                                    {&b_, p.beta, v_heads_, {}},
                                    {&a_, p.steps, v_heads_, {}}};
        multiply_all(products, input_rows(step, worker, p.ends), worker, context_.numerics, p.ends.matmul);
        worker.sync();
        // Blocks of whole heads, so that a head is complete when its block is.
        convolve(conv_, std::lcm(int64_t{16}, k_dim_), p.qkv, qkv_.rows, nullptr, nullptr, p.qkv, step,
                 worker, [&](int64_t slot, int64_t first, int64_t last) {
                     unite(p, slot, first, std::min(last, 2 * keys_), step, worker.kernels);
                 });
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
            for (int64_t r = range.first * v_heads_; r < range.last * v_heads_; r += v_heads_) {
                worker.kernels.activate(p.beta + r, nullptr, v_heads_, kSigmoid, p.beta + r);
                worker.kernels.time_steps(p.steps + r, dt_bias_, rate_, 0.0f, kInfinity, v_heads_,
                                          p.steps + r, p.decay + r);
            }
        });
        worker.sync();
        const int64_t count = step.batch * v_heads_;
        worker.each(count, worker.piece(count, 16), [&](Range range) {
            for (int64_t i = range.first; i < range.last; ++i)
                mix(p, i / v_heads_, i % v_heads_, step, worker.kernels);
        });
        worker.sync();
        write_output(p.qkv + 2 * keys_, qkv_.rows, step, worker, p.ends);
    }

    int64_t planned_bytes(const Step& step) const override {
        int64_t bytes = state_bytes(step);
        for (const PackedMatrix* w : {&qkv_, &z_, &b_, &a_, &conv_.taps, &out_}) bytes += weight_bytes(*w);
        return bytes;
    }

  private:
    struct Pieces {
        Ends ends;
        float* qkv;                   // [rows, q | k | v]; v becomes the output's input
        float* z;                     // [rows, inner]
        float *beta, *steps, *decay;  // [rows, value heads]
    };

    Pieces pieces(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows;
        const Ends ends = carve_ends(team, own);
        return {ends,
                team.take<float>(rows * qkv_.rows),
                team.take<float>(rows * inner_),
                team.take<float>(rows * v_heads_),
                team.take<float>(rows * v_heads_),
                team.take<float>(rows * v_heads_)};
    }
    void carve(Carver& team, Carver& own) const override { pieces(team, own); }

    // Heads of q and k in channels [first, last) of a slot's rows: x / sqrt(|x|^2 + eps), q also / sqrt(dim).
    void unite(const Pieces& p, int64_t slot, int64_t first, int64_t last, const Step& step,
               const Kernels& k) const {
        const auto dim = static_cast<float>(k_dim_);
        for (int64_t r = step.slot_row[slot]; r < step.slot_row[slot] + step.query_lens[slot]; ++r)
            for (int64_t channel = first; channel < last; channel += k_dim_) {
                float* head = p.qkv + r * qkv_.rows + channel;
                k.rmsnorm(head, nullptr, 0.0f, kUnitEps / dim, k_dim_, head);
                k.scale(head, channel < keys_ ? 1.0f / dim : 1.0f / std::sqrt(dim), k_dim_, head);
            }
    }

    void mix(const Pieces& p, int64_t slot, int64_t head, const Step& step, const Kernels& k) const {
        const int64_t row = step.slot_row[slot], rows = step.query_lens[slot], ld = qkv_.rows;
        float* q = p.qkv + row * ld + head / (v_heads_ / k_heads_) * k_dim_;
        float* v = p.qkv + row * ld + 2 * keys_ + head * v_dim_;
        k.delta_rule({.rows = rows,
                      .key_dim = k_dim_,
                      .dim = v_dim_,
                      .q = q,
                      .k = q + keys_,
                      .ld_qk = ld,
                      .v = v,
                      .ldv = ld,
                      .decay = p.decay + row * v_heads_ + head,
                      .beta = p.beta + row * v_heads_ + head,
                      .ld_steps = v_heads_,
                      .state = page(step, slot) + tail_ + head * k_dim_ * v_dim_,
                      .y = v,
                      .ldy = ld});
        for (int64_t r = 0; r < rows; ++r) {
            k.rmsnorm(v + r * ld, norm_, 0.0f, p_.norm_eps, v_dim_, v + r * ld);
            k.activate(p.z + (row + r) * inner_ + head * v_dim_, v + r * ld, v_dim_, kSilu, v + r * ld);
        }
    }

    contract::GatedDeltaNetParams p_;
    int64_t k_heads_, v_heads_, k_dim_, v_dim_, keys_, inner_, tail_;
    PackedMatrix qkv_{}, z_{}, b_{}, a_{};
    compute::Convolution conv_;
    const float *dt_bias_, *rate_, *norm_;
};

}  // namespace

std::unique_ptr<Op> bind_delta_net(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<DeltaNetOp>(in, context);
}

}  // namespace treadle::inference
