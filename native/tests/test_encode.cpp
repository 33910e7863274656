// Encoders of every type: the same bytes on every ISA, nothing written past a row, and refusal of values that no scale
// fits. What the bytes mean is tested in Python, against decoders of others.
#include "check.hpp"
#include "compute/kernels.hpp"

using namespace treadle::compute;
using namespace treadle::test;

namespace {

constexpr DType kTypes[] = {DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0,  DType::q2_k,
                            DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k, DType::iq4_nl};

std::vector<float> row(Random& random, int64_t cols, int kind) {
    std::vector<float> x = random.normals(cols, kind == 1 ? 1e-39f : 0.1f);
    for (int64_t i = 0; i < cols; ++i) {
        if (kind == 2) x[i] = 0.25f;
        if (kind == 3) x[i] = i % 37 == 0 ? -3.0f : 0.0f;
        if (kind == 4) x[i] = 1.0f + 0.001f * static_cast<float>(i);
        if (kind == 5) x[i] *= 3e4f;
    }
    return x;
}

void check_type(DType type) {
    const std::string name = "type " + std::to_string(static_cast<int>(type));
    const EncodedBlock block = encoded_block(type);
    const int64_t cols = 512, bytes = cols / block.cols * block.bytes;
    Random random(static_cast<uint64_t>(type));
    for (int kind = 0; kind < 6; ++kind) {
        const std::vector<float> x = row(random, cols, kind);
        std::vector<std::byte> expected;
        for (const Kernels* k : supported_kernels()) {
            std::vector<std::byte> out(static_cast<size_t>(bytes + 8), std::byte{0x5a});
            check(k->encode_row(type, x.data(), cols, out.data() + 1), name + " refused a row");
            check(out.front() == std::byte{0x5a} && out[static_cast<size_t>(bytes + 1)] == std::byte{0x5a},
                  name + " wrote past its row");
            if (expected.empty()) expected = out;
            check(out == expected, name + " differs on " + k->name);
        }
    }
    for (const float bad : {NAN, INFINITY, -INFINITY, 1e30f}) {
        std::vector<float> x = row(random, cols, 0);
        x[300] = bad;
        std::vector<std::byte> out(static_cast<size_t>(bytes));
        for (const Kernels* k : supported_kernels())
            check(!k->encode_row(type, x.data(), cols, out.data()), name + " took a value without a code");
    }
}

// A minimum past f16 has no code, however well its scale fits.
void check_minimum(DType type) {
    std::vector<float> x(32, -1e5f);
    std::vector<std::byte> out(32);
    for (const Kernels* k : supported_kernels())
        check(!k->encode_row(type, x.data(), 32, out.data()),
              "type " + std::to_string(static_cast<int>(type)) + " took a minimum past f16");
}

}  // namespace

int main() {
    for (const DType type : kTypes) check_type(type);
    for (const DType type : {DType::q4_1, DType::q5_1}) check_minimum(type);
    check(encoded_block(DType::f32).cols == 0, "f32 is no block type");
    return report("encode");
}
