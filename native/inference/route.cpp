#include "inference/route.hpp"

#include <cmath>
#include <limits>

namespace treadle::inference {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Columns of the `count` largest of x[n], largest first, of equals the first; NaN where there is nothing else.
void largest(const float* x, int64_t n, int64_t count, int32_t* columns) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (found == count && !(x[i] > x[columns[count - 1]])) continue;
        int64_t at = found == count ? count - 1 : found++;
        for (; at > 0 && x[i] > x[columns[at - 1]]; --at) columns[at] = columns[at - 1];
        columns[at] = static_cast<int32_t>(i);
    }
}

}  // namespace

Router::Router(const contract::MoEParams& p, const float* correction)
    : experts_(p.num_experts), chosen_(p.experts_per_token), groups_(p.num_groups), top_groups_(p.top_groups),
      score_(static_cast<contract::RouterScore>(p.router_score)), normalise_(p.normalise != 0),
      eps_(p.normalise_eps), scale_(p.routed_scale), correction_(correction) {
    expect(p.router_score <= static_cast<uint32_t>(contract::RouterScore::sigmoid),
           "moe: router_score is unknown");
    expect(p.group_score <= static_cast<uint32_t>(contract::GroupScore::sum_top2),
           "moe: group_score is unknown");
    expect(experts_ >= 1 && groups_ >= 1 && experts_ % groups_ == 0 && top_groups_ >= 1 &&
               top_groups_ <= groups_,
           "moe: " + std::to_string(experts_) + " experts do not make " + std::to_string(groups_) +
               " equal groups of which " + std::to_string(top_groups_) + " are taken");
    expect(chosen_ >= 1 && chosen_ <= experts_ / groups_ * top_groups_,
           "moe: " + std::to_string(chosen_) + " experts a row exceed those of " +
               std::to_string(top_groups_) + " groups");
    counted_ = p.group_score == static_cast<uint32_t>(contract::GroupScore::sum_top2) ? 2 : 1;
    expect(counted_ <= experts_ / groups_, "moe: group_score sum_top2 needs two experts a group");
}

Router::Pieces Router::carve(Carver& carver) const {
    Pieces p{};
    p.scores = carver.take<float>(experts_);
    p.choice = carver.take<float>(experts_);
    p.groups = carver.take<float>(groups_);
    p.best_groups = carver.take<int32_t>(groups_);
    p.masses = carver.take<int64_t>((experts_ + compute::kMassBlock - 1) / compute::kMassBlock);
    return p;
}

int64_t Router::scratch_bytes() const {
    Carver carver(nullptr);
    carve(carver);
    return carver.used();
}

// All NaN where the largest x is not finite or an x is NaN.
void Router::softmax(const float* x, int64_t n, const Kernels& kernels, int64_t* masses, float* y) const {
    const float top = kernels.best(x, n).value;
    if (!std::isfinite(top)) {
        std::fill_n(y, n, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    kernels.weigh(x, top, 1.0f, n, y, masses);
    int64_t total = 0;
    for (int64_t b = 0; b * compute::kMassBlock < n; ++b) total += masses[b];
    const auto sum = static_cast<float>(static_cast<double>(total) /
                                        static_cast<double>(int64_t{1} << compute::kMassBits));
    for (int64_t i = 0; i < n; ++i) y[i] /= sum;
}

// choice[e] = kNever in all groups but the best.
void Router::mask_groups(const Pieces& p) const {
    const int64_t size = experts_ / groups_;
    for (int64_t g = 0; g < groups_; ++g) {
        int32_t best[2];
        largest(p.choice + g * size, size, counted_, best);
        p.groups[g] = p.choice[g * size + best[0]];
        if (counted_ == 2) p.groups[g] += p.choice[g * size + best[1]];
    }
    largest(p.groups, groups_, top_groups_, p.best_groups);
    std::sort(p.best_groups, p.best_groups + top_groups_);
    const int32_t* next = p.best_groups;
    for (int64_t g = 0; g < groups_; ++g) {
        if (next != p.best_groups + top_groups_ && *next == g) ++next;
        else std::fill_n(p.choice + g * size, size, kNever);
    }
}

void Router::route(const float* logits, const Kernels& kernels, std::byte* scratch, int32_t* experts,
                   float* weights) const {
    using contract::RouterScore;
    Carver carver(scratch);
    const Pieces p = carve(carver);
    const float* scores = logits;
    if (score_ == RouterScore::softmax_then_topk) softmax(logits, experts_, kernels, p.masses, p.scores);
    if (score_ == RouterScore::sigmoid)
        kernels.activate(logits, nullptr, experts_, {.kind = compute::Activation::sigmoid}, p.scores);
    if (score_ != RouterScore::topk_then_softmax) scores = p.scores;
    const float* choice = scores;
    if (correction_ || groups_ > 1) {
        std::copy_n(scores, experts_, p.choice);
        if (correction_) kernels.add_scaled(p.choice, correction_, 1.0f, experts_, p.choice);
        if (groups_ > 1) mask_groups(p);
        choice = p.choice;
    }
    largest(choice, experts_, chosen_, experts);
    std::sort(experts, experts + chosen_);
    for (int64_t i = 0; i < chosen_; ++i) weights[i] = scores[experts[i]];
    if (score_ == RouterScore::topk_then_softmax) softmax(weights, chosen_, kernels, p.masses, weights);
    if (normalise_) {
        float sum = 0.0f;
        for (int64_t i = 0; i < chosen_; ++i) sum += weights[i];
        for (int64_t i = 0; i < chosen_; ++i) weights[i] /= sum + eps_;
    }
    for (int64_t i = 0; i < chosen_; ++i) weights[i] *= scale_;
}

}  // namespace treadle::inference
