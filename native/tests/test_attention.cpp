// Paged attention of every ISA against a naive double-precision softmax, against plain bit for bit, and against itself
// with other row groupings and with the split form. Unwritten and masked keys are NaN and must not be felt.
#include <algorithm>
#include <limits>

#include "check.hpp"
#include "compute/kernels.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

struct Setup {
    Attention a;
    int64_t length, rows;  // keys, and the query rows: the last ones
    std::vector<float> q, k, v, sinks, slopes;
    std::vector<int32_t> pages;
    std::vector<std::byte> arena;
    int64_t page_bytes;
};

float rounded(float x, DType type) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if (type == DType::bf16) u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    std::memcpy(&x, &u, 4);
    if (type != DType::f16 || x == 0) return x;
    const int exponent = std::max(std::ilogb(x), -14);
    return std::ldexp(std::nearbyint(std::ldexp(x, 10 - exponent)), exponent - 10);
}

float nan_of(DType type) {
    (void)type;
    return std::numeric_limits<float>::quiet_NaN();
}

Setup make(Attention a, int64_t length, int64_t rows, uint64_t seed) {
    Random random(seed);
    Setup s{a, length, rows, {}, {}, {}, {}, {}, {}, {}, kv_page_bytes(a.kv)};
    const KvLayout& kv = a.kv;
    s.q = random.normals(rows * a.heads * kv.key_dim);
    s.k = random.normals(length * kv.heads * kv.key_dim);
    s.v = random.normals(length * kv.heads * kv.value_dim);
    s.sinks = random.normals(a.heads, 2.0f);
    for (int64_t h = 0; h < a.heads; ++h) s.slopes.push_back(-0.05f * static_cast<float>(h + 1));
    const int64_t count = (length + kv.page_len - 1) / kv.page_len;
    for (int64_t p = 0; p < count; ++p)
        s.pages.push_back(static_cast<int32_t>(count + 1 - p));  // out of order, with holes
    s.arena.resize(static_cast<size_t>((count + 2) * s.page_bytes));
    const std::vector<float> nan(static_cast<size_t>(kv.heads * std::max(kv.key_dim, kv.value_dim)),
                                 nan_of(kv.type));
    for (int64_t p = 0; p < count + 2; ++p)
        for (int64_t i = 0; i < kv.page_len; ++i)
            kernels_for("plain")->kv_write(kv, s.arena.data() + p * s.page_bytes, i, 0, kv.heads, nan.data(),
                                           nan.data());
    return s;
}

void write_keys(Setup& s, const Kernels& kernels) {
    const KvLayout& kv = s.a.kv;
    for (int64_t j = 0; j < s.length; ++j) {
        std::byte* page = s.arena.data() + s.pages[static_cast<size_t>(j / kv.page_len)] * s.page_bytes;
        for (int64_t h = 0; h < kv.heads; ++h)  // head by head, as several threads would
            kernels.kv_write(kv, page, j % kv.page_len, h, h + 1, s.k.data() + j * kv.heads * kv.key_dim,
                             s.v.data() + j * kv.heads * kv.value_dim);
    }
}

std::vector<double> naive(const Setup& s) {
    const Attention& a = s.a;
    const KvLayout& kv = a.kv;
    const int64_t group = a.heads / kv.heads;
    std::vector<double> out(static_cast<size_t>(s.rows * a.heads * kv.value_dim), 0.0);
    for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t h = 0; h < a.heads; ++h) {
            const int64_t i = s.length - s.rows + r;
            std::vector<double> scores;
            std::vector<int64_t> keys;
            for (int64_t j = 0; j < s.length; ++j) {
                if ((a.left != kUnbounded && i - j > a.left) || (a.right != kUnbounded && j - i > a.right))
                    continue;
                double dot = 0;
                for (int64_t d = 0; d < kv.key_dim; ++d)
                    dot += static_cast<double>(s.q[static_cast<size_t>((r * a.heads + h) * kv.key_dim + d)]) *
                           rounded(s.k[static_cast<size_t>((j * kv.heads + h / group) * kv.key_dim + d)],
                                   kv.type);
                dot *= a.scale;
                if (a.softcap > 0) dot = a.softcap * std::tanh(dot / a.softcap);
                if (a.slopes != nullptr) dot += s.slopes[static_cast<size_t>(h)] * static_cast<double>(j - i);
                scores.push_back(dot);
                keys.push_back(j);
            }
            double top = -1e300, sum = 0;
            for (const double x : scores) top = std::max(top, x);
            if (a.sinks != nullptr) {
                top = std::max(top, static_cast<double>(s.sinks[static_cast<size_t>(h)]));
                sum = std::exp(s.sinks[static_cast<size_t>(h)] - top);
            }
            for (const double x : scores) sum += std::exp(x - top);
            for (size_t n = 0; n < keys.size(); ++n)
                for (int64_t d = 0; d < kv.value_dim; ++d)
                    out[static_cast<size_t>((r * a.heads + h) * kv.value_dim + d)] +=
                        std::exp(scores[n] - top) / sum *
                        rounded(s.v[static_cast<size_t>((keys[n] * kv.heads + h / group) * kv.value_dim + d)],
                                kv.type);
        }
    return out;
}

// Query rows in chunks of `chunk`; keys past a chunk's end are not written yet as far as it is told.
std::vector<float> run(const Setup& s, const Kernels& k, int64_t chunk, bool split) {
    Attention a = s.a;
    if (a.sinks != nullptr) a.sinks = s.sinks.data();
    if (a.slopes != nullptr) a.slopes = s.slopes.data();
    const KvLayout& kv = a.kv;
    std::vector<float> out(static_cast<size_t>(s.rows * a.heads * kv.value_dim), -5.0f);
    Buffer scratch(attend_scratch_bytes(a));
    for (int64_t r = 0; r < s.rows; r += chunk) {
        const int64_t rows = std::min(chunk, s.rows - r), position = s.length - s.rows + r;
        const int64_t kv_len = a.right == 0 ? position + rows : s.length;
        const AttendRows item{s.q.data() + r * a.heads * kv.key_dim,
                              a.heads * kv.key_dim,
                              out.data() + r * a.heads * kv.value_dim,
                              a.heads * kv.value_dim,
                              rows,
                              position,
                              kv_len,
                              s.arena.data(),
                              s.pages.data()};
        for (int64_t h = 0; h < kv.heads; ++h) {
            if (!split) {
                k.attend(a, item, h, scratch.data());
                continue;
            }
            const SplitRange range = attend_splits(a, item);
            std::vector<float> parts(static_cast<size_t>((range.last - range.first) * rows *
                                                         (a.heads / kv.heads) * attend_part_floats(a)));
            for (int64_t i = range.last - 1; i >= range.first; --i)
                k.attend_part(a, item, h, i, parts.data(), scratch.data());
            k.attend_merge(a, item, h, parts.data(), scratch.data());
        }
    }
    return out;
}

void test(const Attention& a, int64_t length, int64_t rows, const std::string& name) {
    Setup s = make(a, length, rows, static_cast<uint64_t>(length * 31 + rows));
    write_keys(s, *kernels_for("plain"));
    for (const Kernels* k : supported_kernels()) {
        Setup other = make(a, length, rows, static_cast<uint64_t>(length * 31 + rows));
        write_keys(other, *k);
        check(s.arena == other.arena, name + " kv_write of " + k->name + " is not plain's");
    }
    const std::vector<float> plain = run(s, *kernels_for("plain"), kAttendRows, false);
    const std::vector<double> want = naive(s);
    for (size_t i = 0; i < plain.size(); ++i)
        check(std::fabs(plain[i] - want[i]) < 2e-5, name + " [" + std::to_string(i) +
                                                        "]: " + std::to_string(plain[i]) + " not " +
                                                        std::to_string(want[i]));
    for (const Kernels* k : supported_kernels())
        for (const int64_t chunk : {int64_t{1}, int64_t{5}, int64_t{16}, kAttendRows})
            for (const bool split : {false, true}) {
                if (k == kernels_for("plain") && (chunk != 5 || !split)) continue;  // it is slow
                check(same_bits(run(s, *k, chunk, split), plain),
                      name + " " + k->name + " chunk " + std::to_string(chunk) + (split ? " split" : "") +
                          " is not plain's");
            }
}

}  // namespace

int main() {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
        const std::string t = "kv " + std::to_string(static_cast<int>(type));
        const KvLayout kv{type, 2, 64, 64, 64};
        const Attention causal{kv, 6, 0.125f};
        test(causal, 1, 1, t + " single");
        test(causal, 70, 70, t + " causal");
        test(causal, 530, 24, t + " causal long");
        Attention a = causal;
        a.left = 20;
        test(a, 150, 60, t + " window");
        a.left = 300;
        test(a, 600, 33, t + " window over splits");
        a.right = 12;
        a.left = 12;
        test(a, 100, 100, t + " symmetric window");
        a.left = a.right = kUnbounded;
        test(a, 90, 90, t + " both ways");
        a = causal;
        a.softcap = 5.0f;
        a.sinks = a.slopes = reinterpret_cast<const float*>(1);  // replaced by the setup's own
        test(a, 270, 17, t + " softcap, sinks, slopes");
        test({{type, 1, 32, 32, 16}, 1, 0.2f}, 50, 50, t + " one head, page 16");
        test({{type, 2, 80, 96, 32}, 4, 0.1f}, 100, 40, t + " dims 80 and 96, page 32");
        test({{type, 1, 40, 24, 64}, 2, 0.1f}, 100, 40, t + " dims 40 and 24");
        test({{type, 1, 256, 256, 64}, 8, 0.06f}, 70, 9, t + " dim 256");
        test({{type, 3, 64, 64, 64}, 9, 0.125f}, 65, 65, t + " 9 heads of 3");
    }
    return report("test_attention");
}
