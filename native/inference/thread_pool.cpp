#include "inference/thread_pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace treadle::inference {
namespace {

// Some tens of microseconds between phases of a step, some hundreds between steps (the host's part of a
// decode step).
constexpr int kSpins = 600;
constexpr int kIdleSpins = 5000;

void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

bool oversubscribed(int threads) {
    const unsigned cpus = std::thread::hardware_concurrency();
    return cpus != 0 && static_cast<unsigned>(threads) > cpus;
}

}  // namespace

void Signal::bump() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) value_.notify_all();
}

uint32_t Signal::wait_change(uint32_t old, int spins) const {
    for (int i = 0; i < spins; ++i) {
        const uint32_t now = value_.load(std::memory_order_acquire);
        if (now != old) return now;
        pause_cpu();
    }
    parked_.fetch_add(1, std::memory_order_seq_cst);
    uint32_t now;
    while ((now = value_.load(std::memory_order_seq_cst)) == old) value_.wait(old, std::memory_order_seq_cst);
    parked_.fetch_sub(1, std::memory_order_seq_cst);
    return now;
}

void Barrier::arrive_and_wait() {
    if (threads_ == 1) return;
    const uint32_t round = round_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.bump();
    } else {
        round_.wait_change(round, spins_);
    }
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads), idle_spins_(oversubscribed(threads) ? 0 : kIdleSpins),
      barrier_(threads, oversubscribed(threads) ? 0 : kSpins),
      done_(threads, oversubscribed(threads) ? 0 : kSpins) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true, std::memory_order_release);
    start_.bump();
}

void ThreadPool::run(const std::function<void(int)>& task) {
    task_ = &task;
    start_.bump();
    task(0);
    done_.arrive_and_wait();
}

void ThreadPool::work(int thread) {
    // Signals start at 0 and only run() and the destructor bump them, so no start can be missed.
    for (uint32_t seen = 0;;) {
        seen = start_.wait_change(seen, idle_spins_);
        if (stop_.load(std::memory_order_acquire)) return;
        (*task_)(thread);
        done_.arrive_and_wait();
    }
}

}  // namespace treadle::inference
