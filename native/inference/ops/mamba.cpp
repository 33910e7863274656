// mamba_mixer of both generations, and its fusion with the norm before and the residual after it.
//
// A step has these phases, with a barrier between them:
//   1 input product     2 convolution     3 generation 1: dt, B, C; then dt     4 scan of each (slot, head or channels)
//   5 generation 2: gated norm of each row     6 output product
#include "inference/ops/mixer.hpp"

namespace treadle::inference {
namespace {

using contract::MambaNorm;

enum WeightIndex {
    kIn,
    kInBias,
    kConv,
    kConvBias,
    kX,
    kDt,
    kDtBias,
    kA,
    kD,
    kNorm,
    kDtNorm,
    kBNorm,
    kCNorm,
    kOut,
    kOutBias,
    kSlots
};

constexpr compute::ActivationParams kSilu{.kind = compute::Activation::silu};
constexpr int64_t kScanChannels = 64;  // of one item of generation 1

// What both generations have: rows of x (and B, C) are convolved, their scan's output is gated by z.
class MambaOp : public MixerOp {
  protected:
    MambaOp(const Instruction& in, const BindContext& context)
        : MixerOp(in, context, kSlots), p_(params_of<contract::MambaParams>(in)), inner_(p_.inner),
          depth_(p_.state) {
        const std::vector<Weight>& w = in.weights;
        const bool first = p_.generation == 1;
        const int64_t heads = p_.heads, groups = p_.groups;
        channels_ = first ? inner_ : inner_ + 2 * groups * depth_;
        in_ = bind_input(w[kIn], first ? 2 * inner_ : inner_ + channels_ + heads, "in");
        in_bias_ = vector(w[kInBias], in_.rows, "in_bias");
        conv_ = bind_conv(w[kConv], w[kConvBias], channels_, p_.conv_width, p_.activation);
        const int64_t steps = first ? inner_ : heads;
        dt_bias_ = required(w[kDtBias], steps, "dt_bias");
        rate_ = required(w[kA], first ? inner_ * depth_ : heads, "a");
        skip_ = required(w[kD], steps, "d");
        bind_output(w[kOut], vector(w[kOutBias], y_.cols, "out_bias"), inner_);
        tail_ = channels_ * (p_.conv_width - 1);
        bind_state(tail_ + inner_ * depth_);
    }

    static const float* required(const Weight& w, int64_t size, const char* name) {
        const float* found = vector(w, size, name);
        expect(found != nullptr, std::string(name) + " is missing");
        return found;
    }

    void project(float* projected, const Ends& ends, const Step& step, Worker& worker) const {
        const Product product{&in_, projected, in_.rows, {.bias = in_bias_}};
        multiply_all({&product, 1}, input_rows(step, worker, ends), worker, context_.numerics, ends.matmul);
        worker.sync();
    }

    float* scan_state(const Step& step, int64_t slot) const { return page(step, slot) + tail_; }

    contract::MambaParams p_;
    int64_t inner_, depth_, channels_, tail_;
    PackedMatrix in_{};
    const float *in_bias_, *dt_bias_, *rate_, *skip_;
    compute::Convolution conv_;
};

class Mamba1Op final : public MambaOp {
  public:
    Mamba1Op(const Instruction& in, const BindContext& context) : MambaOp(in, context) {
        const std::vector<Weight>& w = in.weights;
        const int64_t rows = context.limits.max_rows, rank = p_.dt_rank;
        normed_ = static_cast<MambaNorm>(p_.norm) == MambaNorm::rms_dt_b_c;
        x_proj_ = matrix(w[kX], rank + 2 * depth_, inner_, "x");
        dt_proj_ = matrix(w[kDt], inner_, rank, "dt");
        b_norm_ = vector(w[kBNorm], depth_, "b_norm");
        c_norm_ = vector(w[kCNorm], depth_, "c_norm");
        const Norm dt_norm{
            .present = normed_, .gain = vector(w[kDtNorm], rank, "dt_norm"), .eps = p_.norm_eps};
        select_ = RowInput(context, inner_, rows, Norm{}, false);
        select_.serves(x_proj_);
        widen_ = RowInput(context, rank, rows, dt_norm, false);
        widen_.serves(dt_proj_);
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = pieces(team, own);
        project(p.projected, p.ends, step, worker);
        convolve(conv_, kConvBlock, p.projected, in_.rows, nullptr, nullptr, p.projected, step, worker,
                 [](int64_t, int64_t, int64_t) {});
        worker.sync();
        select(p, step, worker);
        const int64_t blocks = (inner_ + kScanChannels - 1) / kScanChannels, count = step.batch * blocks;
        worker.each(count, worker.piece(count, 16), [&](Range range) {
            for (int64_t i = range.first; i < range.last; ++i)
                scan(p, i / blocks, i % blocks * kScanChannels, step, worker.kernels);
        });
        worker.sync();
        write_output(p.y, inner_, step, worker, p.ends);
    }

    int64_t planned_bytes(const Step& step) const override {
        return weight_bytes(in_) + weight_bytes(conv_.taps) + weight_bytes(x_proj_) + weight_bytes(dt_proj_) +
               weight_bytes(out_) + state_bytes(step);
    }

  private:
    struct Pieces {
        Ends ends;
        float* projected;  // [rows, x | z]
        float* selected;   // [rows, dt | B | C]
        float *dt, *y;     // [rows, inner]
        std::byte *select_team, *select_own, *widen_team, *widen_own, *matmul;
    };

    Pieces pieces(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows;
        const Needs select = select_.needs(), widen = widen_.needs();
        Pieces p{};
        p.ends = carve_ends(team, own);
        p.projected = team.take<float>(rows * in_.rows);
        p.selected = team.take<float>(rows * x_proj_.rows);
        p.dt = team.take<float>(rows * inner_);
        p.y = team.take<float>(rows * inner_);
        p.select_team = team.take<std::byte>(select.shared);
        p.select_own = own.take<std::byte>(select.thread);
        p.widen_team = team.take<std::byte>(widen.shared);
        p.widen_own = own.take<std::byte>(widen.thread);
        p.matmul = own.take<std::byte>(
            std::max(matmul_scratch(context_, x_proj_), matmul_scratch(context_, dt_proj_)));
        return p;
    }
    void carve(Carver& team, Carver& own) const override { pieces(team, own); }

    // dt, B and C of every row from x; then dt [rows, inner] of its few columns.
    void select(const Pieces& p, const Step& step, Worker& worker) const {
        const Product all{&x_proj_, p.selected, x_proj_.rows, {}};
        multiply_all(
            {&all, 1},
            select_.prepare(p.projected, in_.rows, step.rows, nullptr, worker, p.select_team, p.select_own),
            worker, context_.numerics, p.matmul);
        worker.sync();
        const Product steps{&dt_proj_, p.dt, inner_, {}};
        multiply_all(
            {&steps, 1},
            widen_.prepare(p.selected, x_proj_.rows, step.rows, nullptr, worker, p.widen_team, p.widen_own),
            worker, context_.numerics, p.matmul);
        if (normed_) {
            worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
                for (int64_t r = range.first; r < range.last; ++r) {
                    float* b = p.selected + r * x_proj_.rows + p_.dt_rank;
                    worker.kernels.rmsnorm(b, b_norm_, 0.0f, p_.norm_eps, depth_, b);
                    worker.kernels.rmsnorm(b + depth_, c_norm_, 0.0f, p_.norm_eps, depth_, b + depth_);
                }
            });
        }
        worker.sync();
    }

    void scan(const Pieces& p, int64_t slot, int64_t channel, const Step& step, const Kernels& k) const {
        const int64_t rows = step.query_lens[slot], row = step.slot_row[slot],
                      channels = std::min(kScanChannels, inner_ - channel);
        float *dt = p.dt + row * inner_ + channel, *y = p.y + row * inner_ + channel;
        const float* x = p.projected + row * in_.rows + channel;
        const float* b = p.selected + row * x_proj_.rows + p_.dt_rank;
        for (int64_t r = 0; r < rows; ++r)
            k.time_steps(dt + r * inner_, dt_bias_ + channel, nullptr, p_.dt_min, p_.dt_max, channels,
                         dt + r * inner_, nullptr);
        k.channel_scan({.rows = rows,
                        .channels = channels,
                        .depth = depth_,
                        .x = x,
                        .ldx = in_.rows,
                        .dt = dt,
                        .ld_dt = inner_,
                        .b = b,
                        .c = b + depth_,
                        .ld_bc = x_proj_.rows,
                        .rate = rate_ + channel,
                        .skip = skip_ + channel,
                        .state = scan_state(step, slot) + channel,
                        .ld_state = inner_,
                        .y = y,
                        .ldy = inner_});
        for (int64_t r = 0; r < rows; ++r)
            k.activate(x + r * in_.rows + inner_, y + r * inner_, channels, kSilu, y + r * inner_);
    }

    bool normed_;
    PackedMatrix x_proj_{}, dt_proj_{};
    const float *b_norm_, *c_norm_;
    RowInput select_, widen_;
};

class Mamba2Op final : public MambaOp {
  public:
    Mamba2Op(const Instruction& in, const BindContext& context)
        : MambaOp(in, context), heads_(p_.heads), dim_(p_.inner / p_.heads),
          norm_(vector(in.weights[kNorm], inner_, "norm")) {
        expect(heads_ * dim_ == inner_ && heads_ % p_.groups == 0 && inner_ % p_.norm_groups == 0,
               "mamba: inner, heads, groups and norm_groups must divide evenly");
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = pieces(team, own);
        project(p.projected, p.ends, step, worker);
        float* x = p.projected + inner_;
        convolve(conv_, kConvBlock, x, in_.rows, nullptr, nullptr, x, step, worker,
                 [](int64_t, int64_t, int64_t) {});
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
            for (int64_t r = range.first; r < range.last; ++r)
                worker.kernels.time_steps(x + r * in_.rows + channels_, dt_bias_, rate_, p_.dt_min, p_.dt_max,
                                          heads_, p.dt + r * heads_, p.decay + r * heads_);
        });
        worker.sync();
        const int64_t count = step.batch * heads_;
        worker.each(count, worker.piece(count, 16), [&](Range range) {
            for (int64_t i = range.first; i < range.last; ++i)
                scan(p, i / heads_, i % heads_, step, worker.kernels);
        });
        worker.sync();
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
            for (int64_t r = range.first; r < range.last; ++r) gate(p, r, worker.kernels);
        });
        worker.sync();
        write_output(p.y, inner_, step, worker, p.ends);
    }

    int64_t planned_bytes(const Step& step) const override {
        return weight_bytes(in_) + weight_bytes(conv_.taps) + weight_bytes(out_) + state_bytes(step);
    }

  private:
    struct Pieces {
        Ends ends;
        float* projected;   // [rows, z | x | B | C | dt]
        float *dt, *decay;  // [rows, heads]
        float* y;           // [rows, inner]
    };

    Pieces pieces(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows;
        const Ends ends = carve_ends(team, own);
        return {ends, team.take<float>(rows * in_.rows), team.take<float>(rows * heads_),
                team.take<float>(rows * heads_), team.take<float>(rows * inner_)};
    }
    void carve(Carver& team, Carver& own) const override { pieces(team, own); }

    void scan(const Pieces& p, int64_t slot, int64_t head, const Step& step, const Kernels& k) const {
        const int64_t row = step.slot_row[slot], groups = p_.groups, group = head / (heads_ / groups);
        const float* x = p.projected + row * in_.rows + inner_;
        const float* b = x + inner_ + group * depth_;
        k.head_scan({.rows = step.query_lens[slot],
                     .dim = dim_,
                     .depth = depth_,
                     .x = x + head * dim_,
                     .ldx = in_.rows,
                     .dt = p.dt + row * heads_ + head,
                     .decay = p.decay + row * heads_ + head,
                     .ld_steps = heads_,
                     .b = b,
                     .c = b + groups * depth_,
                     .ld_bc = in_.rows,
                     .skip = skip_[head],
                     .state = scan_state(step, slot) + head * depth_ * dim_,
                     .y = p.y + row * inner_ + head * dim_,
                     .ldy = inner_});
    }

    void gate(const Pieces& p, int64_t row, const Kernels& k) const {
        float* y = p.y + row * inner_;
        k.activate(p.projected + row * in_.rows, y, inner_, kSilu, y);
        if (norm_ == nullptr) return;
        const int64_t part = inner_ / p_.norm_groups;
        for (int64_t c = 0; c < inner_; c += part)
            k.rmsnorm(y + c, norm_ + c, 0.0f, p_.norm_eps, part, y + c);
    }

    int64_t heads_, dim_;
    const float* norm_;
};

}  // namespace

std::unique_ptr<Op> bind_mamba(const Instruction& in, const BindContext& context, RopeTables&) {
    const auto& p = in.params[in.params.size() == 3 ? 1 : 0].as<contract::MambaParams>();
    expect(p.generation == 1 || (p.generation == 2 && p.heads != 0 && p.groups != 0 && p.norm_groups != 0),
           "mamba: generation " + std::to_string(p.generation) + " or a count of 0");
    if (p.generation == 1) return std::make_unique<Mamba1Op>(in, context);
    return std::make_unique<Mamba2Op>(in, context);
}

}  // namespace treadle::inference
