// Random matrices as a file stores them (ggml's block layouts, written element by element from chosen codes and scales),
// with the values that they stand for. Independent of the packer, which reads such bytes.
#pragma once

#include <array>

#include "check.hpp"
#include "compute/kernels.hpp"

namespace treadle::test {

using compute::DType;

inline uint16_t half_bits(float f) {  // of values that are exact in f16
    const int exponent = std::ilogb(f);
    if (f == 0.0f) return 0;
    const auto mantissa =
        static_cast<uint16_t>(std::lround((std::fabs(f) / std::ldexp(1.0f, exponent) - 1.0f) * 1024.0f));
    return static_cast<uint16_t>((f < 0 ? 0x8000 : 0) + ((exponent + 15) << 10) + mantissa);
}

inline float half_value(uint16_t h) {
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    const double m = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return static_cast<float>(h & 0x8000 ? -m : m);
}

// What a block type's weight is: scale * value(code) + minimum, scales shared by `run` columns.
struct BlockType {
    int superblock;  // columns that share the file's f16 scale
    int bits;        // of a code
    int run;
    bool minimum;
    int scale_low, scale_high;  // of the integer scale of a run; 1, 1: it has none
    int minimum_high;           // of the integer minimum of a run
};

inline BlockType block_type(DType type) {
    switch (type) {
        case DType::q4_0:
        case DType::iq4_nl:
        case DType::mxfp4:
            return {32, 4, 32, false, 1, 1, 0};
        case DType::q4_1:
            return {32, 4, 32, true, 1, 1, 1};
        case DType::q5_0:
            return {32, 5, 32, false, 1, 1, 0};
        case DType::q5_1:
            return {32, 5, 32, true, 1, 1, 1};
        case DType::q8_0:
            return {32, 8, 32, false, 1, 1, 0};
        case DType::q2_k:
            return {256, 2, 16, true, 0, 15, 15};
        case DType::q3_k:
            return {256, 3, 16, false, -32, 31, 0};
        case DType::q4_k:
            return {256, 4, 32, true, 0, 63, 63};
        case DType::q5_k:
            return {256, 5, 32, true, 0, 63, 63};
        case DType::q6_k:
            return {256, 6, 16, false, -128, 127, 0};
        default:  // iq4_xs
            return {256, 4, 32, false, -32, 31, 0};
    }
}

// The integer that a code stands for.
inline int code_value(DType type, int code) {
    constexpr std::array kIQ4{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    constexpr std::array kE2M1{0, 1, 2, 3, 4, 6, 8, 12};
    switch (type) {
        case DType::q4_0:
            return code - 8;
        case DType::q5_0:
            return code - 16;
        case DType::q8_0:
            return code < 128 ? code : code - 256;
        case DType::q3_k:
            return code - 4;
        case DType::q6_k:
            return code - 32;
        case DType::iq4_nl:
        case DType::iq4_xs:
            return kIQ4[static_cast<size_t>(code)];
        case DType::mxfp4:
            return code < 8 ? kE2M1[static_cast<size_t>(code)] : -kE2M1[static_cast<size_t>(code - 8)];
        default:
            return code;
    }
}

// One superblock of one row before it is written.
struct Superblock {
    std::array<int, 256> codes{};
    std::array<int, 16> scales{}, minima{};  // of runs
    uint16_t d = 0, dmin = 0;                // f16 bits; of mxfp4 the exponent byte
};

class BlockWriter {
  public:
    explicit BlockWriter(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {}
    void put16(size_t at, uint16_t v) { std::memcpy(&bytes_[at], &v, 2); }
    void add(size_t at, int value, int shift) { bytes_[at] |= static_cast<std::byte>(value << shift); }
    const std::vector<std::byte>& bytes() const { return bytes_; }

  private:
    std::vector<std::byte> bytes_;
};

inline void write_32(DType type, const Superblock& s, BlockWriter& out) {
    size_t at = 2;
    if (type == DType::mxfp4) {
        out.add(0, s.d, 0);
        at = 1;
    } else {
        out.put16(0, s.d);
    }
    if (block_type(type).minimum) {
        out.put16(2, s.dmin);
        at = 4;
    }
    const size_t fifth = at;
    if (block_type(type).bits == 5) at += 4;
    for (size_t i = 0; i < 32; ++i) {
        if (type == DType::q8_0) {
            out.add(at + i, s.codes[i], 0);
            continue;
        }
        out.add(at + i % 16, s.codes[i] & 15, i < 16 ? 0 : 4);
        if (block_type(type).bits == 5) out.add(fifth + i / 8, s.codes[i] >> 4, static_cast<int>(i % 8));
    }
}

// Element i of 256 in one of the K types: group g of 32, place l in it.
inline void write_256(DType type, const Superblock& s, BlockWriter& out) {
    for (size_t i = 0; i < 256; ++i) {
        const size_t g = i / 32, l = i % 32;
        const int q = s.codes[i], bit = static_cast<int>(g), pair = static_cast<int>(g % 4 * 2);
        switch (type) {
            case DType::q2_k:
                out.add(16 + g / 4 * 32 + l, q, pair);
                break;
            case DType::q3_k:
                out.add(l, q >> 2, bit);
                out.add(32 + g / 4 * 32 + l, q & 3, pair);
                break;
            case DType::q4_k:
                out.add(16 + g / 2 * 32 + l, q, g % 2 ? 4 : 0);
                break;
            case DType::q5_k:
                out.add(16 + l, q >> 4, bit);
                out.add(48 + g / 2 * 32 + l, q & 15, g % 2 ? 4 : 0);
                break;
            case DType::q6_k:
                out.add(g / 4 * 64 + g % 2 * 32 + l, q & 15, g % 4 >= 2 ? 4 : 0);
                out.add(128 + g / 4 * 32 + l, q >> 4, pair);
                break;
            default:
                out.add(8 + g * 16 + l % 16, q, l < 16 ? 0 : 4);
                break;
        }
    }
}

inline void write_scales(DType type, const Superblock& s, BlockWriter& out) {
    for (size_t j = 0; j < 16; ++j) {
        const int sc = s.scales[j], m = s.minima[j], odd = j % 2 ? 4 : 0;
        switch (type) {
            case DType::q2_k:
                out.add(j, sc | m << 4, 0);
                break;
            case DType::q3_k:
                out.add(96 + j % 8, (sc + 32) & 15, j < 8 ? 0 : 4);
                out.add(104 + j % 4, (sc + 32) >> 4, static_cast<int>(j / 4 * 2));
                break;
            case DType::q6_k:
                out.add(192 + j, sc & 255, 0);
                break;
            case DType::iq4_xs:
                if (j >= 8) break;
                out.add(4 + j / 2, (sc + 32) & 15, odd);
                out.add(2 + j / 4, (sc + 32) >> 4, static_cast<int>(j % 4 * 2));
                break;
            default:  // q4_k, q5_k: 6 bits each in 12 bytes
                if (j < 4) {
                    out.add(4 + j, sc, 0);
                    out.add(8 + j, m, 0);
                } else if (j < 8) {
                    out.add(8 + j, sc & 15, 0);
                    out.add(8 + j, m & 15, 4);
                    out.add(j, sc >> 4, 6);
                    out.add(4 + j, m >> 4, 6);
                }
                break;
        }
    }
}

inline std::vector<std::byte> write_superblock(DType type, const Superblock& s) {
    const int columns = block_type(type).superblock;
    BlockWriter out(compute::row_bytes(type, columns));
    if (columns == 32) {
        write_32(type, s, out);
        return out.bytes();
    }
    const size_t d = type == DType::q2_k ? 80 : type == DType::q3_k ? 108 : type == DType::q6_k ? 208 : 0;
    out.put16(d, s.d);
    if (block_type(type).minimum) out.put16(d + 2, s.dmin);
    write_256(type, s, out);
    write_scales(type, s, out);
    return out.bytes();
}

// A matrix in file format with the values and, for block types, the integers that it stands for.
struct FileMatrix {
    DType type{};
    int64_t rows = 0, cols = 0;
    std::vector<std::byte> bytes;
    std::vector<double> values;          // [rows, cols]
    std::vector<int> quants;             // [rows, cols], offset removed
    std::vector<double> scales, minima;  // [rows, cols / 16]
};

inline void append(FileMatrix& m, const Superblock& s) {
    const BlockType t = block_type(m.type);
    const double d = m.type == DType::mxfp4 ? std::ldexp(1.0, s.d - 128) : half_value(s.d);
    const double dmin = half_value(s.dmin) * (t.superblock == 256 ? -1 : 1);
    for (int i = 0; i < t.superblock; ++i) {
        const auto run = static_cast<size_t>(i / t.run);
        const double scale = d * s.scales[run], minimum = t.minimum ? dmin * s.minima[run] : 0;
        const int q = code_value(m.type, s.codes[static_cast<size_t>(i)]);
        m.quants.push_back(q);
        m.values.push_back(scale * q + minimum);
        if (i % 16 != 0) continue;
        m.scales.push_back(scale);
        m.minima.push_back(minimum);
    }
    const std::vector<std::byte> bytes = write_superblock(m.type, s);
    m.bytes.insert(m.bytes.end(), bytes.begin(), bytes.end());
}

inline void fill_blocks(FileMatrix& m, Random& random) {
    const BlockType t = block_type(m.type);
    const auto half = [&](int exponent) {
        return half_bits(std::ldexp(static_cast<float>(random.integer(1024, 2047)),
                                    exponent + static_cast<int>(random.integer(0, 3))));
    };
    for (int64_t n = 0; n < m.rows * m.cols / t.superblock; ++n) {
        Superblock s;
        s.d = m.type == DType::mxfp4 ? static_cast<uint16_t>(random.integer(115, 125)) : half(-18);
        if (t.superblock == 256) s.d = half(-23);
        if (t.minimum) s.dmin = static_cast<uint16_t>(half(t.superblock == 256 ? -22 : -14) | (n % 2 << 15));
        for (int& q : s.codes) q = static_cast<int>(random.integer(0, (1 << t.bits) - 1));
        if (n == 0) s.codes[0] = m.type == DType::q8_0 ? 128 : 0;  // the most negative one
        for (int& sc : s.scales) sc = static_cast<int>(random.integer(t.scale_low, t.scale_high));
        for (int& low : s.minima)
            low = t.superblock == 32 ? 1 : static_cast<int>(random.integer(0, t.minimum_high));
        append(m, s);
    }
}

inline void fill_float(FileMatrix& m, Random& random) {
    const int64_t size = m.type == DType::f32 ? 4 : 2;
    m.bytes.resize(static_cast<size_t>(m.rows * m.cols * size));
    for (int64_t i = 0; i < m.rows * m.cols; ++i) {
        float v = random.normal();
        std::byte* p = m.bytes.data() + i * size;
        if (m.type == DType::f16) {
            if (std::fabs(v) < 0x1p-14f) v = 0.5f;  // normal numbers; subnormals come below
            const int exponent = std::ilogb(v);
            v = std::ldexp(std::round(std::ldexp(v, 10 - exponent)), exponent - 10);
            if (i % 97 == 0) v = std::ldexp(static_cast<float>(random.integer(1, 1023)), -24);
            const uint16_t bits =
                i % 97 == 0 ? static_cast<uint16_t>(std::lround(std::ldexp(v, 24))) : half_bits(v);
            std::memcpy(p, &bits, 2);
            check(half_value(bits) == v, "test's own f16");
        } else {
            uint32_t u;
            std::memcpy(&u, &v, 4);
            if (m.type == DType::bf16) u &= 0xffff0000u;
            std::memcpy(&v, &u, 4);
            const auto top = static_cast<uint16_t>(u >> 16);
            if (m.type == DType::bf16) std::memcpy(p, &top, 2);
            else std::memcpy(p, &u, 4);
        }
        m.values.push_back(v);
    }
}

inline FileMatrix make_file(DType type, int64_t rows, int64_t cols, uint64_t seed) {
    Random random(seed);
    FileMatrix m;
    m.type = type;
    m.rows = rows;
    m.cols = cols;
    if (compute::is_float(type)) fill_float(m, random);
    else fill_blocks(m, random);
    check(static_cast<int64_t>(m.bytes.size()) == rows * compute::row_bytes(type, cols), "row_bytes");
    return m;
}

struct Packed {
    Buffer buffer;
    compute::PackedMatrix matrix;
    explicit Packed(const FileMatrix& m)
        : buffer(compute::packed_bytes(m.type, m.rows, m.cols)),
          matrix{m.type, m.rows, m.cols, compute::strip_bytes(m.type, m.cols), buffer.data()} {
        for (int64_t s = 0; s < matrix.strips(); ++s) {
            const std::byte* rows[compute::kStripRows];
            for (int64_t r = 0; r < compute::kStripRows; ++r) {
                const int64_t row = s * compute::kStripRows + r;
                rows[r] = row < m.rows ? m.bytes.data() + row * compute::row_bytes(m.type, m.cols) : nullptr;
            }
            compute::pack_strip(m.type, rows, m.cols, buffer.data() + s * matrix.strip_bytes);
        }
    }
};

}  // namespace treadle::test
