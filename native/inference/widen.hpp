// The first half of a feed-forward block: act(gate x) * up x, or act(up x) where there is no gate.
#pragma once

#include "inference/linear.hpp"

namespace treadle::inference {

// Throws BindError for an activation that is not known.
compute::ActivationParams activation_of(uint32_t kind, float alpha, float limit);

struct Widening {
    PackedMatrix gate{};  // no rows: none
    PackedMatrix up{};
    const float *gate_bias = nullptr, *up_bias = nullptr;
    compute::ActivationParams activation{};
};

// Floats of a projection that a thread holds at once, so that gate and up of a piece stay in its cache; a scratch holds both.
int64_t widen_floats(int64_t max_rows);
// Strips that fit in them, in whole grains.
int64_t widen_strips(int64_t floats, int64_t rows);

// Where the inner rows of a group go.
struct Inner {
    const RowInput::Sink& sink;
    RowGroup group;
    int64_t index;
};

// The columns of strips [strips), which begin with a whole grain, of the inner rows. scratch: 2 * rows * columns floats.
void widen(const Widening& w, Range strips, const ReadyRows& rows, const Inner& inner, float* scratch,
           const Kernels& kernels, Numerics numerics, std::byte* matmul);

}  // namespace treadle::inference
