// Choosing a column of a row of values: one drawn with probability proportional to e^(value / temperature) among the
// most probable; and the log-probabilities of some. By bounds and histograms: no row is ever sorted. Every result is a
// function of its arguments alone, the same on every ISA. compute/reference/sampling.py defines it.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

struct Draw {
    float temperature;  // > 0
    int64_t top_k;      // the k largest values, with all that equal the k-th; 0: all
    float min_p;        // those with weight >= min_p
    double top_p;       // then the fewest largest weights whose share reaches top_p, equals by column; 1: all
    uint64_t random;    // uniform: decides which of the kept columns it is
};

// Columns with their rank (from 1 on) and log-probability.
struct Ranking {
    int32_t *columns, *ranks;
    double* values;
};

// The best of two parts of one row.
inline Best better(const Best& a, const Best& b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan) return a_nan ? a : b;
    if (!a_nan && a.value != b.value) return a.value > b.value ? a : b;
    return a.col < b.col ? a : b;
}

// Of one thread; for draw() and log_probabilities() of rows of up to `cols` <= kMassCols columns.
int64_t choose_scratch_bytes(int64_t cols);

// `x` [cols] without NaN, `largest` its largest value, which is finite. x may be the first `cols` floats of `scratch`.
int64_t draw(const Kernels& kernels, const float* x, int64_t cols, float largest, const Draw& draw,
             std::byte* scratch);

// log(e^x / sum(e^x)) of `chosen` to place 0, then of the `count` <= cols largest values. x does not lie in scratch.
void log_probabilities(const Kernels& kernels, const float* x, int64_t cols, float largest, int64_t chosen,
                       int64_t count, const Ranking& out, std::byte* scratch);

// Philox4x64-10 (Salmon et al. 2011), first word; counter (position, stream, 0, 0), key (seed, 0).
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t position);

}  // namespace treadle::compute
