// A 64-bit checksum at memory speed, against accidents: truncation, lost pages, flipped bits. It is no hash against
// somebody who builds a collision.
#pragma once

#include <cstddef>
#include <cstdint>

namespace treadle::compute {

// Of `n` bytes, as part number `index` of something larger: equal bytes at another place sum otherwise.
// Changes with every change that stays inside one aligned 8-byte word, and with nearly all others.
uint64_t checksum(const std::byte* data, size_t n, uint64_t index);

}  // namespace treadle::compute
