// Work on whole weights, shared out over the threads of a pool: packing, and summing what was packed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/kernels.hpp"
#include "inference/thread_pool.hpp"

namespace treadle::inference {

// Packs `rows` rows, `stride` bytes apart, into strips at `dst` (compute::packed_bytes long). Each strip is written by
// one thread, so the bytes do not depend on their number.
void pack_matrix(ThreadPool& pool, compute::DType type, const std::byte* src, int64_t rows, int64_t stride,
                 int64_t cols, std::byte* dst);

// Names the bytes that pack_matrix makes of a type: equal signatures, equal bytes. It sums the packed form of a small
// matrix, so a changed layout changes it without anybody's doing; a change that a small matrix does not show needs
// another kPackingVersion (weights.cpp).
uint64_t packing_signature(compute::DType type);

// Checksum of `n` bytes, the same for any number of threads.
uint64_t checksum(ThreadPool& pool, const std::byte* data, size_t n);

}  // namespace treadle::inference
