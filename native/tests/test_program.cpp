// The bound program end to end on a small random decoder: the same bits whatever the threads, the batch, the
// chunking and the fusions; refusals before anything runs; cancellation. Also what the thread and address
// sanitizers run.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "inference/program.hpp"

using namespace treadle;
using namespace treadle::inference;
using compute::DType;

namespace {

int failures = 0;

#define CHECK(condition)                                                \
    do {                                                                \
        if (!(condition)) {                                             \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                 \
        }                                                               \
    } while (0)

constexpr int64_t kHidden = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kInner = 96, kVocab = 50,
                  kLayers = 2;
constexpr int64_t kPageTokens = 16, kPages = 180;
constexpr contract::StepLimits kLimits{
    .max_rows = 128, .max_batch = 8, .max_sampled = 128, .max_seq_len = 640, .state_pages = kPages};

// 64-byte aligned storage.
struct Buffer {
    explicit Buffer(int64_t bytes)
        : data(static_cast<std::byte*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)))) {
        std::memset(data, 0, static_cast<size_t>((bytes + 63) / 64 * 64));
    }
    Buffer(Buffer&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
    ~Buffer() { std::free(data); }
    std::byte* data;
};

template <typename T>
ParamBlock block(const T& params) {
    ParamBlock out;
    out.abi_version = T::kVersion;
    out.opcode = T::kOpcode;
    std::memcpy(out.payload.data(), &params, sizeof(T));
    return out;
}

// A decoder with random weights, and the memory that a program over it needs.
class Model {
  public:
    explicit Model(DType type) : type_(type) {
        for (int i = 0; i < 12; ++i) registers_.emplace_back(kLimits.max_rows * 128 * 4);
        const int64_t page = kPageTokens * kKvHeads * 2 * kHeadDim * 4;
        for (int i = 0; i < kLayers; ++i) states_.emplace_back(page * kPages);
        table_ = matrix(kVocab, kHidden);
        inv_freq_ = vector(kHeadDim / 2);
        for (int i = 0; i < kLayers; ++i) {
            layers_.push_back({vector(kHidden), matrix(kHeads * kHeadDim, kHidden),
                               matrix(kKvHeads * kHeadDim, kHidden), matrix(kKvHeads * kHeadDim, kHidden),
                               matrix(kHidden, kHeads * kHeadDim), vector(kHidden), matrix(kInner, kHidden),
                               matrix(kInner, kHidden), matrix(kHidden, kInner)});
        }
        norm_ = vector(kHidden);
    }

    std::vector<Instruction> instructions(bool fused) {
        std::vector<Instruction> out;
        out.push_back({7,
                       {reg(0, 1)},
                       {reg(1, kHidden)},
                       {table_, {}, {}},
                       {block(contract::EmbeddingParams{.vocab = kVocab, .scale = 1.0f})},
                       {}});
        Register x = reg(1, kHidden);
        const ParamBlock norm = block(contract::RMSNormParams{.eps = 1e-5f});
        const ParamBlock add = block(contract::ResidualAddParams{.scale = 1.0f});
        for (int i = 0; i < kLayers; ++i) {
            const Layer& l = layers_[i];
            contract::AttentionParams a{.num_heads = kHeads,
                                        .num_kv_heads = kKvHeads,
                                        .head_dim = kHeadDim,
                                        .v_head_dim = kHeadDim,
                                        .scale = 0.25f,
                                        .causal = 1};
            a.window = i == 1 ? 100 : 0;
            a.rotary_dim = kHeadDim;
            a.rope_scale = 1.0f;
            const std::vector<Weight> attention{l.q, l.k, l.v, l.o, {}, {},        {},
                                                {},  {},  {},  {},  {}, inv_freq_, {}};
            const State state{states_[i].data, kPageTokens * kKvHeads * 2 * kHeadDim * 4, kPageTokens};
            const Register middle = reg(2 + 4 * i, kHidden);
            // Register mapping may give the head's output the buffer of its norm's input, which dies at the norm.
            const Register end = reg(i == kLayers - 1 ? 11 : 3 + 4 * i, kHidden);
            add_block(out, fused, 1, 128, x, middle, attention, l.attention_norm, block(a), norm, add, state);
            const std::vector<Weight> mlp{l.gate, l.up, l.down, {}, {}, {}};
            const ParamBlock p = block(contract::SwiGLUParams{.intermediate = kInner, .gated = 1});
            add_block(out, fused, 2, 129, middle, end, mlp, l.mlp_norm, p, norm, add, {});
            x = end;
        }
        const ParamBlock head = block(contract::LMHeadParams{.vocab = kVocab, .scale = 1.0f});
        if (fused) {
            out.push_back({130, {x}, {reg(11, kVocab)}, {table_, {}, norm_}, {norm, head}, {}});
        } else {
            out.push_back({0, {x}, {reg(10, kHidden)}, {norm_}, {norm}, {}});
            out.push_back({11, {reg(10, kHidden)}, {reg(11, kVocab)}, {table_, {}}, {head}, {}});
        }
        return out;
    }

    int32_t* ids() { return reinterpret_cast<int32_t*>(registers_[0].data); }
    const float* logits() { return reinterpret_cast<const float*>(registers_[11].data); }

  private:
    struct Layer {
        Weight attention_norm, q, k, v, o, mlp_norm, gate, up, down;
    };

    Register reg(int index, int64_t cols) { return {registers_[index].data, cols}; }

    void add_block(std::vector<Instruction>& out, bool fused, uint8_t opcode, uint8_t fusion, Register x,
                   Register y, std::vector<Weight> weights, const Weight& gain, const ParamBlock& params,
                   const ParamBlock& norm, const ParamBlock& add, State state) {
        if (fused) {
            weights.push_back(gain);
            out.push_back({fusion, {x, x}, {y}, weights, {norm, params, add}, state});
            return;
        }
        const Register normed = reg(9, kHidden), result = reg(10, kHidden);
        out.push_back({0, {x}, {normed}, {gain}, {norm}, {}});
        out.push_back({opcode, {normed}, {result}, weights, {params}, state});
        out.push_back({8, {x, result}, {y}, {}, {add}, {}});
    }

    Weight matrix(int64_t rows, int64_t cols) {
        const int64_t stored = compute::row_bytes(type_, cols), strip = compute::strip_bytes(type_, cols);
        std::vector<std::byte> raw(static_cast<size_t>(rows * stored));
        if (type_ == DType::f32) {
            std::normal_distribution<float> normal(0.0f, 0.15f);
            for (int64_t i = 0; i < rows * cols; ++i) {
                const float value = normal(random_);
                std::memcpy(raw.data() + 4 * i, &value, 4);
            }
        } else {  // q8_0: f16 scale, 32 int8
            for (int64_t b = 0; b < rows * cols / 32; ++b) {
                const uint16_t scale = 0x1400 + static_cast<uint16_t>(random_() % 0x100);  // about 0.001
                std::memcpy(raw.data() + 34 * b, &scale, 2);
                for (int i = 0; i < 32; ++i) raw[34 * b + 2 + i] = static_cast<std::byte>(random_());
            }
        }
        const int64_t strips = (rows + 15) / 16;
        memory_.emplace_back(strips * strip);
        for (int64_t s = 0; s < strips; ++s) {
            const std::byte* source[16];
            for (int64_t r = 0; r < 16; ++r)
                source[r] = 16 * s + r < rows ? raw.data() + (16 * s + r) * stored : nullptr;
            compute::pack_strip(type_, source, cols, memory_.back().data + s * strip);
        }
        return {
            .present = true, .is_matrix = true, .matrix = {type_, rows, cols, strip, memory_.back().data}};
    }

    Weight vector(int64_t size) {
        memory_.emplace_back(size * 4);
        float* values = reinterpret_cast<float*>(memory_.back().data);
        for (int64_t i = 0; i < size; ++i) values[i] = 0.5f + static_cast<float>(random_() % 1000) / 1000.0f;
        return {.present = true, .vector = values, .size = size};
    }

    DType type_;
    std::mt19937 random_{7};
    std::vector<Buffer> memory_, registers_, states_;
    Weight table_, inv_freq_, norm_;
    std::vector<Layer> layers_;
};

// One request's rows in a step.
struct Part {
    int slot;
    int64_t position;
    std::vector<int32_t> ids;
};

struct Runner {
    Runner(Model& m, int threads, bool fused, bool exact)
        : model(m), program(std::make_shared<ThreadPool>(threads), compute::kernels(), exact, kLimits,
                            m.instructions(fused)),
          workspace(program.workspace_bytes()) {
        program.set_workspace(workspace.data, program.workspace_bytes());
    }

    // Runs a step that samples every row; slot s owns pages from 20 s on, in reverse order: 20, and slot 7 has 40.
    std::vector<float> step(const std::vector<Part>& parts) {
        std::vector<int32_t> query, positions, table, slots, sampled;
        int64_t rows = 0;
        for (const Part& part : parts) {
            query.push_back(static_cast<int32_t>(part.ids.size()));
            positions.push_back(static_cast<int32_t>(part.position));
            slots.push_back(part.slot);
            const int own = part.slot == 7 ? 40 : 20;
            for (int p = 0; p < 40; ++p) table.push_back(p < own ? part.slot * 20 + own - 1 - p : -1);
            for (const int32_t id : part.ids) {
                model.ids()[rows] = id;
                sampled.push_back(static_cast<int32_t>(rows++));
            }
        }
        finished = program.run({query, positions, table, 40, slots, sampled}, &counters);
        return {model.logits(), model.logits() + rows * kVocab};
    }

    Model& model;
    Program program;
    Buffer workspace;
    Counters counters;
    bool finished = true;
};

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

void test_bits(DType type) {
    const std::vector<int32_t> ids = text(121, 1);
    for (const bool exact : {false, true}) {
        Model model(type);
        Runner plain(model, 1, false, exact);
        const std::vector<float> expected = logits(plain, ids, 121, 0);
        float largest = 0.0f;
        for (const float v : expected) {
            CHECK(std::isfinite(v));
            largest = std::max(largest, std::fabs(v));
        }
        CHECK(largest > 0.01f);
        CHECK(plain.counters.launches == 1);
        CHECK(plain.counters.dispatches[1] == kLayers && plain.counters.dispatches[8] == 2 * kLayers);
        for (const int threads : {1, 2, 3}) {
            for (const bool fused : {false, true}) {
                Runner runner(model, threads, fused, exact);
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
    Model model(DType::q8_0);
    const std::vector<int32_t> ids = text(600, 2);
    std::vector<float> expected;
    for (const int threads : {1, 2, 3}) {
        Runner runner(model, threads, true, false);
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
    Model model(DType::f32);
    Runner runner(model, 2, true, false);
    CHECK(refuses([&] { runner.step({}); }));
    CHECK(refuses([&] { runner.step({{0, 0, {static_cast<int32_t>(kVocab)}}}); }));
    CHECK(refuses([&] { runner.step({{0, 0, {-1}}}); }));
    CHECK(refuses([&] { runner.step({{0, -1, {1}}}); }));
    CHECK(refuses([&] { runner.step({{0, 0, text(129, 1)}}); }));
    CHECK(refuses([&] { runner.step({{0, 320, {1}}}); }));  // its page is -1
    CHECK(refuses([&] { runner.step({{7, 639, {1, 2}}}); }));
    CHECK(!refuses([&] { runner.step({{0, 0, {1}}}); }));
}

void test_bind_errors() {
    Model model(DType::f32);
    auto pool = std::make_shared<ThreadPool>(1);
    const auto bind = [&](auto&& change) {
        std::vector<Instruction> list = model.instructions(false);
        change(list);
        try {
            Program(pool, compute::kernels(), false, kLimits, list);
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

void test_cancel() {
    Model model(DType::q8_0);
    Runner runner(model, 3, true, false);
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
    test_long();
    test_refusals();
    test_bind_errors();
    test_cancel();
    std::printf(failures ? "%d failures\n" : "program: all passed\n", failures);
    return failures != 0;
}
