// Matrix products of every (type, ISA): against double-precision sums over independently decoded file rows, against the
// plain ISA bit for bit, over row and column tails, misaligned rows, strip splits and epilogues.
#include <algorithm>

#include "file_matrix.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

struct Case {
    int64_t rows, ldx, ldy;
    bool epilogue;
};

struct Inputs {
    std::vector<float> x, bias, residual;
};

using Product = std::vector<float>;

constexpr float kUntouched = -12345.5f;

enum class Form { f32, i8, bf16 };  // of the rows

bool has(DType type, Form form) { return form != Form::i8 || !is_float(type); }

Product multiply(const Kernels& k, const Packed& w, const Inputs& in, const Case& c, Form form,
                 int64_t splits) {
    const bool quantised = form == Form::i8;
    const PackedMatrix& m = w.matrix;
    Product y(static_cast<size_t>(c.rows * c.ldy + 1), kUntouched);
    Epilogue e;
    if (c.epilogue) e = {in.bias.data(), in.residual.data(), c.ldy, 0.625f};
    Buffer scratch(k.matmul_scratch_bytes(m.cols)), xq(quantised ? k.quant_bytes(c.rows, m.cols) : 64);
    if (quantised) {  // written by uneven ranges of rows and columns, last ones first
        const int64_t row = c.rows / 3, col = m.cols / 96 * 32;
        const auto quantise = [&](int64_t row0, int64_t row1, int64_t col0, int64_t col1) {
            k.quantise(in.x.data() + 1 + col0, c.ldx, row0, row1, c.rows, col0, col1, m.cols, xq.data());
        };
        quantise(row, c.rows, col, m.cols);
        quantise(row, c.rows, 0, col);
        quantise(0, row, 0, m.cols);
    }
    const int64_t ld_halves = (m.cols + 1) / 2 * 2;
    std::vector<uint16_t> halves(static_cast<size_t>(form == Form::bf16 ? c.rows * ld_halves : 0));
    if (form == Form::bf16)
        for (int64_t r = 0; r < c.rows; ++r)
            k.round_bf16(in.x.data() + 1 + r * c.ldx, m.cols, halves.data() + r * ld_halves);
    const bool paired = k.takes_pairs(m.type) && pairable(c.rows);
    Buffer pairs(paired ? 2 * pair_width(c.rows) * m.cols : 64);
    if (paired && form == Form::bf16)
        k.pair_bf16(halves.data(), ld_halves, c.rows, m.cols, reinterpret_cast<uint16_t*>(pairs.data()));
    for (int64_t i = 0; i < splits; ++i) {
        const int64_t s0 = m.strips() * i / splits, s1 = m.strips() * (i + 1) / splits;
        float* out = y.data() + 1;  // misaligned on purpose
        if (quantised) k.matmul_i8(m, s0, s1, xq.data(), c.rows, out, c.ldy, e, scratch.data());
        else if (form == Form::bf16)
            k.matmul_bf16(m, s0, s1, halves.data(), ld_halves,
                          paired && i % 2 == 0 ? reinterpret_cast<const uint16_t*>(pairs.data()) : nullptr,
                          c.rows, out, c.ldy, e, scratch.data());
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
        for (int half = 0; half < 2; ++half) {
            long dot = 0, sum = 0;
            for (int k = 16 * half; k < 16 * half + 16; ++k) {
                const auto q = static_cast<long>(std::nearbyint(x[b * 32 + k] * inverse));
                dot += q * m.quants[static_cast<size_t>(col * m.cols + b * 32 + k)];
                sum += q;
            }
            const auto i = static_cast<size_t>(col * m.cols / 16 + 2 * b + half);
            total +=
                scale * (m.scales[i] * static_cast<double>(dot) + m.minima[i] * static_cast<double>(sum));
        }
    }
    return total;
}

double expected_f32(const FileMatrix& m, const float* x, int64_t col) {
    double total = 0;
    for (int64_t k = 0; k < m.cols; ++k) total += m.values[static_cast<size_t>(col * m.cols + k)] * x[k];
    return total;
}

// Nearest of eight significant bits, ties to even; 0 where it is small.
double nearest_bf16(double x) {
    if (std::fabs(x) < kSmallestBf16) return 0;
    const int exponent = std::ilogb(x) - 7;
    return std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
}

double expected_bf16(const FileMatrix& m, const float* x, int64_t col) {
    double total = 0;
    for (int64_t k = 0; k < m.cols; ++k)
        total += nearest_bf16(static_cast<float>(m.values[static_cast<size_t>(col * m.cols + k)])) *
                 nearest_bf16(x[k]);
    return total;
}

double expected(const FileMatrix& m, const float* x, int64_t col, Form form) {
    return form == Form::i8 ? expected_i8(m, x, col)
                            : (form == Form::bf16 ? expected_bf16 : expected_f32)(m, x, col);
}

void check_against_double(const FileMatrix& m, const Inputs& in, const Case& c, const Product& y, Form form,
                          const std::string& name) {
    for (int64_t r = 0; r < c.rows; ++r) {
        double norm = 1e-6;
        const float* x = in.x.data() + 1 + r * c.ldx;
        for (int64_t k = 0; k < m.cols; ++k) norm += static_cast<double>(x[k]) * x[k];
        for (int64_t col = 0; col < m.rows; ++col) {
            double want = expected(m, x, col, form);
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
        for (const Form form : {Form::f32, Form::i8, Form::bf16}) {
            if (!has(type, form)) continue;
            const Case c{rows, cols + 3, matrix_rows + 2, rows % 2 == 0};
            const Inputs in = make_inputs(m, c, static_cast<uint64_t>(rows));
            const Product plain = multiply(*kernels_for("plain"), w, in, c, form, 1);
            const std::string name = "type " + std::to_string(static_cast<int>(type)) +
                                     (form == Form::i8     ? " i8 "
                                      : form == Form::bf16 ? " bf16 "
                                                           : " f32 ") +
                                     std::to_string(matrix_rows) + "x" + std::to_string(cols) + " rows " +
                                     std::to_string(rows);
            check_against_double(m, in, c, plain, form, name + " plain");
            for (const Kernels* k : supported_kernels()) {
                for (const int64_t splits : {1, 3})
                    check(same_bits(multiply(*k, w, in, c, form, splits), plain),
                          name + " " + k->name + " is not plain's");
                Case alone = c;  // the last row by itself
                alone.rows = 1;
                alone.epilogue = c.epilogue;
                Inputs last = in;
                last.x.erase(last.x.begin(), last.x.begin() + (rows - 1) * c.ldx);
                last.residual.erase(last.residual.begin(), last.residual.begin() + (rows - 1) * c.ldy);
                const Product y = multiply(*k, w, last, alone, form, 1);
                check(std::memcmp(y.data() + 1, plain.data() + 1 + (rows - 1) * c.ldy,
                                  static_cast<size_t>(matrix_rows) * 4) == 0,
                      name + " " + k->name + ": a row alone differs");
            }
        }
}

// Many bf16 rows and columns, which pass in panels, against plain bit for bit.
void test_panels(DType type, int64_t matrix_rows, int64_t cols, const std::vector<int64_t>& row_counts) {
    const FileMatrix m = make_file(type, matrix_rows, cols, 3);
    const Packed w(m);
    for (const int64_t rows : row_counts) {
        const Case c{rows, cols, matrix_rows + 1, rows % 2 == 0};
        const Inputs in = make_inputs(m, c, static_cast<uint64_t>(rows));
        const Product plain = multiply(*kernels_for("plain"), w, in, c, Form::bf16, 1);
        for (const Kernels* k : supported_kernels())
            for (const int64_t splits : {1, 2})
                check(same_bits(multiply(*k, w, in, c, Form::bf16, splits), plain),
                      "panels of type " + std::to_string(static_cast<int>(type)) + " rows " +
                          std::to_string(rows) + " " + k->name + " is not plain's");
    }
}

// Numbers on both sides of kSmallestBf16: no product or sum is below the normal range, where tiles would take it as 0.
void test_small(DType type) {
    const int64_t cols = 96;
    FileMatrix m = make_file(type, 16, cols, 5);
    for (size_t i = 0; i < m.values.size(); ++i) {
        if (type == DType::f32) {
            const float v = static_cast<float>(std::ldexp(m.values[i], -50));
            std::memcpy(m.bytes.data() + 4 * i, &v, 4);
            m.values[i] = v;
        } else if (i % 32 == 0) {  // mxfp4: the scale of 32 values
            m.bytes[i / 32 * 17] = static_cast<std::byte>(128 - 52);
            for (size_t k = i; k < i + 32; ++k) m.values[k] = std::ldexp(m.quants[k], -52);
        }
    }
    for (const int64_t rows : {1, 5, 40}) {
        const Case c{rows, cols, m.rows, false};
        Inputs in = make_inputs(m, c, 9);
        for (float& x : in.x) x = std::ldexp(x, -50);
        const Packed w(m);
        const Product plain = multiply(*kernels_for("plain"), w, in, c, Form::bf16, 1);
        int64_t zeros = 0;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t col = 0; col < m.rows; ++col) {
                const double want = expected_bf16(m, in.x.data() + 1 + r * cols, col);
                const float got = plain[static_cast<size_t>(1 + r * m.rows + col)];
                check(std::fabs(got - want) <= 1e-4 * std::fabs(want) + 0x1p-120, "small numbers");
                zeros += want == 0;  // some sums cancel
            }
        check(zeros < rows * m.rows / 8, "small numbers are not all 0");
        for (const Kernels* k : supported_kernels())
            check(same_bits(multiply(*k, w, in, c, Form::bf16, 1), plain),
                  std::string("small numbers: ") + k->name + " is not plain's");
    }
}

// Scales of 1, codes and rows at their extremes: every result is an integer below 2^24, and exact.
void test_exact_integers(DType type) {
    const BlockType t = block_type(type);
    const int64_t cols = 256, rows = 13;
    Random random(11);
    FileMatrix m;
    m.type = type;
    m.rows = 16;
    m.cols = cols;
    for (int64_t n = 0; n < m.rows * cols / t.superblock; ++n) {
        Superblock s;
        s.d = type == DType::mxfp4 ? 128 : half_bits(1.0f);
        s.dmin = half_bits(1.0f);
        s.scales.fill(1);
        s.minima.fill(1);
        const int highest = (1 << t.bits) - 1, most = type == DType::q8_0 ? 127 : highest;
        const int lowest = type == DType::q8_0 ? 128 : 0;
        for (size_t i = 0; i < 256; ++i) {
            const int64_t kind = n % 4;
            s.codes[i] = kind == 0   ? most
                         : kind == 1 ? lowest
                         : kind == 2 ? (i % 2 ? most : lowest)
                                     : static_cast<int>(random.integer(0, highest));
        }
        append(m, s);
    }
    Inputs in;
    in.x.push_back(0);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < cols; ++k) {
            const int64_t sign = r % 4 == 0 ? 1 : r % 4 == 1 ? -1 : k % 2 ? 1 : -1;
            const bool any = r % 4 == 3 && k % 32 != 5;  // column 5 keeps the scale at 1
            in.x.push_back(static_cast<float>(any ? random.integer(-127, 127) : 127 * sign));
        }
    const Packed w(m);
    for (const Kernels* k : supported_kernels())
        for (const bool quantised : {true, false}) {
            const Product y =
                multiply(*k, w, in, {rows, cols, m.rows, false}, quantised ? Form::i8 : Form::f32, 1);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < m.rows; ++c) {
                    double want = 0;
                    for (int64_t i = 0; i < cols; ++i)
                        want += m.values[static_cast<size_t>(c * cols + i)] *
                                in.x[static_cast<size_t>(1 + r * cols + i)];
                    check(y[static_cast<size_t>(1 + r * m.rows + c)] == static_cast<float>(want),
                          std::string("integers ") + k->name + " type " +
                              std::to_string(static_cast<int>(type)) + (quantised ? " i8" : " f32"));
                }
        }
}

void test_unpack_row(DType type) {
    const int64_t cols = type == DType::f32 ? 96 : 512;
    FileMatrix m = make_file(type, 21, cols, 3);
    if (type == DType::mxfp4)  // the subnormal scales and the largest that no code overflows
        for (const uint8_t e : {0, 1, 2, 3, 250, 251}) {
            m.bytes[e % 16 * 17] = static_cast<std::byte>(e);
            for (size_t i = 0; i < 32; ++i) {
                const size_t at = e % 16 * 32 + i;
                m.values[at] = std::ldexp(m.quants[at], e - 128);
            }
        }
    const Packed w(m);
    for (const Kernels* k : supported_kernels())
        for (int64_t row = 0; row < m.rows; ++row) {
            std::vector<float> got(static_cast<size_t>(cols));
            k->unpack_row(w.matrix, row, got.data());
            for (int64_t i = 0; i < cols; ++i)
                check(
                    got[static_cast<size_t>(i)] ==
                        static_cast<float>(m.values[static_cast<size_t>(row * cols + i)]),
                    std::string("unpack_row ") + k->name + " type " + std::to_string(static_cast<int>(type)));
        }
}

// Against double sums over file rows, and bit for bit against plain.
void test_transposed(DType type, int64_t matrix_rows, int64_t cols) {
    const std::string name = "transposed type " + std::to_string(static_cast<int>(type)) + " ";
    const FileMatrix m = make_file(type, matrix_rows, cols, 11);
    const Packed w(m);
    for (const int64_t rows : {1, 2, 7}) {
        Random random(static_cast<uint64_t>(rows));
        const int64_t ldx = matrix_rows + 3, ldy = cols + 5;
        const std::vector<float> x = random.normals(rows * ldx + 1);
        const auto multiplied = [&](const Kernels& k) {
            Buffer scratch(k.matmul_scratch_bytes(cols));
            Product y(static_cast<size_t>(rows * ldy + 1), kUntouched);
            k.matmul_transposed(w.matrix, x.data() + 1, ldx, rows, y.data() + 1, ldy, scratch.data());
            return y;
        };
        const Product plain = multiplied(*kernels_for("plain"));
        for (const Kernels* k : supported_kernels())
            check(same_bits(multiplied(*k), plain), name + k->name + " is not plain's");
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < ldy; ++c) {
                const float got = plain[static_cast<size_t>(1 + r * ldy + c)];
                if (c >= cols) {
                    check(got == kUntouched, name + "writes past a row");
                    continue;
                }
                double want = 0, norm = 1e-6;
                for (int64_t n = 0; n < matrix_rows; ++n) {
                    const double product = m.values[static_cast<size_t>(n * cols + c)] *
                                           static_cast<double>(x[static_cast<size_t>(1 + r * ldx + n)]);
                    want += product;
                    norm += std::fabs(product);
                }
                check(std::fabs(got - want) <= 1e-6 * norm,
                      name + std::to_string(r) + " " + std::to_string(c));
            }
    }
}

// Bytes of any content pack and unpack within their buffers (the sanitizers watch), and alike on every ISA.
void test_any_bytes(DType type) {
    Random random(5);
    FileMatrix m = make_file(type, 17, 512, 1);
    for (std::byte& b : m.bytes) b = static_cast<std::byte>(random.integer(0, 255));
    const Packed w(m);
    for (int64_t row = 0; row < m.rows; ++row) {
        std::vector<float> plain(512), got(512);
        kernels_for("plain")->unpack_row(w.matrix, row, plain.data());
        for (const Kernels* k : supported_kernels()) {
            k->unpack_row(w.matrix, row, got.data());
            for (size_t i = 0; i < got.size(); ++i)
                check(
                    got[i] == plain[i] || (std::isnan(got[i]) && std::isnan(plain[i])),
                    std::string("any bytes ") + k->name + " type " + std::to_string(static_cast<int>(type)));
        }
    }
}

constexpr DType kFloats[] = {DType::f32, DType::f16, DType::bf16};
constexpr DType kBlocksOf32[] = {DType::q4_0, DType::q4_1,   DType::q5_0, DType::q5_1,
                                 DType::q8_0, DType::iq4_nl, DType::mxfp4};
constexpr DType kBlocksOf256[] = {DType::q2_k, DType::q3_k, DType::q4_k,
                                  DType::q5_k, DType::q6_k, DType::iq4_xs};

}  // namespace

int main() {
    std::vector<int64_t> every;
    for (int64_t rows = 1; rows <= 33; ++rows) every.push_back(rows);
    const auto narrow = [&](DType type) {
        test_product(type, 37, 96, every);
        test_product(type, 16, 32, {1, 2, 5});
        test_product(type, 1, 64, {1, 3});
        test_product(type, 112, 576, {1, 8, 16, 17, 50, 64});
    };
    const auto blocks = [](DType type) {
        test_exact_integers(type);
        test_any_bytes(type);
        test_unpack_row(type);
    };
    for (const DType type : kFloats) {
        narrow(type);
        for (const int64_t cols : {7, 64, 101}) test_transposed(type, 48, cols);
        for (const int64_t cols : {1, 7, 33, 101}) test_product(type, 19, cols, {1, 2, 9, 18});
        test_unpack_row(type);
    }
    for (const DType type : kBlocksOf32) {
        narrow(type);
        test_transposed(type, 128, 96);
        blocks(type);
        check(!packable(type, 33) && packable(type, 96), "packable by 32");
    }
    for (const DType type : kBlocksOf256) {
        test_product(type, 37, 256, every);
        test_product(type, 1, 512, {1, 3});
        test_transposed(type, 16, 512);
        test_product(type, 112, 768, {1, 8, 17, 50});  // more blocks than a panel holds
        blocks(type);
        check(!packable(type, 96) && packable(type, 512), "packable by 256");
    }
    check(kernels_for(kernels().name) == &kernels(), "the table that TREADLE_ISA asks for is there");
    test_panels(DType::q4_1, 16 * 18 + 5, 1184, {33, 70});
    test_panels(DType::q6_k, 16 * 3, 768, {513, 545});
    test_panels(DType::bf16, 16 * 17, 1189, {40, 64});
    test_panels(DType::f32, 16 * 2 + 1, 577, {47});
    test_small(DType::f32);
    test_small(DType::mxfp4);
    check(!packable(DType::i8, 256) && !packable(DType::f32, 0), "packable");
    return report("test_matmul");
}
