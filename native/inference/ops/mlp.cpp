// swiglu (gated or plain MLP) and its fusion with the norm before and the residual after it.
#include "inference/adapters.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kGate, kUp, kDown, kGateBias, kUpBias, kDownBias, kNorm };

// Floats of the up projection that a thread holds at once, so that gate and up of a piece stay in its cache.
constexpr int64_t kUpFloats = 32 * 1024;

compute::ActivationParams activation_of(const contract::SwiGLUParams& p) {
    using compute::Activation;
    using contract::ActivationKind;
    compute::ActivationParams a{.limit = p.limit, .alpha = p.alpha};
    switch (static_cast<ActivationKind>(p.activation)) {
        case ActivationKind::silu:
            a.kind = Activation::silu;
            return a;
        case ActivationKind::gelu:
            a.kind = Activation::gelu;
            return a;
        case ActivationKind::gelu_tanh:
            a.kind = Activation::gelu_tanh;
            return a;
        case ActivationKind::relu:
            a.kind = Activation::relu;
            return a;
        case ActivationKind::relu2:
            a.kind = Activation::relu2;
            return a;
        case ActivationKind::tanh:
            a.kind = Activation::tanh;
            return a;
        case ActivationKind::sigmoid:
            a.kind = Activation::sigmoid;
            return a;
        case ActivationKind::identity:
            a.kind = Activation::none;
            return a;
        case ActivationKind::swiglu_clamped:
            a.kind = Activation::swiglu_clamped;
            return a;
    }
    throw BindError("swiglu: activation " + std::to_string(p.activation) + " is unknown");
}

class MlpOp final : public Op {
  public:
    MlpOp(const Instruction& in, const BindContext& context)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]) {
        const bool fused = in.params.size() == 3;
        const auto& params = in.params[fused ? 1 : 0].as<contract::SwiGLUParams>();
        const int64_t inner = params.intermediate;
        activation_ = activation_of(params);
        if (params.gated) gate_ = matrix(in.weights[kGate], inner, x_.cols, "gate");
        up_ = matrix(in.weights[kUp], inner, x_.cols, "up");
        down_ = matrix(in.weights[kDown], y_.cols, inner, "down");
        gate_bias_ = vector(in.weights[kGateBias], inner, "gate_bias");
        up_bias_ = vector(in.weights[kUpBias], inner, "up_bias");
        down_bias_ = vector(in.weights[kDownBias], y_.cols, "down_bias");
        Norm norm;
        if (fused) {
            norm = bind_norm(in.params[0], std::span(in.weights).subspan(kNorm), x_.cols);
            residual_ = in.inputs[1];
            residual_scale_ = in.params[2].as<contract::ResidualAddParams>().scale;
            expect(residual_.cols == y_.cols, "mlp: the residual's width differs from the output's");
        }
        input_ = RowInput(context, x_.cols, context.limits.max_rows, norm, false);
        input_.serves(up_);
        if (gate_.rows) input_.serves(gate_);
        inner_ = RowInput(context, inner, context.limits.max_rows, Norm{}, false);
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
        widen(rows, worker, p);
        worker.sync();
        const ReadyRows inner =
            inner_.prepare(p.inner, up_.rows, step.rows, nullptr, worker, p.inner_team, p.inner_own);
        compute::Epilogue epilogue{.bias = down_bias_};
        if (residual_.data) {
            epilogue.residual = residual_.f32();
            epilogue.ld_residual = residual_.cols;
            epilogue.scale = residual_scale_;
        }
        const Product product{&down_, y_.f32(), y_.cols, epilogue};
        multiply_all({&product, 1}, inner, worker, context_.exact, p.matmul);
    }

    int64_t planned_bytes(const Step&) const override {
        int64_t bytes = 0;
        for (const PackedMatrix* w : {&gate_, &up_, &down_})
            bytes += w->rows ? w->strips() * w->strip_bytes : 0;
        return bytes;
    }

  private:
    struct Pieces {
        float *inner, *up;
        std::byte *input_team, *inner_team, *input_own, *inner_own, *matmul;
    };

    int64_t up_floats() const { return std::max(kUpFloats, context_.limits.max_rows * compute::kStripRows); }

    Pieces carve(Carver& team, Carver& own) const {
        Pieces p{};
        p.inner = team.take<float>(context_.limits.max_rows * up_.rows);
        if (gate_.rows) p.up = own.take<float>(up_floats());
        const Needs in = input_.needs(), inner = inner_.needs();
        p.input_team = team.take<std::byte>(in.shared);
        p.inner_team = team.take<std::byte>(inner.shared);
        p.input_own = own.take<std::byte>(in.thread);
        p.inner_own = own.take<std::byte>(inner.thread);
        p.matmul =
            own.take<std::byte>(std::max(matmul_scratch(context_, up_), matmul_scratch(context_, down_)));
        return p;
    }

    // inner = act(gate x) * up x, in pieces of whole strips; the activation follows its piece while it is in
    // cache.
    void widen(const ReadyRows& rows, Worker& worker, const Pieces& p) const {
        const int64_t strips = up_.strips();
        const int64_t fits = std::max(int64_t{1}, up_floats() / (rows.rows * compute::kStripRows));
        const int64_t piece = std::min(fits, strip_piece(worker, strips, rows.rows));
        worker.each(strips, std::min(piece, kStripGrain), piece,
                    [&](Range range) { widen_piece(range, rows, worker, p); });
    }

    void widen_piece(Range strips, const ReadyRows& rows, Worker& worker, const Pieces& p) const {
        const int64_t column = strips.first * compute::kStripRows;
        const int64_t width = std::min(strips.last * compute::kStripRows, up_.rows) - column;
        if (gate_.rows == 0) {
            multiply({&up_, p.inner, up_.rows, {.bias = up_bias_}}, strips, rows, worker.kernels,
                     context_.exact, p.matmul);
        } else {
            multiply({&gate_, p.inner, up_.rows, {.bias = gate_bias_}}, strips, rows, worker.kernels,
                     context_.exact, p.matmul);
            // The kernel writes at the strip's own column: the piece's first column lies at up[0].
            multiply({&up_, p.up - column, width, {.bias = up_bias_}}, strips, rows, worker.kernels,
                     context_.exact, p.matmul);
        }
        for (int64_t r = 0; r < rows.rows; ++r) {
            float* inner = p.inner + r * up_.rows + column;
            worker.kernels.activate(inner, gate_.rows ? p.up + r * width : nullptr, width, activation_,
                                    inner);
        }
    }

    BindContext context_;
    compute::ActivationParams activation_;
    Register x_, y_, residual_;
    float residual_scale_ = 1.0f;
    PackedMatrix gate_{}, up_{}, down_{};
    const float *gate_bias_ = nullptr, *up_bias_ = nullptr, *down_bias_ = nullptr;
    RowInput input_, inner_;
};

}  // namespace

std::unique_ptr<Op> bind_mlp(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<MlpOp>(in, context);
}

}  // namespace treadle::inference
