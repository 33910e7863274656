// pool: one vector a slot from its rows; optional dense layer, norm and head; normalised at the end.
//
// A step has these phases, with a barrier between them: the slots' rows pooled | dense product | activation, norm and
// head product | activation and normalisation. Each is one item a slot, but for the products.
#include <cmath>

#include "inference/adapters.hpp"
#include "inference/linear.hpp"
#include "inference/widen.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex { kDense, kDenseBias, kNorm, kNormBias, kHead, kHeadBias };
enum class Pooling : uint32_t { mean = 0, first = 1, last = 2 };

constexpr float kLeastNorm = 1e-12f;

class PoolOp final : public Op {
  public:
    PoolOp(const Instruction& in, const BindContext& context)
        : context_(context), params_(in.params[0].as<contract::PoolParams>()), x_(in.inputs[0]),
          y_(in.outputs[0]) {
        expect(params_.pooling <= static_cast<uint32_t>(Pooling::last),
               "pool: pooling " + std::to_string(params_.pooling) + " is unknown");
        const bool has_dense = in.weights[kDense].present, has_head = in.weights[kHead].present;
        const int64_t width = has_dense ? in.weights[kDense].matrix.rows : x_.cols;
        if (has_dense) dense_ = matrix(in.weights[kDense], width, x_.cols, "dense");
        if (has_head) head_ = matrix(in.weights[kHead], y_.cols, width, "head");
        expect(has_head || width == y_.cols, "pool: the output's width differs from the pooled rows'");
        dense_bias_ = vector(in.weights[kDenseBias], width, "dense_bias");
        head_bias_ = vector(in.weights[kHeadBias], y_.cols, "head_bias");
        norm_ = {.present = in.weights[kNorm].present,
                 .centred = true,
                 .gain = vector(in.weights[kNorm], width, "norm"),
                 .bias = vector(in.weights[kNormBias], width, "norm_bias"),
                 .eps = params_.norm_eps};
        width_ = width;
        head_activation_ = activation_of(params_.head_activation, 0.0f, 0.0f);
        out_activation_ = activation_of(params_.out_activation, 0.0f, 0.0f);
        dense_input_ = RowInput(context, x_.cols, context.limits.max_batch, Norm{}, false);
        if (has_dense) dense_input_.serves(dense_);
        head_input_ = RowInput(context, width, context.limits.max_batch, Norm{}, false);
        if (has_head) head_input_.serves(head_);
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

    void check(const Step& step) const override {
        for (int64_t i = 0; i < step.batch; ++i)
            if (step.positions[i] != 0)
                throw StepError("pool: slot " + std::to_string(i) + " begins at position " +
                                std::to_string(step.positions[i]) + ", expected all of its rows in one step");
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = carve(team, own);
        worker.each(step.batch, 1, [&](Range slots) {
            for (int64_t i = slots.first; i < slots.last; ++i)
                pool(step, worker.kernels, i, p.pooled + i * x_.cols);
        });
        worker.sync();
        float* rows = p.pooled;
        if (dense_.rows) {
            multiply_rows(dense_, dense_bias_, dense_input_, rows, p.wide, width_, step.batch, worker, p);
            rows = p.wide;
        }
        float* out = head_.rows ? rows : y_.f32();
        worker.each(step.batch, 1, [&](Range slots) {
            for (int64_t i = slots.first; i < slots.last; ++i)
                shape(worker.kernels, rows + i * width_, out + i * width_);
        });
        worker.sync();
        if (head_.rows)
            multiply_rows(head_, head_bias_, head_input_, rows, y_.f32(), y_.cols, step.batch, worker, p);
        worker.each(step.batch, 1, [&](Range slots) {
            for (int64_t i = slots.first; i < slots.last; ++i) finish(worker.kernels, y_.f32() + i * y_.cols);
        });
    }

    int64_t planned_bytes(const Step&) const override {
        int64_t bytes = 0;
        for (const PackedMatrix* w : {&dense_, &head_}) bytes += w->rows ? w->strips() * w->strip_bytes : 0;
        return bytes;
    }

  private:
    struct Pieces {
        float *pooled, *wide;
        std::byte *team, *own, *matmul;
    };

    Pieces carve(Carver& team, Carver& own) const {
        const Needs dense = dense_input_.needs(), head = head_input_.needs();
        Pieces p{};
        p.pooled = team.take<float>(context_.limits.max_batch * x_.cols);
        p.wide = team.take<float>(dense_.rows ? context_.limits.max_batch * width_ : 0);
        p.team = team.take<std::byte>(std::max(dense.shared, head.shared));
        p.own = own.take<std::byte>(std::max(dense.thread, head.thread));
        int64_t scratch = 0;
        for (const PackedMatrix* w : {&dense_, &head_})
            if (w->rows) scratch = std::max(scratch, matmul_scratch(context_, *w));
        p.matmul = own.take<std::byte>(scratch);
        return p;
    }

    // A mean is the sum of the rows in ascending order, times 1 / rows.
    void pool(const Step& step, const Kernels& k, int64_t slot, float* y) const {
        const int64_t rows = step.query_lens[slot], cols = x_.cols;
        const float* x = x_.f32() + step.slot_row[slot] * cols;
        const auto kind = static_cast<Pooling>(params_.pooling);
        std::copy_n(kind == Pooling::last ? x + (rows - 1) * cols : x, cols, y);
        if (kind != Pooling::mean) return;
        for (int64_t r = 1; r < rows; ++r) k.add_scaled(y, x + r * cols, 1.0f, cols, y);
        k.scale(y, 1.0f / static_cast<float>(rows), cols, y);
    }

    // y = norm(activation(x)); y may be x.
    void shape(const Kernels& k, const float* x, float* y) const {
        k.activate(x, nullptr, width_, head_activation_, y);
        if (norm_.present) norm_.apply(k, y, width_, y);
    }

    // The output's activation, then y / max(|y|, kLeastNorm).
    void finish(const Kernels& k, float* y) const {
        k.activate(y, nullptr, y_.cols, out_activation_, y);
        if (!params_.normalise) return;
        double squares = 0.0;
        for (int64_t i = 0; i < y_.cols; ++i) squares += double{y[i]} * double{y[i]};
        k.scale(y, 1.0f / std::max(static_cast<float>(std::sqrt(squares)), kLeastNorm), y_.cols, y);
    }

    void multiply_rows(const PackedMatrix& w, const float* bias, const RowInput& input, const float* x,
                       float* y, int64_t ldy, int64_t rows, Worker& worker, const Pieces& p) const {
        const ReadyRows ready = input.prepare(x, w.cols, rows, nullptr, worker, p.team, p.own);
        const Product product{&w, y, ldy, {.bias = bias}};
        multiply_all({&product, 1}, ready, worker, context_.numerics, p.matmul);
        worker.sync();
    }

    BindContext context_;
    contract::PoolParams params_;
    Register x_, y_;
    int64_t width_ = 0;
    PackedMatrix dense_{}, head_{};
    const float *dense_bias_ = nullptr, *head_bias_ = nullptr;
    Norm norm_;
    compute::ActivationParams head_activation_, out_activation_;
    RowInput dense_input_, head_input_;
};

}  // namespace

std::unique_ptr<Op> bind_pool(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<PoolOp>(in, context);
}

}  // namespace treadle::inference
