#include "inference/choose_row.hpp"

#include <cmath>
#include <limits>

namespace treadle::inference {
namespace {

using contract::RowEdits;
using contract::SampledRow;

void apply(const RowEdits& edits, const SampledRow& row, float* values) {
    for (size_t i = 0; i < edits.bias.size(); ++i) values[edits.bias_columns[i]] += edits.bias[i];
    for (const int32_t column : edits.forbidden) values[column] = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < edits.seen.size(); ++i) {
        float& v = values[edits.seen[i]];
        v = v > 0.0f ? v / row.repetition_penalty : v * row.repetition_penalty;
        if (edits.counts[i] > 0.0f) v -= row.frequency_penalty * edits.counts[i] + row.presence_penalty;
    }
}

void check_columns(std::span<const int32_t> columns, int64_t cols) {
    for (const int32_t column : columns) {
        if (column < 0 || column >= cols)
            throw StepError("sampling: column " + std::to_string(column) + " of " + std::to_string(cols));
    }
}

}  // namespace

bool needs_values(const contract::Sampling& sampling) {
    return !sampling.edits.empty() || std::any_of(sampling.rows.begin(), sampling.rows.end(), [](auto& row) {
        return !row.chooses || row.temperature > 0.0f || row.logprobs >= 0;
    });
}

void check_sampling(const contract::Sampling& sampling, int64_t sampled, int64_t cols) {
    if (static_cast<int64_t>(sampling.rows.size()) != sampled)
        throw StepError("sampling of " + std::to_string(sampling.rows.size()) + " rows for " +
                        std::to_string(sampled));
    for (const SampledRow& row : sampling.rows) {
        if (row.logprobs >= sampling.listed)
            throw StepError("sampling: " + std::to_string(row.logprobs) +
                            " log-probabilities exceed the table");
    }
    for (const RowEdits& edits : sampling.edits) {
        if (edits.row < 0 || edits.row >= sampled || edits.bias.size() != edits.bias_columns.size() ||
            edits.counts.size() != edits.seen.size())
            throw StepError("sampling: edits of row " + std::to_string(edits.row) + " do not fit");
        check_columns(edits.bias_columns, cols);
        check_columns(edits.forbidden, cols);
        check_columns(edits.seen, cols);
    }
}

void choose_row(const Kernels& kernels, const contract::Sampling& s, int64_t index, const float* values,
                int64_t cols, const compute::Best& best, std::byte* scratch) {
    const SampledRow& row = s.rows[index];
    if (!row.chooses) return;
    const auto choose = [&](const compute::Best& found) {
        s.best[index] = found.value;
        s.chosen[index] = static_cast<int32_t>(found.col);
        return std::isfinite(found.value);
    };
    if (!choose(best)) return;
    const float* chosen_from = values;
    const auto edits =
        std::find_if(s.edits.begin(), s.edits.end(), [&](const RowEdits& each) { return each.row == index; });
    if (edits != s.edits.end()) {
        float* copy = reinterpret_cast<float*>(scratch);
        std::copy_n(values, cols, copy);
        apply(*edits, row, copy);
        if (!choose(kernels.best(copy, cols))) return;
        chosen_from = copy;
    }
    if (row.temperature > 0.0f) {
        const compute::Draw draw{row.temperature, row.top_k, row.min_p, row.top_p,
                                 compute::random_bits(row.seed, row.stream, row.position)};
        s.chosen[index] =
            static_cast<int32_t>(compute::draw(kernels, chosen_from, cols, s.best[index], draw, scratch));
    }
    if (row.logprobs >= 0) {
        const int64_t at = index * s.listed;
        compute::log_probabilities(
            kernels, values, cols, best.value, s.chosen[index], std::min<int64_t>(row.logprobs, cols),
            {s.listed_columns + at, s.listed_ranks + at, s.listed_logprobs + at}, scratch);
    }
}

}  // namespace treadle::inference
