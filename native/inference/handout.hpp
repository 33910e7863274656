// How the items of a phase come to the threads of a team. Each thread has an equal share of its own, always the same
// one; when that is done it takes pieces of the shares of others. So a core that is slower (another kind of core, or one
// that is lent to another process) gets less, and on equal cores nobody ever waits for a counter.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace treadle::inference {

struct Range {
    int64_t first, last;
    bool empty() const { return first >= last; }
};

// A thread's part of `count` items, in whole multiples of `grain`.
inline Range share(int64_t count, int64_t grain, int thread, int threads) {
    const int64_t units = (count + grain - 1) / grain;
    return {std::min(count, units * thread / threads * grain),
            std::min(count, units * (thread + 1) / threads * grain)};
}

// The counters of a team. All threads of a step make the same handouts in the same order; handout number n counts in
// set n % kSets, and fewer than kSets / 2 handouts lie between two barriers. So when a thread comes to handout n, all
// have left n - kSets / 2, and none can have come to n + kSets / 2, which uses the same set: its counter is cleared then.
class Handouts {
  public:
    explicit Handouts(int threads) : threads_(threads), taken_(static_cast<size_t>(kSets * threads)) {}

    void clear() {
        for (Taken& taken : taken_) taken.items.store(0, std::memory_order_relaxed);
    }

    // Calls body(range) with pieces until all of `count` items are given out. Shares and pieces are multiples of grain.
    template <typename Body>
    void each(int64_t handout, int thread, int64_t count, int64_t grain, int64_t piece, Body&& body) {
        counter(handout + kSets / 2, thread).store(0, std::memory_order_relaxed);
        for (int i = 0; i < threads_; ++i) {
            const int owner = (thread + i) % threads_;
            const Range range = share(count, grain, owner, threads_);
            const int64_t size = range.last - range.first;
            std::atomic<int64_t>& taken = counter(handout, owner);
            while (taken.load(std::memory_order_relaxed) < size) {
                const int64_t first = range.first + taken.fetch_add(piece, std::memory_order_relaxed);
                if (first >= range.last) break;
                body(Range{first, std::min(range.last, first + piece)});
            }
        }
    }

  private:
    static constexpr int64_t kSets = 16;
    struct alignas(64) Taken {
        std::atomic<int64_t> items{0};
    };
    std::atomic<int64_t>& counter(int64_t handout, int thread) {
        return taken_[static_cast<size_t>(handout % kSets * threads_ + thread)].items;
    }

    const int threads_;
    std::vector<Taken> taken_;
};

}  // namespace treadle::inference
