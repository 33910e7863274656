// Lossless packing of file-format rows into strips (layout.hpp). Block layouts in a file are those of ggml.
#include <cstring>

#include "compute/kernels.hpp"
#include "compute/layout.hpp"

namespace treadle::compute {
namespace {

int64_t float_size(DType type) {
    switch (type) {
        case DType::f32:
            return 4;
        case DType::f16:
        case DType::bf16:
            return 2;
        default:
            return 0;
    }
}

// One superblock of one row: where its lines and side bytes go.
struct Target {
    std::byte* lines;  // of the row in the first block; block b is `line_bytes` * b further
    int64_t line_bytes;
    std::byte* head;  // the row's f16 scale; its minimum scale is 32 bytes further
    std::byte* side;  // side bytes of the first block: [16] rows a field
    int64_t row, side_bytes;
};

using Codes = uint8_t[kBlock];  // of one row in one block

uint32_t word(const uint8_t* p) {
    uint32_t w;
    std::memcpy(&w, p, 4);
    return w;
}

void put_word(std::byte* p, uint32_t w) { std::memcpy(p, &w, 4); }

// Plane writers take four columns at a time as a word and return what follows the plane.
std::byte* put_nibbles(const Codes& q, std::byte* lines) {
    for (int64_t j = 0; j < 4; ++j)
        put_word(lines + 64 * j, (word(q + 4 * j) & 0x0f0f0f0fu) | (word(q + 16 + 4 * j) & 0x0f0f0f0fu) << 4);
    return lines + 256;
}

std::byte* put_pairs(const Codes& q, int shift, std::byte* lines) {
    for (int64_t h = 0; h < 2; ++h) {
        uint32_t w = 0;
        for (int64_t s = 0; s < 4; ++s) w |= (word(q + 16 * h + 4 * s) >> shift & 0x03030303u) << 2 * s;
        put_word(lines + 64 * h, w);
    }
    return lines + 128;
}

std::byte* put_bits(const Codes& q, int shift, std::byte* lines) {
    uint32_t w = 0;
    for (int64_t j = 0; j < 8; ++j) w |= (word(q + 4 * j) >> shift & 0x01010101u) << j;
    put_word(lines, w);
    return lines + 64;
}

void put_head(const Target& to, const uint8_t* scale) { std::memcpy(to.head, scale, 2); }

// Kept negated, so that a weight is scale * q + minimum in every type.
void put_negated_minimum(const Target& to, const uint8_t* scale) {
    const uint8_t negated[2] = {scale[0], static_cast<uint8_t>(scale[1] ^ 0x80)};
    std::memcpy(to.head + 32, negated, 2);
}

void put_side(const Target& to, int64_t block, int64_t field, int value) {
    to.side[block * to.side_bytes + 16 * field + to.row] = static_cast<std::byte>(value);
}

// 16 bytes of nibbles and, for q5, 32 single bits.
void pack_32(DType type, const uint8_t* file, const Target& to) {
    const bool minimum = type == DType::q4_1 || type == DType::q5_1;
    const bool five = type == DType::q5_0 || type == DType::q5_1;
    const uint8_t* p = file;
    if (type == DType::mxfp4) {
        put_side(to, 0, 0, *p++);
    } else {
        put_head(to, p);
        p += 2;
    }
    if (minimum) {
        std::memcpy(to.head + 32, p, 2);
        p += 2;
    }
    if (type == DType::q8_0) {
        for (int64_t j = 0; j < 8; ++j) std::memcpy(to.lines + 64 * j, p + 4 * j, 4);
        return;
    }
    const uint32_t bits = five ? word(p) : 0;
    if (five) p += 4;
    for (int64_t j = 0; j < 4; ++j) std::memcpy(to.lines + 64 * j, p + 4 * j, 4);
    if (!five) return;
    Codes fifth;
    for (int64_t i = 0; i < kBlock; ++i) fifth[i] = static_cast<uint8_t>(bits >> i & 1);
    put_bits(fifth, 0, to.lines + 256);
}

// Twelve bytes of 6-bit scales and minima, as Q4_K and Q5_K have them.
void put_scales_minima(const uint8_t* p, const Target& to) {
    for (int64_t b = 0; b < 8; ++b) {
        const bool low = b < 4;
        put_side(to, b, 0, low ? p[b] & 63 : (p[b + 4] & 15) | p[b - 4] >> 6 << 4);
        put_side(to, b, 1, low ? p[b + 4] & 63 : p[b + 4] >> 4 | p[b] >> 6 << 4);
    }
}

void pack_q4_k(const uint8_t* file, const Target& to, bool five) {
    put_head(to, file);
    put_negated_minimum(to, file + 2);
    put_scales_minima(file + 4, to);
    const uint8_t* fifth = file + 16;
    const uint8_t* nibbles = five ? file + 48 : file + 16;
    for (int64_t b = 0; b < 8; ++b) {
        Codes q;
        for (int64_t i = 0; i < kBlock; ++i)
            q[i] = static_cast<uint8_t>(nibbles[b / 2 * 32 + i] >> b % 2 * 4 & 15);
        std::byte* next = put_nibbles(q, to.lines + b * to.line_bytes);
        if (!five) continue;
        for (int64_t i = 0; i < kBlock; ++i) q[i] = static_cast<uint8_t>(fifth[i] >> b & 1);
        put_bits(q, 0, next);
    }
}

void pack_q6_k(const uint8_t* file, const Target& to) {
    const uint8_t *low = file, *high = file + 128, *scales = file + 192;
    put_head(to, file + 208);
    for (int64_t b = 0; b < 8; ++b) {
        const uint8_t* l = low + b / 4 * 64 + b % 2 * 32;
        const uint8_t* h = high + b / 4 * 32;
        Codes q;
        for (int64_t i = 0; i < kBlock; ++i)
            q[i] = static_cast<uint8_t>((l[i] >> b % 4 / 2 * 4 & 15) | (h[i] >> b % 4 * 2 & 3) << 4);
        put_pairs(q, 4, put_nibbles(q, to.lines + b * to.line_bytes));
        put_side(to, b, 0, scales[2 * b]);
        put_side(to, b, 1, scales[2 * b + 1]);
    }
}

void pack_q2_k(const uint8_t* file, const Target& to) {
    const uint8_t *scales = file, *pairs = file + 16;
    put_head(to, file + 80);
    put_negated_minimum(to, file + 82);
    for (int64_t b = 0; b < 8; ++b) {
        Codes q;
        for (int64_t i = 0; i < kBlock; ++i)
            q[i] = static_cast<uint8_t>(pairs[b / 4 * 32 + i] >> b % 4 * 2 & 3);
        put_pairs(q, 0, to.lines + b * to.line_bytes);
        put_side(to, b, 0, scales[2 * b]);
        put_side(to, b, 1, scales[2 * b + 1]);
    }
}

void pack_q3_k(const uint8_t* file, const Target& to) {
    const uint8_t *third = file, *pairs = file + 32, *scales = file + 96;
    put_head(to, file + 108);
    for (int64_t b = 0; b < 8; ++b) {
        Codes q;
        for (int64_t i = 0; i < kBlock; ++i)
            q[i] = static_cast<uint8_t>((pairs[b / 4 * 32 + i] >> b % 4 * 2 & 3) | (third[i] >> b & 1) << 2);
        put_bits(q, 2, put_pairs(q, 0, to.lines + b * to.line_bytes));
        for (int64_t h = 0; h < 2; ++h) {
            const int64_t j = 2 * b + h;
            const int nibble = scales[j % 8] >> j / 8 * 4 & 15, top = scales[8 + j % 4] >> j / 4 * 2 & 3;
            put_side(to, b, h, (nibble | top << 4) - 32);
        }
    }
}

void pack_iq4_xs(const uint8_t* file, const Target& to) {
    put_head(to, file);
    for (int64_t b = 0; b < 8; ++b) {
        const int nibble = file[4 + b / 2] >> b % 2 * 4 & 15, top = file[2 + b / 4] >> b % 4 * 2 & 3;
        put_side(to, b, 0, (nibble | top << 4) - 32);
        for (int64_t j = 0; j < 4; ++j)
            std::memcpy(to.lines + b * to.line_bytes + 64 * j, file + 8 + 16 * b + 4 * j, 4);
    }
}

void pack_superblock(DType type, const uint8_t* file, const Target& to) {
    switch (type) {
        case DType::q2_k:
            return pack_q2_k(file, to);
        case DType::q3_k:
            return pack_q3_k(file, to);
        case DType::q4_k:
            return pack_q4_k(file, to, false);
        case DType::q5_k:
            return pack_q4_k(file, to, true);
        case DType::q6_k:
            return pack_q6_k(file, to);
        case DType::iq4_xs:
            return pack_iq4_xs(file, to);
        default:
            return pack_32(type, file, to);
    }
}

void pack_blocks(DType type, const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst) {
    const BlockLayout layout = layout_of(type);
    const int64_t count = cols / layout.file_cols;
    std::byte* sides = dst + layout.sides_at(count);
    for (int64_t r = 0; r < kStripRows; ++r) {
        if (rows[r] == nullptr) continue;
        const auto* file = reinterpret_cast<const uint8_t*>(rows[r]);
        for (int64_t s = 0; s < count; ++s) {
            std::byte* record = sides + s * layout.side_stride();
            pack_superblock(type, file + s * layout.file_bytes,
                            {dst + s * layout.lines_stride() + 4 * r, layout.line_bytes, record + 2 * r,
                             record + layout.head_bytes, r, layout.side_bytes});
        }
    }
}

template <typename T>
void pack_columns(const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst) {
    for (int64_t r = 0; r < kStripRows; ++r) {
        if (rows[r] == nullptr) continue;
        for (int64_t k = 0; k < cols; ++k)
            std::memcpy(dst + (k * kStripRows + r) * sizeof(T), rows[r] + k * sizeof(T), sizeof(T));
    }
}

void pack_bf16(const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst) {
    for (int64_t r = 0; r < kStripRows; ++r) {
        if (rows[r] == nullptr) continue;
        for (int64_t k = 0; k < cols; ++k)
            std::memcpy(dst + ((k / 2) * kStripRows + r) * 4 + (k % 2) * 2, rows[r] + 2 * k, 2);
    }
}

}  // namespace

bool is_float(DType type) { return float_size(type) > 0; }

bool packable(DType type, int64_t cols) {
    if (cols <= 0) return false;
    const int64_t block = layout_of(type).file_cols;
    return is_float(type) || (block > 0 && cols % block == 0);
}

int64_t row_bytes(DType type, int64_t cols) {
    if (is_float(type)) return cols * float_size(type);
    const BlockLayout layout = layout_of(type);
    return layout.file_cols == 0 ? 0 : cols / layout.file_cols * layout.file_bytes;
}

int64_t strip_bytes(DType type, int64_t cols) {
    const BlockLayout layout = layout_of(type);
    int64_t bytes = 0;
    if (is_float(type)) {
        bytes = (type == DType::bf16 ? cols + cols % 2 : cols) * kStripRows * float_size(type);
    } else if (layout.file_cols > 0) {
        bytes = layout.end(cols / layout.file_cols);
    }
    return (bytes + kAlign - 1) / kAlign * kAlign;
}

int64_t packed_bytes(DType type, int64_t rows, int64_t cols) {
    return (rows + kStripRows - 1) / kStripRows * strip_bytes(type, cols);
}

void pack_strip(DType type, const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst) {
    std::memset(dst, 0, static_cast<size_t>(strip_bytes(type, cols)));
    switch (type) {
        case DType::f32:
            pack_columns<uint32_t>(rows, cols, dst);
            break;
        case DType::f16:
            pack_columns<uint16_t>(rows, cols, dst);
            break;
        case DType::bf16:
            pack_bf16(rows, cols, dst);
            break;
        default:
            pack_blocks(type, rows, cols, dst);
            break;
    }
}

}  // namespace treadle::compute
