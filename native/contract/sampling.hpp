// What a step is to choose from the rows whose logits it computes. Mirror of inference/sampling.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace treadle::contract {

// What is asked of one sampled row (inference/sampling.py SAMPLED_ROW, compared at import).
struct SampledRow {
    double top_p = 1.0;
    uint64_t seed = 0, stream = 0, position = 0;  // they alone decide where a draw falls
    float temperature = 0.0f;                     // 0: the largest value
    float min_p = 0.0f;
    float repetition_penalty = 1.0f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
    int32_t top_k = 0;      // 0: all
    int32_t logprobs = -1;  // of the chosen column and of that many others; < 0: none
    int32_t chooses = 1;    // 0: nothing is chosen, the host reads the row
};

// Changes to a copy of a row before anything is chosen from it, in this order.
struct RowEdits {
    int64_t row = 0;  // among the sampled ones
    std::span<const int32_t> bias_columns = {};
    std::span<const float> bias = {};         // added
    std::span<const int32_t> forbidden = {};  // set to -inf
    std::span<const int32_t> seen = {};       // penalised, by how often each was chosen:
    std::span<const float> counts = {};
};

// What is asked of all sampled rows, and where the answers go.
struct Sampling {
    std::span<const SampledRow> rows;
    std::span<const RowEdits> edits;
    int32_t* chosen;  // [rows]
    float*
        best;  // [rows] the largest value; where it is not finite nothing was drawn and `chosen` is its column
    int64_t listed;  // columns of the tables below, of which a row fills 1 + logprobs: the chosen one first
    int32_t* listed_columns;
    int32_t* listed_ranks;  // 1 for the largest value
    double* listed_logprobs;
};

struct SampledRowField {
    const char* name;
    size_t offset;
};

// clang-format off
#define TREADLE_SAMPLED_ROW(field) {#field, offsetof(SampledRow, field)}
inline constexpr SampledRowField kSampledRow[] = {
    TREADLE_SAMPLED_ROW(top_p), TREADLE_SAMPLED_ROW(seed), TREADLE_SAMPLED_ROW(stream), TREADLE_SAMPLED_ROW(position),
    TREADLE_SAMPLED_ROW(temperature), TREADLE_SAMPLED_ROW(min_p), TREADLE_SAMPLED_ROW(repetition_penalty),
    TREADLE_SAMPLED_ROW(frequency_penalty), TREADLE_SAMPLED_ROW(presence_penalty), TREADLE_SAMPLED_ROW(top_k),
    TREADLE_SAMPLED_ROW(logprobs), TREADLE_SAMPLED_ROW(chooses),
};
#undef TREADLE_SAMPLED_ROW
// clang-format on

}  // namespace treadle::contract
