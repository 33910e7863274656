// Encoders of single blocks, split over encode.cpp and encode_k.cpp. Each returns whether its scales are finite in f16.
#pragma once

#include <cstddef>

namespace treadle::compute::TREADLE_ISA_NS {

bool encode_q2_k(const float* x, std::byte* dst);  // x [256], dst 84 bytes
bool encode_q3_k(const float* x, std::byte* dst);  // 110
bool encode_q4_k(const float* x, std::byte* dst);  // 144
bool encode_q5_k(const float* x, std::byte* dst);  // 176
bool encode_q6_k(const float* x, std::byte* dst);  // 210

}  // namespace treadle::compute::TREADLE_ISA_NS
