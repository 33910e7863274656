// Writes one position's keys and values into a page, in the page's type. Keys lie in groups of 16 positions, so that a
// key's elements are 16 apart.
#include "compute/attention.hpp"
#include "compute/isa/table.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

namespace {

constexpr float kLargestBf16 = 0x1.fep127f, kLargestF16 = 65504.0f;

// Converts n elements 16 at a time; converted is padded to whole vectors.
template <class Stored, class Store>
TREADLE_INLINE void convert(const float* x, int64_t n, Stored* to, Store put) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(to + i, load(x + i));
    if (i == n) return;
    alignas(64) float tail[kLanes] = {};
    alignas(64) Stored converted[kLanes];
    for (int64_t j = i; j < n; ++j) tail[j - i] = x[j];
    put(converted, load(tail));
    for (int64_t j = i; j < n; ++j) to[j] = converted[j - i];
}

constexpr int64_t kPiece = 64;  // elements of a key converted at a time

template <class Stored, class Store>
TREADLE_INLINE void write_key(const float* k, int64_t dim, Stored* to, Store put) {
    alignas(64) Stored piece[kPiece];
    for (int64_t d = 0; d < dim; d += kPiece) {
        const int64_t n = least(kPiece, dim - d);
        convert(k + d, n, piece, put);
        for (int64_t i = 0; i < n; ++i) to[(d + i) * 16] = piece[i];
    }
}

struct Place {
    std::byte *keys, *key_scales, *values, *value_scales;
};

template <class Stored, class Store>
TREADLE_INLINE void write_head(const KvLayout& kv, const Place& to, const float* k, const float* v,
                               Store put) {
    write_key(k, kv.key_dim, reinterpret_cast<Stored*>(to.keys), put);
    if (!kv.shared) convert(v, kv.value_dim, reinterpret_cast<Stored*>(to.values), put);
}

// Quants of 32 elements; returns their scale in f16. Quants stay within 127 whatever x holds.
TREADLE_INLINE uint16_t quantise_32(const float* x, int8_t* quants) {
    const float largest = reduce_max(vmax(vabs(vload(x)), vabs(vload(x + 16))));
    const F inverse = set1(largest > 0.0f ? 127.0f / largest : 0.0f);
    for (int i = 0; i < kBlock; i += kLanes) {
        const F scaled = mul(load(x + i), inverse);
        store_i8(quants + i, to_int(min(max(scaled, set1(-127.0f)), set1(127.0f))));
    }
    alignas(64) uint16_t scale[kLanes];
    store_f16(scale, min(set1(largest / 127.0f), set1(kLargestF16)));
    return scale[0];
}

TREADLE_INLINE void write_head_q8_0(const KvLayout& kv, const Place& to, const float* k, const float* v) {
    auto* keys = reinterpret_cast<int8_t*>(to.keys);
    auto* values = reinterpret_cast<int8_t*>(to.values);
    auto* key_scales = reinterpret_cast<uint16_t*>(to.key_scales);
    auto* value_scales = reinterpret_cast<uint16_t*>(to.value_scales);
    for (int64_t b = 0; b < kv.key_dim / kBlock; ++b) {
        alignas(64) int8_t quants[kBlock];
        key_scales[b * 16] = quantise_32(k + b * kBlock, quants);
        for (int64_t i = 0; i < kBlock; ++i) keys[(b * kBlock + i) * 16] = quants[i];
    }
    if (kv.shared) return;
    for (int64_t b = 0; b < kv.value_dim / kBlock; ++b)
        value_scales[b] = quantise_32(v + b * kBlock, values + b * kBlock);
}

}  // namespace

void kv_write(const KvLayout& kv, std::byte* page, int64_t position_in_page, int64_t head0, int64_t head1,
              const float* k, const float* v) {
    const HeadLayout layout(kv);
    const int64_t group = position_in_page / 16 * 16, lane = position_in_page % 16;
    const auto bytes = [&](int64_t count) { return kv_element_bytes(kv.type, count); };
    for (int64_t h = head0; h < head1; ++h) {
        std::byte* head = page + h * layout.total;
        const Place to{head + bytes(group * kv.key_dim + lane),
                       head + layout.key_scales + (group * (kv.key_dim / kBlock) + lane) * 2,
                       head + layout.values + bytes(position_in_page * kv.value_dim),
                       head + layout.value_scales + position_in_page * (kv.value_dim / kBlock) * 2};
        const float *key = k + h * kv.key_dim, *value = kv.shared ? nullptr : v + h * kv.value_dim;
        switch (kv.type) {
            case DType::f32:
                write_head<float>(kv, to, key, value, [](float* p, F x) { store(p, x); });
                break;
            case DType::f16:
                write_head<uint16_t>(kv, to, key, value, [](uint16_t* p, F x) { store_f16(p, x); });
                break;
            case DType::bf16:
                write_head<uint16_t>(kv, to, key, value, [](uint16_t* p, F x) {
                    x = min(max(x, set1(-kLargestBf16)), set1(kLargestBf16));
                    store_bf16(p, round_bf16(flushed(x, kSmallestBf16)));
                });
                break;
            case DType::q8_0:
                write_head_q8_0(kv, to, key, value);
                break;
            default:
                __builtin_trap();
        }
    }
}

}  // namespace treadle::compute::TREADLE_ISA_NS
