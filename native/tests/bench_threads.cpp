// What the thread pool costs, and what it keeps when the machine is oversubscribed: decode steps of a SmolLM2-shaped
// decoder by one engine, by two at once (their sum), by one beside a busy process on every core, and by one with more
// threads than cores. Every engine is a process of its own. bench_threads [threads] [seconds a point; 0: the barrier alone]
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>

#include "decoder.hpp"

using namespace treadle;
using namespace treadle::test;
using Clock = std::chrono::steady_clock;

namespace {

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void bench_barrier(int threads) {
    ThreadPool pool(threads);
    constexpr int kRounds = 20000;
    const auto meet = [&](int) {
        for (int i = 0; i < kRounds; ++i) pool.barrier().arrive_and_wait();
    };
    pool.run(meet);
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
        const auto start = Clock::now();
        pool.run(meet);
        best = std::min(best, since(start));
    }
    const auto start = Clock::now();
    for (int i = 0; i < kRounds; ++i) pool.run([](int) {});
    std::printf("%d threads: barrier %.0f ns, run %.0f ns\n", threads, best / kRounds * 1e9,
                since(start) / kRounds * 1e9);
}

constexpr Shape kShape{
    .hidden = 576,
    .heads = 9,
    .kv_heads = 3,
    .head_dim = 64,
    .inner = 1536,
    .vocab = 8192,
    .layers = 30,
    .limits = {.max_rows = 64, .max_batch = 8, .max_sampled = 8, .max_seq_len = 640, .state_pages = 180}};

// Decode steps a second of a process of its own, which writes the figure to `out`.
pid_t engine(const Model& model, int threads, double seconds, int out) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    Runner runner(model, threads, true, Numerics::fast);
    for (int i = 0; i < 8; ++i) runner.step({{0, i, {1}}});
    int steps = 0;
    const auto start = Clock::now();
    while (since(start) < seconds) runner.step({{0, 8 + steps++ % 300, {1}}});
    const double rate = steps / since(start);
    if (write(out, &rate, sizeof rate) != sizeof rate) _exit(1);
    _exit(0);
}

double engines(const Model& model, int count, int threads, double seconds) {
    int ends[2];
    if (pipe(ends) != 0) return 0.0;
    std::vector<pid_t> pids;
    for (int i = 0; i < count; ++i) pids.push_back(engine(model, threads, seconds, ends[1]));
    for (const pid_t pid : pids) waitpid(pid, nullptr, 0);
    double sum = 0.0, rate = 0.0;
    for (int i = 0; i < count && read(ends[0], &rate, sizeof rate) == sizeof rate; ++i) sum += rate;
    close(ends[0]);
    close(ends[1]);
    return sum;
}

pid_t burner() {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    for (volatile uint64_t i = 0;;) i = i + 1;
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
    const double seconds = argc > 2 ? std::atof(argv[2]) : 2.0;
    bench_barrier(threads);
    if (seconds <= 0.0) return 0;
    const Model model(kShape, DType::q8_0);
    const double one = engines(model, 1, threads, seconds);
    std::printf("one engine: %.1f steps/s\n", one);
    std::printf("one engine on 1 thread: x%.2f\n", engines(model, 1, 1, seconds) / one);
    for (const int count : {2, 4}) {
        const double sum = engines(model, count, threads, seconds);
        std::printf("%d engines at once, sum: x%.2f\n", count, sum / one);
    }
    for (const int factor : {2, 4}) {
        const double rate = engines(model, 1, factor * threads, seconds);
        std::printf("%d threads: x%.2f\n", factor * threads, rate / one);
    }
    std::vector<pid_t> busy;
    for (int i = 0; i < threads; ++i) busy.push_back(burner());
    std::printf("beside %d busy processes: x%.2f\n", threads, engines(model, 1, threads, seconds) / one);
    std::printf("the same on 1 thread: x%.2f\n", engines(model, 1, 1, seconds) / one);
    for (const pid_t pid : busy) {
        kill(pid, SIGKILL);
        waitpid(pid, nullptr, 0);
    }
    return 0;
}
