// Cosines and sines of the step's positions, made once a step and shared by every layer with the same
// frequencies.
#pragma once

#include <deque>

#include "inference/op.hpp"

namespace treadle::inference {

struct RopeTable {
    const float* inv_freq;
    int64_t half;
    float factor;
    float* cosine = nullptr;  // [max_rows, half]
    float* sine = nullptr;
};

class RopeTables {
  public:
    // The table for these frequencies; equal requests share one. The pointer stays valid.
    const RopeTable* add(const float* inv_freq, int64_t half, float factor) {
        for (const RopeTable& table : tables_) {
            if (table.inv_freq == inv_freq && table.half == half && table.factor == factor) return &table;
        }
        tables_.push_back({inv_freq, half, factor});
        return &tables_.back();
    }

    void place(Carver& carver, int64_t max_rows) {
        for (RopeTable& table : tables_) {
            table.cosine = carver.take<float>(max_rows * table.half);
            table.sine = carver.take<float>(max_rows * table.half);
        }
    }

    // Every thread fills its share of rows; the caller synchronises.
    void fill(const Step& step, Worker& worker) const {
        worker.each(step.rows, worker.piece(step.rows, 4), [&](Range rows) {
            for (const RopeTable& table : tables_) {
                for (int64_t r = rows.first; r < rows.last; ++r) {
                    compute::rope_table(table.inv_freq, table.half, static_cast<float>(step.row_position[r]),
                                        table.factor, table.cosine + r * table.half,
                                        table.sine + r * table.half);
                }
            }
        });
    }

  private:
    std::deque<RopeTable> tables_;
};

}  // namespace treadle::inference
