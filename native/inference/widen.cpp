#include "inference/widen.hpp"

namespace treadle::inference {
namespace {

constexpr int64_t kFloats = 128 * 1024;

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

int64_t widen_floats(int64_t max_rows) {
    return std::max(kFloats, max_rows * kStripGrain * compute::kStripRows);
}

int64_t widen_strips(int64_t floats, int64_t rows) {
    return floats / (rows * kStripGrain * compute::kStripRows) * kStripGrain;
}

void widen(const Widening& w, Range strips, const ReadyRows& rows, const Inner& inner, float* scratch,
           const Kernels& kernels, Numerics numerics, std::byte* matmul) {
    const int64_t column = strips.first * compute::kStripRows, end = strips.last * compute::kStripRows;
    const int64_t width = std::min(end, w.up.rows) - column, ld = end - column;
    const bool gated = w.gate.rows != 0;
    float* up = gated ? scratch + rows.rows * ld : scratch;
    // A kernel writes at the strips' own columns: the piece's first column lies at the scratch's beginning.
    if (gated)
        multiply({&w.gate, scratch - column, ld, {.bias = w.gate_bias}}, strips, rows, kernels, numerics,
                 matmul);
    multiply({&w.up, up - column, ld, {.bias = w.up_bias}}, strips, rows, kernels, numerics, matmul);
    for (int64_t r = 0; r < rows.rows; ++r) {
        float* made = scratch + r * ld;
        float* to = inner.sink.floats(inner.group, r, column);
        if (to == nullptr) to = made;
        kernels.activate(made, gated ? up + r * ld : nullptr, width, w.activation, to);
        inner.sink.put(inner.group, inner.index, r, column, width, to, kernels);
    }
}

}  // namespace treadle::inference
