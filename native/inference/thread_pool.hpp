// A fixed team of threads that runs one function at a time on all of them, and the barrier they meet at.
// Waiting spins for some microseconds, then parks, so that an oversubscribed machine does not collapse.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace treadle::inference {

// A counter that waiters watch. Cheap while changes come quickly; parks the waiter when they do not.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void bump();                                          // makes a new value and wakes all waiters
    uint32_t wait_change(uint32_t old, int spins) const;  // returns the new value

  private:
    alignas(64) std::atomic<uint32_t> value_{0};
    alignas(64) mutable std::atomic<int32_t> parked_{0};
};

class Barrier {
  public:
    explicit Barrier(int threads, int spins) : threads_(threads), spins_(spins) {}
    void arrive_and_wait();

  private:
    const int threads_;
    const int spins_;
    alignas(64) std::atomic<int> arrived_{0};
    Signal round_;
};

class ThreadPool {
  public:
    explicit ThreadPool(int threads);  // the caller's thread is one of them
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }
    Barrier& barrier() { return barrier_; }
    // Runs task(thread) for thread 0 (the caller) .. threads - 1 and returns when all have. `task` must not
    // throw. One run at a time: the caller holds the lock of its engine.
    void run(const std::function<void(int)>& task);

  private:
    void work(int thread);

    const int threads_;
    const int idle_spins_;
    Barrier barrier_;
    Signal start_;
    Barrier done_;
    std::atomic<bool> stop_{false};
    const std::function<void(int)>* task_ = nullptr;
    std::vector<std::jthread> workers_;
};

}  // namespace treadle::inference
