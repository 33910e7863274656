// mla_attention (multi-head latent attention) and its fusion with the norm before and the residual after it.
//
// Absorbed for every number of rows: one latent, kept beside the rotated part that all heads share, is key and value of
// all heads. Its key matrix is multiplied into the queries, its value matrix into what attention gives:
//   q_h . (K_h c) = (K_h^T q_h) . c        sum_j p_j V_h c_j = V_h (sum_j p_j c_j)
// A step has these phases, with a barrier between them:
//   1 rows made ready, then q (or q_a) and kv_a products       2 q_b product; norm, rope and write of every new latent
//   3 queries absorbed, attention, value product of each (row block, some heads)        4 output product
// Few rows over a long sequence share it out by positions instead; 3 is then four phases.
#include "inference/adapters.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

// Up to so many (row, head) pairs a long sequence's latents are split among the threads.
constexpr int64_t kSplitPairs = 128, kSplitRows = 8;
// Pairs that a thread takes at once.
constexpr int64_t kItemPairs = 256;
static_assert(kItemPairs >= compute::kAttendRows);

enum WeightIndex { kQ, kQA, kQABias, kQANorm, kQB, kKVA, kKVABias, kKVANorm, kKVB, kO, kOBias, kRope, kNorm };

// Rows [first, first + rows) of a matrix; both are whole strips.
PackedMatrix part(const PackedMatrix& w, int64_t first, int64_t rows) {
    return {w.type, rows, w.cols, w.strip_bytes, w.data + first / compute::kStripRows * w.strip_bytes};
}

class LatentAttentionOp final : public Op {
  public:
    LatentAttentionOp(const Instruction& in, const BindContext& context, RopeTables& ropes)
        : context_(context), state_(in.state), x_(in.inputs[0]), y_(in.outputs[0]) {
        bind_params(params_of<contract::MLAParams>(in));
        const Fused fused = bind_fused(in, kNorm, "mla_attention");
        residual_ = fused.residual;
        bind_weights(in.weights, ropes);
        const int64_t rows = context.limits.max_rows;
        input_ = RowInput(context, x_.cols, rows, fused.norm, false);
        input_.serves(q_first());
        input_.serves(kv_a_);
        if (q_a_.rows) {
            low_ = RowInput(context, q_b_.cols, rows, low_norm_, false);
            low_.serves(q_b_);
        }
        value_input_ = RowInput(context, latent_, compute::kAttendRows, Norm{}, false);
        value_input_.serves(kv_b_);
        output_ = RowInput(context, o_.cols, rows, Norm{}, false);
        output_.serves(o_);
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

    void check(const Step& step) const override { check_pages(step, state_, context_.limits); }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces p = carve(team, own);
        project(step, worker, p);
        worker.sync();
        if (step.rows <= split_rows_ && step.longest_sequence > compute::kSplit)
            attend_split(step, worker, p);
        else attend(step, worker, p);
        worker.sync();
        const ReadyRows rows =
            output_.prepare(p.attended, o_.cols, step.rows, nullptr, worker, p.output_team, p.output_own);
        const Product product{&o_, y_.f32(), y_.cols, residual_.epilogue(o_bias_)};
        multiply_all({&product, 1}, rows, worker, context_.numerics, p.matmul);
    }

    int64_t planned_bytes(const Step& step) const override {
        int64_t bytes = 0;
        for (const PackedMatrix* w : {&q_, &q_a_, &q_b_, &kv_a_, &kv_b_, &o_})
            bytes += w->rows ? w->strips() * w->strip_bytes : 0;
        for (int64_t i = 0; i < step.batch; ++i)
            bytes += (step.positions[i] + step.query_lens[i]) * state_.page_bytes / state_.page_tokens;
        return bytes;
    }

  private:
    struct Pieces {
        float *q, *low, *kv, *attended;
        float *split_q, *split_latents, *parts;  // of few rows over a long sequence
        float *item_q, *item_latents;
        std::byte *input_team, *low_team, *output_team, *input_own, *low_own, *output_own;
        std::byte *attend, *values, *matmul;
    };

    // Some heads of a block's rows: absorbed queries and attended latents, [rows][heads][key_dim or latent].
    struct Item {
        const RowBlock& block;
        Range heads;
        float *q, *latents;
        int64_t ldq, ldl;
    };

    const PackedMatrix& q_first() const { return q_a_.rows ? q_a_ : q_; }
    int64_t q_dim() const { return heads_ * (nope_ + rope_dim_); }
    int64_t max_splits() const {
        return (context_.limits.max_seq_len + compute::kSplit - 1) / compute::kSplit;
    }

    void bind_params(const contract::MLAParams& p) {
        params_ = p;
        heads_ = p.num_heads;
        nope_ = p.nope_dim;
        rope_dim_ = p.rope_dim;
        value_ = p.v_head_dim;
        latent_ = p.kv_lora_rank;
        expect(heads_ > 0 && latent_ > 0, "mla_attention: no heads or no latent");
        split_rows_ = std::clamp<int64_t>(kSplitPairs / heads_, 1, kSplitRows);
        expect(p.causal == 1 && state_.data != nullptr,
               "mla_attention without a state is not supported by this backend");
        expect(nope_ % compute::kStripRows == 0 && nope_ <= compute::kMostTransposed,
               "mla_attention: nope_dim: " + std::to_string(nope_) +
                   "; this backend takes multiples of 16 up to 512");
        expect(value_ % compute::kStripRows == 0, "mla_attention: v_head_dim: " + std::to_string(value_) +
                                                      "; this backend takes multiples of 16");
        const auto type = static_cast<compute::DType>(p.kv_dtype);
        expect(compute::kv_storable(type, latent_, rope_dim_),
               "mla_attention: latents of " + std::to_string(latent_) + " and " + std::to_string(rope_dim_) +
                   " elements cannot be kept in type " + std::to_string(p.kv_dtype));
        attention_.kv = {type, 1, latent_ + rope_dim_, latent_, state_.page_tokens, true};
        expect(state_.page_tokens == 16 || state_.page_tokens == 32 || state_.page_tokens == 64,
               "mla_attention: pages of " + std::to_string(state_.page_tokens) +
                   " tokens; this backend takes 16, 32, 64");
        expect(state_.page_bytes == compute::kv_page_bytes(attention_.kv),
               "mla_attention: the state's size does not match");
        attention_.heads = heads_;
        attention_.scale = p.scale;
    }

    void bind_weights(const std::vector<Weight>& w, RopeTables& ropes) {
        const int64_t rank = params_.q_lora_rank;
        if (rank == 0) {
            q_ = matrix(w[kQ], q_dim(), x_.cols, "q");
        } else {
            q_a_ = matrix(w[kQA], rank, x_.cols, "q_a");
            q_b_ = matrix(w[kQB], q_dim(), rank, "q_b");
            q_a_bias_ = vector(w[kQABias], rank, "q_a_bias");
            low_norm_ = {
                .present = true, .gain = vector(w[kQANorm], rank, "q_a_norm"), .eps = params_.norm_eps};
        }
        kv_a_ = matrix(w[kKVA], latent_ + rope_dim_, x_.cols, "kv_a");
        kv_a_bias_ = vector(w[kKVABias], kv_a_.rows, "kv_a_bias");
        kv_gain_ = vector(w[kKVANorm], latent_, "kv_a_norm");
        kv_b_ = matrix(w[kKVB], heads_ * (nope_ + value_), latent_, "kv_b");
        o_ = matrix(w[kO], y_.cols, heads_ * value_, "o");
        o_bias_ = vector(w[kOBias], y_.cols, "o_bias");
        rope_ =
            ropes.add(vector(w[kRope], rope_dim_ / 2, "rope_inv_freq"), rope_dim_ / 2, params_.rope_scale);
    }

    Pieces carve(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows, key_dim = attention_.kv.key_dim;
        Pieces p{};
        p.q = team.take<float>(rows * q_dim());
        p.low = team.take<float>(rows * q_a_.rows);
        p.kv = team.take<float>(rows * kv_a_.rows);
        p.attended = team.take<float>(rows * o_.cols);
        p.split_q = team.take<float>(split_rows_ * heads_ * key_dim);
        p.split_latents = team.take<float>(split_rows_ * heads_ * latent_);
        p.parts =
            team.take<float>(split_rows_ * heads_ * max_splits() * compute::attend_part_floats(attention_));
        p.item_q = own.take<float>(kItemPairs * key_dim);
        p.item_latents = own.take<float>(kItemPairs * latent_);
        const auto room = [&](const RowInput& input, std::byte*& shared, std::byte*& thread) {
            const Needs needs = input.needs();
            shared = team.take<std::byte>(needs.shared);
            thread = own.take<std::byte>(needs.thread);
        };
        room(input_, p.input_team, p.input_own);
        if (q_a_.rows) room(low_, p.low_team, p.low_own);
        room(output_, p.output_team, p.output_own);
        p.attend = own.take<std::byte>(compute::attend_scratch_bytes(attention_));
        p.values = own.take<std::byte>(value_input_.alone_bytes());
        int64_t matmul = 0;
        for (const PackedMatrix* w : {&q_, &q_a_, &q_b_, &kv_a_, &kv_b_, &o_})
            if (w->rows) matmul = std::max(matmul, matmul_scratch(context_, *w));
        p.matmul = own.take<std::byte>(matmul);
        return p;
    }

    void project(const Step& step, Worker& worker, const Pieces& p) const {
        const ReadyRows rows =
            input_.prepare(x_.f32(), x_.cols, step.rows, nullptr, worker, p.input_team, p.input_own);
        const bool low = q_a_.rows != 0;
        const Product products[] = {{&q_first(), low ? p.low : p.q, q_first().rows, {.bias = q_a_bias_}},
                                    {&kv_a_, p.kv, kv_a_.rows, {.bias = kv_a_bias_}}};
        multiply_all(products, rows, worker, context_.numerics, p.matmul);
        worker.sync();
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
            for (int64_t row = range.first; row < range.last; ++row) write_row(step, worker, p, row);
        });
        if (!low) return;
        const ReadyRows inner =
            low_.prepare(p.low, q_a_.rows, step.rows, nullptr, worker, p.low_team, p.low_own);
        const Product product{&q_b_, p.q, q_dim(), {}};
        multiply_all({&product, 1}, inner, worker, context_.numerics, p.matmul);
    }

    // Norms one row's latent, rotates what is beside it, and writes both into the slot's page.
    void write_row(const Step& step, const Worker& worker, const Pieces& p, int64_t row) const {
        float* kv = p.kv + row * kv_a_.rows;
        worker.kernels.rmsnorm(kv, kv_gain_, 0.0f, params_.norm_eps, latent_, kv);
        turn(worker.kernels, row, kv + latent_);
        const int64_t slot = step.row_slot[row], position = step.row_position[row];
        const int64_t page = step.page_table[slot * step.pages + position / state_.page_tokens];
        worker.kernels.kv_write(attention_.kv, state_.data + page * state_.page_bytes,
                                position % state_.page_tokens, 0, 1, kv, nullptr);
    }

    void turn(const Kernels& k, int64_t row, float* x) const {
        const int64_t at = row * rope_->half;
        k.rope(x, rope_->cosine + at, rope_->sine + at, rope_->half,
               params_.rope_style == 0 ? compute::RopeStyle::halves : compute::RopeStyle::pairs);
    }

    // Every item holds whole heads of a block; at least two for each thread, as far as there are heads.
    void attend(const Step& step, Worker& worker, const Pieces& p) const {
        const auto blocks = static_cast<int64_t>(step.blocks.size());
        const int64_t rows = std::min(step.rows, compute::kAttendRows);
        const int64_t wanted = std::max(int64_t{1}, 2 * worker.threads / blocks);
        const int64_t heads = std::clamp((heads_ + wanted - 1) / wanted, int64_t{1}, kItemPairs / rows);
        const int64_t shares = (heads_ + heads - 1) / heads;
        worker.each(blocks * shares, 1, [&](Range one) {
            const int64_t first = one.first / blocks * heads, last = std::min(heads_, first + heads);
            const int64_t count = last - first;
            const Item item{step.blocks[one.first % blocks], {first, last},  p.item_q, p.item_latents,
                            count * attention_.kv.key_dim,   count * latent_};
            absorb(worker, p, item);
            compute::Attention attention = attention_;
            attention.heads = count;
            worker.kernels.attend(attention, rows_of(step, item), 0, p.attend);
            expand(worker, p, item);
        });
    }

    // Few rows over long sequences: queries of each (block, head), (block, split) items, a merge of each block, values.
    void attend_split(const Step& step, Worker& worker, const Pieces& p) const {
        const auto blocks = static_cast<int64_t>(step.blocks.size());
        const int64_t splits = max_splits();
        const auto item_of = [&](int64_t block, Range heads) {
            const RowBlock& rows = step.blocks[block];
            const int64_t first = rows.first_row * heads_ + heads.first;
            return Item{rows,
                        heads,
                        p.split_q + first * attention_.kv.key_dim,
                        p.split_latents + first * latent_,
                        heads_ * attention_.kv.key_dim,
                        heads_ * latent_};
        };
        const auto parts_of = [&](const RowBlock& block) {
            return p.parts + block.first_row * heads_ * splits * compute::attend_part_floats(attention_);
        };
        const auto each_head = [&](auto body) {
            worker.each(blocks * heads_, 1, [&](Range one) {
                body(item_of(one.first % blocks, {one.first / blocks, one.first / blocks + 1}));
            });
        };
        each_head([&](const Item& item) { absorb(worker, p, item); });
        worker.sync();
        worker.each(blocks * splits, 1, [&](Range one) {
            const Item item = item_of(one.first / splits, {0, heads_});
            const compute::AttendRows rows = rows_of(step, item);
            const compute::SplitRange range = compute::attend_splits(attention_, rows);
            const int64_t split = one.first % splits;
            if (split < range.first || split >= range.last) return;
            worker.kernels.attend_part(attention_, rows, 0, split, parts_of(item.block), p.attend);
        });
        worker.sync();
        worker.each(blocks, 1, [&](Range one) {
            const Item item = item_of(one.first, {0, heads_});
            worker.kernels.attend_merge(attention_, rows_of(step, item), 0, parts_of(item.block), p.attend);
        });
        worker.sync();
        each_head([&](const Item& item) { expand(worker, p, item); });
    }

    // The item's queries against latents: the head's key matrix times the query's plain part, then its rotated part.
    void absorb(const Worker& worker, const Pieces& p, const Item& item) const {
        const int64_t key_dim = attention_.kv.key_dim, head_dim = nope_ + rope_dim_;
        for (int64_t h = item.heads.first; h < item.heads.last; ++h) {
            const PackedMatrix keys = part(kv_b_, h * (nope_ + value_), nope_);
            const float* q = p.q + item.block.first_row * q_dim() + h * head_dim;
            float* to = item.q + (h - item.heads.first) * key_dim;
            worker.kernels.matmul_transposed(keys, q, q_dim(), item.block.rows, to, item.ldq, p.matmul);
            for (int64_t r = 0; r < item.block.rows; ++r) {
                float* rotated = to + r * item.ldq + latent_;
                std::copy_n(q + r * q_dim() + nope_, rope_dim_, rotated);
                turn(worker.kernels, item.block.first_row + r, rotated);
            }
        }
    }

    // The values of attended latents, head by head.
    void expand(const Worker& worker, const Pieces& p, const Item& item) const {
        for (int64_t h = item.heads.first; h < item.heads.last; ++h) {
            const PackedMatrix values = part(kv_b_, h * (nope_ + value_) + nope_, value_);
            const float* latents = item.latents + (h - item.heads.first) * latent_;
            const ReadyRows rows =
                value_input_.prepare_alone(latents, item.ldl, item.block.rows, worker.kernels, p.values);
            const Product product{
                &values, p.attended + item.block.first_row * o_.cols + h * value_, o_.cols, {}};
            multiply(product, {0, values.strips()}, rows, worker.kernels, context_.numerics, p.matmul);
        }
    }

    compute::AttendRows rows_of(const Step& step, const Item& item) const {
        const int64_t slot = item.block.slot;
        return {.q = item.q,
                .ldq = item.ldq,
                .out = item.latents,
                .ldo = item.ldl,
                .rows = item.block.rows,
                .position = item.block.position,
                .kv_len = step.positions[slot] + step.query_lens[slot],
                .arena = state_.data,
                .pages = step.page_table + slot * step.pages};
    }

    BindContext context_;
    contract::MLAParams params_{};
    compute::Attention attention_{};
    State state_;
    Register x_, y_;
    Residual residual_;
    int64_t heads_ = 0, nope_ = 0, rope_dim_ = 0, value_ = 0, latent_ = 0, split_rows_ = 1;
    PackedMatrix q_{}, q_a_{}, q_b_{}, kv_a_{}, kv_b_{}, o_{};
    const float *q_a_bias_ = nullptr, *kv_a_bias_ = nullptr, *o_bias_ = nullptr, *kv_gain_ = nullptr;
    Norm low_norm_;
    const RopeTable* rope_ = nullptr;
    RowInput input_, low_, value_input_, output_;
};

}  // namespace

std::unique_ptr<Op> bind_latent_attention(const Instruction& in, const BindContext& context,
                                          RopeTables& ropes) {
    return std::make_unique<LatentAttentionOp>(in, context, ropes);
}

}  // namespace treadle::inference
