// From a row of logits to a column: what contract::Sampling asks of each sampled row.
#pragma once

#include "compute/choose.hpp"
#include "inference/op.hpp"

namespace treadle::inference {

// Whether any row's values are needed as such, not just the largest of them.
bool needs_values(const contract::Sampling& sampling);

// Throws StepError where the rows do not match the step, or an edit is not of a row or column.
void check_sampling(const contract::Sampling& sampling, int64_t sampled, int64_t cols);

// Row `index`: edits, draw, log-probabilities (of the values as they are). `values` [cols] are read only if
// needs_values(); `best` is their best. scratch: compute::choose_scratch_bytes(cols).
void choose_row(const Kernels& kernels, const contract::Sampling& sampling, int64_t index,
                const float* values, int64_t cols, const compute::Best& best, std::byte* scratch);

}  // namespace treadle::inference
