// lm_head over the sampled rows, and its fusion with the norm before it.
#include "inference/adapters.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kWeight, kBias, kNorm };

class LmHeadOp final : public Op {
  public:
    LmHeadOp(const Instruction& in, const BindContext& context)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]) {
        fused_ = in.params.size() == 2;
        params_ = in.params[fused_ ? 1 : 0].as<contract::LMHeadParams>();
        weight_ = matrix(in.weights[kWeight], y_.cols, x_.cols, "weight");
        bias_ = vector(in.weights[kBias], y_.cols, "bias");
        const Norm norm =
            fused_ ? bind_norm(in.params[0], std::span(in.weights).subspan(kNorm), x_.cols) : Norm{};
        input_ = RowInput(context, x_.cols, context.limits.max_sampled, norm, true);
        input_.serves(weight_);
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

    bool idle(const Step& step) const override { return step.sampled == 0; }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = carve(team, own);
        const ReadyRows rows = input_.prepare(x_.f32(), x_.cols, step.sampled, step.sampled_rows, worker,
                                              p.input_team, p.input_own);
        // With the norm fused, the logits may share the buffer of x: nobody may write before all have read.
        if (fused_) worker.sync();
        const Product product{&weight_, y_.f32(), y_.cols, {.bias = bias_, .scale = params_.scale}};
        multiply_all({&product, 1}, rows, worker, context_.exact, p.matmul);
        if (params_.softcap > 0.0f) {
            worker.sync();
            const int64_t count = step.sampled * y_.cols, piece = worker.piece(count, 4, compute::kStripRows);
            worker.each(count, compute::kStripRows, piece, [&](Range range) {
                float* y = y_.f32() + range.first;
                worker.kernels.softcap(y, params_.softcap, range.last - range.first, y);
            });
        }
    }

    int64_t planned_bytes(const Step& step) const override {
        return step.sampled ? weight_.strips() * weight_.strip_bytes : 0;
    }

  private:
    struct Pieces {
        std::byte *input_team, *input_own, *matmul;
    };

    Pieces carve(Carver& team, Carver& own) const {
        const Needs in = input_.needs();
        return {team.take<std::byte>(in.shared), own.take<std::byte>(in.thread),
                own.take<std::byte>(matmul_scratch(context_, weight_))};
    }

    BindContext context_;
    bool fused_ = false;
    contract::LMHeadParams params_{};
    Register x_, y_;
    PackedMatrix weight_{};
    const float* bias_ = nullptr;
    RowInput input_;
};

}  // namespace

std::unique_ptr<Op> bind_lm_head(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<LmHeadOp>(in, context);
}

}  // namespace treadle::inference
