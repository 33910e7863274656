// A few lines of test support: checks that report and count, seeded random data, guarded and misaligned buffers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace treadle::test {

inline int& failures() {
    static int count = 0;
    return count;
}

inline void check(bool ok, const std::string& what) {
    if (ok) return;
    if (++failures() <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

inline int report(const char* name) {
    std::printf("%s: %s (%d failures)\n", name, failures() == 0 ? "ok" : "FAILED", failures());
    return failures() == 0 ? 0 : 1;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Random {
    std::mt19937_64 engine;
    explicit Random(uint64_t seed) : engine(seed) {}
    float normal(float scale = 1.0f) { return scale * std::normal_distribution<float>()(engine); }
    float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }
    int64_t integer(int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(engine);
    }
    std::vector<float> normals(int64_t n, float scale = 1.0f) {
        std::vector<float> v(static_cast<size_t>(n));
        for (float& x : v) x = normal(scale);
        return v;
    }
};

// 64-byte aligned storage.
class Buffer {
  public:
    explicit Buffer(int64_t bytes)
        : data_(static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64}))) {}
    std::byte* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<std::byte, Free> data_;
};

}  // namespace treadle::test
