#include "inference/weights.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "compute/checksum.hpp"

namespace treadle::inference {
namespace {

constexpr int64_t kShareBytes =
    256 << 10;  // of one share of a matrix: small enough to even out, large to hand out
constexpr size_t kPartBytes = 1 << 20;
constexpr uint64_t kPackingVersion = 1;

// Calls share(i) for i in [0, count), each once, from all threads.
void for_each_share(ThreadPool& pool, int64_t count, const std::function<void(int64_t)>& share) {
    if (count <= 1) {
        for (int64_t i = 0; i < count; ++i) share(i);
        return;
    }
    std::atomic<int64_t> next{0};
    pool.run([&](int) {
        for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) share(i);
    });
}

}  // namespace

void pack_matrix(ThreadPool& pool, compute::DType type, const std::byte* src, int64_t rows, int64_t stride,
                 int64_t cols, std::byte* dst) {
    const int64_t strip_bytes = compute::strip_bytes(type, cols);
    const int64_t strips = (rows + compute::kStripRows - 1) / compute::kStripRows;
    const int64_t per_share = std::max<int64_t>(1, kShareBytes / strip_bytes);
    for_each_share(pool, (strips + per_share - 1) / per_share, [&](int64_t share) {
        const int64_t end = std::min(strips, (share + 1) * per_share);
        for (int64_t strip = share * per_share; strip < end; ++strip) {
            const std::byte* strip_rows[compute::kStripRows];
            for (int64_t r = 0; r < compute::kStripRows; ++r) {
                const int64_t row = strip * compute::kStripRows + r;
                strip_rows[r] = row < rows ? src + row * stride : nullptr;
            }
            compute::pack_strip(type, strip_rows, cols, dst + strip * strip_bytes);
        }
    });
}

uint64_t packing_signature(compute::DType type) {
    constexpr int64_t kRows = compute::kStripRows + 1;  // a full strip and one with rows missing
    constexpr int64_t kCols = 512;                      // two blocks of the largest kind
    if (!compute::packable(type, kCols)) return 0;
    const int64_t stride = compute::row_bytes(type, kCols);
    std::vector<std::byte> stored(static_cast<size_t>(kRows * stride));
    for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
    std::vector<std::byte> packed(static_cast<size_t>(compute::packed_bytes(type, kRows, kCols)));
    ThreadPool alone(1);
    pack_matrix(alone, type, stored.data(), kRows, stride, kCols, packed.data());
    return compute::checksum(packed.data(), packed.size(), kPackingVersion);
}

uint64_t checksum(ThreadPool& pool, const std::byte* data, size_t n) {
    std::vector<uint64_t> parts((n + kPartBytes - 1) / kPartBytes);
    for_each_share(pool, static_cast<int64_t>(parts.size()), [&](int64_t i) {
        const size_t start = static_cast<size_t>(i) * kPartBytes;
        parts[static_cast<size_t>(i)] =
            compute::checksum(data + start, std::min(kPartBytes, n - start), static_cast<uint64_t>(i));
    });
    return compute::checksum(reinterpret_cast<const std::byte*>(parts.data()),
                             parts.size() * sizeof(uint64_t), n);
}

}  // namespace treadle::inference
