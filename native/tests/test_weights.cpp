// Packing and summing whole weights: the same for any number of threads, and every small damage shows in the sum.
#include <algorithm>

#include "compute/checksum.hpp"
#include "inference/weights.hpp"
#include "tests/check.hpp"

using namespace treadle;
using namespace treadle::test;

namespace {

std::vector<std::byte> noise(Random& random, size_t n) {
    std::vector<std::byte> out(n);
    for (std::byte& b : out) b = static_cast<std::byte>(random.integer(0, 255));
    return out;
}

// Rows that do not fill the last strip and lie further apart than they are long.
void packing_is_that_of_its_strips(Random& random, compute::DType type) {
    const int64_t rows = 16 * 40 + 5, cols = 512;
    const int64_t stride = compute::row_bytes(type, cols) + 6, strip = compute::strip_bytes(type, cols);
    const std::vector<std::byte> stored = noise(random, static_cast<size_t>(rows * stride));
    const auto size = static_cast<size_t>(compute::packed_bytes(type, rows, cols));
    std::vector<std::byte> expected(size);
    for (int64_t s = 0; s * compute::kStripRows < rows; ++s) {
        const std::byte* strip_rows[compute::kStripRows];
        for (int64_t r = 0; r < compute::kStripRows; ++r) {
            const int64_t row = s * compute::kStripRows + r;
            strip_rows[r] = row < rows ? stored.data() + row * stride : nullptr;
        }
        compute::pack_strip(type, strip_rows, cols, expected.data() + s * strip);
    }
    for (const int threads : {1, 2, 3}) {
        inference::ThreadPool pool(threads);
        std::vector<std::byte> found(size, std::byte{0xa5});
        inference::pack_matrix(pool, type, stored.data(), rows, stride, cols, found.data());
        check(found == expected, "packed by " + std::to_string(threads) + " threads");
    }
}

void sums_do_not_depend_on_threads(Random& random) {
    for (const size_t n : {size_t{0}, size_t{1}, size_t{127}, size_t{1} << 20, (size_t{5} << 20) + 33}) {
        const std::vector<std::byte> data = noise(random, n);
        inference::ThreadPool one(1);
        const uint64_t expected = inference::checksum(one, data.data(), n);
        for (const int threads : {2, 3}) {
            inference::ThreadPool pool(threads);
            check(inference::checksum(pool, data.data(), n) == expected, "sum of " + std::to_string(n));
        }
    }
}

void every_flipped_bit_changes_the_sum(Random& random) {
    for (const size_t n : {size_t{1}, size_t{128}, size_t{300}}) {
        std::vector<std::byte> data = noise(random, n);
        const uint64_t sum = compute::checksum(data.data(), n, 0);
        for (size_t bit = 0; bit < 8 * n; ++bit) {
            data[bit / 8] ^= std::byte{1} << (bit % 8);
            check(compute::checksum(data.data(), n, 0) != sum, "bit " + std::to_string(bit));
            data[bit / 8] ^= std::byte{1} << (bit % 8);
        }
    }
}

void length_order_and_place_change_the_sum(Random& random) {
    std::vector<std::byte> data = noise(random, 3 << 20);
    inference::ThreadPool pool(2);
    const uint64_t sum = inference::checksum(pool, data.data(), data.size());
    check(inference::checksum(pool, data.data(), data.size() - 1) != sum, "one byte less");
    std::swap_ranges(data.begin(), data.begin() + (1 << 20), data.begin() + (1 << 20));
    check(inference::checksum(pool, data.data(), data.size()) != sum, "two parts in the other order");
    check(compute::checksum(data.data(), 64, 0) != compute::checksum(data.data(), 64, 1), "another place");
    const std::vector<std::byte> zeros(4096);
    check(compute::checksum(zeros.data(), 4096, 0) != compute::checksum(zeros.data(), 4095, 0),
          "fewer zeros");
    std::fill(data.begin() + 4096, data.begin() + 8192, std::byte{0});
    const uint64_t lost = inference::checksum(pool, data.data(), data.size());
    check(lost != sum, "a page of zeros");
}

// Two types may share one (q4_0 and iq4_nl pack alike); the name of a packing holds the types besides.
void signatures_tell_layouts_apart() {
    std::vector<uint64_t> seen;
    for (const auto type : {compute::DType::f32, compute::DType::f16, compute::DType::bf16,
                            compute::DType::q4_0, compute::DType::q4_1, compute::DType::q8_0}) {
        const uint64_t signature = inference::packing_signature(type);
        check(signature != 0 && signature == inference::packing_signature(type), "the same twice");
        check(std::find(seen.begin(), seen.end(), signature) == seen.end(), "a layout of its own");
        seen.push_back(signature);
    }
    check(inference::packing_signature(static_cast<compute::DType>(255)) == 0, "no type");
}

}  // namespace

int main() {
    Random random(11);
    for (const auto type :
         {compute::DType::f32, compute::DType::bf16, compute::DType::q4_1, compute::DType::q8_0})
        packing_is_that_of_its_strips(random, type);
    sums_do_not_depend_on_threads(random);
    every_flipped_bit_changes_the_sum(random);
    length_order_and_place_change_the_sum(random);
    signatures_tell_layouts_apart();
    return report("weights");
}
