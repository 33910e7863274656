// The shortest time of a call, for micro-benchmarks.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>

namespace treadle::test {

// Of as many calls as fit `budget` seconds.
inline double best_seconds(const std::function<void()>& f, double budget = 0.3) {
    using Clock = std::chrono::steady_clock;
    double best = 1e9, total = 0;
    while (total < budget) {
        const auto start = Clock::now();
        f();
        const double s = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::min(best, s);
        total += s;
    }
    return best;
}

}  // namespace treadle::test
