// contract::Sampling over the arrays of Python's Sampling (inference/sampling.py); part of the bindings.
#pragma once

#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "inference/choose_row.hpp"

namespace treadle {

namespace nb = nanobind;

template <typename T>
using Row = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Rows = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// row, bias columns, bias, forbidden, seen, counts
using EditTuple = std::tuple<int64_t, Row<const int32_t>, Row<const float>, Row<const int32_t>,
                             Row<const int32_t>, Row<const float>>;
// rows as bytes, edits; chosen, best; listed columns, ranks, log-probabilities
using SamplingTuple = std::tuple<Rows<const uint8_t>, std::vector<EditTuple>, Row<int32_t>, Row<float>,
                                 Rows<int32_t>, Rows<int32_t>, Rows<double>>;

template <typename T>
std::span<T> span_of(const Row<T>& a) {
    return {a.data(), a.size()};
}

// contract::Sampling over the arrays of a SamplingTuple, which must outlive it.
struct SamplingView {
    explicit SamplingView(const SamplingTuple& arrays) {
        const auto& [rows, changes, chosen, best, columns, ranks, logprobs] = arrays;
        const size_t count = rows.shape(0), listed = columns.shape(1);
        if (rows.shape(1) != sizeof(contract::SampledRow) ||
            reinterpret_cast<uintptr_t>(rows.data()) % alignof(contract::SampledRow) != 0)
            throw inference::StepError("sampling: rows of " + std::to_string(rows.shape(1)) + " bytes");
        const auto fits = [&](const auto& table) {
            return table.shape(0) >= count && table.shape(1) == listed;
        };
        if (chosen.size() < count || best.size() < count || !fits(columns) || !fits(ranks) || !fits(logprobs))
            throw inference::StepError("sampling: the tables for the answers are too small");
        for (const auto& [row, bias_columns, bias, forbidden, seen, counts] : changes)
            edits.push_back({row, span_of(bias_columns), span_of(bias), span_of(forbidden), span_of(seen),
                             span_of(counts)});
        sampling = {{reinterpret_cast<const contract::SampledRow*>(rows.data()), count},
                    edits,
                    chosen.data(),
                    best.data(),
                    static_cast<int64_t>(listed),
                    columns.data(),
                    ranks.data(),
                    logprobs.data()};
    }
    std::vector<contract::RowEdits> edits;
    contract::Sampling sampling;
};

}  // namespace treadle
