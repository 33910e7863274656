// What the recurrent mixers share: a fused norm before and residual after them, the output projection, each slot's page.
#pragma once

#include "compute/recurrent.hpp"
#include "inference/adapters.hpp"
#include "inference/linear.hpp"
#include "inference/widen.hpp"

namespace treadle::inference {

class MixerOp : public Op {
  public:
    // Every slot of the step has a page of its own, which holds as much as `floats_` says.
    void check(const Step& step) const override {
        for (int64_t i = 0; i < step.batch; ++i) {
            if (step.state_slots[i] < 0 || step.state_slots[i] >= context_.limits.max_batch)
                throw StepError("state slot " + std::to_string(step.state_slots[i]) + " is outside [0, " +
                                std::to_string(context_.limits.max_batch) + ")");
        }
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

  protected:
    // Workspace of the projections at both ends.
    struct Ends {
        std::byte *input_team, *input_own, *output_team, *output_own, *matmul;
    };

    // `slots`: weights that the op has without a norm's.
    MixerOp(const Instruction& in, const BindContext& context, size_t slots)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]), state_(in.state) {
        const Fused fused = bind_fused(in, slots, "mixer");
        residual_ = fused.residual;
        input_ = RowInput(context, x_.cols, context.limits.max_rows, fused.norm, false);
    }

    virtual void carve(Carver& team, Carver& own) const = 0;

    // A matrix that reads the op's input rows.
    PackedMatrix bind_input(const Weight& w, int64_t rows, const char* name) {
        const PackedMatrix found = matrix(w, rows, x_.cols, name);
        input_.serves(found);
        scratch_ = std::max(scratch_, matmul_scratch(context_, found));
        return found;
    }

    void bind_output(const Weight& w, const float* bias, int64_t inner) {
        out_ = matrix(w, y_.cols, inner, "out");
        out_bias_ = bias;
        output_ = RowInput(context_, inner, context_.limits.max_rows, Norm{}, false);
        output_.serves(out_);
        scratch_ = std::max(scratch_, matmul_scratch(context_, out_));
    }

    static compute::Convolution bind_conv(const Weight& taps, const Weight& bias, int64_t channels,
                                          int64_t width, uint32_t activation) {
        compute::Convolution conv{matrix(taps, channels, width, "conv"), vector(bias, channels, "conv_bias"),
                                  activation_of(activation, 0.0f, 0.0f)};
        expect(compute::is_float(conv.taps.type), "conv: taps are f32, f16 or bf16");
        expect(width <= compute::kConvWidth,
               "conv: width " + std::to_string(width) + ", at most " + std::to_string(compute::kConvWidth));
        return conv;
    }

    // A page holds `floats` f32: the convolution's tail, then the rest.
    void bind_state(int64_t floats) {
        expect(state_.data != nullptr && state_.page_tokens == 0, "mixer: a fixed state is missing");
        expect(state_.page_bytes >= floats * static_cast<int64_t>(sizeof(float)),
               "mixer: a state page of " + std::to_string(state_.page_bytes) + " bytes, needed " +
                   std::to_string(floats * static_cast<int64_t>(sizeof(float))));
    }

    float* page(const Step& step, int64_t slot) const {
        return reinterpret_cast<float*>(state_.data + step.state_slots[slot] * state_.page_bytes);
    }

    Ends carve_ends(Carver& team, Carver& own) const {
        const Needs in = input_.needs(), out = output_.needs();
        return {team.take<std::byte>(in.shared), own.take<std::byte>(in.thread),
                team.take<std::byte>(out.shared), own.take<std::byte>(out.thread),
                own.take<std::byte>(scratch_)};
    }

    ReadyRows input_rows(const Step& step, Worker& worker, const Ends& ends) const {
        return input_.prepare(x_.f32(), x_.cols, step.rows, nullptr, worker, ends.input_team, ends.input_own);
    }

    void write_output(const float* rows, int64_t ld, const Step& step, Worker& worker,
                      const Ends& ends) const {
        const ReadyRows ready =
            output_.prepare(rows, ld, step.rows, nullptr, worker, ends.output_team, ends.output_own);
        const Product product{&out_, y_.f32(), y_.cols, residual_.epilogue(out_bias_)};
        multiply_all({&product, 1}, ready, worker, context_.numerics, ends.matmul);
    }

    // Convolves all slots' rows x [rows, ld] in blocks of `block` channels, a multiple of 16; then done(slot, first
    // channel, last channel) while they are in cache. `before`, `after`: see ConvRows.
    template <typename Done>
    void convolve(const compute::Convolution& conv, int64_t block, float* x, int64_t ld, const float* before,
                  const float* after, float* y, const Step& step, Worker& worker, Done&& done) const {
        const int64_t channels = conv.taps.rows, blocks = (channels + block - 1) / block;
        const int64_t count = step.batch * blocks;
        worker.each(count, worker.piece(count, 8), [&](Range range) {
            for (int64_t i = range.first; i < range.last; ++i) {
                const int64_t slot = i / blocks, first = i % blocks * block,
                              last = std::min(channels, first + block), row = step.slot_row[slot] * ld;
                worker.kernels.convolve(conv, first, last,
                                        {.rows = step.query_lens[slot],
                                         .x = x + row,
                                         .ldx = ld,
                                         .before = before ? before + row : nullptr,
                                         .after = after ? after + row : nullptr,
                                         .tail = page(step, slot),
                                         .channels = channels,
                                         .y = y + row,
                                         .ldy = ld});
                done(slot, first, last);
            }
        });
    }

    int64_t state_bytes(const Step& step) const { return step.batch * state_.page_bytes; }
    static int64_t weight_bytes(const PackedMatrix& w) { return w.strips() * w.strip_bytes; }

    BindContext context_;
    Register x_, y_;
    Residual residual_;
    State state_;
    PackedMatrix out_{};

  private:
    const float* out_bias_ = nullptr;
    int64_t scratch_ = 0;
    RowInput input_, output_;
};

inline constexpr int64_t kConvBlock = 64;  // channels of one item of a convolution

}  // namespace treadle::inference
