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

// Rows as matrices take them: f32, and int8 or bf16 where a matrix wants them.
struct ReadyRows {
    const float* x = nullptr;
    int64_t ldx = 0;
    const std::byte* quants = nullptr;
    const uint16_t* halves = nullptr;  // bf16
    int64_t ld_halves = 0;
    int64_t rows = 0;
};

// Prepares the input rows of one or more matrices of `cols` columns.
class RowInput {
  public:
    RowInput() = default;
    RowInput(const BindContext& context, int64_t cols, int64_t max_rows, Norm norm, bool gathers);

    // Every matrix that will read the rows is announced first: it decides which forms are made.
    void serves(const PackedMatrix& w);
    Needs needs() const;

    // All threads call it; on return the rows are complete for the caller. `gather` picks rows of x (null:
    // all). shared and scratch are this object's pieces of the workspace, sized by needs().
    ReadyRows prepare(const float* x, int64_t ldx, int64_t rows, const int32_t* gather, Worker& worker,
                      std::byte* shared, std::byte* scratch) const;

  private:
    // The pieces of the workspace; null where a form is not needed. `own` ones hold few rows.
    struct Forms {
        float* f32 = nullptr;
        std::byte* i8 = nullptr;
        uint16_t* bf16 = nullptr;
    };
    struct Pieces {
        Forms team, own;
        float* row = nullptr;
    };
    Pieces carve(Carver& team, Carver& own) const;
    Forms take(Carver& carver, int64_t rows) const;
    void make(const float* x, int64_t ldx, Range range, int64_t rows, const int32_t* gather,
              const Kernels& kernels, const Forms& to, float* row) const;
    int64_t ld_bf16() const { return (cols_ + 1) / 2 * 2; }

    const Kernels* kernels_ = nullptr;
    int64_t cols_ = 0;
    int64_t max_rows_ = 0;
    bool exact_ = false;
    Norm norm_;
    bool gathers_ = false;
    bool wants_i8_ = false;
    bool wants_bf16_ = false;
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
void multiply(const Product& product, Range strips, const ReadyRows& rows, const Kernels& kernels, bool exact,
              std::byte* scratch);

// Shares and pieces of strips are multiples of this: the most strips that a register tile of any ISA takes.
inline constexpr int64_t kStripGrain = 2;
int64_t strip_piece(const Worker& worker, int64_t strips, int64_t rows);

// Shares the strips of all products among the team.
void multiply_all(std::span<const Product> products, const ReadyRows& rows, Worker& worker, bool exact,
                  std::byte* scratch);

}  // namespace treadle::inference
