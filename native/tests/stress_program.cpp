// Random steps of random programs from many threads at once, for the sanitizers: several programs on one pool, several
// pools, more threads than processors, steps cancelled from elsewhere, programs made and dropped while others run. What
// finishes must have the bits of a plain program on one thread. stress_program SECONDS [SEED]
#include <chrono>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "decoder.hpp"

using namespace treadle;
using namespace treadle::test;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int kSequences = 8, kLongest = 120;

// A model, and the logits of every position of some sequences, made one by one on one thread.
struct Case {
    Case(const Shape& shape, DType type, Numerics numerics, uint64_t seed)
        : model(shape, type), numerics(numerics) {
        Random random(seed);
        Runner runner(model, 1, false, numerics);
        for (int s = 0; s < kSequences; ++s) {
            std::vector<int32_t> ids(kLongest);
            for (int32_t& id : ids) id = static_cast<int32_t>(random.integer(0, shape.vocab - 1));
            expected.push_back(runner.step({{0, 0, ids}}));
            sequences.push_back(std::move(ids));
        }
    }
    Model model;
    Numerics numerics;
    std::vector<std::vector<int32_t>> sequences;
    std::vector<std::vector<float>> expected;  // [kLongest, vocab]
};

std::vector<Case> make_cases(uint64_t seed) {
    const Shape small;
    Shape odd = small;
    odd.hidden = 160, odd.heads = 5, odd.kv_heads = 1, odd.head_dim = 32, odd.inner = 224, odd.vocab = 83;
    odd.layers = 3;
    Shape mixture = small;
    mixture.experts = 9;
    std::vector<Case> cases;
    cases.reserve(12);
    for (const Shape& shape : {small, odd, mixture})
        for (const auto& [type, numerics] : {std::pair{DType::q8_0, Numerics::fast},
                                             {DType::q8_0, Numerics::exact},
                                             {DType::q8_0, Numerics::bf16},
                                             {DType::f32, Numerics::fast}})
            cases.emplace_back(shape, type, numerics, ++seed);
    return cases;
}

// Random steps of one program: each of eight slots is at some place of one of the sequences.
class Player {
  public:
    Player(const Case& c, std::shared_ptr<ThreadPool> pool, const compute::Kernels& kernels, Random& random)
        : case_(c), runner_(c.model, std::move(pool), random.integer(0, 1) == 1, c.numerics, kernels) {}

    void step(Random& random) {
        std::vector<Part> parts;
        int64_t room = case_.model.shape().limits.max_rows;
        for (int slot = 0; slot < kSequences; ++slot) {
            if (random.integer(0, 2) == 0) continue;
            Place& place = places_[slot];
            if (place.at == kLongest || random.integer(0, 40) == 0)
                place = {0, static_cast<int>(random.integer(0, kSequences - 1))};
            const int64_t most = std::min<int64_t>(room - (kSequences - slot), kLongest - place.at);
            const int64_t rows = random.integer(0, 3) ? 1 : random.integer(1, std::max<int64_t>(1, most));
            const auto& ids = case_.sequences[place.sequence];
            parts.push_back({slot, place.at, {ids.begin() + place.at, ids.begin() + place.at + rows}});
            room -= rows;
        }
        if (parts.empty()) return;
        const std::vector<float> logits = runner_.step(parts);
        const float* row = logits.data();
        const int64_t vocab = case_.model.shape().vocab;
        for (const Part& part : parts) {
            Place& place = places_[part.slot];
            const auto count = static_cast<int64_t>(part.ids.size());
            if (!runner_.finished) {
                place.at = 0;  // the states of a cancelled step's slots are undefined
                continue;
            }
            check(std::memcmp(row, case_.expected[place.sequence].data() + place.at * vocab,
                              static_cast<size_t>(count * vocab) * sizeof(float)) == 0,
                  "logits differ from those of one thread");
            row += count * vocab;
            place.at += count;
        }
        ++(runner_.finished ? finished : cancelled);
    }

    void cancel() { runner_.program.cancel(); }

    int64_t finished = 0, cancelled = 0;

  private:
    struct Place {
        int64_t at = 0;
        int sequence = 0;
    };
    const Case& case_;
    Runner runner_;
    Place places_[kSequences];
};

struct Totals {
    std::mutex mutex;
    int64_t programs = 0, finished = 0, cancelled = 0;
    void add(const Player& player) {
        const std::lock_guard lock(mutex);
        ++programs;
        finished += player.finished;
        cancelled += player.cancelled;
    }
};

// One thread's programs, one after the other, on its own pool or the one that all share.
void play(const std::vector<Case>& cases, const std::shared_ptr<ThreadPool>& common, Clock::time_point end,
          uint64_t seed, Totals& totals) {
    Random random(seed);
    while (Clock::now() < end) {
        const auto isas = compute::supported_kernels();
        const auto pool = random.integer(0, 2)
                              ? common
                              : std::make_shared<ThreadPool>(static_cast<int>(random.integer(1, 5)));
        Player player(cases[random.integer(0, static_cast<int64_t>(cases.size()) - 1)], pool,
                      *isas[random.integer(0, static_cast<int64_t>(isas.size()) - 1)], random);
        std::atomic<bool> done{false};
        std::thread other;
        if (random.integer(0, 1)) {
            other = std::thread([&, pause = random.integer(50, 3000)] {
                while (!done) {
                    std::this_thread::sleep_for(std::chrono::microseconds(pause));
                    player.cancel();
                }
            });
        }
        for (int64_t steps = random.integer(1, 200); steps > 0 && Clock::now() < end; --steps)
            player.step(random);
        done = true;
        if (other.joinable()) other.join();
        totals.add(player);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 10.0;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device()();
    std::printf("stress: %.0f s, seed %llu\n", seconds, static_cast<unsigned long long>(seed));
    std::fflush(stdout);
    const std::vector<Case> cases = make_cases(seed);
    const auto end =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    const auto common = std::make_shared<ThreadPool>(3);
    Totals totals;
    std::vector<std::thread> players;
    for (int i = 0; i < 3; ++i)
        players.emplace_back(
            [&, i] { play(cases, common, end, seed + 1000 + static_cast<uint64_t>(i), totals); });
    for (std::thread& player : players) player.join();
    std::printf("%lld programs, %lld steps finished, %lld cancelled\n",
                static_cast<long long>(totals.programs), static_cast<long long>(totals.finished),
                static_cast<long long>(totals.cancelled));
    check(totals.finished > 0, "no step finished");
    return report("stress");
}
