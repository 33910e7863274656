#include "compute/checksum.hpp"

#include <bit>
#include <cstring>

namespace treadle::compute {
namespace {

constexpr size_t kLanes = 16;  // independent sums, so that the compiler's vectors do not wait for one another

// A bijection of 64 bits (the finaliser of splitmix64).
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace

uint64_t checksum(const std::byte* data, size_t n, uint64_t index) {
    uint64_t lanes[kLanes] = {};
    constexpr size_t kStep = sizeof(lanes);
    size_t at = 0;
    for (; at + kStep <= n; at += kStep) {
        uint64_t words[kLanes];
        std::memcpy(words, data + at, kStep);
        for (size_t i = 0; i < kLanes; ++i) lanes[i] = std::rotl(lanes[i], 23) + words[i];
    }
    uint64_t rest[kLanes] = {};
    if (at < n) std::memcpy(rest, data + at, n - at);
    uint64_t sum = mix(index + 0x9e3779b97f4a7c15u) ^ n;
    for (size_t i = 0; i < kLanes; ++i) sum = mix(mix(sum ^ lanes[i]) ^ rest[i]);
    return sum;
}

}  // namespace treadle::compute
