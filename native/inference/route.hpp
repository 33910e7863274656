// A router's choice of experts: compute/reference/moe.py, `route`, says what it is.
#pragma once

#include "inference/op.hpp"

namespace treadle::inference {

class Router {
  public:
    Router() = default;
    // Throws BindError for params that leave a row without enough experts to choose from.
    Router(const contract::MoEParams& params, const float* correction);

    int64_t experts() const { return experts_; }
    int64_t chosen() const { return chosen_; }
    int64_t scratch_bytes() const;  // of one thread
    // Of a row's logits [experts]: its experts, ascending, and their weights, both [chosen].
    void route(const float* logits, const Kernels& kernels, std::byte* scratch, int32_t* experts,
               float* weights) const;

  private:
    struct Pieces {
        float *scores, *choice, *groups;
        int32_t* best_groups;
        int64_t* masses;
    };
    Pieces carve(Carver& carver) const;
    void softmax(const float* x, int64_t n, const Kernels& kernels, int64_t* masses, float* y) const;
    void mask_groups(const Pieces& p) const;

    int64_t experts_ = 0, chosen_ = 0, groups_ = 1, top_groups_ = 1;
    contract::RouterScore score_ = contract::RouterScore::softmax_then_topk;
    int64_t counted_ = 1;  // best experts that make a group's score
    bool normalise_ = false;
    float eps_ = 0.0f, scale_ = 1.0f;
    const float* correction_ = nullptr;
};

}  // namespace treadle::inference
