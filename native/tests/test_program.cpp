// The bound program end to end on a small random decoder: the same bits whatever the threads, the batch, the
// chunking and the fusions; refusals before anything runs; cancellation. Also what the thread and address
// sanitizers run.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

#include "decoder.hpp"

using namespace treadle;
using namespace treadle::inference;
using namespace treadle::test;

namespace {

#define CHECK(condition) \
    check((condition), std::string(__FILE__ ":") + std::to_string(__LINE__) + ": " #condition)

const Shape kShape;
const int64_t kVocab = kShape.vocab, kLayers = kShape.layers;

std::vector<int32_t> text(int64_t length, int seed) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i)
        ids.push_back(static_cast<int32_t>((i * 7 + seed * 13 + i * i) % kVocab));
    return ids;
}

// Logits of every position of a sequence, fed in chunks, among `others` that decode along.
std::vector<float> logits(Runner& runner, const std::vector<int32_t>& ids, int64_t chunk, int others) {
    std::vector<float> out;
    for (int64_t at = 0, turn = 0; at < static_cast<int64_t>(ids.size()); at += chunk, ++turn) {
        std::vector<Part> parts;
        for (int o = 0; o < others; ++o)
            parts.push_back({o + 1, turn, {static_cast<int32_t>((turn + o) % kVocab)}});
        const auto end = std::min<int64_t>(at + chunk, static_cast<int64_t>(ids.size()));
        parts.push_back({0, at, {ids.begin() + at, ids.begin() + end}});
        const std::vector<float> all = runner.step(parts);
        out.insert(out.end(), all.begin() + others * kVocab, all.end());
    }
    return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_bits(DType type, int64_t experts = 0) {
    const std::vector<int32_t> ids = text(121, 1);
    Shape shape;
    shape.experts = experts;
    for (const Numerics numerics : {Numerics::fast, Numerics::bf16, Numerics::exact}) {
        Model model(shape, type);
        Runner plain(model, 1, false, numerics);
        const std::vector<float> expected = logits(plain, ids, 121, 0);
        float largest = 0.0f;
        for (const float v : expected) {
            CHECK(std::isfinite(v));
            largest = std::max(largest, std::fabs(v));
        }
        CHECK(largest > 0.01f);
        CHECK(plain.counters.launches == 1);
        CHECK(plain.counters.dispatches[3] == (experts ? kLayers : 0));
        CHECK(plain.counters.dispatches[1] == kLayers && plain.counters.dispatches[8] == 2 * kLayers);
        for (const int threads : {1, 2, 3}) {
            for (const bool fused : {false, true}) {
                Runner runner(model, threads, fused, numerics);
                for (const auto& [chunk, others] : {std::pair{121, 0}, {1, 0}, {7, 6}, {64, 1}}) {
                    CHECK(same(expected, logits(runner, ids, chunk, others)));
                }
                if (fused) CHECK(runner.counters.dispatches[128] > 0 && runner.counters.dispatches[1] == 0);
            }
        }
    }
}

// A sequence long enough that few rows split its keys among the threads.
void test_long() {
    Model model(kShape, DType::q8_0);
    const std::vector<int32_t> ids = text(600, 2);
    std::vector<float> expected;
    for (const int threads : {1, 2, 3}) {
        Runner runner(model, threads, true, Numerics::fast);
        for (const int64_t last : {1, 3, 50}) {
            std::vector<float> tail;
            for (int64_t at = 0; at < 600;) {
                const int64_t rows = at >= 550 ? last : 110;
                const int64_t end = std::min<int64_t>(600, at + rows);
                const std::vector<float> out = runner.step({{7, at, {ids.begin() + at, ids.begin() + end}}});
                if (at >= 550) tail.insert(tail.end(), out.begin(), out.end());
                at = end;
            }
            if (expected.empty()) expected = tail;
            CHECK(same(expected, tail));
        }
    }
}

// Greedy rows are the first largest logit, whether the logits are written or not; draws depend on the row alone.
void test_choices(int64_t rows) {
    Model model(kShape, DType::q8_0);
    const std::vector<int32_t> ids = text(rows, 4);
    std::vector<std::vector<int32_t>> drawn;
    for (const int threads : {1, 2, 3}) {
        for (const bool fused : {false, true}) {
            Runner runner(model, threads, fused, Numerics::fast);
            const std::vector<float> expected = runner.step({{0, 0, ids}});
            contract::SampledRow row{.top_p = 1.0, .repetition_penalty = 1.0f, .logprobs = -1, .chooses = 1};
            runner.asked.assign(static_cast<size_t>(rows), row);
            runner.step({{0, 0, ids}});
            for (int64_t r = 0; r < rows; ++r) {
                const auto first = expected.begin() + r * kVocab;
                const auto largest = std::max_element(first, first + kVocab);
                CHECK(runner.chosen[r] == largest - first && runner.best[r] == *largest);
            }
            const std::vector<int32_t> greedy = runner.chosen;
            for (int64_t r = 0; r < rows; ++r) {
                runner.asked[r].temperature = 2.0f;
                runner.asked[r].top_p = r % 2 ? 0.9 : 1.0;
                runner.asked[r].position = static_cast<uint64_t>(r);
            }
            runner.edits = {{.row = rows - 1, .forbidden = {greedy.data() + rows - 1, 1}}};
            CHECK(same(expected, runner.step({{0, 0, ids}})));
            CHECK(runner.chosen[rows - 1] != greedy[rows - 1]);
            CHECK(rows < 4 || runner.chosen != greedy);
            drawn.push_back(runner.chosen);
            CHECK(drawn.back() == drawn.front());
        }
    }
}

template <typename F>
bool refuses(F&& call) {
    try {
        call();
    } catch (const StepError&) {
        return true;
    }
    return false;
}

void test_refusals() {
    Model model(kShape, DType::f32);
    Runner runner(model, 2, true, Numerics::fast);
    CHECK(refuses([&] { runner.step({}); }));
    CHECK(refuses([&] { runner.step({{0, 0, {static_cast<int32_t>(kVocab)}}}); }));
    CHECK(refuses([&] { runner.step({{0, 0, {-1}}}); }));
    CHECK(refuses([&] { runner.step({{0, -1, {1}}}); }));
    CHECK(refuses([&] { runner.step({{0, 0, text(129, 1)}}); }));
    CHECK(refuses([&] { runner.step({{0, 320, {1}}}); }));  // its page is -1
    CHECK(refuses([&] { runner.step({{7, 639, {1, 2}}}); }));
    CHECK(!refuses([&] { runner.step({{0, 0, {1}}}); }));
    const auto outside = static_cast<int32_t>(kVocab);
    runner.asked.resize(1);
    CHECK(!refuses([&] { runner.step({{0, 0, {1}}}); }));
    CHECK(refuses([&] { runner.step({{0, 0, {1, 2}}}); }));  // one record for two rows
    runner.edits = {{.row = 0, .forbidden = {&outside, 1}}};
    CHECK(refuses([&] { runner.step({{0, 0, {1}}}); }));
    runner.edits = {{.row = 1}};
    CHECK(refuses([&] { runner.step({{0, 0, {1}}}); }));
}

void test_bind_errors() {
    Model model(kShape, DType::f32);
    const Memory memory(kShape);
    auto pool = std::make_shared<ThreadPool>(1);
    const auto bind = [&](auto&& change) {
        std::vector<Instruction> list = model.instructions(memory, false);
        change(list);
        try {
            Program(pool, compute::kernels(), Numerics::fast, kShape.limits, list);
        } catch (const BindError&) {
            return true;
        }
        return false;
    };
    CHECK(!bind([](auto&) {}));
    CHECK(bind([](auto& list) { list[0].opcode = 40; }));
    CHECK(bind([](auto& list) { list[1].weights.clear(); }));
    CHECK(bind([](auto& list) { list[2].weights[0].matrix.cols = 32; }));
    CHECK(bind([](auto& list) { list[2].params[0].abi_version = 9; }));
    CHECK(bind([](auto& list) { list[2].state.page_bytes += 64; }));
    CHECK(bind([](auto& list) { list[2].outputs.clear(); }));
    CHECK(bind([](auto& list) { list[3].inputs.pop_back(); }));
}

// Experts that are not there, or whose choice could not be made, are refused before anything runs.
void test_hostile_experts() {
    Shape shape;
    shape.experts = 6;
    Model model(shape, DType::f32);
    const Memory memory(shape);
    auto pool = std::make_shared<ThreadPool>(1);
    const auto bind = [&](auto&& change) {
        std::vector<Instruction> list = model.instructions(memory, false);
        auto* moe = &*std::find_if(list.begin(), list.end(), [](const auto& in) { return in.opcode == 3; });
        change(*moe, *reinterpret_cast<contract::MoEParams*>(moe->params[0].payload.data()));
        try {
            Program(pool, compute::kernels(), Numerics::fast, shape.limits, list);
        } catch (const BindError&) {
            return true;
        }
        return false;
    };
    CHECK(!bind([](auto&, auto&) {}));
    CHECK(bind([](auto&, auto& p) { p.experts_per_token = 0; }));
    CHECK(bind([](auto&, auto& p) { p.experts_per_token = 5; }));  // two groups hold four
    CHECK(bind([](auto&, auto& p) { p.num_experts = 9; }));
    CHECK(bind([](auto&, auto& p) { p.num_experts = 0; }));
    CHECK(bind([](auto&, auto& p) { p.num_groups = 4; }));
    CHECK(bind([](auto&, auto& p) { p.num_groups = 0; }));
    CHECK(bind([](auto&, auto& p) { p.top_groups = 4; }));
    CHECK(bind([](auto&, auto& p) { p.router_score = 3; }));
    CHECK(bind([](auto&, auto& p) { p.group_score = 2; }));
    CHECK(bind([](auto&, auto& p) { p.activation = 99; }));
    CHECK(bind([](auto&, auto& p) { p.intermediate += 16; }));
    CHECK(bind([](auto&, auto& p) { p.shared_intermediate += 16; }));
    CHECK(bind([](auto& in, auto&) { in.weights[4].matrices = 5; }));
    CHECK(bind([](auto& in, auto&) { in.weights[5] = {}; }));
    CHECK(bind([](auto& in, auto&) { in.weights[6].matrix.rows = 5; }));
    CHECK(bind([](auto& in, auto&) { in.weights[2].size = 5; }));
}

// Vectors of whole sequences are the same bits alone and in any company, on any number of threads; NaN in the workspace
// changes nothing.
void test_encoder(DType type, DType kv) {
    Shape shape;
    shape.causal = false;
    shape.limits = {
        .max_rows = 300, .max_batch = 6, .max_sampled = 300, .max_seq_len = 200, .state_pages = 0};
    Model model(shape, type, kv);
    const std::vector<int64_t> lengths{200, 3, 33, 64};
    for (const Numerics numerics : {Numerics::fast, Numerics::bf16, Numerics::exact}) {
        std::vector<float> expected;
        for (const int threads : {1, 2, 3}) {
            for (const bool fused : {false, true}) {
                Runner runner(model, threads, fused, numerics);
                std::memset(runner.workspace.data(), 0xff,
                            static_cast<size_t>(runner.program.workspace_bytes()));
                std::vector<float> alone;
                std::vector<Part> parts;
                for (const int64_t length : lengths) {
                    parts.push_back(
                        {static_cast<int>(parts.size()), 0, text(length, static_cast<int>(length))});
                    const std::vector<float> one = runner.step({parts.back()});
                    alone.insert(alone.end(), one.begin(), one.end());
                }
                if (expected.empty()) expected = alone;
                for (const float v : alone) CHECK(std::isfinite(v));
                CHECK(same(expected, alone));
                CHECK(same(expected, runner.step(parts)));
                CHECK(refuses([&] { runner.step({{0, 1, {1, 2}}}); }));
                CHECK(refuses([&] { runner.step({{0, 0, text(201, 1)}}); }));
            }
        }
    }
}

void test_cancel() {
    Model model(kShape, DType::q8_0);
    Runner runner(model, 3, true, Numerics::fast);
    std::vector<float> whole = logits(runner, text(40, 3), 40, 0);
    std::atomic<bool> stop{false};
    std::jthread other([&] {
        while (!stop) runner.program.cancel();
    });
    int cancelled = 0;
    for (int i = 0; i < 50; ++i) {
        runner.step({{0, 0, text(40, 3)}});
        cancelled += !runner.finished;
    }
    stop = true;
    other.join();
    CHECK(cancelled > 0);
    CHECK(same(whole, logits(runner, text(40, 3), 40, 0)));
}

}  // namespace

int main() {
    test_bits(DType::f32);
    test_bits(DType::q8_0);
    test_bits(DType::f32, 6);
    test_bits(DType::q8_0, 6);
    test_long();
    for (const int64_t rows : {1, 5, 40, 100}) test_choices(rows);
    test_refusals();
    test_bind_errors();
    test_hostile_experts();
    test_encoder(DType::f32, DType::f32);
    test_encoder(DType::q8_0, DType::bf16);
    test_encoder(DType::q8_0, DType::f16);
    test_cancel();
    return report("program");
}
