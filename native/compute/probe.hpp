// The limits of the machine as the best kernels could see them: `treadle bench` divides by these.
#pragma once

#include <cstdint>

#include "compute/kernels.hpp"

namespace treadle::compute {

// Billions of bytes a second read from main memory by `threads` threads together, best of `repeats` passes, each over
// 128 MiB a thread. Allocates that much.
double probe_read_gb_s(const Kernels& k, int threads, int repeats = 5);

// Billions of int8 operations (a multiply and an add are two) a second of `threads` threads together, best of `repeats`.
double probe_int8_gop_s(const Kernels& k, int threads, int repeats = 5);

// The same of f32 operations.
double probe_f32_gop_s(const Kernels& k, int threads, int repeats = 5);

}  // namespace treadle::compute
