// Causal convolutions, 64 channels and a few rows at a time: their inputs stand in a window behind those that went before.
#include "compute/isa/float_tile.hpp"
#include "compute/isa/spans.hpp"
#include "compute/isa/table.hpp"
#include "compute/recurrent.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

inline constexpr int64_t kChannels = 64;
inline constexpr int64_t kRows = 32;

struct Window {
    alignas(64) float u[(kConvWidth - 1 + kRows) * kChannels];  // [rows before and new, kChannels]
    alignas(64) float out[kRows * kChannels];
};

// One block of channels: `count` of them from `channel` on.
template <class Columns>
TREADLE_INLINE void run_block(const Convolution& c, const Columns& taps, int64_t channel, int64_t count,
                              const ConvRows& r, Window& w) {
    const int64_t past = c.taps.cols - 1;
    const int vectors = static_cast<int>((count + 15) / 16);
    const auto lanes = [&](int v) { return least(16, count - 16 * v); };
    for (int64_t i = 0; i < past; ++i)
        for (int v = 0; v < vectors; ++v)
            vstore(w.u + i * kChannels + 16 * v, take(r.tail + i * r.channels + channel + 16 * v, lanes(v)));
    for (int64_t row = 0; row < r.rows; row += kRows) {
        const int64_t rows = least(kRows, r.rows - row);
        for (int64_t i = 0; i < rows; ++i)
            for (int v = 0; v < vectors; ++v) {
                const int64_t at = (row + i) * r.ldx + channel + 16 * v;
                V16 u = take(r.x + at, lanes(v));
                if (r.before != nullptr) u = vmul(take(r.before + at, lanes(v)), u);
                vstore(w.u + (past + i) * kChannels + 16 * v, u);
            }
        for (int v = 0; v < vectors; ++v) {
            const V16 bias = c.bias == nullptr ? vset1(0.0f) : take(c.bias + channel + 16 * v, lanes(v));
            for (int64_t i = 0; i < rows; ++i) {
                V16 sum = bias;
                for (int64_t k = 0; k <= past; ++k) {
                    const float* u = w.u + (i + k) * kChannels + 16 * v;
                    for (int p = 0; p < kParts; ++p)
                        sum.part[p] = fma(taps.at(k, v * kParts + p), load(u + p * kLanes), sum.part[p]);
                }
                vstore(w.out + i * kChannels + 16 * v, sum);
            }
        }
        if (c.activation.kind != Activation::none)
            activate(w.out, nullptr, rows * kChannels, c.activation, w.out);
        for (int64_t i = 0; i < rows; ++i)
            for (int v = 0; v < vectors; ++v) {
                const int64_t at = channel + 16 * v;
                V16 y = vload(w.out + i * kChannels + 16 * v);
                if (r.after != nullptr) y = vmul(take(r.after + (row + i) * r.ldx + at, lanes(v)), y);
                put(r.y + (row + i) * r.ldy + at, y, lanes(v));
            }
        for (int64_t i = 0; i < past; ++i)
            copy_bytes(w.u + i * kChannels, w.u + (rows + i) * kChannels, kChannels * int64_t{sizeof(float)});
    }
    for (int64_t i = 0; i < past; ++i)
        for (int v = 0; v < vectors; ++v)
            put(r.tail + i * r.channels + channel + 16 * v, vload(w.u + i * kChannels + 16 * v), lanes(v));
}

template <class Columns, class Element>
void run(const Convolution& c, int64_t pairs, int64_t channel0, int64_t channel1, const ConvRows& r) {
    Window w;
    for (int64_t i = 0; i < kRows * kChannels; ++i) w.out[i] = 0.0f;
    const int64_t strip = c.taps.strip_bytes / int64_t{sizeof(Element)};
    for (int64_t channel = channel0; channel < channel1; channel += kChannels) {
        const auto* base = reinterpret_cast<const Element*>(c.taps.data) + channel / kStripRows * strip;
        run_block(c, Columns{base, kStripRows * pairs, strip}, channel, least(kChannels, channel1 - channel),
                  r, w);
    }
}

}  // namespace

void convolve(const Convolution& c, int64_t channel0, int64_t channel1, const ConvRows& r) {
    if (c.taps.type == DType::f16) return run<ColumnsF16, uint16_t>(c, 1, channel0, channel1, r);
    if (c.taps.type == DType::bf16) return run<ColumnsBf16Pairs, uint16_t>(c, 2, channel0, channel1, r);
    run<ColumnsF32, float>(c, 1, channel0, channel1, r);
}

}  // namespace treadle::compute::TREADLE_ISA_NS
