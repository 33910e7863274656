// The limits of the machine as the best kernels could see them: `treadle bench` divides by these.
#pragma once

#include <cstdint>

#include "compute/kernels.hpp"

namespace treadle::compute {

// Billions of bytes a second that `threads` threads together read of the same `bytes` (at least 4 KiB a thread) again and
// again, best of `repeats` passes: from main memory, or from a cache where so many fit in one. Allocates that much.
double probe_read_gb_s(const Kernels& k, int threads, int64_t bytes, int repeats = 8);

// Billions of int8 operations (a multiply and an add are two) a second of `threads` threads together, best of `repeats`.
double probe_int8_gop_s(const Kernels& k, int threads, int repeats = 5);

// The same of bf16 operations whose sums are f32.
double probe_bf16_gop_s(const Kernels& k, int threads, int repeats = 5);

// The same of f32 operations.
double probe_f32_gop_s(const Kernels& k, int threads, int repeats = 5);

}  // namespace treadle::compute
