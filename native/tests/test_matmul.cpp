// Matrix products of every (type, ISA): against double-precision sums over independently decoded file rows, against the
// plain ISA bit for bit, over row and column tails, misaligned rows, strip splits and epilogues.
#include <algorithm>

#include "check.hpp"
#include "compute/kernels.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

uint16_t half_bits(float f) {  // of values that are exact in f16
    const int exponent = std::ilogb(f);
    if (f == 0.0f) return 0;
    const auto mantissa =
        static_cast<uint16_t>(std::lround((std::fabs(f) / std::ldexp(1.0f, exponent) - 1.0f) * 1024.0f));
    return static_cast<uint16_t>((f < 0 ? 0x8000 : 0) + ((exponent + 15) << 10) + mantissa);
}

float half_value(uint16_t h) {
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    const double m = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return static_cast<float>(h & 0x8000 ? -m : m);
}

// A matrix in file format with the values and, for block types, the integers that it stands for.
struct FileMatrix {
    DType type;
    int64_t rows, cols;
    std::vector<std::byte> bytes;
    std::vector<double> values;         // [rows, cols]
    std::vector<int> quants;            // [rows, cols], offset removed
    std::vector<float> scales, minima;  // [rows, cols / 32]
};

void put16(std::byte* p, uint16_t v) { std::memcpy(p, &v, 2); }

void fill_float(FileMatrix& m, Random& random) {
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
            put16(p, i % 97 == 0 ? static_cast<uint16_t>(std::lround(std::ldexp(v, 24))) : half_bits(v));
            check(half_value(*reinterpret_cast<uint16_t*>(p)) == v, "test's own f16");
        } else {
            uint32_t u;
            std::memcpy(&u, &v, 4);
            if (m.type == DType::bf16) u &= 0xffff0000u;
            std::memcpy(&v, &u, 4);
            if (m.type == DType::bf16) put16(p, static_cast<uint16_t>(u >> 16));
            else std::memcpy(p, &u, 4);
        }
        m.values.push_back(v);
    }
}

void fill_blocks(FileMatrix& m, Random& random) {
    const bool wide = m.type == DType::q8_0, minimum = m.type == DType::q4_1;
    for (int64_t i = 0; i < m.rows * m.cols / 32; ++i) {
        const float d = half_value(half_bits(std::ldexp(static_cast<float>(random.integer(1024, 2047)),
                                                        -18 + static_cast<int>(random.integer(0, 3)))));
        const float low = minimum ? std::ldexp(static_cast<float>(random.integer(-2047, -1024)), -12) : 0.0f;
        std::byte block[34] = {};
        put16(block, half_bits(d));
        if (minimum) put16(block + 2, half_bits(low));
        std::byte* q = block + (minimum ? 4 : 2);
        m.scales.push_back(d);
        m.minima.push_back(low);
        for (int k = 0; k < 32; ++k) {
            int v = static_cast<int>(wide ? random.integer(-128, 127) : random.integer(0, 15));
            if (i == 0 && wide) v = -128;
            if (wide) q[k] = static_cast<std::byte>(v);
            else q[k % 16] |= static_cast<std::byte>(v << (k / 16 * 4));
            if (m.type == DType::q4_0) v -= 8;
            m.quants.push_back(v);
            m.values.push_back(static_cast<double>(d) * v + low);
        }
        m.bytes.insert(m.bytes.end(), block, block + row_bytes(m.type, 32));
    }
}

FileMatrix make_file(DType type, int64_t rows, int64_t cols, uint64_t seed) {
    Random random(seed);
    FileMatrix m{type, rows, cols, {}, {}, {}, {}, {}};
    if (is_float(type)) fill_float(m, random);
    else fill_blocks(m, random);
    check(static_cast<int64_t>(m.bytes.size()) == rows * row_bytes(type, cols), "row_bytes");
    return m;
}

struct Packed {
    Buffer buffer;
    PackedMatrix matrix;
    explicit Packed(const FileMatrix& m)
        : buffer(packed_bytes(m.type, m.rows, m.cols)),
          matrix{m.type, m.rows, m.cols, strip_bytes(m.type, m.cols), buffer.data()} {
        for (int64_t s = 0; s < matrix.strips(); ++s) {
            const std::byte* rows[kStripRows];
            for (int64_t r = 0; r < kStripRows; ++r) {
                const int64_t row = s * kStripRows + r;
                rows[r] = row < m.rows ? m.bytes.data() + row * row_bytes(m.type, m.cols) : nullptr;
            }
            pack_strip(m.type, rows, m.cols, buffer.data() + s * matrix.strip_bytes);
        }
    }
};

struct Case {
    int64_t rows, ldx, ldy;
    bool epilogue;
};

struct Inputs {
    std::vector<float> x, bias, residual;
};

using Product = std::vector<float>;

constexpr float kUntouched = -12345.5f;

Product multiply(const Kernels& k, const Packed& w, const Inputs& in, const Case& c, bool quantised,
                 int64_t splits) {
    const PackedMatrix& m = w.matrix;
    Product y(static_cast<size_t>(c.rows * c.ldy + 1), kUntouched);
    Epilogue e;
    if (c.epilogue) e = {in.bias.data(), in.residual.data(), c.ldy, 0.625f};
    Buffer scratch(k.matmul_scratch_bytes(m.cols)), xq(quantised ? k.quant_bytes(c.rows, m.cols) : 64);
    if (quantised) {  // written by uneven row ranges, last one first
        const int64_t middle = c.rows / 3;
        k.quantise(in.x.data() + 1, c.ldx, middle, c.rows, c.rows, m.cols, xq.data());
        k.quantise(in.x.data() + 1, c.ldx, 0, middle, c.rows, m.cols, xq.data());
    }
    for (int64_t i = 0; i < splits; ++i) {
        const int64_t s0 = m.strips() * i / splits, s1 = m.strips() * (i + 1) / splits;
        float* out = y.data() + 1;  // misaligned on purpose
        if (quantised) k.matmul_i8(m, s0, s1, xq.data(), c.rows, out, c.ldy, e, scratch.data());
        else k.matmul_f32(m, s0, s1, in.x.data() + 1, c.ldx, c.rows, out, c.ldy, e, scratch.data());
    }
    return y;
}

// What the int8 product promises, in double: quantised activations, exact integer dots.
double expected_i8(const FileMatrix& m, const float* x, int64_t col) {
    double total = 0;
    for (int64_t b = 0; b < m.cols / 32; ++b) {
        float largest = 0;
        for (int k = 0; k < 32; ++k) largest = std::max(largest, std::fabs(x[b * 32 + k]));
        const double scale = static_cast<double>(largest / 127.0f);
        const float inverse = largest > 0 ? 127.0f / largest : 0;
        long dot = 0, sum = 0;
        for (int k = 0; k < 32; ++k) {
            const auto q = static_cast<long>(std::nearbyint(x[b * 32 + k] * inverse));
            dot += q * m.quants[static_cast<size_t>(col * m.cols + b * 32 + k)];
            sum += q;
        }
        const auto i = static_cast<size_t>(col * m.cols / 32 + b);
        total += scale * (static_cast<double>(m.scales[i]) * static_cast<double>(dot) +
                          static_cast<double>(m.minima[i]) * static_cast<double>(sum));
    }
    return total;
}

double expected_f32(const FileMatrix& m, const float* x, int64_t col) {
    double total = 0;
    for (int64_t k = 0; k < m.cols; ++k) total += m.values[static_cast<size_t>(col * m.cols + k)] * x[k];
    return total;
}

void check_against_double(const FileMatrix& m, const Inputs& in, const Case& c, const Product& y,
                          bool quantised, const std::string& name) {
    for (int64_t r = 0; r < c.rows; ++r) {
        double norm = 1e-6;
        const float* x = in.x.data() + 1 + r * c.ldx;
        for (int64_t k = 0; k < m.cols; ++k) norm += static_cast<double>(x[k]) * x[k];
        for (int64_t col = 0; col < m.rows; ++col) {
            double want = quantised ? expected_i8(m, x, col) : expected_f32(m, x, col);
            if (c.epilogue) {
                want = (want + in.bias[static_cast<size_t>(col)]) * 0.625 +
                       in.residual[static_cast<size_t>(r * c.ldy + col)];
            }
            const double got = y[static_cast<size_t>(1 + r * c.ldy + col)];
            double size = 1e-6;
            for (int64_t k = 0; k < m.cols; ++k)
                size += std::pow(m.values[static_cast<size_t>(col * m.cols + k)], 2);
            const double bound = 3e-6 * (std::sqrt(norm * size) + 1);
            check(std::fabs(got - want) <= bound, name + " row " + std::to_string(r) + " col " +
                                                      std::to_string(col) + ": " + std::to_string(got) +
                                                      " not " + std::to_string(want));
        }
        for (int64_t col = m.rows; col < c.ldy; ++col)
            check(y[static_cast<size_t>(1 + r * c.ldy + col)] == kUntouched,
                  name + " wrote past its columns");
    }
    check(y[0] == kUntouched, name + " wrote before its rows");
}

Inputs make_inputs(const FileMatrix& m, const Case& c, uint64_t seed) {
    Random random(seed);
    Inputs in{random.normals(c.rows * c.ldx + 1), random.normals(m.rows), random.normals(c.rows * c.ldy)};
    for (int64_t k = 0; k < std::min<int64_t>(m.cols, 32); ++k)
        in.x[static_cast<size_t>(1 + k)] = 0.0f;  // an all-zero block
    return in;
}

void test_product(DType type, int64_t matrix_rows, int64_t cols, const std::vector<int64_t>& row_counts) {
    const FileMatrix m = make_file(type, matrix_rows, cols, 7 + static_cast<uint64_t>(cols));
    const Packed w(m);
    for (const int64_t rows : row_counts)
        for (int mode = 0; mode < 2; ++mode) {
            const bool quantised = mode == 1;
            if (quantised && is_float(type)) continue;
            const Case c{rows, cols + 3, matrix_rows + 2, rows % 2 == 0};
            const Inputs in = make_inputs(m, c, static_cast<uint64_t>(rows));
            const Product plain = multiply(*kernels_for("plain"), w, in, c, quantised, 1);
            const std::string name = "type " + std::to_string(static_cast<int>(type)) +
                                     (quantised ? " i8 " : " f32 ") + std::to_string(matrix_rows) + "x" +
                                     std::to_string(cols) + " rows " + std::to_string(rows);
            check_against_double(m, in, c, plain, quantised, name + " plain");
            for (const Kernels* k : supported_kernels()) {
                for (const int64_t splits : {1, 3})
                    check(same_bits(multiply(*k, w, in, c, quantised, splits), plain),
                          name + " " + k->name + " is not plain's");
                Case alone = c;  // the last row by itself
                alone.rows = 1;
                alone.epilogue = c.epilogue;
                Inputs last = in;
                last.x.erase(last.x.begin(), last.x.begin() + (rows - 1) * c.ldx);
                last.residual.erase(last.residual.begin(), last.residual.begin() + (rows - 1) * c.ldy);
                const Product y = multiply(*k, w, last, alone, quantised, 1);
                check(std::memcmp(y.data() + 1, plain.data() + 1 + (rows - 1) * c.ldy,
                                  static_cast<size_t>(matrix_rows) * 4) == 0,
                      name + " " + k->name + ": a row alone differs");
            }
        }
}

void test_unpack_row(DType type) {
    const FileMatrix m = make_file(type, 21, 96, 3);
    const Packed w(m);
    for (const Kernels* k : supported_kernels())
        for (int64_t row = 0; row < m.rows; ++row) {
            std::vector<float> got(96);
            k->unpack_row(w.matrix, row, got.data());
            for (int64_t i = 0; i < 96; ++i)
                check(
                    got[static_cast<size_t>(i)] ==
                        static_cast<float>(m.values[static_cast<size_t>(row * 96 + i)]),
                    std::string("unpack_row ") + k->name + " type " + std::to_string(static_cast<int>(type)));
        }
}

}  // namespace

int main() {
    std::vector<int64_t> every;
    for (int64_t rows = 1; rows <= 33; ++rows) every.push_back(rows);
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1}) {
        test_product(type, 37, 96, every);
        test_product(type, 16, 32, {1, 2, 5});
        test_product(type, 1, 64, {1, 3});
        test_product(type, 112, 576, {1, 8, 17});
        if (is_float(type))
            for (const int64_t cols : {1, 7, 33, 101}) test_product(type, 19, cols, {1, 2, 9, 18});
        test_unpack_row(type);
    }
    check(!packable(DType::q4_0, 33) && !packable(DType::q4_k, 256) && !packable(DType::f32, 0), "packable");
    return report("test_matmul");
}
