// Micro-benchmark of the kernels on SmolLM2-135M's and a 1B model's shapes: GOP/s, GB/s and the share of this machine's
// probed limits. Not a test. Usage: bench_kernels [isa [type ...]]
#include <algorithm>

#include "best_seconds.hpp"
#include "check.hpp"
#include "compute/kernels.hpp"
#include "compute/probe.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

struct Named {
    DType type;
    const char* name;
};

constexpr Named kTypes[] = {
    {DType::q4_1, "q4_1"},   {DType::q4_0, "q4_0"}, {DType::q8_0, "q8_0"},     {DType::q5_0, "q5_0"},
    {DType::q5_1, "q5_1"},   {DType::q2_k, "q2_k"}, {DType::q3_k, "q3_k"},     {DType::q4_k, "q4_k"},
    {DType::q5_k, "q5_k"},   {DType::q6_k, "q6_k"}, {DType::iq4_nl, "iq4_nl"}, {DType::iq4_xs, "iq4_xs"},
    {DType::mxfp4, "mxfp4"}, {DType::f32, "f32"},   {DType::f16, "f16"},       {DType::bf16, "bf16"},
};

const char* name_of(DType t) {
    for (const Named& named : kTypes)
        if (named.type == t) return named.name;
    return "?";
}

struct Weights {
    Buffer buffer;
    PackedMatrix m;
    Weights(DType type, int64_t rows, int64_t cols)
        : buffer(packed_bytes(type, rows, cols)),
          m{type, rows, cols, strip_bytes(type, cols), buffer.data()} {
        std::memset(buffer.data(), 0x11, static_cast<size_t>(packed_bytes(type, rows, cols)));
    }
};

void bench_gemm(const Kernels& k, DType type, int64_t n, int64_t cols, int64_t rows, double limit) {
    if (!packable(type, cols)) return;
    Random random(1);
    const Weights w(type, n, cols);
    const std::vector<float> x = random.normals(rows * cols);
    std::vector<float> y(static_cast<size_t>(rows * n));
    Buffer scratch(k.matmul_scratch_bytes(cols)), xq(k.quant_bytes(rows, std::max<int64_t>(cols, 32)));
    const Epilogue e;
    const bool quantised = !is_float(type);
    if (quantised) k.quantise(x.data(), cols, 0, rows, rows, 0, cols, cols, xq.data());
    const double s = best_seconds([&] {
        if (quantised) k.matmul_i8(w.m, 0, w.m.strips(), xq.data(), rows, y.data(), n, e, scratch.data());
        else k.matmul_f32(w.m, 0, w.m.strips(), x.data(), cols, rows, y.data(), n, e, scratch.data());
    });
    const double gops = 2.0 * static_cast<double>(n * cols * rows) / s / 1e9;
    std::printf("gemm %-6s %6ldx%-6ld rows %4ld  %8.1f GOP/s  %5.1f %% of int8\n", name_of(type),
                static_cast<long>(n), static_cast<long>(cols), static_cast<long>(rows), gops,
                100 * gops / limit);
}

// Walks many matrices so that the weights come from memory.
void bench_gemv(const Kernels& k, DType type, int64_t n, int64_t cols, int64_t rows, double limit) {
    if (!packable(type, cols)) return;
    const int64_t one = packed_bytes(type, n, cols), count = std::max<int64_t>(1, (int64_t{192} << 20) / one);
    const Weights w(type, n * count, cols);
    Random random(1);
    const std::vector<float> x = random.normals(rows * cols);
    std::vector<float> y(static_cast<size_t>(rows * n * count));
    Buffer scratch(k.matmul_scratch_bytes(cols)), xq(k.quant_bytes(rows, cols));
    const Epilogue e;
    if (!is_float(type)) k.quantise(x.data(), cols, 0, rows, rows, 0, cols, cols, xq.data());
    const double s = best_seconds([&] {
        if (is_float(type))
            k.matmul_f32(w.m, 0, w.m.strips(), x.data(), cols, rows, y.data(), n * count, e, scratch.data());
        else k.matmul_i8(w.m, 0, w.m.strips(), xq.data(), rows, y.data(), n * count, e, scratch.data());
    });
    const double gb = static_cast<double>(one * count) / s / 1e9;
    std::printf("gemv %-6s %6ldx%-6ld rows %4ld  %8.2f GB/s   %5.1f %% of read  %8.1f GOP/s\n", name_of(type),
                static_cast<long>(n), static_cast<long>(cols), static_cast<long>(rows), gb, 100 * gb / limit,
                2.0 * static_cast<double>(n * count * cols * rows) / s / 1e9);
}

void bench_rows(const Kernels& k) {
    Random random(3);
    const std::vector<float> x = random.normals(512 * 1536), u = random.normals(512 * 1536);
    std::vector<float> y(x.size());
    Buffer xq(k.quant_bytes(512, 1536));
    const auto show = [](const char* what, double s) { std::printf("%-28s %8.1f us\n", what, s * 1e6); };
    show("rmsnorm 512x576", best_seconds([&] {
             for (int r = 0; r < 512; ++r)
                 k.rmsnorm(x.data() + r * 576, u.data(), 0, 1e-5f, 576, y.data() + r * 576);
         }));
    show("quantise 512x576",
         best_seconds([&] { k.quantise(x.data(), 576, 0, 512, 512, 0, 576, 576, xq.data()); }));
    show("quantise 512x1536",
         best_seconds([&] { k.quantise(x.data(), 1536, 0, 512, 512, 0, 1536, 1536, xq.data()); }));
    show("silu * up 512x1536",
         best_seconds([&] { k.activate(x.data(), u.data(), 512 * 1536, {}, y.data()); }));
}

}  // namespace

int main(int argc, char** argv) {
    const Kernels* chosen = argc > 1 ? kernels_for(argv[1]) : &kernels();
    if (chosen == nullptr) return 1;
    const Kernels& k = *chosen;
    const double read = probe_read_gb_s(k, 1, int64_t{128} << 20), dot = probe_int8_gop_s(k, 1);
    std::printf("%s: read %.1f GB/s (2 threads %.1f), int8 %.0f GOP/s (2 threads %.0f)\n", k.name, read,
                probe_read_gb_s(k, 2, int64_t{256} << 20), dot, probe_int8_gop_s(k, 2));
    for (const Named& named : kTypes) {
        const auto asked = [&](const char* name) { return std::strcmp(name, named.name) == 0; };
        if (argc > 2 && std::none_of(argv + 2, argv + argc, asked)) continue;
        const DType t = named.type;
        bench_gemm(k, t, 576, 576, 512, dot);
        bench_gemm(k, t, 1536, 576, 512, dot);
        bench_gemm(k, t, 576, 1536, 512, dot);
        bench_gemm(k, t, 1536, 576, 32, dot);
        bench_gemm(k, t, 1536, 576, 8, dot);
        bench_gemm(k, t, 2048, 2048, 512, dot);
        bench_gemm(k, t, 2048, 2048, 8, dot);
        bench_gemm(k, t, 2048, 8192, 512, dot);
        bench_gemv(k, t, 1536, 576, 1, read);
        bench_gemv(k, t, 576, 1536, 1, read);
        bench_gemv(k, t, 2048, 2048, 1, read);
    }
    if (argc <= 2) bench_rows(k);
    return 0;
}
