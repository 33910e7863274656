// Timed passes of the probe loops on several threads at once.
#include "compute/probe.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace treadle::compute {
namespace {

using Clock = std::chrono::steady_clock;

// Runs work(thread) on every thread at once, `repeats` times; the seconds of the fastest pass. prepare(thread) goes first.
double fastest_pass(int threads, int repeats, const std::function<void(int)>& prepare,
                    const std::function<void(int)>& work) {
    std::barrier sync(threads);
    std::vector<double> seconds(static_cast<size_t>(repeats));
    const auto body = [&](int thread) {
        prepare(thread);
        for (int r = 0; r < repeats; ++r) {
            sync.arrive_and_wait();
            const auto start = Clock::now();
            work(thread);
            sync.arrive_and_wait();
            if (thread == 0)
                seconds[static_cast<size_t>(r)] = std::chrono::duration<double>(Clock::now() - start).count();
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
    body(0);
    for (std::thread& t : others) t.join();
    return *std::min_element(seconds.begin(), seconds.end());
}

// Billions of operations a second of a loop that returns how many it did; its passes take about 20 ms.
template <class T>
double gop_s(int64_t (*loop)(int64_t rounds, T* sink), int threads, int repeats) {
    constexpr size_t kLine = 64 / sizeof(T);
    std::vector<T> sinks(static_cast<size_t>(threads) * kLine);
    int64_t rounds = 1 << 10, operations = 0;
    for (;; rounds *= 2) {
        const auto start = Clock::now();
        operations = loop(rounds, sinks.data());
        if (Clock::now() - start > std::chrono::milliseconds(20)) break;
    }
    const double seconds = fastest_pass(
        threads, repeats, [](int) {}, [&](int t) { loop(rounds, &sinks[static_cast<size_t>(t) * kLine]); });
    return static_cast<double>(operations) * threads / seconds / 1e9;
}

}  // namespace

double probe_read_gb_s(const Kernels& k, int threads, int64_t bytes, int repeats) {
    constexpr int64_t kUnit = 4096;
    const int64_t share = std::max(bytes / threads / kUnit, int64_t{1}) * kUnit;
    struct Free {
        void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::vector<std::unique_ptr<std::byte, Free>> data(static_cast<size_t>(threads));
    std::vector<int32_t> sinks(static_cast<size_t>(threads) * 16);
    const double seconds = fastest_pass(
        threads, repeats,
        [&](int t) {  // each thread touches its own memory first
            auto* p =
                static_cast<std::byte*>(::operator new(static_cast<size_t>(share), std::align_val_t{64}));
            std::memset(p, t + 1, static_cast<size_t>(share));
            data[static_cast<size_t>(t)].reset(p);
        },
        [&](int t) {
            k.probe_read(data[static_cast<size_t>(t)].get(), share, &sinks[static_cast<size_t>(t) * 16]);
        });
    return static_cast<double>(share) * threads / seconds / 1e9;
}

double probe_int8_gop_s(const Kernels& k, int threads, int repeats) {
    return gop_s(k.probe_dot, threads, repeats);
}

double probe_bf16_gop_s(const Kernels& k, int threads, int repeats) {
    return gop_s(k.probe_bf16, threads, repeats);
}

double probe_f32_gop_s(const Kernels& k, int threads, int repeats) {
    return gop_s(k.probe_fma, threads, repeats);
}

}  // namespace treadle::compute
