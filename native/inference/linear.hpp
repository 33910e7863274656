// Matrix products inside an op: rows made ready once (normalised, quantised), then any number of matrices
// over them.
#pragma once

#include "inference/op.hpp"

namespace treadle::inference {

// A norm fused in front of an op; absent means that rows are taken as they are.
struct Norm {
    bool present = false;
    bool centred = false;  // LayerNorm, else RMS norm
    const float* gain = nullptr;
    const float* bias = nullptr;
    float gain_offset = 0.0f;
    float eps = 0.0f;

    void apply(const Kernels& kernels, const float* x, int64_t cols, float* y) const {
        if (centred) {
            kernels.layernorm(x, gain, bias, eps, cols, y);
        } else {
            kernels.rmsnorm(x, gain, gain_offset, eps, cols, y);
        }
    }
};

// From a norm's own parameter block and weights (gain; gain, bias).
Norm bind_norm(const ParamBlock& params, std::span<const Weight> weights, int64_t cols);

// A residual_add fused behind an op: residual + scale * output. Absent means that the output is as it is.
struct Residual {
    Register rows;
    float scale = 1.0f;

    bool present() const { return rows.data != nullptr; }
    compute::Epilogue epilogue(const float* bias) const {
        compute::Epilogue made{.bias = bias};
        if (present()) {
            made.residual = rows.f32();
            made.ld_residual = rows.cols;
            made.scale = scale;
        }
        return made;
    }
};

// An op between a norm and a residual_add; both are absent where it stands alone.
struct Fused {
    Norm norm;
    Residual residual;
};

// Whether an instruction stands for a norm, an op and a residual_add.
inline bool is_fused(const Instruction& in) { return in.params.size() == 3; }

// The op's own parameters.
template <typename T>
const T& params_of(const Instruction& in) {
    return in.params[is_fused(in) ? 1 : 0].as<T>();
}

// `norm_slot`: where the norm's weights begin. `name`: of the op, in what is thrown.
Fused bind_fused(const Instruction& in, size_t norm_slot, const char* name);

// Rows as matrices take them: f32, and int8 or bf16 where a matrix wants them.
struct ReadyRows {
    const float* x = nullptr;
    int64_t ldx = 0;
    const std::byte* quants = nullptr;
    const uint16_t* halves = nullptr;  // bf16
    int64_t ld_halves = 0;
    const uint16_t* pairs = nullptr;  // of halves, where they help
    int64_t rows = 0;
};

// Prepared rows [first, first + rows) that matrices of their own take.
struct RowGroup {
    int64_t first, rows;
};

// Prepares the input rows of one or more matrices of `cols` columns.
class RowInput {
    // The pieces of the workspace; null where a form is not needed. `own` ones hold few rows.
    struct Forms {
        float* f32 = nullptr;
        std::byte* i8 = nullptr;
        uint16_t* bf16 = nullptr;
    };

  public:
    RowInput() = default;
    // `max_rows`, `max_groups`: of what is prepared at once. `copies`: f32 rows are not read where they lie, because they are
    // gathered, or because they come to a Sink.
    RowInput(const BindContext& context, int64_t cols, int64_t max_rows, Norm norm, bool copies,
             int64_t max_groups = 1);

    // Every matrix that will read the rows is announced first: it decides which forms are made.
    void serves(const PackedMatrix& w);
    Needs needs() const;

    // All threads call it; on return the rows are complete for the caller. `gather` picks rows of x (null:
    // all). shared and scratch are this object's pieces of the workspace, sized by needs().
    ReadyRows prepare(const float* x, int64_t ldx, int64_t rows, const int32_t* gather, Worker& worker,
                      std::byte* shared, std::byte* scratch) const;

    // The same by one thread, for itself, in a scratch of alone_bytes().
    ReadyRows prepare_alone(const float* x, int64_t ldx, int64_t rows, const Kernels& kernels,
                            std::byte* scratch) const;
    int64_t alone_bytes() const;

    // Rows that are cut into groups.
    class Grouped {
      public:
        ReadyRows group(int64_t index) const {
            if (same_) return input_->ready(forms_, x_, ldx_, {0, 1}, 0);
            return input_->ready(forms_, x_, ldx_, groups_[static_cast<size_t>(index)], index);
        }

      private:
        friend class RowInput;
        const RowInput* input_ = nullptr;
        Forms forms_;
        const float* x_ = nullptr;
        int64_t ldx_ = 0;
        std::span<const RowGroup> groups_;
        bool same_ = false;  // all groups are the one row that there is
    };

    // The same for groups that follow one another from row 0 on; of `source_rows` rows where `gather` picks them.
    Grouped prepare_groups(const float* x, int64_t ldx, int64_t source_rows, std::span<const RowGroup> groups,
                           const int32_t* gather, Worker& worker, std::byte* shared,
                           std::byte* scratch) const;

    // Rows that an op makes itself: any thread puts columns of any row, whole blocks of them where a matrix takes int8, and
    // after a barrier all are ready.
    class Sink {
      public:
        // Columns of a row that follow `column` in f32, to be written before put() is called; null where no matrix takes them.
        float* floats(RowGroup group, int64_t row, int64_t column) const {
            return forms_.f32 ? forms_.f32 + (group.first + row) * input_->cols_ + column : nullptr;
        }
        // Columns [column, column + count) of row `row` of a group, to the other forms.
        void put(RowGroup group, int64_t index, int64_t row, int64_t column, int64_t count,
                 const float* values, const Kernels& kernels) const;

      private:
        friend class RowInput;
        const RowInput* input_ = nullptr;
        Forms forms_;
    };
    Sink sink(std::byte* shared) const;
    ReadyRows sunk(const Sink& sink, int64_t rows, const Kernels& kernels, std::byte* scratch) const;
    Grouped sunk_groups(const Sink& sink, std::span<const RowGroup> groups) const;

  private:
    struct Pieces {
        Forms team, own;
        float* row = nullptr;
        uint16_t* pairs = nullptr;
    };
    Pieces carve(Carver& team, Carver& own) const;
    Forms take(Carver& carver, int64_t rows, int64_t groups) const;
    Forms fill(const float* x, int64_t ldx, std::span<const RowGroup> groups, const int32_t* gather,
               Worker& worker, const Pieces& pieces) const;
    void make(const float* x, int64_t ldx, Range range, std::span<const RowGroup> groups,
              const int32_t* gather, const Kernels& kernels, const Forms& to, float* row) const;
    ReadyRows ready(const Forms& forms, const float* x, int64_t ldx, RowGroup group, int64_t index) const;
    void add_pairs(ReadyRows& rows, const Kernels& kernels, const Pieces& pieces) const;
    // In lines, no multiple of four: 32 rows of a block of columns then lie in different sets of the first cache.
    int64_t ld_bf16() const {
        constexpr int64_t kLine = compute::kAlign / 2;
        const int64_t lines = (cols_ + kLine - 1) / kLine;
        return (lines % 4 == 0 ? lines + 2 : lines) * kLine;
    }
    // Where a group's quants begin: aligned, whatever the groups before it.
    int64_t i8_offset(int64_t first, int64_t index) const {
        return (kernels_->quant_bytes(first, cols_) + compute::kAlign - 1) / compute::kAlign *
                   compute::kAlign +
               index * compute::kAlign;
    }

    const Kernels* kernels_ = nullptr;
    int64_t cols_ = 0;
    int64_t max_rows_ = 0;
    int64_t max_groups_ = 1;
    Numerics numerics_ = Numerics::fast;
    Norm norm_;
    bool copies_ = false;
    bool wants_i8_ = false;
    bool wants_bf16_ = false;
    bool wants_pairs_ = false;
    bool wants_f32_ = false;
};

// One product of a set: y[:, matrix row] = epilogue(x w^T).
struct Product {
    const PackedMatrix* w = nullptr;
    float* y = nullptr;
    int64_t ldy = 0;
    compute::Epilogue epilogue{};
};

int64_t matmul_scratch(const BindContext& context, const PackedMatrix& w);

// Runs the strips [range) of one product.
void multiply(const Product& product, Range strips, const ReadyRows& rows, const Kernels& kernels,
              Numerics numerics, std::byte* scratch);

// Shares and pieces of strips are multiples of this: the most strips that a register tile of any ISA takes.
inline constexpr int64_t kStripGrain = 2;
int64_t strip_piece(const Worker& worker, int64_t strips, int64_t rows);

// Shares the strips of all products among the team.
void multiply_all(std::span<const Product> products, const ReadyRows& rows, Worker& worker, Numerics numerics,
                  std::byte* scratch);

}  // namespace treadle::inference
