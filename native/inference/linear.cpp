#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

// Up to this many rows every thread prepares all of them for itself: cheaper than meeting at a barrier.
constexpr int64_t kRedundantRows = 4;
// Pieces of a thread's strips: more where a strip is much work, fewer where each would be over in a microsecond, and not too
// small where rows that come to the first cache for a piece meet all its strips there.
constexpr int64_t kManyRows = 32, kPassingRows = 64;
constexpr int64_t kManyPieces = 8, kFewPieces = 4;
constexpr int64_t kStripsToPass = 16;

bool takes_i8(const PackedMatrix& w, Numerics numerics) {
    return numerics == Numerics::fast && !compute::is_float(w.type);
}
bool takes_bf16(const PackedMatrix& w, Numerics numerics) {
    return numerics == Numerics::bf16 || (numerics == Numerics::fast && w.type == compute::DType::bf16);
}

}  // namespace

Norm bind_norm(const ParamBlock& params, std::span<const Weight> weights, int64_t cols) {
    Norm norm{.present = true};
    norm.centred = params.opcode == contract::LayerNormParams::kOpcode;
    expect(weights.size() >= (norm.centred ? 2u : 1u), "norm: a weight is missing");
    norm.gain = vector(weights[0], cols, "gain");
    if (norm.centred) {
        const auto& p = params.as<contract::LayerNormParams>();
        expect(p.gain_offset == 0.0f, "layernorm: gain_offset is not supported by this backend");
        norm.bias = vector(weights[1], cols, "bias");
        norm.eps = p.eps;
    } else {
        const auto& p = params.as<contract::RMSNormParams>();
        norm.gain_offset = p.gain_offset;
        norm.eps = p.eps;
    }
    return norm;
}

Fused bind_fused(const Instruction& in, size_t norm_slot, const char* name) {
    if (!is_fused(in)) return {};
    const Residual residual{in.inputs[1], in.params[2].as<contract::ResidualAddParams>().scale};
    expect(residual.rows.cols == in.outputs[0].cols,
           std::string(name) + ": the residual's width differs from the output's");
    return {bind_norm(in.params[0], std::span(in.weights).subspan(norm_slot), in.inputs[0].cols), residual};
}

RowInput::RowInput(const BindContext& context, int64_t cols, int64_t max_rows, Norm norm, bool copies,
                   int64_t max_groups)
    : kernels_(&context.kernels), cols_(cols), max_rows_(max_rows), max_groups_(max_groups),
      numerics_(context.numerics), norm_(norm), copies_(copies) {}

void RowInput::serves(const PackedMatrix& w) {
    (takes_i8(w, numerics_) ? wants_i8_ : takes_bf16(w, numerics_) ? wants_bf16_ : wants_f32_) = true;
    if (takes_bf16(w, numerics_) && kernels_->takes_pairs(w.type)) wants_pairs_ = true;
}

RowInput::Forms RowInput::take(Carver& carver, int64_t rows, int64_t groups) const {
    Forms forms;
    if (wants_f32_ && (norm_.present || copies_)) forms.f32 = carver.take<float>(rows * cols_);
    if (wants_i8_) forms.i8 = carver.take<std::byte>(i8_offset(rows, groups));
    if (wants_bf16_) forms.bf16 = carver.take<uint16_t>(rows * ld_bf16());
    return forms;
}

RowInput::Pieces RowInput::carve(Carver& team, Carver& own) const {
    Pieces pieces;
    const int64_t few = std::min(kRedundantRows, max_rows_);
    pieces.team = take(team, max_rows_, max_groups_);
    pieces.own = take(own, few, std::min(few, max_groups_));
    if (norm_.present) pieces.row = own.take<float>(cols_);
    if (wants_pairs_)
        pieces.pairs =
            own.take<uint16_t>(compute::pair_width(std::min(max_rows_, compute::kMostPaired)) * cols_);
    return pieces;
}

Needs RowInput::needs() const {
    Carver team(nullptr), own(nullptr);
    carve(team, own);
    return {team.used(), own.used()};
}

void RowInput::make(const float* x, int64_t ldx, Range range, std::span<const RowGroup> groups,
                    const int32_t* gather, const Kernels& kernels, const Forms& to, float* row) const {
    size_t g = 0;
    for (int64_t r = range.first; r < range.last; ++r) {
        while (r >= groups[g].first + groups[g].rows) ++g;
        const float* source = x + (gather ? gather[r] : r) * ldx;
        if (to.f32 || norm_.present) {
            float* target = to.f32 ? to.f32 + r * cols_ : row;
            if (norm_.present) {
                norm_.apply(kernels, source, cols_, target);
            } else {
                std::copy_n(source, cols_, target);
            }
            source = target;
        }
        if (to.i8) {  // a leading dimension of 0 makes `source` the row of any number
            const int64_t at = r - groups[g].first;
            kernels.quantise(source, 0, at, at + 1, groups[g].rows, 0, cols_, cols_,
                             to.i8 + i8_offset(groups[g].first, static_cast<int64_t>(g)));
        }
        if (to.bf16) kernels.round_bf16(source, cols_, to.bf16 + r * ld_bf16());
    }
}

RowInput::Forms RowInput::fill(const float* x, int64_t ldx, std::span<const RowGroup> groups,
                               const int32_t* gather, Worker& worker, const Pieces& pieces) const {
    const int64_t rows = groups.back().first + groups.back().rows;
    const bool few = rows <= kRedundantRows;
    const Forms& to = few ? pieces.own : pieces.team;
    const auto make_range = [&](Range range) {
        make(x, ldx, range, groups, gather, worker.kernels, to, pieces.row);
    };
    if (few) {
        make_range({0, rows});
    } else if (to.f32 || to.i8 || to.bf16) {
        worker.each(rows, worker.piece(rows, kFewPieces), make_range);
        worker.sync();
    }
    return to;
}

ReadyRows RowInput::ready(const Forms& forms, const float* x, int64_t ldx, RowGroup group,
                          int64_t index) const {
    ReadyRows rows{.ld_halves = ld_bf16(), .rows = group.rows};
    rows.x = forms.f32 ? forms.f32 + group.first * cols_ : x + group.first * ldx;
    rows.ldx = forms.f32 ? cols_ : ldx;
    if (forms.i8) rows.quants = forms.i8 + i8_offset(group.first, index);
    if (forms.bf16) rows.halves = forms.bf16 + group.first * ld_bf16();
    return rows;
}

ReadyRows RowInput::prepare(const float* x, int64_t ldx, int64_t rows, const int32_t* gather, Worker& worker,
                            std::byte* shared, std::byte* scratch) const {
    Carver team(shared), own(scratch);
    const RowGroup all{0, rows};
    const Pieces pieces = carve(team, own);
    ReadyRows made = ready(fill(x, ldx, {&all, 1}, gather, worker, pieces), x, ldx, all, 0);
    add_pairs(made, worker.kernels, pieces);
    return made;
}

// By every thread for itself.
void RowInput::add_pairs(ReadyRows& rows, const Kernels& kernels, const Pieces& pieces) const {
    if (!wants_pairs_ || !compute::pairable(rows.rows)) return;
    kernels.pair_bf16(rows.halves, rows.ld_halves, rows.rows, cols_, pieces.pairs);
    rows.pairs = pieces.pairs;
}

ReadyRows RowInput::prepare_alone(const float* x, int64_t ldx, int64_t rows, const Kernels& kernels,
                                  std::byte* scratch) const {
    Carver own(scratch);
    const RowGroup all{0, rows};
    const Forms forms = take(own, max_rows_, 1);
    make(x, ldx, {0, rows}, {&all, 1}, nullptr, kernels, forms, own.take<float>(norm_.present ? cols_ : 0));
    return ready(forms, x, ldx, all, 0);
}

int64_t RowInput::alone_bytes() const {
    Carver own(nullptr);
    take(own, max_rows_, 1);
    own.take<float>(norm_.present ? cols_ : 0);
    return own.used();
}

RowInput::Grouped RowInput::prepare_groups(const float* x, int64_t ldx, int64_t source_rows,
                                           std::span<const RowGroup> groups, const int32_t* gather,
                                           Worker& worker, std::byte* shared, std::byte* scratch) const {
    Carver team(shared), own(scratch);
    Grouped grouped;
    grouped.input_ = this;
    grouped.x_ = x;
    grouped.ldx_ = ldx;
    grouped.groups_ = groups;
    grouped.same_ = gather && source_rows == 1;
    const RowGroup only{0, 1};
    grouped.forms_ =
        fill(x, ldx, grouped.same_ ? std::span(&only, 1) : groups, gather, worker, carve(team, own));
    return grouped;
}

RowInput::Sink RowInput::sink(std::byte* shared) const {
    Carver team(shared), own(nullptr);
    Sink made;
    made.input_ = this;
    made.forms_ = carve(team, own).team;
    return made;
}

void RowInput::Sink::put(RowGroup group, int64_t index, int64_t row, int64_t column, int64_t count,
                         const float* values, const Kernels& kernels) const {
    const RowInput& input = *input_;
    if (forms_.i8)  // a leading dimension of 0 makes `values` the row of any number
        kernels.quantise(values, 0, row, row + 1, group.rows, column, column + count, input.cols_,
                         forms_.i8 + input.i8_offset(group.first, index));
    if (forms_.bf16)
        kernels.round_bf16(values, count, forms_.bf16 + (group.first + row) * input.ld_bf16() + column);
}

ReadyRows RowInput::sunk(const Sink& sink, int64_t rows, const Kernels& kernels, std::byte* scratch) const {
    Carver team(nullptr), own(scratch);
    ReadyRows made = ready(sink.forms_, nullptr, 0, {0, rows}, 0);
    add_pairs(made, kernels, carve(team, own));
    return made;
}

RowInput::Grouped RowInput::sunk_groups(const Sink& sink, std::span<const RowGroup> groups) const {
    Grouped grouped;
    grouped.input_ = this;
    grouped.forms_ = sink.forms_;
    grouped.groups_ = groups;
    return grouped;
}

int64_t matmul_scratch(const BindContext& context, const PackedMatrix& w) {
    return context.kernels.matmul_scratch_bytes(w.cols);
}

void multiply(const Product& product, Range strips, const ReadyRows& rows, const Kernels& kernels,
              Numerics numerics, std::byte* scratch) {
    if (strips.empty()) return;
    if (takes_i8(*product.w, numerics)) {
        kernels.matmul_i8(*product.w, strips.first, strips.last, rows.quants, rows.rows, product.y,
                          product.ldy, product.epilogue, scratch);
    } else if (takes_bf16(*product.w, numerics)) {
        kernels.matmul_bf16(*product.w, strips.first, strips.last, rows.halves, rows.ld_halves, rows.pairs,
                            rows.rows, product.y, product.ldy, product.epilogue, scratch);
    } else {
        kernels.matmul_f32(*product.w, strips.first, strips.last, rows.x, rows.ldx, rows.rows, product.y,
                           product.ldy, product.epilogue, scratch);
    }
}

int64_t strip_piece(const Worker& worker, int64_t strips, int64_t rows) {
    if (worker.threads == 1) return strips;
    if (rows <= kPassingRows)
        return worker.piece(strips, rows < kManyRows ? kFewPieces : kManyPieces, kStripGrain);
    const int64_t share = (strips + worker.threads - 1) / worker.threads;
    const int64_t pieces = std::max(int64_t{1}, share / kStripsToPass);
    return (share + pieces * kStripGrain - 1) / (pieces * kStripGrain) * kStripGrain;
}

void multiply_all(std::span<const Product> products, const ReadyRows& rows, Worker& worker, Numerics numerics,
                  std::byte* scratch) {
    int64_t total = 0;
    for (const Product& p : products) total += p.w->strips();
    const auto run = [&](Range all) {
        int64_t before = 0;
        for (const Product& p : products) {
            const int64_t strips = p.w->strips();
            const Range mine{std::max(all.first - before, int64_t{0}), std::min(all.last - before, strips)};
            multiply(p, mine, rows, worker.kernels, numerics, scratch);
            before += strips;
        }
    };
    worker.each(total, kStripGrain, strip_piece(worker, total, rows.rows), run);
}

}  // namespace treadle::inference
