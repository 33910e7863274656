// A fixed team of threads that runs one function at a time on all of them, and the barrier they meet at.
//
// A waiter first watches the counter, then parks. How long it watches adapts to how waits have ended: on a machine of
// its own a wait takes microseconds and parking would cost more than the phase; on one that is oversubscribed the thread
// waited for may not even be running, and watching keeps it from its processor.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace treadle::inference {

// A pool used in a process forked from the one that made it: the team's other threads are not there.
struct ForkError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// How long waiters at the barriers of a pool watch before they park. Grows with every wait that ends while it is
// watched, halves with every one that does not.
class Patience {
  public:
    static constexpr int64_t kLeast = 2'000, kMost = 300'000;

    int64_t ns() const { return ns_.load(std::memory_order_relaxed); }
    void learn(bool rewarded) {
        const int64_t now = ns();
        const int64_t next = rewarded ? std::min(kMost, now + now / 4) : std::max(kLeast, now / 2);
        if (next != now) ns_.store(next, std::memory_order_relaxed);
    }

  private:
    std::atomic<int64_t> ns_{kMost};
};

// A counter that waiters watch.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void bump();                                 // makes a new value and wakes all waiters
    bool glance(uint32_t old) const;             // looks for about a microsecond; true if it changed
    bool watch(uint32_t old, int64_t ns) const;  // the same for a given time
    void park(uint32_t old);                     // returns when it has changed

  private:
    alignas(64) std::atomic<uint32_t> value_{0};
    alignas(64) std::atomic<int32_t> parked_{0};
};

class Barrier {
  public:
    Barrier(int threads, Patience& patience);
    void arrive_and_wait();
    // More threads than processors: whoever is waited for needs the processor that watching would keep.
    bool crowded() const { return crowded_; }

  private:
    const int threads_;
    const bool crowded_;
    Patience& patience_;
    alignas(64) std::atomic<int> arrived_{0};
    Signal round_;
};

class ThreadPool {
  public:
    explicit ThreadPool(int threads);  // the caller's thread is one of them
    ~ThreadPool();                     // in a forked child: forgets the threads, which only the parent has
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }
    Barrier& barrier() { return barrier_; }
    // Runs task(thread) for thread 0 (the caller) .. threads - 1 and returns when all have. `task` must not
    // throw. Callers take turns. Throws ForkError.
    void run(const std::function<void(int)>& task);
    void check_process() const;  // throws ForkError in a process forked after the pool was made

  private:
    void work(int thread);

    const int threads_;
    const int64_t process_;
    alignas(64) Patience patience_;
    Barrier barrier_;
    Signal start_;
    Barrier done_;
    std::atomic<bool> stop_{false};
    const std::function<void(int)>* task_ = nullptr;
    std::mutex running_;
    std::vector<std::thread> workers_;
};

}  // namespace treadle::inference
