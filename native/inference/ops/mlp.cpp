// swiglu (gated or plain MLP) and its fusion with the norm before and the residual after it.
#include "inference/adapters.hpp"
#include "inference/widen.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kGate, kUp, kDown, kGateBias, kUpBias, kDownBias, kNorm };

class MlpOp final : public Op {
  public:
    MlpOp(const Instruction& in, const BindContext& context)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]) {
        const auto& params = params_of<contract::SwiGLUParams>(in);
        const int64_t inner = params.intermediate;
        widening_.activation = activation_of(params.activation, params.alpha, params.limit);
        if (params.gated) widening_.gate = matrix(in.weights[kGate], inner, x_.cols, "gate");
        widening_.up = matrix(in.weights[kUp], inner, x_.cols, "up");
        down_ = matrix(in.weights[kDown], y_.cols, inner, "down");
        widening_.gate_bias = vector(in.weights[kGateBias], inner, "gate_bias");
        widening_.up_bias = vector(in.weights[kUpBias], inner, "up_bias");
        down_bias_ = vector(in.weights[kDownBias], y_.cols, "down_bias");
        const Fused fused = bind_fused(in, kNorm, "mlp");
        residual_ = fused.residual;
        input_ = RowInput(context, x_.cols, context.limits.max_rows, fused.norm, false);
        input_.serves(widening_.up);
        if (widening_.gate.rows) input_.serves(widening_.gate);
        inner_ = RowInput(context, inner, context.limits.max_rows, Norm{}, true);
        inner_.serves(down_);
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = carve(team, own);
        const ReadyRows rows =
            input_.prepare(x_.f32(), x_.cols, step.rows, nullptr, worker, p.input_team, p.input_own);
        const RowInput::Sink sink = inner_.sink(p.inner_team);
        widen_all(rows, sink, worker, p);
        worker.sync();
        const ReadyRows inner = inner_.sunk(sink, step.rows, worker.kernels, p.inner_own);
        const Product product{&down_, y_.f32(), y_.cols, residual_.epilogue(down_bias_)};
        multiply_all({&product, 1}, inner, worker, context_.numerics, p.matmul);
    }

    int64_t planned_bytes(const Step&) const override {
        int64_t bytes = 0;
        for (const PackedMatrix* w : {&widening_.gate, &widening_.up, &down_})
            bytes += w->rows ? w->strips() * w->strip_bytes : 0;
        return bytes;
    }

  private:
    struct Pieces {
        float* widened;
        std::byte *input_team, *inner_team, *input_own, *inner_own, *matmul;
    };

    Pieces carve(Carver& team, Carver& own) const {
        Pieces p{};
        p.widened = own.take<float>(2 * widen_floats(context_.limits.max_rows));
        const Needs in = input_.needs(), inner = inner_.needs();
        p.input_team = team.take<std::byte>(in.shared);
        p.inner_team = team.take<std::byte>(inner.shared);
        p.input_own = own.take<std::byte>(in.thread);
        p.inner_own = own.take<std::byte>(inner.thread);
        p.matmul = own.take<std::byte>(
            std::max(matmul_scratch(context_, widening_.up), matmul_scratch(context_, down_)));
        return p;
    }

    // Pieces of whole strips: the activation follows its piece while it is in cache.
    void widen_all(const ReadyRows& rows, const RowInput::Sink& sink, Worker& worker, const Pieces& p) const {
        const int64_t strips = widening_.up.strips();
        const int64_t fits = widen_strips(widen_floats(context_.limits.max_rows), rows.rows);
        const int64_t piece = std::min(fits, strip_piece(worker, strips, rows.rows));
        const Inner inner{sink, {0, rows.rows}, 0};
        worker.each(strips, kStripGrain, piece, [&](Range range) {
            widen(widening_, range, rows, inner, p.widened, worker.kernels, context_.numerics, p.matmul);
        });
    }

    BindContext context_;
    Register x_, y_;
    Residual residual_;
    Widening widening_;
    PackedMatrix down_{};
    const float* down_bias_ = nullptr;
    RowInput input_, inner_;
};

}  // namespace

std::unique_ptr<Op> bind_mlp(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<MlpOp>(in, context);
}

}  // namespace treadle::inference
