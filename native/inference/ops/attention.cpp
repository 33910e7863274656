// multihead_attention and its fusion with the norm before and the residual after it.
//
// A step has these phases, with a barrier between them:
//   1 rows made ready, then q, k, v (and gate) products     2 norms, rope, KV write of every new key (norms of
//                                                             whole projections in a phase of their own)
//   3 attention of each (row block, kv heads), in the       4 output product with bias and residual
//     form that the output product takes
// Queries get their norms and rope at the beginning of 3, or in 2 where several threads read them. Where every (slot, kv
// head) is one item, 2 and 3 are done by the same thread without a barrier between.
// An op without state keeps the keys and values of the step's rows in pages of its workspace.
#include <cmath>
#include <numeric>

#include "inference/adapters.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

using contract::QKNorm;

// Up to this many rows a long sequence's keys are split among the threads.
constexpr int64_t kSplitRows = 8;

// Positions in a page of the workspace.
constexpr int64_t kOwnPage = 64;

enum WeightIndex {
    kQ,
    kK,
    kV,
    kO,
    kQBias,
    kKBias,
    kVBias,
    kOBias,
    kQNorm,
    kKNorm,
    kGate,
    kSinks,
    kRope,
    kSlopes,
    kNorm
};

class AttentionOp final : public Op {
  public:
    AttentionOp(const Instruction& in, const BindContext& context, RopeTables& ropes)
        : context_(context), state_(in.state), x_(in.inputs[0]), y_(in.outputs[0]) {
        bind_params(params_of<contract::AttentionParams>(in));
        const Fused fused = bind_fused(in, kNorm, "attention");
        residual_ = fused.residual;
        bind_weights(in, ropes);
        input_ = RowInput(context, x_.cols, context.limits.max_rows, fused.norm, false);
        for (const PackedMatrix* w : {&q_, &k_, &v_}) input_.serves(*w);
        if (gate_.rows != 0) input_.serves(gate_);
        output_ = RowInput(context, o_.cols, context.limits.max_rows, Norm{}, true);
        output_.serves(o_);
    }

    Needs needs() const override {
        Carver team(nullptr), own(nullptr);
        carve(team, own);
        return {team.used(), own.used()};
    }

    void check(const Step& step) const override {
        if (!state_.data) return check_whole(step);
        check_pages(step, state_, context_.limits);
    }

    void run(const Step& step, Worker& worker) const override {
        Carver team(worker.shared), own(worker.scratch);
        const Pieces pieces = carve(team, own);
        project(step, worker, pieces);
        worker.sync();
        if (whole_norm_) {
            norm_rows(step, worker, pieces);
            worker.sync();
        }
        const Output output{output_.sink(pieces.output_team), {0, step.rows}};
        attend(step, worker, pieces, output);
        worker.sync();
        const ReadyRows rows = output_.sunk(output.sink, step.rows, worker.kernels, pieces.output_own);
        const Product product{&o_, y_.f32(), y_.cols, residual_.epilogue(o_bias_)};
        multiply_all({&product, 1}, rows, worker, context_.numerics, pieces.matmul);
    }

    int64_t planned_bytes(const Step& step) const override {
        int64_t bytes = 0;
        for (const PackedMatrix* w : {&q_, &k_, &v_, &o_, &gate_})
            bytes += w->rows ? w->strips() * w->strip_bytes : 0;
        for (int64_t i = 0; i < step.batch; ++i) {
            int64_t seen = step.positions[i] + step.query_lens[i];
            if (attention_.left != compute::kUnbounded)
                seen = std::min(seen, attention_.left + step.query_lens[i]);
            if (state_.data) bytes += seen * state_.page_bytes / state_.page_tokens;
        }
        return bytes;
    }

  private:
    struct SlotPages {
        std::byte* arena;
        const int32_t* table;
    };
    struct Output {
        RowInput::Sink sink;
        RowGroup all;
    };
    // Where the heads of an item are attended to: the sink's f32 rows, or a thread's scratch. `out` is the first row's head 0.
    struct Attended {
        float* out;
        int64_t ld;
    };
    struct Pieces {
        float *q, *k, *v, *gate, *parts, *attended;
        std::byte *pages, *input_team, *output_team, *input_own, *output_own, *attend, *matmul;
    };

    void bind_params(const contract::AttentionParams& p) {
        params_ = p;
        expect(p.num_kv_heads != 0 && p.num_heads % p.num_kv_heads == 0,
               "attention: heads are not a multiple of kv heads");
        const auto type = static_cast<compute::DType>(p.kv_dtype);
        expect((state_.data != nullptr) == (p.causal != 0),
               "attention: a KV state goes with causal attention");
        expect(compute::kv_storable(type, p.head_dim, p.v_head_dim),
               "attention: keys of " + std::to_string(p.head_dim) + " and values of " +
                   std::to_string(p.v_head_dim) + " elements cannot be kept in type " +
                   std::to_string(p.kv_dtype));
        if (!state_.data) {
            const contract::StepLimits& limits = context_.limits;
            own_pages_.resize(static_cast<size_t>(limits.max_rows / kOwnPage + limits.max_batch));
            std::iota(own_pages_.begin(), own_pages_.end(), 0);
            state_.page_tokens = kOwnPage;
        }
        attention_.kv = {type, p.num_kv_heads, p.head_dim, p.v_head_dim, state_.page_tokens};
        if (!state_.data) state_.page_bytes = compute::kv_page_bytes(attention_.kv);
        expect(state_.page_tokens == 16 || state_.page_tokens == 32 || state_.page_tokens == 64,
               "attention: KV pages of " + std::to_string(state_.page_tokens) +
                   " tokens; this backend takes 16, 32, 64");
        expect(state_.page_bytes == compute::kv_page_bytes(attention_.kv),
               "attention: the state's size does not match");
        attention_.heads = p.num_heads;
        attention_.scale = p.scale;
        attention_.softcap = p.softcap;
        attention_.left = p.window ? p.window - 1 : compute::kUnbounded;
        attention_.right = p.causal ? 0 : attention_.left;
        group_ = p.num_heads / p.num_kv_heads;
        width_ = group_ * p.v_head_dim;
        unit_ = std::lcm(width_, compute::kBlock) / width_;
        whole_norm_ = static_cast<QKNorm>(p.qk_norm) == QKNorm::rms_whole;
    }

    void bind_weights(const Instruction& in, RopeTables& ropes) {
        const auto& p = params_;
        const int64_t q_dim = int64_t{p.num_heads} * p.head_dim, k_dim = int64_t{p.num_kv_heads} * p.head_dim;
        const int64_t v_dim = int64_t{p.num_kv_heads} * p.v_head_dim,
                      o_dim = int64_t{p.num_heads} * p.v_head_dim;
        const std::vector<Weight>& w = in.weights;
        q_ = matrix(w[kQ], q_dim, x_.cols, "q");
        k_ = matrix(w[kK], k_dim, x_.cols, "k");
        v_ = matrix(w[kV], v_dim, x_.cols, "v");
        o_ = matrix(w[kO], y_.cols, o_dim, "o");
        if (p.output_gate) gate_ = matrix(w[kGate], o_dim, x_.cols, "gate");
        q_bias_ = vector(w[kQBias], q_dim, "q_bias");
        k_bias_ = vector(w[kKBias], k_dim, "k_bias");
        v_bias_ = vector(w[kVBias], v_dim, "v_bias");
        o_bias_ = vector(w[kOBias], y_.cols, "o_bias");
        const bool per_head = static_cast<QKNorm>(p.qk_norm) == QKNorm::rms_per_head;
        q_norm_ = vector(w[kQNorm], per_head ? p.head_dim : q_dim, "q_norm");
        k_norm_ = vector(w[kKNorm], per_head ? p.head_dim : k_dim, "k_norm");
        attention_.sinks = vector(w[kSinks], p.num_heads, "sinks");
        attention_.slopes = vector(w[kSlopes], p.num_heads, "slopes");
        if (p.rotary_dim != 0) {
            rope_ = ropes.add(vector(w[kRope], p.rotary_dim / 2, "rope_inv_freq"), p.rotary_dim / 2,
                              p.rope_scale);
        }
    }

    Pieces carve(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows;
        Pieces p{};
        p.q = team.take<float>(rows * q_.rows);
        p.k = team.take<float>(rows * k_.rows);
        p.v = team.take<float>(rows * v_.rows);
        p.gate = team.take<float>(rows * gate_.rows);
        const int64_t splits = (context_.limits.max_seq_len + compute::kSplit - 1) / compute::kSplit;
        const int64_t split_rows = state_.data ? kSplitRows : 0;  // without state few rows are short
        p.parts = team.take<float>(split_rows * params_.num_heads * splits *
                                   compute::attend_part_floats(attention_));
        p.pages = team.take<std::byte>(std::ssize(own_pages_) * state_.page_bytes);
        const Needs in = input_.needs(), out = output_.needs();
        p.input_team = team.take<std::byte>(in.shared);
        p.output_team = team.take<std::byte>(out.shared);
        p.input_own = own.take<std::byte>(in.thread);
        p.output_own = own.take<std::byte>(out.thread);
        p.attended = own.take<float>(compute::kAttendRows * unit_ * width_);
        p.attend = own.take<std::byte>(compute::attend_scratch_bytes(attention_));
        p.matmul = own.take<std::byte>(std::max(matmul_scratch(context_, q_), matmul_scratch(context_, o_)));
        return p;
    }

    void project(const Step& step, Worker& worker, const Pieces& p) const {
        const ReadyRows rows =
            input_.prepare(x_.f32(), x_.cols, step.rows, nullptr, worker, p.input_team, p.input_own);
        const Product products[] = {{&q_, p.q, q_.rows, {.bias = q_bias_}},
                                    {&k_, p.k, k_.rows, {.bias = k_bias_}},
                                    {&v_, p.v, v_.rows, {.bias = v_bias_}},
                                    {&gate_, p.gate, gate_.rows, {}}};
        multiply_all(std::span(products, gate_.rows ? 4 : 3), rows, worker, context_.numerics, p.matmul);
    }

    int64_t units() const { return (params_.num_kv_heads + unit_ - 1) / unit_; }
    Range heads_of(int64_t unit) const {
        return {unit * unit_, std::min((unit + 1) * unit_, int64_t{params_.num_kv_heads})};
    }

    Attended attended(const Pieces& p, const Output& output, const RowBlock& block, int64_t head) const {
        if (float* rows = output.sink.floats(output.all, block.first_row, 0)) return {rows, o_.cols};
        return {p.attended - head * width_, unit_ * width_};
    }

    void attend(const Step& step, Worker& worker, const Pieces& p, const Output& output) const {
        if (step.rows <= kSplitRows && step.longest_sequence > compute::kSplit) {
            each_row(step, worker, [&](int64_t row, int64_t head) {
                shape_queries(step, worker.kernels, p, row, head);
                write_row(step, worker.kernels, p, row, head);
            });
            worker.sync();
            attend_split(step, worker, p, output);
            return;
        }
        const bool one_item_each = static_cast<int64_t>(step.blocks.size()) == step.batch;
        if (!one_item_each) {
            each_row(step, worker,
                     [&](int64_t row, int64_t head) { write_row(step, worker.kernels, p, row, head); });
            worker.sync();
        }
        // Head by head, so that every thread's share has long and short blocks, and blocks beside each other share keys.
        const auto blocks = static_cast<int64_t>(step.blocks.size());
        worker.each(blocks * units(), 1, [&](Range range) {
            const RowBlock& block = step.blocks[range.first % blocks];
            const Range heads = heads_of(range.first / blocks);
            const Attended to = attended(p, output, block, heads.first);
            compute::AttendRows rows = rows_of(step, p, block, to);
            for (int64_t head = heads.first; head < heads.last; ++head) {
                for (int32_t r = block.first_row; r < block.first_row + block.rows; ++r) {
                    shape_queries(step, worker.kernels, p, r, head);
                    if (one_item_each) write_row(step, worker.kernels, p, r, head);
                }
                const int64_t next = range.first + 1;
                if (head + 1 < heads.last) rows.next = keys_of(step, p, block, head + 1);
                else if (next < blocks * units())
                    rows.next = keys_of(step, p, step.blocks[next % blocks], heads_of(next / blocks).first);
                else rows.next = nullptr;
                worker.kernels.attend(attention_, rows, head, p.attend);
            }
            finish(worker.kernels, p, output, block, heads, to);
        });
    }

    // Few rows over long sequences: (block, kv head, split) items, then a merge of each (block, kv heads).
    void attend_split(const Step& step, Worker& worker, const Pieces& p, const Output& output) const {
        const int64_t kv_heads = params_.num_kv_heads;
        const int64_t part = compute::attend_part_floats(attention_);
        const int64_t splits = (context_.limits.max_seq_len + compute::kSplit - 1) / compute::kSplit;
        const int64_t heads = static_cast<int64_t>(step.blocks.size()) * kv_heads;
        const auto parts_of = [&](const RowBlock& block, int64_t head) {
            return p.parts + (block.first_row * kv_heads + block.rows * head) * group_ * splits * part;
        };
        worker.each(heads * splits, 1, [&](Range one) {
            const int64_t item = one.first;
            const RowBlock& block = step.blocks[item / splits / kv_heads];
            const int64_t head = item / splits % kv_heads, split = item % splits;
            compute::AttendRows rows = rows_of(step, p, block, {});
            if (item / splits + 1 < heads)
                rows.next = keys_of(step, p, step.blocks[(item / splits + 1) / kv_heads],
                                    (item / splits + 1) % kv_heads);
            const compute::SplitRange range = compute::attend_splits(attention_, rows);
            if (split < range.first || split >= range.last) return;
            worker.kernels.attend_part(attention_, rows, head, split, parts_of(block, head), p.attend);
        });
        worker.sync();
        worker.each(static_cast<int64_t>(step.blocks.size()) * units(), 1, [&](Range one) {
            const RowBlock& block = step.blocks[one.first / units()];
            const Range unit = heads_of(one.first % units());
            const Attended to = attended(p, output, block, unit.first);
            for (int64_t head = unit.first; head < unit.last; ++head)
                worker.kernels.attend_merge(attention_, rows_of(step, p, block, to), head,
                                            parts_of(block, head), p.attend);
            finish(worker.kernels, p, output, block, unit, to);
        });
    }

    // RMS norm of each row's q and k over all their heads.
    void norm_rows(const Step& step, Worker& worker, const Pieces& p) const {
        const float eps = params_.qk_norm_eps, offset = params_.qk_norm_gain_offset;
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range range) {
            for (int64_t r = range.first; r < range.last; ++r) {
                float *q = p.q + r * q_.rows, *k = p.k + r * k_.rows;
                clip(q, q_.rows);
                clip(k, k_.rows);
                worker.kernels.rmsnorm(q, q_norm_, offset, eps, q_.rows, q);
                worker.kernels.rmsnorm(k, k_norm_, offset, eps, k_.rows, k);
            }
        });
    }

    // Calls body(row, kv head) for all of them.
    template <typename Body>
    void each_row(const Step& step, Worker& worker, Body&& body) const {
        const int64_t kv_heads = params_.num_kv_heads;
        const int64_t count = step.rows * kv_heads;
        worker.each(count, worker.piece(count, 4), [&](Range range) {
            for (int64_t i = range.first; i < range.last; ++i) body(i / kv_heads, i % kv_heads);
        });
    }

    // Norms and rotates a row's queries of one kv group: where it can be by the thread that will read them.
    void shape_queries(const Step& step, const Kernels& k, const Pieces& p, int64_t row,
                       int64_t kv_head) const {
        for (int64_t h = kv_head * group_; h < (kv_head + 1) * group_; ++h)
            shape_head(k, step, row, p.q + row * q_.rows + h * params_.head_dim, q_norm_, h);
    }

    // Norms and rotates a row's key, and writes it and its value into the slot's page.
    void write_row(const Step& step, const Kernels& k, const Pieces& p, int64_t row, int64_t kv_head) const {
        float* key = p.k + row * k_.rows;
        float* value = p.v + row * v_.rows;
        shape_head(k, step, row, key + kv_head * params_.head_dim, k_norm_, kv_head);
        clip(value + kv_head * params_.v_head_dim, params_.v_head_dim);
        const int64_t slot = step.row_slot[row], position = step.row_position[row];
        const SlotPages pages = pages_of(step, p, slot);
        std::byte* page = pages.arena + pages.table[position / state_.page_tokens] * state_.page_bytes;
        k.kv_write(attention_.kv, page, position % state_.page_tokens, kv_head, kv_head + 1, key, value);
    }

    void shape_head(const Kernels& k, const Step& step, int64_t row, float* head, const float* gain,
                    int64_t index) const {
        const int64_t dim = params_.head_dim;
        if (!whole_norm_) clip(head, dim);
        switch (static_cast<QKNorm>(params_.qk_norm)) {
            case QKNorm::rms_per_head:
                k.rmsnorm(head, gain, params_.qk_norm_gain_offset, params_.qk_norm_eps, dim, head);
                break;
            case QKNorm::layernorm_per_head:
                k.layernorm(head, gain + index * dim, nullptr, params_.qk_norm_eps, dim, head);
                break;
            default:
                break;
        }
        if (rope_) {
            const int64_t at = row * rope_->half;
            k.rope(head, rope_->cosine + at, rope_->sine + at, rope_->half,
                   params_.rope_style == 0 ? compute::RopeStyle::halves : compute::RopeStyle::pairs);
        }
    }

    void clip(float* x, int64_t n) const {
        if (params_.qkv_clip <= 0.0f) return;
        for (int64_t i = 0; i < n; ++i) x[i] = std::min(std::max(x[i], -params_.qkv_clip), params_.qkv_clip);
    }

    compute::AttendRows rows_of(const Step& step, const Pieces& p, const RowBlock& block, Attended to) const {
        const int64_t slot = block.slot;
        const SlotPages pages = pages_of(step, p, slot);
        return {.q = p.q + block.first_row * q_.rows,
                .ldq = q_.rows,
                .out = to.out,
                .ldo = to.ld,
                .rows = block.rows,
                .position = block.position,
                .kv_len = step.positions[slot] + step.query_lens[slot],
                .arena = pages.arena,
                .pages = pages.table};
    }

    // The first keys of one head that a block sees.
    const std::byte* keys_of(const Step& step, const Pieces& p, const RowBlock& block,
                             int64_t kv_head) const {
        const SlotPages pages = pages_of(step, p, block.slot);
        int64_t first = 0;
        if (attention_.left != compute::kUnbounded) first = std::max(first, block.position - attention_.left);
        return pages.arena + pages.table[first / state_.page_tokens] * state_.page_bytes +
               kv_head * (state_.page_bytes / params_.num_kv_heads);
    }

    // Where a slot's pages are. Those in the workspace follow each other; a slot whose first row is s begins at page
    // s / kOwnPage + slot, past what any number of rows before it can fill.
    SlotPages pages_of(const Step& step, const Pieces& p, int64_t slot) const {
        if (state_.data) return {state_.data, step.page_table + slot * step.pages};
        return {p.pages, own_pages_.data() + step.slot_row[slot] / kOwnPage + slot};
    }

    // The output gate, and the rows' way to the output product.
    void finish(const Kernels& k, const Pieces& p, const Output& output, const RowBlock& block, Range heads,
                Attended made) const {
        const int64_t column = heads.first * width_, width = (heads.last - heads.first) * width_;
        for (int64_t i = 0; i < block.rows; ++i) {
            const int64_t row = block.first_row + i;
            float* out = made.out + i * made.ld + column;
            if (gate_.rows != 0)
                k.activate(p.gate + row * o_.cols + column, out, width,
                           {.kind = compute::Activation::sigmoid}, out);
            output.sink.put(output.all, 0, row, column, width, out, k);
        }
    }

    // Without state a step must bring all rows of its slots.
    static void check_whole(const Step& step) {
        for (int64_t i = 0; i < step.batch; ++i)
            if (step.positions[i] != 0)
                throw StepError("attention without state: slot " + std::to_string(i) +
                                " begins at position " + std::to_string(step.positions[i]) + ", expected 0");
    }

    BindContext context_;
    contract::AttentionParams params_{};
    compute::Attention attention_{};
    State state_;                     // data is null without state
    std::vector<int32_t> own_pages_;  // 0, 1, ...: pages of the workspace
    Register x_, y_;
    Residual residual_;
    int64_t group_ = 1;  // query heads of a kv head
    int64_t width_ = 0;  // columns of the values of such a group
    int64_t unit_ = 1;   // kv heads of an item, so that it makes whole blocks of columns
    bool whole_norm_ = false;
    PackedMatrix q_{}, k_{}, v_{}, o_{}, gate_{};
    const float *q_bias_ = nullptr, *k_bias_ = nullptr, *v_bias_ = nullptr, *o_bias_ = nullptr;
    const float *q_norm_ = nullptr, *k_norm_ = nullptr;
    const RopeTable* rope_ = nullptr;
    RowInput input_, output_;
};

}  // namespace

std::unique_ptr<Op> bind_attention(const Instruction& in, const BindContext& context, RopeTables& ropes) {
    return std::make_unique<AttentionOp>(in, context, ropes);
}

}  // namespace treadle::inference
