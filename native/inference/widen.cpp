#include "inference/widen.hpp"

namespace treadle::inference {
namespace {

constexpr int64_t kFloats = 64 * 1024;

}  // namespace

compute::ActivationParams activation_of(uint32_t kind, float alpha, float limit) {
    using compute::Activation;
    using contract::ActivationKind;
    compute::ActivationParams a{.limit = limit, .alpha = alpha};
    switch (static_cast<ActivationKind>(kind)) {
        case ActivationKind::silu:
            a.kind = Activation::silu;
            return a;
        case ActivationKind::gelu:
            a.kind = Activation::gelu;
            return a;
        case ActivationKind::gelu_tanh:
            a.kind = Activation::gelu_tanh;
            return a;
        case ActivationKind::relu:
            a.kind = Activation::relu;
            return a;
        case ActivationKind::relu2:
            a.kind = Activation::relu2;
            return a;
        case ActivationKind::tanh:
            a.kind = Activation::tanh;
            return a;
        case ActivationKind::sigmoid:
            a.kind = Activation::sigmoid;
            return a;
        case ActivationKind::identity:
            a.kind = Activation::none;
            return a;
        case ActivationKind::swiglu_clamped:
            a.kind = Activation::swiglu_clamped;
            return a;
    }
    throw BindError("activation " + std::to_string(kind) + " is unknown");
}

int64_t widen_floats(int64_t max_rows) { return std::max(kFloats, max_rows * compute::kStripRows); }

int64_t widen_strips(int64_t floats, int64_t rows) {
    const int64_t strips = floats / (rows * compute::kStripRows);
    return std::max(int64_t{1}, strips / kStripGrain * kStripGrain);
}

void widen(const Widening& w, Range strips, const ReadyRows& rows, float* inner, float* scratch,
           const Kernels& kernels, Numerics numerics, std::byte* matmul) {
    const int64_t ld = w.up.rows, column = strips.first * compute::kStripRows;
    const int64_t width = std::min(strips.last * compute::kStripRows, ld) - column;
    const bool gated = w.gate.rows != 0;
    if (gated) {
        multiply({&w.gate, inner, ld, {.bias = w.gate_bias}}, strips, rows, kernels, numerics, matmul);
        // The kernel writes at the strip's own column: the piece's first column lies at scratch[0].
        multiply({&w.up, scratch - column, width, {.bias = w.up_bias}}, strips, rows, kernels, numerics,
                 matmul);
    } else {
        multiply({&w.up, inner, ld, {.bias = w.up_bias}}, strips, rows, kernels, numerics, matmul);
    }
    for (int64_t r = 0; r < rows.rows; ++r) {
        float* y = inner + r * ld + column;
        kernels.activate(y, gated ? scratch + r * width : nullptr, width, w.activation, y);
    }
}

}  // namespace treadle::inference
