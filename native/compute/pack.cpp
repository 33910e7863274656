// Lossless packing of file-format rows into strips (layout.hpp).
#include <cstring>

#include "compute/kernels.hpp"
#include "compute/layout.hpp"

namespace treadle::compute {
namespace {

const BlockLayout* block_layout(DType type) {
    switch (type) {
        case DType::q4_0:
            return &kLayoutQ4_0;
        case DType::q4_1:
            return &kLayoutQ4_1;
        case DType::q8_0:
            return &kLayoutQ8_0;
        default:
            return nullptr;
    }
}

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

// Nibbles as stored: byte i of a row's block holds q[i] and q[16 + i], just the pairing of a line.
void pack_nibbles(const std::byte* quants, int64_t r, std::byte* lines) {
    for (int64_t j = 0; j < 4; ++j) std::memcpy(lines + 64 * j + 4 * r, quants + 4 * j, 4);
}

void pack_bytes(const std::byte* quants, int64_t r, std::byte* lines) {
    for (int64_t j = 0; j < 8; ++j) std::memcpy(lines + 64 * j + 4 * r, quants + 4 * j, 4);
}

void pack_blocks(DType type, const BlockLayout& layout, const std::byte* const rows[kStripRows], int64_t cols,
                 std::byte* dst) {
    const int64_t blocks = cols / kBlock;
    std::byte* sides = dst + blocks * layout.line_bytes;
    for (int64_t r = 0; r < kStripRows; ++r) {
        if (rows[r] == nullptr) continue;
        for (int64_t b = 0; b < blocks; ++b) {
            const std::byte* block = rows[r] + b * layout.file_bytes;
            std::byte* lines = dst + b * layout.line_bytes;
            std::byte* side = sides + b * layout.side_bytes + 2 * r;
            std::memcpy(side, block, 2);
            switch (type) {
                case DType::q4_0:
                    pack_nibbles(block + 2, r, lines);
                    break;
                case DType::q4_1:
                    std::memcpy(side + 32, block + 2, 2);
                    pack_nibbles(block + 4, r, lines);
                    break;
                default:
                    pack_bytes(block + 2, r, lines);
                    break;
            }
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

void pack_pairs(const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst) {
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
    return is_float(type) || (block_layout(type) != nullptr && cols % kBlock == 0);
}

int64_t row_bytes(DType type, int64_t cols) {
    if (is_float(type)) return cols * float_size(type);
    const BlockLayout* layout = block_layout(type);
    return layout == nullptr ? 0 : cols / kBlock * layout->file_bytes;
}

int64_t strip_bytes(DType type, int64_t cols) {
    int64_t bytes = 0;
    if (is_float(type)) {
        bytes = (type == DType::bf16 ? cols + cols % 2 : cols) * kStripRows * float_size(type);
    } else if (const BlockLayout* layout = block_layout(type)) {
        bytes = cols / kBlock * (layout->line_bytes + layout->side_bytes);
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
            pack_pairs(rows, cols, dst);
            break;
        default:
            pack_blocks(type, *block_layout(type), rows, cols, dst);
            break;
    }
}

int64_t kv_page_bytes(const KvLayout& kv) {
    return kv.page_len * kv.heads * (kv.key_dim + kv.value_dim) * float_size(kv.type);
}

}  // namespace treadle::compute
