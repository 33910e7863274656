#include "compute/choose.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace treadle::compute {
namespace {

using Wide = unsigned __int128;

constexpr int kBinBits = 10;
constexpr int64_t kBins = int64_t{1} << kBinBits;
constexpr float kLeastWeight = 0x1p-41f;  // up to here a weight counts as 0
constexpr float kUnit = static_cast<float>(int64_t{1} << kMassBits);

int64_t blocks(int64_t cols, int64_t block) { return (cols + block - 1) / block; }

struct Scratch {
    Scratch(std::byte* base, int64_t cols) : base_(base) {
        weights = reinterpret_cast<float*>(take(4 * cols));
        columns = reinterpret_cast<int32_t*>(take(4 * cols));
        values = reinterpret_cast<float*>(take(4 * cols));
        masses = reinterpret_cast<int64_t*>(take(8 * blocks(cols, kMassBlock)));
        bins = reinterpret_cast<int64_t*>(take(8 * kBins));
    }
    float* weights;    // [cols]
    int32_t* columns;  // [cols]
    float* values;     // [cols]
    int64_t* masses;   // [blocks of kMassBlock]
    int64_t* bins;     // [kBins]
    int64_t used = 0;

  private:
    std::byte* take(int64_t bytes) {
        std::byte* piece = base_ == nullptr ? nullptr : base_ + used;
        used += (bytes + kAlign - 1) / kAlign * kAlign;
        return piece;
    }
    std::byte* base_;
};

// Adding 1.5 * 2^52 leaves the rounded integer in the low bits.
int64_t mass_of(float weight) {
    constexpr double kMagic = 0x1.8p52;
    return std::bit_cast<int64_t>(static_cast<double>(weight * kUnit) + kMagic) -
           std::bit_cast<int64_t>(kMagic);
}

int64_t sum(const int64_t* masses, int64_t count) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += masses[i];
    return total;
}

// The k-th largest of values[count], which are left in another order.
float nth_largest(float* values, int64_t count, int64_t k) {
    std::nth_element(values, values + k - 1, values + count, std::greater<>());
    return values[k - 1];
}

// Columns of the k largest values and of all that equal the k-th, ascending, to s.columns; 0 < k < cols. Among the
// largest values of blocks the k-th is a bound that k values reach: few others do.
int64_t largest_columns(const Kernels& kernels, const float* x, int64_t cols, int64_t k, Scratch& s) {
    const int64_t count = blocks(cols, kMaximaBlock);
    if (k > count) {
        std::copy_n(x, cols, s.values);
        return kernels.columns_from(x, nth_largest(s.values, cols, k), cols, s.columns);
    }
    kernels.maxima(x, cols, s.values);
    const int64_t found = kernels.columns_from(x, nth_largest(s.values, count, k), cols, s.columns);
    for (int64_t i = 0; i < found; ++i) s.values[i] = x[s.columns[i]];
    const float least = nth_largest(s.values, found, k);
    return std::remove_if(s.columns, s.columns + found, [&](int32_t col) { return x[col] < least; }) -
           s.columns;
}

// Columns that may be drawn with their weights, in s.weights. `whole`: all columns, their masses by block in s.masses; else
// s.columns names them, ascending.
struct Kept {
    int64_t count;
    int64_t total;  // mass
    bool whole;
};

// Drops weights below `least`; leaves kept.total as it was.
void keep_from(const Kernels& kernels, float least, Kept& kept, Scratch& s) {
    int64_t count = 0;
    const auto keep = [&](float weight, int32_t column) {
        s.weights[count] = weight;
        s.columns[count++] = column;
    };
    if (kept.whole) {
        const int64_t found = kernels.columns_from(s.weights, least, kept.count, s.columns);
        for (int64_t i = 0; i < found; ++i) keep(s.weights[s.columns[i]], s.columns[i]);
    } else {
        for (int64_t i = 0; i < kept.count; ++i)
            if (s.weights[i] >= least) keep(s.weights[i], s.columns[i]);
    }
    kept.count = count;
    kept.whole = false;
}

// All weights above `weight`, and the first `equal` of those that are it.
struct Edge {
    float weight = 0.0f;
    int64_t equal = 0;
    int64_t total = 0;  // mass of these
};

// The fewest largest weights whose mass reaches `needed` > 0: the last one's bits are found ten at a time, from histograms
// of mass over them. Bits of floats in [0, 1] are 30 and ascend with the float.
Edge top_mass(const Kept& kept, int64_t needed, const Scratch& s) {
    const float* weights = s.weights;
    int64_t count = kept.count, above = 0;
    uint32_t prefix = 0;
    for (int shift = 2 * kBinBits; shift >= 0; shift -= kBinBits) {
        std::fill_n(s.bins, kBins, 0);
        const auto code = [&](float weight) { return std::bit_cast<uint32_t>(weight) >> shift; };
        for (int64_t i = 0; i < count; ++i) s.bins[code(weights[i]) % kBins] += mass_of(weights[i]);
        int64_t bin = kBins - 1;
        while (above + s.bins[bin] < needed) above += s.bins[bin--];
        prefix = prefix << kBinBits | static_cast<uint32_t>(bin);
        int64_t left = 0;
        for (int64_t i = 0; i < count; ++i)
            if (code(weights[i]) == prefix) s.values[left++] = weights[i];
        count = left;
        weights = s.values;
    }
    const float weight = std::bit_cast<float>(prefix);
    const int64_t each = mass_of(weight), equal = (needed - above + each - 1) / each;
    return {weight, equal, above + equal * each};
}

// The share p of the mass, rounded up to a whole one: at least 1, at most all.
int64_t share_of(int64_t total, double p) {
    return std::clamp(static_cast<int64_t>(std::ceil(p * static_cast<double>(total))), int64_t{1}, total);
}

// Keeps the fewest largest weights whose share reaches p.
Edge keep_top(const Kernels& kernels, double p, Kept& kept, Scratch& s) {
    const int64_t needed = share_of(kept.total, p);
    // Weights that are small enough to be dropped all together, each rounding up by a half.
    const double spare = static_cast<double>(kept.total - needed) / static_cast<double>(kept.count) - 1.0;
    const float least = std::max(kLeastWeight, std::nextafter(static_cast<float>(spare) / kUnit, 0.0f));
    keep_from(kernels, least, kept, s);
    const Edge edge = top_mass(kept, needed, s);
    kept.total = edge.total;
    return edge;
}

// The column at which the running mass of what is kept exceeds `target` < kept.total.
int64_t column_at(const Kept& kept, Edge edge, int64_t target, const Scratch& s) {
    int64_t i = 0;
    if (kept.whole) {
        int64_t block = 0;
        while (target >= s.masses[block]) target -= s.masses[block++];
        i = block * kMassBlock;
    }
    for (;; ++i) {
        const float weight = s.weights[i];
        if (weight > edge.weight || (weight == edge.weight && edge.equal-- > 0)) target -= mass_of(weight);
        if (target < 0) return kept.whole ? i : s.columns[i];
    }
}

}  // namespace

int64_t choose_scratch_bytes(int64_t cols) { return Scratch(nullptr, cols).used; }

int64_t draw(const Kernels& kernels, const float* x, int64_t cols, float largest, const Draw& draw,
             std::byte* scratch) {
    Scratch s(scratch, cols);
    Kept kept{cols, 0, true};
    if (draw.top_k > 0 && draw.top_k < cols) {
        kept = {largest_columns(kernels, x, cols, draw.top_k, s), 0, false};
        for (int64_t i = 0; i < kept.count; ++i) s.values[i] = x[s.columns[i]];
        x = s.values;
    }
    kernels.weigh(x, largest, 1.0f / draw.temperature, kept.count, s.weights, s.masses);
    kept.total = sum(s.masses, blocks(kept.count, kMassBlock));
    if (draw.min_p > 0.0f) {
        keep_from(kernels, draw.min_p, kept, s);
        kept.total = 0;
        for (int64_t i = 0; i < kept.count; ++i) kept.total += mass_of(s.weights[i]);
    }
    Edge edge;
    if (draw.top_p < 1.0) edge = keep_top(kernels, draw.top_p, kept, s);
    const auto target = static_cast<int64_t>((Wide{draw.random} * static_cast<Wide>(kept.total)) >> 64);
    return column_at(kept, edge, target, s);
}

void log_probabilities(const Kernels& kernels, const float* x, int64_t cols, float largest, int64_t chosen,
                       int64_t count, const Ranking& out, std::byte* scratch) {
    Scratch s(scratch, cols);
    kernels.weigh(x, largest, 1.0f, cols, s.weights, s.masses);
    const double total = static_cast<double>(sum(s.masses, blocks(cols, kMassBlock)));
    const double shift = static_cast<double>(largest) + std::log(total / (int64_t{1} << kMassBits));
    const auto put = [&](int64_t place, int64_t col, int64_t rank) {
        out.columns[place] = static_cast<int32_t>(col);
        out.ranks[place] = static_cast<int32_t>(rank);
        out.values[place] = x[col] - shift;
    };
    put(0, chosen, 1 + kernels.rank(x, chosen, cols));
    if (count == 0) return;
    int64_t found = cols;
    if (count < cols) found = largest_columns(kernels, x, cols, count, s);
    else
        for (int64_t i = 0; i < cols; ++i) s.columns[i] = static_cast<int32_t>(i);
    std::partial_sort(s.columns, s.columns + count, s.columns + found,
                      [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    for (int64_t i = 0; i < count; ++i) put(i + 1, s.columns[i], i + 1);
}

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t position) {
    uint64_t c0 = position, c1 = stream, c2 = 0, c3 = 0, k0 = seed, k1 = 0;
    for (int round = 0; round < 10; ++round) {
        const Wide a = Wide{c0} * 0xD2E7470EE14C6C93u, b = Wide{c2} * 0xCA5A826395121157u;
        const uint64_t n0 = static_cast<uint64_t>(b >> 64) ^ c1 ^ k0;
        const uint64_t n2 = static_cast<uint64_t>(a >> 64) ^ c3 ^ k1;
        c1 = static_cast<uint64_t>(b);
        c3 = static_cast<uint64_t>(a);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    return c0;
}

}  // namespace treadle::compute
