// The inner loops of the machine probes: how fast this ISA reads memory and multiplies int8, bf16 and f32.
#include "compute/isa/table.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// Independent chains, enough to hide the latency of the dot instruction, eight dots each in turn as a block of a matrix
// product has. Returns the operations done (a multiply and an add for each byte); the sums go to `sink` so that none of
// it is dropped.
int64_t probe_dot(int64_t rounds, int32_t* sink) {
    // Registers: AVX2 and AVX-VNNI have half of them, and the former needs some inside a dot.
    constexpr int kChains = kLanes != 8 ? 12 : kSignedBias == 0 ? 6 : 10;
    alignas(64) std::byte bytes[4 * kLanes + 128];
    for (int i = 0; i < 4 * kLanes + 128; ++i) bytes[i] = static_cast<std::byte>(i % 13);
    B w[8];
    for (int j = 0; j < 8; ++j) w[j] = bload(bytes + 4 * j);
    I acc[kChains];
    for (int c = 0; c < kChains; ++c) acc[c] = iset1(c);
    for (int64_t r = 0; r < rounds; ++r) {
        const std::byte* x = bytes + (r & 7) * 4;
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j)
#pragma GCC unroll 12
            for (int c = 0; c < kChains; ++c) acc[c] = dot<false>(acc[c], w[j], x + 4 * c);
    }
    alignas(64) int32_t out[kLanes];
    for (int c = 0; c < kChains; ++c) {
        istore(out, acc[c]);
        for (int i = 0; i < kLanes; ++i) *sink += out[i] & 1;
    }
    return rounds * 8 * kChains * kLanes * 8;
}

// bf16 is multiplied as f32.
int64_t probe_bf16(int64_t rounds, float* sink) { return probe_fma(rounds, sink); }

// The same for f32: independent chains of fused multiply-adds. Returns the operations done, two for each.
int64_t probe_fma(int64_t rounds, float* sink) {
    constexpr int kChains = kLanes == 8 ? 12 : 16;
    F acc[kChains];
    for (int c = 0; c < kChains; ++c) acc[c] = set1(static_cast<float>(c));
    const F a = set1(0.5f);
    for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j)
#pragma GCC unroll 16
            for (int c = 0; c < kChains; ++c)
                acc[c] = fma(a, acc[c], a);  // stays a normal number: tends to 1
    alignas(64) float out[kLanes];
    for (int c = 0; c < kChains; ++c) {
        store(out, acc[c]);
        *sink += out[0];
    }
    return rounds * 8 * kChains * kLanes * 2;
}

// Reads `bytes` (a multiple of 512) from aligned memory as four streams at once, which keep more reads in flight than one.
void probe_read(const std::byte* data, int64_t bytes, int32_t* sink) {
    constexpr int kStreams = 4, kStep = 128, kLoads = kStep / (4 * kLanes);
    I acc[kStreams];
    for (int s = 0; s < kStreams; ++s) acc[s] = iset1(0);
    const int64_t stream = bytes / kStreams;
    for (int64_t at = 0; at < stream; at += kStep)
#pragma GCC unroll 8
        for (int i = 0; i < kLoads; ++i)
#pragma GCC unroll 4
            for (int s = 0; s < kStreams; ++s) {
                const std::byte* p = data + s * stream + at + i * 4 * kLanes;
                acc[s] = iadd(acc[s], iload(reinterpret_cast<const int32_t*>(p)));
            }
    alignas(64) int32_t out[kLanes];
    for (int s = 0; s < kStreams; ++s) {
        istore(out, acc[s]);
        *sink += out[0] & 1;
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
