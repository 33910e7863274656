// Ops that treat each row alone: embedding, norms, residual_add.
#include "inference/adapters.hpp"
#include "inference/linear.hpp"

namespace treadle::inference {
namespace {

class EmbeddingOp final : public Op {
  public:
    explicit EmbeddingOp(const Instruction& in)
        : params_(in.params[0].as<contract::EmbeddingParams>()), ids_(in.inputs[0]), out_(in.outputs[0]) {
        table_ = matrix(in.weights[0], params_.vocab, out_.cols, "table");
        if (params_.max_positions != 0)
            positions_ = matrix(in.weights[1], params_.max_positions, out_.cols, "positions");
        if (params_.types != 0) types_ = matrix(in.weights[2], params_.types, out_.cols, "types");
        if (in.inputs.size() > 1) type_ids_ = in.inputs[1];
    }

    Needs needs() const override {
        Carver own(nullptr);
        own.take<float>(out_.cols);
        return {0, own.used()};
    }

    void check(const Step& step) const override {
        for (int64_t r = 0; r < step.rows; ++r) {
            const int32_t id = ids_.i32()[r];
            if (id < 0 || id >= table_.rows) {
                throw StepError("embedding: id " + std::to_string(id) + " in row " + std::to_string(r) +
                                " is outside [0, " + std::to_string(table_.rows) + ")");
            }
            if (positions_.data && step.row_position[r] + params_.position_offset >= positions_.rows) {
                throw StepError("embedding: position " + std::to_string(step.row_position[r]) +
                                " is past the table");
            }
            if (types_.data && type_ids_.data &&
                (type_ids_.i32()[r] < 0 || type_ids_.i32()[r] >= types_.rows)) {
                throw StepError("embedding: type " + std::to_string(type_ids_.i32()[r]) +
                                " is outside the table");
            }
        }
    }

    void run(const Step& step, Worker& worker) const override {
        float* row = reinterpret_cast<float*>(worker.scratch);
        const Kernels& k = worker.kernels;
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range rows) {
            for (int64_t r = rows.first; r < rows.last; ++r) {
                float* y = out_.f32() + r * out_.cols;
                k.unpack_row(table_, ids_.i32()[r], y);
                if (params_.scale != 1.0f) k.scale(y, params_.scale, out_.cols, y);
                if (positions_.data)
                    add_row(k, positions_, step.row_position[r] + params_.position_offset, row, y);
                if (types_.data) add_row(k, types_, type_ids_.data ? type_ids_.i32()[r] : 0, row, y);
            }
        });
    }

    int64_t planned_bytes(const Step& step) const override {
        return step.rows * (table_.strip_bytes / compute::kStripRows);
    }

  private:
    void add_row(const Kernels& k, const PackedMatrix& table, int64_t index, float* row, float* y) const {
        k.unpack_row(table, index, row);
        k.add_scaled(y, row, 1.0f, out_.cols, y);
    }

    contract::EmbeddingParams params_;
    Register ids_, type_ids_, out_;
    PackedMatrix table_{}, positions_{}, types_{};
};

class NormOp final : public Op {
  public:
    explicit NormOp(const Instruction& in)
        : norm_(bind_norm(in.params[0], in.weights, in.inputs[0].cols)), x_(in.inputs[0]), y_(in.outputs[0]) {
        expect(x_.cols == y_.cols, "norm: input and output differ in width");
    }

    void run(const Step& step, Worker& worker) const override {
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range rows) {
            for (int64_t r = rows.first; r < rows.last; ++r)
                norm_.apply(worker.kernels, x_.f32() + r * x_.cols, x_.cols, y_.f32() + r * y_.cols);
        });
    }

  private:
    Norm norm_;
    Register x_, y_;
};

class ResidualAddOp final : public Op {
  public:
    explicit ResidualAddOp(const Instruction& in)
        : scale_(in.params[0].as<contract::ResidualAddParams>().scale), a_(in.inputs[0]), b_(in.inputs[1]),
          y_(in.outputs[0]) {
        expect(a_.cols == b_.cols && a_.cols == y_.cols, "residual_add: operands differ in width");
    }

    void run(const Step& step, Worker& worker) const override {
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range rows) {
            const int64_t at = rows.first * y_.cols;
            worker.kernels.add_scaled(a_.f32() + at, b_.f32() + at, scale_,
                                      (rows.last - rows.first) * y_.cols, y_.f32() + at);
        });
    }

  private:
    float scale_;
    Register a_, b_, y_;
};

}  // namespace

std::unique_ptr<Op> bind_embedding(const Instruction& in, const BindContext&, RopeTables&) {
    return std::make_unique<EmbeddingOp>(in);
}

std::unique_ptr<Op> bind_norm_op(const Instruction& in, const BindContext&, RopeTables&) {
    return std::make_unique<NormOp>(in);
}

std::unique_ptr<Op> bind_residual_add(const Instruction& in, const BindContext&, RopeTables&) {
    return std::make_unique<ResidualAddOp>(in);
}

}  // namespace treadle::inference
