// What the recurrent kernels of kernels.hpp take: consecutive rows of one sequence, and what it carries from one call to
// the next. Every sum has one fixed order, so the same rows in one call or in many give the same bits.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

inline constexpr int64_t kConvWidth = 64;  // the widest convolution

// Taps [channels, width] of a float type.
struct Convolution {
    PackedMatrix taps;
    const float* bias = nullptr;  // [channels] or null
    ActivationParams activation{.kind = Activation::none};
};

// A causal convolution of each channel by itself. conv_t = bias + sum over k, ascending, of taps[:, k] * u_{t - width + 1 +
// k} with u = before * x, and y = after * activation(conv).
struct ConvRows {
    int64_t rows;
    const float* x;  // [rows, ldx]; all pointers are at channel 0
    int64_t ldx;
    const float* before = nullptr;  // [rows, ldx] or null: ones
    const float* after = nullptr;   // [rows, ldx] or null
    float* tail;                    // [width - 1, channels]: the last u, oldest first; updated
    int64_t channels;
    float* y;  // [rows, ldy]; may be x or before
    int64_t ldy;
};

// h = decay_t * h + b_t (dt_t x_t)^T and y_t = skip * x_t + sum over ascending n of c_t[n] * h[n], for one head.
struct HeadScan {
    int64_t rows, dim, depth;
    const float* x;  // [rows, ldx]
    int64_t ldx;
    const float *dt, *decay;  // one number a row, ld_steps apart
    int64_t ld_steps;
    const float *b, *c;  // [rows, ld_bc]
    int64_t ld_bc;
    float skip;
    float* state;  // h [depth, dim]; updated
    float* y;      // [rows, ldy]; not x
    int64_t ldy;
};

// The same where every channel and n has a decay of its own, e^(dt_t * rate[n]).
struct ChannelScan {
    int64_t rows, channels, depth;
    const float* x;  // [rows, ldx]
    int64_t ldx;
    const float* dt;  // [rows, ld_dt]
    int64_t ld_dt;
    const float *b, *c;  // [rows, ld_bc]
    int64_t ld_bc;
    const float* rate;  // [depth, ld_state]
    const float* skip;  // [channels]
    float* state;       // [depth, ld_state]; updated
    int64_t ld_state;
    float* y;  // [rows, ldy]; neither x nor dt
    int64_t ldy;
};

// S = decay_t * S + k_t delta_t^T with delta_t = beta_t * (v_t - decay_t * S^T k_t), then y_t = S^T q_t, for one head.
struct DeltaRule {
    int64_t rows, key_dim, dim;
    const float *q, *k;  // [rows, ld_qk]
    int64_t ld_qk;
    const float* v;  // [rows, ldv]
    int64_t ldv;
    const float *decay, *beta;  // one number a row, ld_steps apart
    int64_t ld_steps;
    float* state;  // S [key_dim, dim]; updated
    float* y;      // [rows, ldy]; may be v
    int64_t ldy;
};

}  // namespace treadle::compute
