// shortconv and its fusion with the norm before and the residual after it: out(C * conv(B * u)) of B, C, u = in(x).
#include "inference/ops/mixer.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kIn, kInBias, kConv, kConvBias, kOut, kOutBias, kSlots };

class ShortConvOp final : public MixerOp {
  public:
    ShortConvOp(const Instruction& in, const BindContext& context) : MixerOp(in, context, kSlots) {
        const auto& p = params_of<contract::ShortConvParams>(in);
        const std::vector<Weight>& w = in.weights;
        inner_ = p.inner;
        in_ = bind_input(w[kIn], 3 * inner_, "in");
        in_bias_ = vector(w[kInBias], 3 * inner_, "in_bias");
        conv_ = bind_conv(w[kConv], w[kConvBias], inner_, p.conv_width,
                          static_cast<uint32_t>(contract::ActivationKind::identity));
        bind_output(w[kOut], vector(w[kOutBias], y_.cols, "out_bias"), inner_);
        bind_state(inner_ * (p.conv_width - 1));
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = pieces(team, own);
        const Product product{&in_, p.projected, in_.rows, {.bias = in_bias_}};
        multiply_all({&product, 1}, input_rows(step, worker, p.ends), worker, context_.numerics,
                     p.ends.matmul);
        worker.sync();
        float *b = p.projected, *c = b + inner_, *u = c + inner_;
        convolve(conv_, kConvBlock, u, in_.rows, b, c, b, step, worker, [](int64_t, int64_t, int64_t) {});
        worker.sync();
        write_output(b, in_.rows, step, worker, p.ends);
    }

    int64_t planned_bytes(const Step& step) const override {
        return weight_bytes(in_) + weight_bytes(conv_.taps) + weight_bytes(out_) + state_bytes(step);
    }

  private:
    struct Pieces {
        Ends ends;
        float* projected;  // [rows, B | C | u]; B becomes the output's input
    };

    Pieces pieces(Carver& team, Carver& own) const {
        const Ends ends = carve_ends(team, own);
        return {ends, team.take<float>(context_.limits.max_rows * in_.rows)};
    }
    void carve(Carver& team, Carver& own) const override { pieces(team, own); }

    int64_t inner_;
    PackedMatrix in_{};
    const float* in_bias_;
    compute::Convolution conv_;
};

}  // namespace

std::unique_ptr<Op> bind_shortconv(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<ShortConvOp>(in, context);
}

}  // namespace treadle::inference
