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

// What a row of keys or values is kept as; head after head of `dim` elements.
void keep(std::vector<float>& x, DType type) {
    if (type != DType::q8_0) {
        for (float& value : x) value = rounded(value, type);
        return;
    }
    for (size_t b = 0; b < x.size(); b += 32) {
        float largest = 0;
        for (size_t i = b; i < b + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
        const float scale = rounded(std::min(largest / 127.0f, 65504.0f), DType::f16);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        for (size_t i = b; i < b + 32; ++i) x[i] = scale * std::nearbyint(x[i] * inverse);
    }
}

Setup make(Attention a, int64_t length, int64_t rows, uint64_t seed) {
    Random random(seed);
    Setup s{a, length, rows, {}, {}, {}, {}, {}, {}, {}, kv_page_bytes(a.kv)};
    const KvLayout& kv = a.kv;
    s.q = random.normals(rows * a.heads * kv.key_dim);
    s.k = random.normals(length * kv.heads * kv.key_dim);
    s.v = random.normals(length * kv.heads * kv.value_dim);
    if (kv.shared)
        for (int64_t row = 0; row < length * kv.heads; ++row)
            std::copy_n(s.k.begin() + row * kv.key_dim, kv.value_dim, s.v.begin() + row * kv.value_dim);
    s.sinks = random.normals(a.heads, 2.0f);
    for (int64_t h = 0; h < a.heads; ++h) s.slopes.push_back(-0.05f * static_cast<float>(h + 1));
    const int64_t count = (length + kv.page_len - 1) / kv.page_len;
    for (int64_t p = 0; p < count; ++p)
        s.pages.push_back(static_cast<int32_t>(count + 1 - p));  // out of order, with holes
    s.arena.assign(static_cast<size_t>((count + 2) * s.page_bytes), std::byte{0xff});  // NaN in every type
    return s;
}

void write_keys(Setup& s, const Kernels& kernels) {
    const KvLayout& kv = s.a.kv;
    for (int64_t j = 0; j < s.length; ++j) {
        std::byte* page = s.arena.data() + s.pages[static_cast<size_t>(j / kv.page_len)] * s.page_bytes;
        for (int64_t h = 0; h < kv.heads; ++h)  // head by head, as several threads would
            kernels.kv_write(kv, page, j % kv.page_len, h, h + 1, s.k.data() + j * kv.heads * kv.key_dim,
                             kv.shared ? nullptr : s.v.data() + j * kv.heads * kv.value_dim);
    }
}

std::vector<double> naive(const Setup& s) {
    const Attention& a = s.a;
    const KvLayout& kv = a.kv;
    const int64_t group = a.heads / kv.heads;
    std::vector<double> out(static_cast<size_t>(s.rows * a.heads * kv.value_dim), 0.0);
    std::vector<float> q = s.q, k = s.k, v = s.v;
    keep(k, kv.type);
    keep(v, kv.type);
    for (float& x : q) x = kv.type == DType::bf16 ? rounded(x * a.scale, kv.type) : x * a.scale;
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
                    dot += static_cast<double>(q[static_cast<size_t>((r * a.heads + h) * kv.key_dim + d)]) *
                           k[static_cast<size_t>((j * kv.heads + h / group) * kv.key_dim + d)];
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
                        v[static_cast<size_t>((keys[n] * kv.heads + h / group) * kv.value_dim + d)];
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
    // bf16: the weights are rounded to 8 bits, relative error 2^-9, and the values are below 5.
    const double bound = a.kv.type == DType::bf16 ? 5.0 / 512 : 2e-5;
    for (size_t i = 0; i < plain.size(); ++i)
        check(std::fabs(plain[i] - want[i]) < bound, name + " [" + std::to_string(i) +
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

// What cannot be kept as it is: every ISA keeps the same bytes, and bf16 and q8_0 keep nothing that is not finite.
void test_odd_values() {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0}) {
        const KvLayout kv{type, 1, 64, 64, 16};
        std::vector<float> row(64, 1.0f);
        row[1] = inf, row[2] = -inf, row[3] = nan, row[4] = 3.4e38f, row[5] = -0.0f, row[6] = 1e-30f,
        row[7] = 1e-6f;
        row[40] = 1e9f, row[50] = 3.39e38f;
        std::vector<std::byte> first;
        for (const Kernels* k : supported_kernels()) {
            std::vector<std::byte> page(static_cast<size_t>(kv_page_bytes(kv)));
            for (int64_t i = 0; i < 16; ++i) k->kv_write(kv, page.data(), i, 0, 1, row.data(), row.data());
            if (first.empty()) first = page;
            check(page == first, std::string("odd values: kv_write of ") + k->name + " differs");
        }
        if (type != DType::bf16) continue;
        for (size_t i = 0; i < first.size(); i += 2) {
            uint16_t half;
            std::memcpy(&half, &first[i], 2);
            check((half & 0x7f80) != 0x7f80, "bf16 keeps a value that is not finite");
            check((half & 0x7fff) == 0 || (half & 0x7f80) >> 7 >= 127 - 50, "bf16 keeps a value below 2^-50");
        }
    }
}

}  // namespace

int main() {
    test_odd_values();
    check(kv_storable(DType::q8_0, 64, 32) && !kv_storable(DType::q8_0, 80, 64) &&
              !kv_storable(DType::q8_0, 64, 24) && kv_storable(DType::bf16, 45, 71) &&
              !kv_storable(DType::q4_0, 64, 64),
          "kv_storable");
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0}) {
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
        test({{type, 1, 256, 256, 64}, 8, 0.06f}, 70, 9, t + " dim 256");
        test({{type, 3, 64, 64, 64}, 9, 0.125f}, 65, 65, t + " 9 heads of 3");
        test({{type, 2, 96, 64, 32}, 4, 0.1f}, 300, 40, t + " dims 96 and 64, page 32");
        test({{type, 1, 128, 32, 16}, 5, 0.1f}, 280, 30, t + " dims 128 and 32, page 16");
        test({{type, 1, 96, 64, 64, true}, 8, 0.1f}, 530, 24, t + " shared, dims 96 and 64");
        test({{type, 1, 160, 128, 16, true}, 3, 0.1f}, 75, 40, t + " shared, dims 160 and 128, page 16");
        test({{type, 2, 64, 64, 32, true}, 4, 0.1f}, 289, 33, t + " shared, dims 64 and 64, page 32");
        if (type == DType::q8_0) continue;
        test({{type, 1, 45, 40, 16, true}, 2, 0.1f}, 75, 40, t + " shared, dims 45 and 40");
        test({{type, 2, 80, 112, 32}, 4, 0.1f}, 100, 40, t + " dims 80 and 112, page 32");
        test({{type, 1, 40, 24, 64}, 2, 0.1f}, 100, 40, t + " dims 40 and 24");
        test({{type, 1, 45, 71, 16}, 2, 0.1f}, 75, 40, t + " dims 45 and 71");
    }
    return report("test_attention");
}
