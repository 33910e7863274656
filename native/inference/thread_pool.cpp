#include "inference/thread_pool.hpp"

#include <chrono>
#include <string>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace treadle::inference {
namespace {

using Clock = std::chrono::steady_clock;

// Looks between two readings of the clock.
constexpr int kLooks = 32;
// Between two steps lies the host's part, some hundreds of microseconds: worth watching this much longer than for a phase.
constexpr int64_t kIdleFactor = 8;

int cpus() {  // that this process may use
    const auto count = static_cast<int>(std::thread::hardware_concurrency());
    return count > 0 ? count : INT32_MAX;
}

void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sleeps while `word` is `old`, and wakes all who do. On Linux the futex itself: the standard library's wait yields first,
// which beside busy processes gives away a whole time slice.
void sleep_while(std::atomic<uint32_t>& word, uint32_t old) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
    word.wait(old, std::memory_order_seq_cst);
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr,
            0);
#else
    word.notify_all();
#endif
}

int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

int64_t since(Clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

}  // namespace

void Signal::bump() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) wake_all(value_);
}

bool Signal::glance(uint32_t old) const {
    for (int i = 0; i < kLooks; ++i) {
        if (value() != old) return true;
        pause_cpu();
    }
    return false;
}

bool Signal::watch(uint32_t old, int64_t ns) const {
    const auto start = Clock::now();
    do {
        if (glance(old)) return true;
    } while (since(start) < ns);
    return false;
}

void Signal::park(uint32_t old) {
    parked_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == old) sleep_while(value_, old);
    parked_.fetch_sub(1, std::memory_order_seq_cst);
}

Barrier::Barrier(int threads, Patience& patience)
    : threads_(threads), crowded_(threads > cpus()), patience_(patience) {}

void Barrier::arrive_and_wait() {
    if (threads_ == 1) return;
    const uint32_t round = round_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.bump();
    } else if (crowded_) {
        round_.park(round);
    } else if (!round_.glance(round)) {
        const bool rewarded = round_.watch(round, patience_.ns());
        patience_.learn(rewarded);
        if (!rewarded) round_.park(round);
    }
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads), process_(process_id()), barrier_(threads, patience_), done_(threads, patience_) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
    if (process_id() != process_) {  // neither joining nor detaching works for threads of another process
        new std::vector<std::thread>(std::move(workers_));
        return;
    }
    stop_.store(true, std::memory_order_release);
    start_.bump();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::check_process() const {
    const int64_t process = process_id();
    if (process == process_) return;
    throw ForkError("the model was loaded in process " + std::to_string(process_) +
                    " and its threads are not in the forked process " + std::to_string(process) +
                    "; load it after the fork, or start processes with the spawn method");
}

void ThreadPool::run(const std::function<void(int)>& task) {
    check_process();
    const std::lock_guard lock(running_);
    task_ = &task;
    start_.bump();
    task(0);
    done_.arrive_and_wait();
}

void ThreadPool::work(int thread) {
    // Signals start at 0 and only run() and the destructor bump them, so no start can be missed.
    for (uint32_t seen = 0;; ++seen) {
        if (barrier_.crowded() || !start_.watch(seen, kIdleFactor * patience_.ns())) start_.park(seen);
        if (stop_.load(std::memory_order_acquire)) return;
        (*task_)(thread);
        done_.arrive_and_wait();
    }
}

}  // namespace treadle::inference
