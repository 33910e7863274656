// Chooses the kernel table for this CPU.
#include "compute/kernels.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "compute/isa/tables.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if TREADLE_HAVE_AMX && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace treadle::compute {

namespace {

struct Supported {
    std::array<const Kernels*, 6> tables{};
    size_t count = 0;
    void add(const Kernels& k) { tables[count++] = &k; }
};

#if TREADLE_HAVE_AVX512
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2");
}
#endif

#if TREADLE_HAVE_AMX
// Tiles of int8 and bf16, vectors of bf16, and the kernel's leave for this process to use their registers.
bool has_amx() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    constexpr unsigned kTiles = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, tile, int8
    constexpr unsigned kVectorBf16 = 1u << 5;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTiles) != kTiles) return false;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kVectorBf16) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

#if TREADLE_HAVE_AVX2
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

// The VEX forms of the byte dot products (CPUID 7, subleaf 1, EAX bit 4), which not every compiler knows by name.
bool has_avxvnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#endif

Supported detect() {
    Supported s;
#if TREADLE_HAVE_AMX
    if (has_avx512() && has_amx()) s.add(amx::table());
#endif
#if TREADLE_HAVE_AVX512
    if (has_avx512()) s.add(avx512::table());
#endif
#if TREADLE_HAVE_AVXVNNI
    if (has_avx2() && has_avxvnni()) s.add(avxvnni::table());
#endif
#if TREADLE_HAVE_AVX2
    if (has_avx2()) s.add(avx2::table());
#endif
#if TREADLE_HAVE_I8MM
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM)) s.add(i8mm::table());
#endif
#if TREADLE_HAVE_NEON
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) s.add(neon::table());
#endif
    s.add(plain::table());
    return s;
}

const Supported& supported() {
    static const Supported s = detect();
    return s;
}

const Kernels& choose() {
    const char* asked = std::getenv("TREADLE_ISA");
    if (asked == nullptr || *asked == '\0') return *supported().tables[0];
    if (const Kernels* k = kernels_for(asked)) return *k;
    std::string known;
    for (const Kernels* k : supported_kernels()) known += std::string(known.empty() ? "" : ", ") + k->name;
    throw std::runtime_error("TREADLE_ISA=" + std::string(asked) + " is not available here; there is " +
                             known);
}

}  // namespace

std::span<const Kernels* const> supported_kernels() { return {supported().tables.data(), supported().count}; }

const Kernels* kernels_for(std::string_view isa) {
    for (const Kernels* k : supported_kernels())
        if (isa == k->name) return k;
    return nullptr;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

void rope_table(const float* inv_freq, int64_t half, float position, float factor, float* cosine,
                float* sine) {
    for (int64_t i = 0; i < half; ++i) {
        const double angle = position * inv_freq[i];
        cosine[i] = static_cast<float>(factor * std::cos(angle));
        sine[i] = static_cast<float>(factor * std::sin(angle));
    }
}

}  // namespace treadle::compute
