// lm_head over the sampled rows, its fusion with the norm before it, and the choice of a column from each row. While a
// piece of the product is in cache its largest values are noted; where they are all that is asked, it is never written to
// the output register.
#include <limits>

#include "inference/adapters.hpp"
#include "inference/choose_row.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

using compute::Best;

enum WeightIndex { kWeight, kBias, kNorm };

// Output elements of a piece, and the fewest strips of one: up to kFewRows rows pass through a buffer of the thread.
constexpr int64_t kPieceElements = 16384, kLeastStrips = 16;
constexpr int64_t kFewRows = kPieceElements / (kLeastStrips * compute::kStripRows);

class LmHeadOp final : public Op {
  public:
    LmHeadOp(const Instruction& in, const BindContext& context)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]) {
        fused_ = in.params.size() == 2;
        params_ = in.params[fused_ ? 1 : 0].as<contract::LMHeadParams>();
        weight_ = matrix(in.weights[kWeight], y_.cols, x_.cols, "weight");
        bias_ = vector(in.weights[kBias], y_.cols, "bias");
        expect(y_.cols <= compute::kMassCols,
               "lm_head: at most " + std::to_string(compute::kMassCols) + " columns are supported");
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

    void check(const Step& step) const override {
        if (step.sampling) check_sampling(*step.sampling, step.sampled, y_.cols);
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = carve(team, own);
        const ReadyRows rows = input_.prepare(x_.f32(), x_.cols, step.sampled, step.sampled_rows, worker,
                                              p.input_team, p.input_own);
        // With the norm fused, the logits may share the buffer of x: nobody may write before all have read.
        if (fused_) worker.sync();
        Best* mine = p.best + worker.thread * context_.limits.max_sampled;
        std::fill_n(mine, step.sampled, kNone);
        const bool written = !step.sampling || step.sampled > kFewRows || needs_values(*step.sampling);
        worker.each(weight_.strips(), kStripGrain, piece_of(worker, step.sampled), [&](Range strips) {
            multiply_piece(strips, rows, worker, written, p, step.sampling ? mine : nullptr);
        });
        if (!step.sampling) return;
        worker.sync();
        worker.each(step.sampled, 1, [&](Range range) { choose(range, step, worker, p); });
    }

    int64_t planned_bytes(const Step& step) const override {
        return step.sampled ? weight_.strips() * weight_.strip_bytes : 0;
    }

  private:
    static constexpr Best kNone{-std::numeric_limits<float>::infinity(), std::numeric_limits<int64_t>::max()};

    struct Pieces {
        std::byte* input_team;
        Best* best;  // [threads, max_sampled]
        std::byte *input_own, *matmul;
        float* values;  // one piece of few rows
        std::byte* choice;
    };

    Pieces carve(Carver& team, Carver& own) const {
        const Needs in = input_.needs();
        return {
            team.take<std::byte>(in.shared), team.take<Best>(context_.threads * context_.limits.max_sampled),
            own.take<std::byte>(in.thread),  own.take<std::byte>(matmul_scratch(context_, weight_)),
            own.take<float>(kPieceElements), own.take<std::byte>(compute::choose_scratch_bytes(y_.cols))};
    }

    // Strips of a piece: its elements pass through p.values where they are few rows.
    int64_t piece_of(const Worker& worker, int64_t rows) const {
        const int64_t fit = kPieceElements / (rows * compute::kStripRows) / kStripGrain * kStripGrain;
        return std::min(strip_piece(worker, weight_.strips(), rows), std::max(fit, kLeastStrips));
    }

    // Some strips against all rows, to the output register or through p.values; notes the best of each row.
    void multiply_piece(Range strips, const ReadyRows& rows, Worker& worker, bool written, const Pieces& p,
                        Best* best) const {
        const int64_t first = strips.first * compute::kStripRows;
        const int64_t width = std::min(strips.last * compute::kStripRows, y_.cols) - first;
        PackedMatrix part = weight_;
        part.data += strips.first * weight_.strip_bytes;
        part.rows = width;
        float* y = written ? y_.f32() + first : p.values;
        const int64_t ldy = written ? y_.cols : width;
        const Product product{
            &part, y, ldy, {.bias = bias_ ? bias_ + first : nullptr, .scale = params_.scale}};
        multiply(product, {0, part.strips()}, rows, worker.kernels, context_.numerics, p.matmul);
        for (int64_t row = 0; row < rows.rows; ++row, y += ldy) {
            if (params_.softcap > 0.0f) worker.kernels.softcap(y, params_.softcap, width, y);
            if (best == nullptr) continue;
            Best found = worker.kernels.best(y, width);
            found.col += first;
            best[row] = compute::better(best[row], found);
        }
    }

    void choose(Range rows, const Step& step, Worker& worker, const Pieces& p) const {
        for (int64_t row = rows.first; row < rows.last; ++row) {
            Best best = kNone;
            for (int t = 0; t < worker.threads; ++t)
                best = compute::better(best, p.best[t * context_.limits.max_sampled + row]);
            choose_row(worker.kernels, *step.sampling, row, y_.f32() + row * y_.cols, y_.cols, best,
                       p.choice);
        }
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
