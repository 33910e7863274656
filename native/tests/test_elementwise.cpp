// Row kernels of every ISA against double precision, and against the plain ISA bit for bit, over lengths and misalignment.
#include <algorithm>
#include <functional>
#include <limits>

#include "check.hpp"
#include "compute/kernels.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

using Run = std::function<void(const Kernels&, float* y)>;

// Runs every ISA into misaligned rows; all must be plain's bits and touch nothing past n. Returns the result.
std::vector<float> run_everywhere(int64_t n, const Run& run, const std::string& name) {
    std::vector<float> plain;
    for (const Kernels* k : {kernels_for("plain")}) {
        plain.assign(static_cast<size_t>(n + 2), -77.0f);
        run(*k, plain.data() + 1);
    }
    for (const Kernels* k : supported_kernels()) {
        std::vector<float> y(static_cast<size_t>(n + 2), -77.0f);
        run(*k, y.data() + 1);
        check(same_bits(y, plain), name + " " + k->name + " n " + std::to_string(n) + " is not plain's");
        check(y.front() == -77.0f && y.back() == -77.0f, name + " wrote outside");
    }
    return {plain.begin() + 1, plain.end() - 1};
}

void check_close(const std::vector<float>& got, const std::vector<double>& want, double relative,
                 double absolute, const std::string& name) {
    for (size_t i = 0; i < got.size(); ++i)
        check(std::fabs(got[i] - want[i]) <= relative * std::fabs(want[i]) + absolute,
              name + " [" + std::to_string(i) + "]: " + std::to_string(got[i]) + " not " +
                  std::to_string(want[i]));
}

void test_norms(int64_t n) {
    Random random(static_cast<uint64_t>(n));
    const std::vector<float> x = random.normals(n + 1, 3.0f), gain = random.normals(n),
                             bias = random.normals(n);
    double squares = 0, mean = 0, variance = 0;
    for (int64_t i = 0; i < n; ++i) {
        squares += std::pow(static_cast<double>(x[static_cast<size_t>(i + 1)]), 2) / static_cast<double>(n);
        mean += static_cast<double>(x[static_cast<size_t>(i + 1)]) / static_cast<double>(n);
    }
    for (int64_t i = 0; i < n; ++i)
        variance += std::pow(x[static_cast<size_t>(i + 1)] - mean, 2) / static_cast<double>(n);
    for (const bool with : {false, true}) {
        const float* g = with ? gain.data() : nullptr;
        const float* b = with ? bias.data() : nullptr;
        std::vector<double> rms, layer;
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            rms.push_back(x[i + 1] / std::sqrt(squares + 1e-5) * (with ? 1.0 + gain[i] : 1.0));
            layer.push_back((x[i + 1] - mean) / std::sqrt(variance + 1e-5) * (with ? gain[i] : 1.0) +
                            (with ? bias[i] : 0.0));
        }
        check_close(run_everywhere(
                        n, [&](const Kernels& k, float* y) { k.rmsnorm(x.data() + 1, g, 1.0f, 1e-5f, n, y); },
                        "rmsnorm"),
                    rms, 2e-6, 1e-6, "rmsnorm");
        check_close(run_everywhere(
                        n, [&](const Kernels& k, float* y) { k.layernorm(x.data() + 1, g, b, 1e-5f, n, y); },
                        "layernorm"),
                    layer, 5e-6, 5e-6, "layernorm");
    }
}

void test_rope(int64_t half, RopeStyle style) {
    Random random(static_cast<uint64_t>(half) * 2 + static_cast<uint64_t>(style));
    const int64_t n = 2 * half + 3;  // the last three are not rotated
    const std::vector<float> x = random.normals(n);
    std::vector<float> freq, cosine(static_cast<size_t>(half)), sine(static_cast<size_t>(half));
    for (int64_t i = 0; i < half; ++i)
        freq.push_back(
            static_cast<float>(std::pow(1e4, -static_cast<double>(i) / static_cast<double>(half))));
    rope_table(freq.data(), half, 1234.0f, 1.25f, cosine.data(), sine.data());
    std::vector<double> want(x.begin(), x.end());
    for (int64_t i = 0; i < half; ++i) {
        const auto a = static_cast<size_t>(style == RopeStyle::halves ? i : 2 * i);
        const auto b = static_cast<size_t>(style == RopeStyle::halves ? half + i : 2 * i + 1);
        const double angle = 1234.0f * freq[static_cast<size_t>(i)];
        want[a] = 1.25 * (x[a] * std::cos(angle) - x[b] * std::sin(angle));
        want[b] = 1.25 * (x[b] * std::cos(angle) + x[a] * std::sin(angle));
    }
    const auto got = run_everywhere(
        n,
        [&](const Kernels& k, float* y) {
            std::copy(x.begin(), x.end(), y);
            k.rope(y, cosine.data(), sine.data(), half, style);
        },
        "rope");
    check_close(got, want, 1e-6, 1e-6, "rope");
}

double exact(Activation kind, double x) {
    const double s = 1 / (1 + std::exp(-x));
    switch (kind) {
        case Activation::none:
            return x;
        case Activation::silu:
            return x * s;
        case Activation::gelu:
            return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::gelu_tanh:
            return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::quick_gelu:
            return x / (1 + std::exp(-1.702 * x));
        case Activation::relu:
            return std::max(x, 0.0);
        case Activation::relu2:
            return std::pow(std::max(x, 0.0), 2);
        case Activation::sigmoid:
            return s;
        case Activation::tanh:
            return std::tanh(x);
        case Activation::swiglu_clamped:
            return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
    }
    return NAN;
}

void test_activations(int64_t n) {
    Random random(static_cast<uint64_t>(n));
    std::vector<float> gate = random.normals(n, 4.0f), up = random.normals(n, 6.0f);
    const float edges[] = {0.0f,   -0.0f,   100.0f, -100.0f, 88.0f, -88.0f,
                           1e-20f, -1e-20f, 0.625f, 1.0f,    1e30f, -1e30f};
    for (size_t i = 0; i < std::min<size_t>(12, gate.size()); ++i) gate[i] = edges[i];
    for (int kind = 0; kind <= static_cast<int>(Activation::quick_gelu); ++kind) {
        const ActivationParams params{static_cast<Activation>(kind)};
        for (const bool gated : {false, true}) {
            std::vector<double> want;
            for (size_t i = 0; i < gate.size(); ++i) {
                const bool clamped = params.kind == Activation::swiglu_clamped;
                const double u = clamped ? std::clamp(static_cast<double>(up[i]), -7.0, 7.0) + 1 : up[i];
                want.push_back(exact(params.kind, gate[i]) * (gated ? u : 1.0));
            }
            const std::string name = "activation " + std::to_string(kind);
            const float* u = gated ? up.data() : nullptr;
            const auto got = run_everywhere(
                n, [&](const Kernels& k, float* y) { k.activate(gate.data(), u, n, params, y); }, name);
            for (double& w : want) w = std::clamp(w, -3.4e38, 3.4e38);
            std::vector<float> finite = got;
            for (size_t i = 0; i < got.size(); ++i)
                if (std::fabs(want[i]) > 1e37)
                    finite[i] = static_cast<float>(want[i]);  // squares of 1e30 overflow
            check_close(finite, want, 1e-6, 4e-6, name);
            const auto in_place = run_everywhere(
                n,
                [&](const Kernels& k, float* y) {
                    std::copy(gate.begin(), gate.end(), y);
                    k.activate(y, u, n, params, y);
                },
                name + " in place");
            check(same_bits(in_place, got), name + " in place differs");
        }
    }
}

// Relative error in units in the last place over a dense sweep.
void test_accuracy() {
    const Kernels& k = *kernels_for("plain");
    struct Sweep {
        Activation kind;
        float low, high;
        double ulps;
    };
    // sigmoid(-x) = e^-x / (1 + e^-x): for large x its error is that of exp.
    for (const Sweep& s : {Sweep{Activation::sigmoid, -80, 20, 3.5}, Sweep{Activation::tanh, -10, 10, 3.5}}) {
        std::vector<float> x, y(400001);
        for (int i = 0; i <= 400000; ++i)
            x.push_back(s.low + (s.high - s.low) * static_cast<float>(i) / 400000.0f);
        k.activate(x.data(), nullptr, 400001, {s.kind}, y.data());
        double worst = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            const double want = exact(s.kind, x[i]);
            const double ulp = std::ldexp(1.0, std::max(std::ilogb(want), -126) - 23);
            worst = std::max(worst, std::fabs(y[i] - want) / ulp);
        }
        check(worst <= s.ulps, "activation " + std::to_string(static_cast<int>(s.kind)) + " is off by " +
                                   std::to_string(worst) + " ulp");
        std::printf("activation %d: %.2f ulp\n", static_cast<int>(s.kind), worst);
    }
}

void test_sums(int64_t n) {
    Random random(static_cast<uint64_t>(n) + 99);
    const std::vector<float> a = random.normals(n), b = random.normals(n), big = random.normals(n, 40.0f);
    std::vector<double> sum, scaled, capped;
    for (size_t i = 0; i < a.size(); ++i) {
        sum.push_back(a[i] + 0.37f * static_cast<double>(b[i]));
        scaled.push_back(2.5 * a[i]);
        capped.push_back(30.0 * std::tanh(big[i] / 30.0));
    }
    check_close(run_everywhere(
                    n, [&](const Kernels& k, float* y) { k.add_scaled(a.data(), b.data(), 0.37f, n, y); },
                    "add_scaled"),
                sum, 1e-7, 1e-7, "add_scaled");
    check_close(run_everywhere(
                    n, [&](const Kernels& k, float* y) { k.scale(a.data(), 2.5f, n, y); }, "scale"),
                scaled, 1e-7, 0, "scale");
    check_close(run_everywhere(
                    n, [&](const Kernels& k, float* y) { k.softcap(big.data(), 30.0f, n, y); }, "softcap"),
                capped, 1e-6, 1e-6, "softcap");
}

}  // namespace

int main() {
    for (const int64_t n : {1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 100, 576, 1000}) {
        test_norms(n);
        test_activations(n);
        test_sums(n);
    }
    for (const int64_t half : {1, 8, 16, 20, 32, 64})
        for (const RopeStyle style : {RopeStyle::halves, RopeStyle::pairs}) test_rope(half, style);
    test_accuracy();
    return report("test_elementwise");
}
