// Keys and values of one head out of its pages, widened to f32 a unit at a time. The element of every type is exact in
// f32, so what follows does not depend on how it was kept.
#pragma once

#include "compute/attention.hpp"
#include "compute/vec/vec.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

struct HeadPages {
    const KvLayout& kv;
    const std::byte* arena;
    const int32_t* pages;
    int64_t page_bytes, head;
    HeadLayout layout;

    TREADLE_METHOD const std::byte* at(int64_t position) const {
        return arena + pages[position / kv.page_len] * page_bytes + head * layout.total;
    }
};

struct ElementF32 {
    using Stored = float;
    TREADLE_INLINE F load(const float* p) { return TREADLE_ISA_NS::load(p); }
};
struct ElementF16 {
    using Stored = uint16_t;
    TREADLE_INLINE F load(const uint16_t* p) { return load_f16(p); }
};
struct ElementBf16 {
    using Stored = uint16_t;
    TREADLE_INLINE F load(const uint16_t* p) { return load_bf16(p); }
};

// 16 positions of keys, [key_dim][16].
template <class Element>
TREADLE_INLINE void widen_key_group(const HeadPages& p, int64_t position, float* to) {
    const int64_t count = p.kv.key_dim * 16;
    const auto* from = reinterpret_cast<const typename Element::Stored*>(p.at(position)) +
                       position % p.kv.page_len * p.kv.key_dim;
    for (int64_t i = 0; i < count; i += 16) {
        for (int part = 0; part < kParts; ++part)
            store(to + i + part * kLanes, Element::load(from + i + part * kLanes));
    }
}

TREADLE_INLINE void widen_key_group_q8_0(const HeadPages& p, int64_t position, float* to) {
    const std::byte* page = p.at(position);
    const int64_t within = position % p.kv.page_len, blocks = p.kv.key_dim / kBlock;
    const auto* from = reinterpret_cast<const int8_t*>(page) + within * p.kv.key_dim;
    const auto* scales = reinterpret_cast<const uint16_t*>(page + p.layout.key_scales) + within * blocks;
    for (int64_t b = 0; b < blocks; ++b)
        for (int part = 0; part < kParts; ++part) {
            const F scale = load_f16(scales + b * 16 + part * kLanes);
            for (int64_t i = b * kBlock * 16 + part * kLanes; i < (b + 1) * kBlock * 16; i += 16)
                store(to + i, mul(load_i8(from + i), scale));
        }
}

// One position's values, padded with zeros to `width`.
template <class Element>
TREADLE_INLINE void widen_value_row(const HeadPages& p, int64_t position, int64_t width, float* to) {
    const auto* from = reinterpret_cast<const typename Element::Stored*>(p.at(position) + p.layout.values) +
                       position % p.kv.page_len * p.kv.value_dim;
    int64_t d = 0;
    for (; d + kLanes <= p.kv.value_dim; d += kLanes) store(to + d, Element::load(from + d));
    for (; d < width; d += kLanes) {
        alignas(64) typename Element::Stored tail[kLanes] = {};
        for (int64_t i = 0; d + i < p.kv.value_dim; ++i) tail[i] = from[d + i];
        store(to + d, Element::load(tail));
    }
}

TREADLE_INLINE void widen_value_row_q8_0(const HeadPages& p, int64_t position, float* to) {
    const std::byte* page = p.at(position);
    const int64_t within = position % p.kv.page_len, blocks = p.kv.value_dim / kBlock;
    const auto* from = reinterpret_cast<const int8_t*>(page + p.layout.values) + within * p.kv.value_dim;
    const auto* scales = reinterpret_cast<const uint16_t*>(page + p.layout.value_scales) + within * blocks;
    for (int64_t b = 0; b < blocks; ++b) {
        const F scale = f16_everywhere(scales + b);
        for (int64_t i = b * kBlock; i < (b + 1) * kBlock; i += kLanes)
            store(to + i, mul(load_i8(from + i), scale));
    }
}

// All scales of the q8_0 values of the page that holds `position`, [page_len][value_dim / 32], to f32.
TREADLE_INLINE void widen_value_scales(const HeadPages& p, int64_t position, float* to) {
    const auto* from = reinterpret_cast<const uint16_t*>(p.at(position) + p.layout.value_scales);
    for (int64_t i = 0; i < p.kv.page_len * (p.kv.value_dim / kBlock); i += kLanes)
        store(to + i, load_f16(from + i));
}

// Calls body(Element-like tag) for the type: what differs between types is known inside.
template <class Body>
TREADLE_INLINE void with_element(DType type, Body body) {
    switch (type) {
        case DType::f32:
            return body(ElementF32());
        case DType::f16:
            return body(ElementF16());
        case DType::bf16:
            return body(ElementBf16());
        default:
            __builtin_trap();
    }
}

// Keys of positions [base, base + count), base a multiple of 16: [count / 16 rounded up][depth][16], depth >= key_dim.
TREADLE_INLINE void widen_keys(const HeadPages& p, int64_t base, int64_t count, int64_t depth, float* to) {
    const auto groups = [&](auto widen) {
        for (int64_t i = 0; i < count; i += 16) {
            widen(base + i, to + i * depth);
            for (int64_t d = p.kv.key_dim * 16; d < depth * 16; d += kLanes)
                store(to + i * depth + d, zero());
        }
    };
    if (p.kv.type == DType::q8_0)
        return groups([&](int64_t position, float* t) { widen_key_group_q8_0(p, position, t); });
    with_element(p.kv.type, [&](auto element) {
        groups([&](int64_t position, float* t) { widen_key_group<decltype(element)>(p, position, t); });
    });
}

// Shared values of 16 positions, [16][width], out of their keys: load(d, part) is dimension d of kLanes positions.
template <class Load>
TREADLE_INLINE void turn_key_group(int64_t dim, int64_t width, float* to, Load load_key) {
    for (int64_t d = 0; d < width; d += kLanes)
        for (int part = 0; part < kParts; ++part) {
            F lines[kLanes];
            for (int i = 0; i < kLanes; ++i) lines[i] = d + i < dim ? load_key(d + i, part) : zero();
            transpose(lines);
            for (int i = 0; i < kLanes; ++i) store(to + (part * kLanes + i) * width + d, lines[i]);
        }
}

TREADLE_INLINE void widen_shared_values(const HeadPages& p, int64_t base, int64_t count, int64_t width,
                                        float* to) {
    for (int64_t i = 0; i < count; i += 16) {
        const std::byte* page = p.at(base + i);
        const int64_t within = (base + i) % p.kv.page_len;
        if (p.kv.type == DType::q8_0) {
            const auto* keys = reinterpret_cast<const int8_t*>(page) + within * p.kv.key_dim;
            const auto* scales = reinterpret_cast<const uint16_t*>(page + p.layout.key_scales) +
                                 within * (p.kv.key_dim / kBlock);
            turn_key_group(p.kv.value_dim, width, to + i * width, [&](int64_t d, int part) {
                return mul(load_i8(keys + d * 16 + part * kLanes),
                           load_f16(scales + d / kBlock * 16 + part * kLanes));
            });
            continue;
        }
        with_element(p.kv.type, [&](auto element) {
            using Element = decltype(element);
            const auto* keys =
                reinterpret_cast<const typename Element::Stored*>(page) + within * p.kv.key_dim;
            turn_key_group(p.kv.value_dim, width, to + i * width,
                           [&](int64_t d, int part) { return Element::load(keys + d * 16 + part * kLanes); });
        });
    }
}

// Values of positions [base, base + count): [count][width], width = value_dim rounded up to 16. Shared ones fill whole
// groups of 16 positions, from a base that is a multiple of 16.
TREADLE_INLINE void widen_values(const HeadPages& p, int64_t base, int64_t count, int64_t width, float* to) {
    if (p.kv.shared) return widen_shared_values(p, base, count, width, to);
    if (p.kv.type == DType::q8_0) {
        for (int64_t j = 0; j < count; ++j) widen_value_row_q8_0(p, base + j, to + j * width);
        return;
    }
    with_element(p.kv.type, [&](auto element) {
        for (int64_t j = 0; j < count; ++j)
            widen_value_row<decltype(element)>(p, base + j, width, to + j * width);
    });
}

}  // namespace treadle::compute::TREADLE_ISA_NS
