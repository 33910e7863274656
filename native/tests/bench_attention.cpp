// Micro-benchmark of attention on one layer of SmolLM2-135M (9 query heads, 3 kv heads of 64) or of a 1B llama (32, 8, 64):
// prefill in GFLOP/s, decode in GB/s of keys and values and as a share of the read probe. One thread; not a test.
// Usage: bench_attention [isa|-] [f32|f16|bf16|q8_0 ...]
#include <algorithm>
#include <string_view>

#include "best_seconds.hpp"
#include "check.hpp"
#include "compute/kernels.hpp"
#include "compute/probe.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

struct Type {
    const char* name;
    DType type;
};
constexpr Type kTypes[] = {
    {"f32", DType::f32}, {"f16", DType::f16}, {"bf16", DType::bf16}, {"q8_0", DType::q8_0}};

struct Cache {
    Attention a;
    int64_t length, page_bytes;
    std::vector<std::byte> arena;
    std::vector<int32_t> pages;

    Cache(const Kernels& k, const Attention& attention, int64_t positions)
        : a(attention), length(positions), page_bytes(kv_page_bytes(attention.kv)) {
        Random random(2);
        const KvLayout& kv = a.kv;
        const std::vector<float> rows = random.normals(64 * kv.heads * std::max(kv.key_dim, kv.value_dim));
        const int64_t count = (length + kv.page_len - 1) / kv.page_len;
        arena.resize(static_cast<size_t>(count * page_bytes));
        for (int64_t p = 0; p < count; ++p) pages.push_back(static_cast<int32_t>(p));
        for (int64_t j = 0; j < length; ++j)
            k.kv_write(kv, arena.data() + j / kv.page_len * page_bytes, j % kv.page_len, 0, kv.heads,
                       rows.data() + j % 64 * kv.heads * kv.key_dim,
                       rows.data() + (j + 7) % 64 * kv.heads * kv.value_dim);
    }
};

// `rows` new rows after `past` positions: prefill of a chunk, or decode where rows is 1.
void bench(const Kernels& k, const char* model, const Type& type, Attention a, int64_t past, int64_t rows,
           double read) {
    a.kv.type = type.type;
    const Cache cache(k, a, past + rows);
    Random random(3);
    const int64_t width = a.heads * a.kv.key_dim;
    const std::vector<float> q = random.normals(rows * width);
    std::vector<float> out(q.size());
    Buffer scratch(attend_scratch_bytes(a));
    const double s = best_seconds([&] {
        for (int64_t r = 0; r < rows; r += kAttendRows)
            for (int64_t h = 0; h < a.kv.heads; ++h)
                k.attend(
                    a,
                    {q.data() + r * width, width, out.data() + r * width, width,
                     std::min(kAttendRows, rows - r), past + r,
                     std::min(past + r + kAttendRows, cache.length), cache.arena.data(), cache.pages.data()},
                    h, scratch.data());
    });
    double keys = 0;
    for (int64_t r = 0; r < rows; ++r) keys += static_cast<double>(past + r + 1);
    const double flops = keys * static_cast<double>(a.heads * (a.kv.key_dim + a.kv.value_dim)) * 2;
    const double gb_s = static_cast<double>(cache.arena.size()) / s / 1e9;
    std::printf("attend %-4s %-8s past %6ld rows %4ld %10.1f us", model, type.name, static_cast<long>(past),
                static_cast<long>(rows), s * 1e6);
    if (rows > 1) std::printf("  %6.1f GFLOP/s\n", flops / s / 1e9);
    else std::printf("  %6.2f GB/s  %5.1f %% of read\n", gb_s, 100 * gb_s / read);
}

// A step of `sequences` of `length` positions each, a multiple of the page's.
void bench_batch(const Kernels& k, const Type& type, Attention a, int64_t sequences, int64_t length,
                 double read) {
    a.kv.type = type.type;
    const Cache cache(k, a, sequences * length);
    const int64_t width = a.heads * a.kv.key_dim, pages = length / a.kv.page_len;
    const std::vector<float> q = Random(3).normals(width);
    std::vector<float> out(q.size());
    Buffer scratch(attend_scratch_bytes(a));
    const double s = best_seconds([&] {
        for (int64_t h = 0; h < a.kv.heads; ++h)
            for (int64_t i = 0; i < sequences; ++i) {
                const std::byte* next = cache.arena.data() + (i + 1) * pages * cache.page_bytes +
                                        h * (cache.page_bytes / a.kv.heads);
                k.attend(a,
                         {q.data(), width, out.data(), width, 1, length - 1, length, cache.arena.data(),
                          cache.pages.data() + i * pages, i + 1 < sequences ? next : nullptr},
                         h, scratch.data());
            }
    });
    const double gb_s = static_cast<double>(cache.arena.size()) / s / 1e9;
    std::printf("attend 135M %-8s %4ld sequences of %3ld %8.2f us a head  %6.2f GB/s  %5.1f %% of read\n",
                type.name, static_cast<long>(sequences), static_cast<long>(length),
                s * 1e6 / static_cast<double>(sequences * a.kv.heads), gb_s, 100 * gb_s / read);
}

void bench_write(const Kernels& k, const Type& type) {
    const KvLayout kv{type.type, 3, 64, 64, 64};
    Random random(3);
    const std::vector<float> x = random.normals(512 * 192);
    std::vector<std::byte> pages(static_cast<size_t>(8 * kv_page_bytes(kv)));
    const double s = best_seconds([&] {
        for (int64_t r = 0; r < 512; ++r)
            k.kv_write(kv, pages.data() + r / 64 * kv_page_bytes(kv), r % 64, 0, 3, x.data() + r * 192,
                       x.data() + r * 192);
    });
    std::printf("kv_write %-8s 512 positions of 3 heads of 64 %10.1f us\n", type.name, s * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
    const Kernels* chosen = argc > 1 && std::string_view(argv[1]) != "-" ? kernels_for(argv[1]) : &kernels();
    if (chosen == nullptr) return 1;
    const Kernels& k = *chosen;
    const double read = probe_read_gb_s(k, 1, int64_t{128} << 20);
    std::printf("%s: read %.1f GB/s\n", k.name, read);
    const Attention smol{{DType::f16, 3, 64, 64, 64}, 9, 0.125f},
        one_b{{DType::f16, 8, 64, 64, 64}, 32, 0.125f};
    for (const Type& type : kTypes) {
        if (argc > 2 && std::none_of(argv + 2, argv + argc,
                                     [&](const char* x) { return type.name == std::string_view(x); }))
            continue;
        for (const int64_t rows : {512, 2048}) bench(k, "135M", type, smol, 0, rows, read);
        for (const int64_t past : {511, 8191, 32767}) bench(k, "135M", type, smol, past, 1, read);
        for (const int64_t positions : {256, 131072, 524288})  // in the second cache, in the third, past most
            for (const int64_t length : {128, 512})
                bench_batch(k, type, smol, positions / length, length, read);
        bench(k, "1B", type, one_b, 0, 512, read);
        bench(k, "1B", type, one_b, 8191, 1, read);
        bench_write(k, type);
    }
    return 0;
}
