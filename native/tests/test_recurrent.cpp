// Convolutions, scans and the delta rule of every ISA: against double precision, against the plain ISA bit for bit, and
// bit for bit the same when the rows come in one call or in several.
#include <algorithm>
#include <functional>

#include "check.hpp"
#include "compute/recurrent.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

using Floats = std::vector<float>;

const float* at(const Floats& v, int64_t i) { return v.data() + i; }
float* at(Floats& v, int64_t i) { return v.data() + i; }

// A kernel over rows [row0, row1) that writes y and what is carried.
using Run = std::function<void(const Kernels&, int64_t row0, int64_t row1, Floats& y, Floats& carried)>;

// All ISAs and cuts give plain's bits of one call; returns y, then what is carried.
std::pair<Floats, Floats> run_everywhere(int64_t rows, int64_t outputs, const Floats& carried, const Run& run,
                                         const std::string& name) {
    Floats y(static_cast<size_t>(outputs), -7.0f), after = carried;
    run(*kernels_for("plain"), 0, rows, y, after);
    for (const Kernels* k : supported_kernels()) {
        for (const int64_t piece : {rows, int64_t{1}, int64_t{3}, int64_t{40}}) {
            Floats found(y.size(), -7.0f), state = carried;
            for (int64_t row = 0; row < rows; row += piece)
                run(*k, row, std::min(rows, row + piece), found, state);
            check(same_bits(found, y) && same_bits(state, after),
                  name + " " + k->name + " in pieces of " + std::to_string(piece) + " is not plain's");
        }
    }
    return {y, after};
}

void check_close(const Floats& got, const std::vector<double>& want, double tolerance,
                 const std::string& name) {
    double scale = 1e-6, worst = 0.0;
    for (const double w : want) scale = std::max(scale, std::fabs(w));
    for (size_t i = 0; i < want.size(); ++i)
        worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - want[i]));
    check(got.size() == want.size() && worst <= tolerance * scale,
          name + ": off by " + std::to_string(worst / scale));
}

uint16_t half_bits(DType type, float x) {  // of values that both types hold exactly
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if (type == DType::bf16) return static_cast<uint16_t>(u >> 16);
    if (x == 0.0f) return 0;
    return static_cast<uint16_t>((u >> 16 & 0x8000u) | (((u >> 23 & 255u) - 112u) << 10) |
                                 (u >> 13 & 0x3ffu));
}

struct Taps {
    Buffer data;
    PackedMatrix matrix;
};

Taps pack_taps(DType type, const Floats& taps, int64_t channels, int64_t width) {
    Taps packed{Buffer(packed_bytes(type, channels, width)),
                {type, channels, width, strip_bytes(type, width), nullptr}};
    packed.matrix.data = packed.data.data();
    const int64_t bytes = row_bytes(type, width);
    std::vector<std::byte> stored(static_cast<size_t>(channels * bytes));
    for (int64_t i = 0; i < channels * width; ++i) {
        if (type == DType::f32) std::memcpy(stored.data() + 4 * i, at(taps, i), 4);
        else {
            const uint16_t half = half_bits(type, taps[static_cast<size_t>(i)]);
            std::memcpy(stored.data() + 2 * i, &half, 2);
        }
    }
    for (int64_t s = 0; s < packed.matrix.strips(); ++s) {
        const std::byte* rows[kStripRows];
        for (int64_t r = 0; r < kStripRows; ++r) {
            const int64_t row = s * kStripRows + r;
            rows[r] = row < channels ? stored.data() + row * bytes : nullptr;
        }
        pack_strip(type, rows, width, packed.data.data() + s * packed.matrix.strip_bytes);
    }
    return packed;
}

void test_convolution(DType type, int64_t channels, int64_t width, bool gated) {
    Random random(static_cast<uint64_t>(channels * width));
    const int64_t rows = 75, ld = channels + 3;
    Floats taps(static_cast<size_t>(channels * width));
    for (float& tap : taps) tap = static_cast<float>(random.integer(-8, 8)) / 4.0f;
    const Floats x = random.normals(rows * ld), before = random.normals(rows * ld),
                 after = random.normals(rows * ld), bias = random.normals(channels),
                 tail = random.normals((width - 1) * channels);
    const Taps packed = pack_taps(type, taps, channels, width);
    const Convolution c{
        packed.matrix, gated ? nullptr : bias.data(), {gated ? Activation::none : Activation::silu}};
    const auto run = [&](const Kernels& k, int64_t row0, int64_t row1, Floats& y, Floats& carried) {
        std::copy(at(x, row0 * ld), at(x, row1 * ld), at(y, row0 * ld));  // in place
        ConvRows r{.rows = row1 - row0,
                   .x = at(y, row0 * ld),
                   .ldx = ld,
                   .tail = carried.data(),
                   .channels = channels,
                   .y = at(y, row0 * ld),
                   .ldy = ld};
        if (gated) {
            r.before = at(before, row0 * ld);
            r.after = at(after, row0 * ld);
        }
        const int64_t cut = std::min(channels, int64_t{80});
        k.convolve(c, 0, cut, r);
        if (cut < channels) k.convolve(c, cut, channels, r);
    };
    std::vector<double> want(x.begin(), x.end()), carried;
    const auto input = [&](int64_t row, int64_t channel) -> double {
        if (row < 0) return tail[static_cast<size_t>((width - 1 + row) * channels + channel)];
        const auto i = static_cast<size_t>(row * ld + channel);
        return gated ? double{before[i]} * x[i] : x[i];
    };
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t ch = 0; ch < channels; ++ch) {
            double sum = gated ? 0.0 : bias[static_cast<size_t>(ch)];
            for (int64_t k = 0; k < width; ++k)
                sum += taps[static_cast<size_t>(ch * width + k)] * input(t - width + 1 + k, ch);
            const auto i = static_cast<size_t>(t * ld + ch);
            want[i] = gated ? after[i] * sum : sum / (1 + std::exp(-sum));
        }
    for (int64_t t = rows - width + 1; t < rows; ++t)
        for (int64_t ch = 0; ch < channels; ++ch) carried.push_back(input(t, ch));
    const std::string name = "convolution of " + std::to_string(channels) + " by " + std::to_string(width);
    const auto [y, held] = run_everywhere(rows, rows * ld, tail, run, name);
    check_close(y, want, 2e-6, name);
    check_close(held, carried, 1e-7, name + ": tail");
}

void test_time_steps(int64_t n) {
    Random random(static_cast<uint64_t>(n));
    Floats x = random.normals(n, 4.0f);
    const Floats bias = random.normals(n), rate = random.normals(n);
    if (n > 4) x[0] = 90.0f, x[1] = -80.0f, x[2] = 1e5f, x[3] = -1e5f;
    const auto run = [&](const Kernels& k, int64_t, int64_t, Floats& y, Floats&) {
        k.time_steps(x.data(), bias.data(), rate.data(), 0.1f, 1.5f, n, y.data(), y.data() + n);
        k.time_steps(x.data(), bias.data(), nullptr, 0.0f, HUGE_VALF, n, y.data() + 2 * n, nullptr);
    };
    std::vector<double> want(static_cast<size_t>(3 * n));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        const double sum = x[i] + bias[i];
        const double step = sum > 30 ? sum : std::log1p(std::exp(sum));
        want[i] = std::clamp(step, 0.1, 1.5);
        want[static_cast<size_t>(n) + i] = std::exp(want[i] * rate[i]);
        want[static_cast<size_t>(2 * n) + i] = step;
    }
    Floats y(static_cast<size_t>(3 * n));
    for (const Kernels* k : supported_kernels()) {
        Floats found(y.size()), none;
        run(*k, 0, 1, found, none);
        if (k == supported_kernels().front()) y = found;
        check(same_bits(found, y), std::string("time_steps ") + k->name);
    }
    for (size_t i = 0; i < want.size(); ++i)
        check(std::fabs(y[i] - want[i]) <= 1e-6 * std::fabs(want[i]) + 1e-35, "time_steps: value");
}

void test_head_scan(int64_t dim, int64_t depth) {
    Random random(static_cast<uint64_t>(dim * depth));
    const int64_t rows = 45, ldx = dim + 5, ldy = dim + 2, ld = depth + 3;
    const Floats x = random.normals(rows * ldx), b = random.normals(rows * ld), c = random.normals(rows * ld),
                 state = random.normals(depth * dim);
    Floats dt(2 * rows), decay(2 * rows);
    for (float& v : dt) v = random.uniform(0.01f, 1.0f);
    for (float& v : decay) v = random.uniform(0.3f, 1.0f);
    const auto run = [&](const Kernels& k, int64_t row0, int64_t row1, Floats& y, Floats& carried) {
        k.head_scan({row1 - row0, dim, depth, at(x, row0 * ldx), ldx, at(dt, 2 * row0), at(decay, 2 * row0),
                     2, at(b, row0 * ld), at(c, row0 * ld), ld, 0.7f, carried.data(), at(y, row0 * ldy),
                     ldy});
    };
    std::vector<double> want(static_cast<size_t>(rows * ldy), -7.0), h(state.begin(), state.end());
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t p = 0; p < dim; ++p) {
            const double u = x[static_cast<size_t>(t * ldx + p)];
            double sum = 0.7 * u;
            for (int64_t n = 0; n < depth; ++n) {
                double& s = h[static_cast<size_t>(n * dim + p)];
                s = decay[static_cast<size_t>(2 * t)] * s +
                    dt[static_cast<size_t>(2 * t)] * u * b[static_cast<size_t>(t * ld + n)];
                sum += s * c[static_cast<size_t>(t * ld + n)];
            }
            want[static_cast<size_t>(t * ldy + p)] = sum;
        }
    const std::string name = "head scan " + std::to_string(dim) + " by " + std::to_string(depth);
    const auto [y, held] = run_everywhere(rows, rows * ldy, state, run, name);
    check_close(y, want, 3e-6, name);
    check_close(held, h, 3e-6, name + ": state");
}

void test_channel_scan(int64_t channels, int64_t depth) {
    Random random(static_cast<uint64_t>(channels * depth));
    const int64_t rows = 45, ld = channels + 5, ldy = channels + 2, ld_bc = depth + 3,
                  ld_state = channels + 1;
    const Floats x = random.normals(rows * ld), b = random.normals(rows * ld_bc),
                 c = random.normals(rows * ld_bc), state = random.normals(depth * ld_state),
                 skip = random.normals(channels);
    Floats dt(static_cast<size_t>(rows * ld)), rate(static_cast<size_t>(depth * ld_state));
    for (float& v : dt) v = random.uniform(0.01f, 1.0f);
    for (float& v : rate) v = -random.uniform(0.05f, 9.0f);
    const auto run = [&](const Kernels& k, int64_t row0, int64_t row1, Floats& y, Floats& carried) {
        k.channel_scan({row1 - row0, channels, depth, at(x, row0 * ld), ld, at(dt, row0 * ld), ld,
                        at(b, row0 * ld_bc), at(c, row0 * ld_bc), ld_bc, rate.data(), skip.data(),
                        carried.data(), ld_state, at(y, row0 * ldy), ldy});
    };
    std::vector<double> want(static_cast<size_t>(rows * ldy), -7.0), h(state.begin(), state.end());
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t ch = 0; ch < channels; ++ch) {
            const double u = x[static_cast<size_t>(t * ld + ch)], step = dt[static_cast<size_t>(t * ld + ch)];
            double sum = skip[static_cast<size_t>(ch)] * u;
            for (int64_t n = 0; n < depth; ++n) {
                const auto i = static_cast<size_t>(n * ld_state + ch);
                h[i] = std::exp(step * rate[i]) * h[i] + step * u * b[static_cast<size_t>(t * ld_bc + n)];
                sum += h[i] * c[static_cast<size_t>(t * ld_bc + n)];
            }
            want[static_cast<size_t>(t * ldy + ch)] = sum;
        }
    const std::string name = "channel scan " + std::to_string(channels) + " by " + std::to_string(depth);
    const auto [y, held] = run_everywhere(rows, rows * ldy, state, run, name);
    check_close(y, want, 3e-6, name);
    check_close(held, h, 3e-6, name + ": state");
}

void test_delta_rule(int64_t key_dim, int64_t dim) {
    Random random(static_cast<uint64_t>(key_dim * dim));
    const int64_t rows = 45, ld_qk = key_dim + 5, ldv = dim + 2;
    const float unit = 1.0f / std::sqrt(static_cast<float>(key_dim));
    const Floats q = random.normals(rows * ld_qk, unit), k = random.normals(rows * ld_qk, unit),
                 v = random.normals(rows * ldv), state = random.normals(key_dim * dim);
    Floats decay(3 * rows), beta(3 * rows);
    for (float& x : decay) x = random.uniform(0.3f, 1.0f);
    for (float& x : beta) x = random.uniform(0.0f, 1.0f);
    const auto run = [&](const Kernels& kernels, int64_t row0, int64_t row1, Floats& y, Floats& carried) {
        std::copy(at(v, row0 * ldv), at(v, row1 * ldv), at(y, row0 * ldv));  // in place
        kernels.delta_rule({row1 - row0, key_dim, dim, at(q, row0 * ld_qk), at(k, row0 * ld_qk), ld_qk,
                            at(y, row0 * ldv), ldv, at(decay, 3 * row0), at(beta, 3 * row0), 3,
                            carried.data(), at(y, row0 * ldv), ldv});
    };
    std::vector<double> want(v.begin(), v.end()), s(state.begin(), state.end());
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t p = 0; p < dim; ++p) {
            double held = 0.0, sum = 0.0;
            for (int64_t i = 0; i < key_dim; ++i) {
                s[static_cast<size_t>(i * dim + p)] *= decay[static_cast<size_t>(3 * t)];
                held += s[static_cast<size_t>(i * dim + p)] * k[static_cast<size_t>(t * ld_qk + i)];
            }
            const double delta =
                beta[static_cast<size_t>(3 * t)] * (v[static_cast<size_t>(t * ldv + p)] - held);
            for (int64_t i = 0; i < key_dim; ++i) {
                s[static_cast<size_t>(i * dim + p)] += k[static_cast<size_t>(t * ld_qk + i)] * delta;
                sum += s[static_cast<size_t>(i * dim + p)] * q[static_cast<size_t>(t * ld_qk + i)];
            }
            want[static_cast<size_t>(t * ldv + p)] = sum;
        }
    const std::string name = "delta rule " + std::to_string(key_dim) + " by " + std::to_string(dim);
    const auto [y, held] = run_everywhere(rows, rows * ldv, state, run, name);
    check_close(y, want, 3e-6, name);
    check_close(held, s, 3e-6, name + ": state");
}

}  // namespace

int main() {
    for (const DType type : {DType::f32, DType::f16, DType::bf16})
        for (const int64_t width : {1, 2, 3, 4, 5, 64})
            for (const int64_t channels : {1, 16, 24, 64, 100, 160})
                test_convolution(type, channels, width, width % 2 == 1);
    for (const int64_t n : {1, 15, 16, 33, 500}) test_time_steps(n);
    for (const int64_t dim : {1, 8, 16, 24, 32, 64, 80})
        for (const int64_t depth : {1, 3, 8, 16, 21}) {
            test_head_scan(dim, depth);
            test_channel_scan(dim, depth);
            test_delta_rule(depth, dim);
        }
    return report("test_recurrent");
}
