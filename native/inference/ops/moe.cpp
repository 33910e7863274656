// Mixture of experts, alone or fused with the norm before and the residual after it.
//
// Rows are routed, then sorted by expert. Each expert's rows are a group that passes its matrices as rows of any other
// product do: only what was chosen is read, once. The last product runs over pieces of columns: a piece passes all
// experts in ascending order and adds up each row's weighted outputs, the shared expert's last.
#include "inference/adapters.hpp"
#include "inference/route.hpp"
#include "inference/widen.hpp"

namespace treadle::inference {
namespace {

enum WeightIndex {
    kRouter,
    kRouterBias,
    kCorrection,
    kGate,
    kUp,
    kDown,
    kGateBias,
    kUpBias,
    kDownBias,
    kSharedGate,
    kSharedUp,
    kSharedDown,
    kSharedRouter,
    kNorm
};

// Up to this many rows every thread routes all of them for itself: cheaper than meeting at a barrier.
constexpr int64_t kRedundantRows = 4;

// Most strips of a piece of the last product: rows of its columns of the output stay in cache from expert to expert.
constexpr int64_t kNarrowStrips = 16;

// A float matrix [experts, columns], a row of which is added to an expert's products.
const PackedMatrix* biases(const Weight& w, int64_t experts, int64_t cols, const char* name) {
    if (!w.present) return nullptr;
    const PackedMatrix& m = matrix(w, experts, cols, name);
    expect(compute::is_float(m.type), std::string(name) + ": expected f32, f16 or bf16");
    return &w.matrix;
}

PackedMatrix nth(const PackedMatrix& first, int64_t index) {
    PackedMatrix m = first;
    if (m.rows) m.data += index * m.strips() * m.strip_bytes;
    return m;
}

class MoeOp final : public Op {
  public:
    MoeOp(const Instruction& in, const BindContext& context)
        : context_(context), x_(in.inputs[0]), y_(in.outputs[0]) {
        const auto& params = params_of<contract::MoEParams>(in);
        bind_experts(in.weights, params);
        if (params.shared_intermediate) bind_shared(in.weights, params);
        const Fused fused = bind_fused(in, kNorm, "moe");
        residual_ = fused.residual;
        prepare_inputs(fused.norm);
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
            routed_.prepare(x_.f32(), x_.cols, step.rows, nullptr, worker, p.routed.team, p.routed.own);
        route(rows, worker, p);
        const int64_t groups = sort(step.rows, p);
        Work work{
            step.rows, p.experts, {p.groups, static_cast<size_t>(groups + (shared_.up.rows ? 1 : 0))}, p};
        work.input = input_.prepare_groups(rows.x, rows.ldx, rows.rows, work.groups, p.slot_row, worker,
                                           p.input.team, p.input.own);
        const RowInput::Sink inner = inner_.sink(p.inner_forms.team);
        RowInput::Sink shared_inner;
        if (shared_.up.rows) shared_inner = shared_inner_.sink(p.shared_forms.team);
        widen_all(work, inner, shared_inner, worker);
        worker.sync();
        work.inner = inner_.sunk_groups(inner, work.groups.first(groups));
        if (shared_.up.rows)
            work.shared_inner =
                shared_inner_.sunk(shared_inner, step.rows, worker.kernels, p.shared_forms.own);
        narrow_all(work, worker);
    }

    // At most; rows that choose the same experts read them once.
    int64_t planned_bytes(const Step& step) const override {
        const int64_t read = std::min(router_.experts(), step.rows * router_.chosen());
        const auto bytes = [](const PackedMatrix& w) { return w.rows ? w.strips() * w.strip_bytes : 0; };
        return bytes(router_weight_) + bytes(shared_router_) + bytes(shared_.gate) + bytes(shared_.up) +
               bytes(shared_down_) + read * (bytes(experts_.gate) + bytes(experts_.up) + bytes(down_));
    }

  private:
    struct Room {
        std::byte *team, *own;
    };
    struct Pieces {
        float *logits, *shared_logits;
        int32_t *chosen_team, *chosen_own;  // [rows, chosen]
        float *weights_team, *weights_own;
        // Each thread makes these for itself. A slot is a row at one of its experts, slots ascend by expert, then row.
        int32_t *slot_row, *experts, *ends;
        float* slot_weight;
        RowGroup* groups;
        float *scratch, *bias, *other_bias;
        std::byte *route, *matmul;
        Room routed, input, inner_forms, shared_forms;
    };
    // What all phases of a step know.
    struct Work {
        int64_t rows;
        const int32_t* experts;            // [groups but the shared one]
        std::span<const RowGroup> groups;  // the shared expert's last
        const Pieces& p;
        RowInput::Grouped input{}, inner{};
        ReadyRows shared_inner{};
        int64_t routed() const { return static_cast<int64_t>(groups.size()) - (p.shared_forms.team ? 1 : 0); }
    };

    void bind_experts(const std::vector<Weight>& w, const contract::MoEParams& params) {
        const int64_t count = params.num_experts, inner = params.intermediate;
        router_ = Router(params, vector(w[kCorrection], count, "score_correction"));
        expect(context_.limits.max_rows <= (int64_t{1} << 31) / (router_.chosen() + 1), "moe: too many rows");
        router_weight_ = matrix(w[kRouter], count, x_.cols, "router");
        router_bias_ = vector(w[kRouterBias], count, "router_bias");
        experts_.activation = activation_of(params.activation, params.alpha, params.limit);
        if (params.gated) experts_.gate = matrices(w[kGate], count, inner, x_.cols, "gate");
        experts_.up = matrices(w[kUp], count, inner, x_.cols, "up");
        down_ = matrices(w[kDown], count, y_.cols, inner, "down");
        const auto bias = [&](int slot, int64_t cols, const char* name, PackedMatrix& to) {
            if (const PackedMatrix* found = biases(w[slot], count, cols, name)) to = *found;
        };
        bias(kGateBias, inner, "gate_bias", gate_bias_);
        bias(kUpBias, inner, "up_bias", up_bias_);
        bias(kDownBias, y_.cols, "down_bias", down_bias_);
    }

    void bind_shared(const std::vector<Weight>& w, const contract::MoEParams& params) {
        const int64_t inner = params.shared_intermediate;
        shared_.activation = experts_.activation;
        if (params.gated) shared_.gate = matrix(w[kSharedGate], inner, x_.cols, "shared_gate");
        shared_.up = matrix(w[kSharedUp], inner, x_.cols, "shared_up");
        shared_down_ = matrix(w[kSharedDown], y_.cols, inner, "shared_down");
        if (w[kSharedRouter].present) shared_router_ = matrix(w[kSharedRouter], 1, x_.cols, "shared_router");
    }

    // Routers are multiplied exactly, in f32, in every numeric mode: a rounded score may choose another expert.
    void prepare_inputs(const Norm& norm) {
        const int64_t rows = context_.limits.max_rows;
        BindContext exact = context_;
        exact.numerics = Numerics::exact;
        routed_ = RowInput(exact, x_.cols, rows, norm, false);
        routed_.serves(router_weight_);
        const int64_t groups = std::min(router_.experts(), max_slots()) + (shared_.up.rows ? 1 : 0);
        input_ =
            RowInput(context_, x_.cols, max_slots() + (shared_.up.rows ? rows : 0), Norm{}, true, groups);
        for (const PackedMatrix* w : {&experts_.gate, &experts_.up, &shared_.gate, &shared_.up})
            if (w->rows) input_.serves(*w);
        inner_ = RowInput(context_, down_.cols, max_slots(), Norm{}, true, groups);
        inner_.serves(down_);
        if (!shared_.up.rows) return;
        shared_inner_ = RowInput(context_, shared_down_.cols, rows, Norm{}, true);
        shared_inner_.serves(shared_down_);
    }

    int64_t max_slots() const { return context_.limits.max_rows * router_.chosen(); }

    Pieces carve(Carver& team, Carver& own) const {
        const int64_t rows = context_.limits.max_rows, few = std::min(rows, kRedundantRows);
        const int64_t slots = max_slots(), chosen = router_.chosen();
        const bool shared = shared_.up.rows != 0;
        Pieces p{};
        p.logits = team.take<float>(rows * router_.experts());
        p.shared_logits = team.take<float>(rows);
        p.chosen_team = team.take<int32_t>(slots);
        p.weights_team = team.take<float>(slots);
        p.chosen_own = own.take<int32_t>(few * chosen);
        p.weights_own = own.take<float>(few * chosen);
        p.slot_row = own.take<int32_t>(slots + rows);
        p.slot_weight = own.take<float>(slots + rows);
        p.experts = own.take<int32_t>(router_.experts());
        p.ends = own.take<int32_t>(router_.experts());
        p.groups = own.take<RowGroup>(router_.experts() + 1);
        p.scratch = own.take<float>(2 * widen_floats(rows));
        p.bias = own.take<float>(std::max(down_.rows, down_.cols) + compute::kStripRows);
        p.other_bias = own.take<float>(down_.cols + compute::kStripRows);
        p.route = own.take<std::byte>(router_.scratch_bytes());
        int64_t matmul = 0;
        for (const PackedMatrix* w : {&router_weight_, &experts_.up, &down_, &shared_.up, &shared_down_})
            if (w->rows) matmul = std::max(matmul, matmul_scratch(context_, *w));
        p.matmul = own.take<std::byte>(matmul);
        const auto room = [&](const RowInput& input) {
            const Needs needs = input.needs();
            return Room{team.take<std::byte>(needs.shared), own.take<std::byte>(needs.thread)};
        };
        p.routed = room(routed_);
        p.input = room(input_);
        p.inner_forms = room(inner_);
        if (shared) p.shared_forms = room(shared_inner_);
        return p;
    }

    // Logits, then each row's experts and weights.
    void route(const ReadyRows& rows, Worker& worker, const Pieces& p) const {
        Product products[] = {{&router_weight_, p.logits, router_.experts(), {.bias = router_bias_}},
                              {&shared_router_, p.shared_logits, 1, {}}};
        multiply_all({products, shared_router_.rows ? 2u : 1u}, rows, worker, Numerics::exact, p.matmul);
        worker.sync();
        const bool few = rows.rows <= kRedundantRows;
        int32_t* chosen = few ? p.chosen_own : p.chosen_team;
        float* weights = few ? p.weights_own : p.weights_team;
        const auto some = [&](Range range) {
            for (int64_t r = range.first; r < range.last; ++r)
                router_.route(p.logits + r * router_.experts(), worker.kernels, p.route,
                              chosen + r * router_.chosen(), weights + r * router_.chosen());
        };
        if (few) return some({0, rows.rows});
        worker.each(rows.rows, worker.piece(rows.rows, 4), some);
        worker.sync();
    }

    // A counting sort of (row, choice) by expert. Returns how many experts were chosen.
    int64_t sort(int64_t rows, const Pieces& p) const {
        const bool few = rows <= kRedundantRows;
        const int32_t* chosen = few ? p.chosen_own : p.chosen_team;
        const float* weights = few ? p.weights_own : p.weights_team;
        const int64_t slots = rows * router_.chosen();
        std::fill_n(p.ends, router_.experts(), 0);
        for (int64_t i = 0; i < slots; ++i) ++p.ends[chosen[i]];
        int64_t groups = 0, first = 0;
        for (int32_t e = 0; e < router_.experts(); ++e) {
            const int32_t count = p.ends[e];
            p.ends[e] = static_cast<int32_t>(first);
            if (count == 0) continue;
            p.experts[groups] = e;
            p.groups[groups++] = {first, count};
            first += count;
        }
        for (int64_t i = 0; i < slots; ++i) {
            const int32_t slot = p.ends[chosen[i]]++;
            p.slot_row[slot] = static_cast<int32_t>(i / router_.chosen());
            p.slot_weight[slot] = weights[i];
        }
        if (shared_.up.rows) add_shared(rows, slots, p.groups[groups], p);
        return groups;
    }

    void add_shared(int64_t rows, int64_t slots, RowGroup& group, const Pieces& p) const {
        group = {slots, rows};
        for (int64_t r = 0; r < rows; ++r) {
            p.slot_row[slots + r] = static_cast<int32_t>(r);
            p.slot_weight[slots + r] = 1.0f;
        }
        if (shared_router_.rows)
            context_.kernels.activate(p.shared_logits, nullptr, rows, {.kind = compute::Activation::sigmoid},
                                      p.slot_weight + slots);
    }

    // Row `expert` of a matrix of biases, columns [column, column + width), as a vector that begins at column 0.
    const float* bias(const PackedMatrix& biases, int32_t expert, int64_t column, int64_t width,
                      const Kernels& kernels, float* to) const {
        if (biases.rows == 0) return nullptr;
        PackedMatrix cut = biases;
        cut.cols = width;
        cut.data += column * compute::row_bytes(biases.type, compute::kStripRows);
        kernels.unpack_row(cut, expert, to);
        return to - column;
    }

    // Calls body(group, strips) for the pieces of a range of strips that follow one another group by group.
    template <typename Body>
    void each_group(const Work& work, Range range, Body&& body) const {
        const int64_t each = experts_.up.strips(), routed = work.routed();
        while (!range.empty()) {
            const int64_t group = std::min(range.first / each, routed), before = group * each;
            const int64_t strips = group < routed ? each : shared_.up.strips();
            const int64_t end = std::min(range.last, before + strips);
            body(group, Range{range.first - before, end - before});
            range.first = end;
        }
    }

    // Calls body(strips) for pieces of a range whose products of `rows` rows fit in the scratch.
    template <typename Body>
    void each_fit(Range strips, int64_t rows, Body&& body) const {
        const int64_t fits = widen_strips(widen_floats(context_.limits.max_rows), rows);
        for (; !strips.empty(); strips.first += fits)
            body(Range{strips.first, std::min(strips.last, strips.first + fits)});
    }

    void widen_all(const Work& work, const RowInput::Sink& inner, const RowInput::Sink& shared_inner,
                   Worker& worker) const {
        const int64_t routed = work.routed();
        const int64_t total = routed * experts_.up.strips() + shared_.up.strips();
        worker.each(total, kStripGrain, strip_piece(worker, total, work.rows), [&](Range range) {
            each_group(work, range, [&](int64_t group, Range strips) {
                const RowGroup& rows = work.groups[static_cast<size_t>(group)];
                each_fit(strips, rows.rows, [&](Range piece) {
                    if (group == routed)
                        widen(shared_, piece, work.input.group(group), {shared_inner, {0, rows.rows}, 0},
                              work.p.scratch, worker.kernels, context_.numerics, work.p.matmul);
                    else widen_expert(work, {inner, rows, group}, piece, worker);
                });
            });
        });
    }

    void widen_expert(const Work& work, const Inner& inner, Range strips, Worker& worker) const {
        const int32_t expert = work.experts[inner.index];
        const int64_t column = strips.first * compute::kStripRows;
        const int64_t width = std::min(strips.last * compute::kStripRows, down_.cols) - column;
        Widening w = experts_;
        w.gate = nth(experts_.gate, expert);
        w.up = nth(experts_.up, expert);
        w.gate_bias = bias(gate_bias_, expert, column, width, worker.kernels, work.p.bias);
        w.up_bias = bias(up_bias_, expert, column, width, worker.kernels, work.p.other_bias);
        widen(w, strips, work.input.group(inner.index), inner, work.p.scratch, worker.kernels,
              context_.numerics, work.p.matmul);
    }

    void narrow_all(const Work& work, Worker& worker) const {
        const int64_t strips = down_.strips();
        worker.each(strips, kStripGrain, std::min(kNarrowStrips, strip_piece(worker, strips, work.rows)),
                    [&](Range range) { narrow(work, range, worker); });
    }

    // Columns of the output: every expert's share, ascending, then the residual.
    void narrow(const Work& work, Range strips, Worker& worker) const {
        const int64_t column = strips.first * compute::kStripRows;
        const int64_t width = std::min(strips.last * compute::kStripRows, y_.cols) - column;
        for (int64_t r = 0; r < work.rows; ++r) std::fill_n(y_.f32() + r * y_.cols + column, width, 0.0f);
        for (int64_t group = 0; group < static_cast<int64_t>(work.groups.size()); ++group) {
            const RowGroup& rows = work.groups[static_cast<size_t>(group)];
            each_fit(strips, rows.rows, [&](Range piece) { add_expert(work, group, piece, worker); });
        }
        if (!residual_.present()) return;
        for (int64_t r = 0; r < work.rows; ++r) {
            float* y = y_.f32() + r * y_.cols + column;
            worker.kernels.add_scaled(residual_.rows.f32() + r * residual_.rows.cols + column, y,
                                      residual_.scale, width, y);
        }
    }

    // y[row of slot] += weight of slot * down(inner of slot), as one fma.
    void add_expert(const Work& work, int64_t group, Range strips, Worker& worker) const {
        const bool shared = group == work.routed();
        const RowGroup& slots = work.groups[static_cast<size_t>(group)];
        const int64_t column = strips.first * compute::kStripRows;
        const int64_t width = std::min(strips.last * compute::kStripRows, y_.cols) - column;
        const PackedMatrix w = shared ? shared_down_ : nth(down_, work.experts[group]);
        const ReadyRows rows = shared ? work.shared_inner : work.inner.group(group);
        compute::Epilogue epilogue;
        if (!shared)
            epilogue.bias = bias(down_bias_, work.experts[group], column, width, worker.kernels, work.p.bias);
        const int32_t* row = work.p.slot_row + slots.first;
        const float* weight = work.p.slot_weight + slots.first;
        if (slots.rows == 1) {
            float* y = y_.f32() + row[0] * y_.cols;
            epilogue.residual = y;
            epilogue.scale = weight[0];
            multiply({&w, y, y_.cols, epilogue}, strips, rows, worker.kernels, context_.numerics,
                     work.p.matmul);
            return;
        }
        float* found = work.p.scratch;
        multiply({&w, found - column, width, epilogue}, strips, rows, worker.kernels, context_.numerics,
                 work.p.matmul);
        for (int64_t s = 0; s < slots.rows; ++s) {
            float* y = y_.f32() + row[s] * y_.cols + column;
            worker.kernels.add_scaled(y, found + s * width, weight[s], width, y);
        }
    }

    BindContext context_;
    Register x_, y_;
    Residual residual_;
    Router router_;
    PackedMatrix router_weight_{}, shared_router_{}, down_{}, shared_down_{};
    PackedMatrix gate_bias_{}, up_bias_{}, down_bias_{};
    const float* router_bias_ = nullptr;
    Widening experts_, shared_;  // of the first expert; of the shared one
    RowInput routed_, input_, inner_, shared_inner_;
};

}  // namespace

std::unique_ptr<Op> bind_moe(const Instruction& in, const BindContext& context, RopeTables&) {
    return std::make_unique<MoeOp>(in, context);
}

}  // namespace treadle::inference
