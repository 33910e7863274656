// The kernel API of the CPU core: packed weights, quantised activations, paged attention, and one table of functions
// per instruction set. Every function gives the same bits on every ISA, whatever the row count, tile or thread split.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace treadle::compute {

enum class DType : uint8_t {
    f32 = 0,
    f16 = 1,
    bf16 = 2,
    i8 = 3,
    u8 = 4,
    i32 = 5,
    i64 = 6,
    q4_0 = 32,
    q4_1 = 33,
    q5_0 = 34,
    q5_1 = 35,
    q8_0 = 36,
    q2_k = 40,
    q3_k = 41,
    q4_k = 42,
    q5_k = 43,
    q6_k = 44,
    iq4_nl = 48,
    iq4_xs = 49,
    mxfp4 = 50,
};

// ---------------------------------------------------------------------------------------------------------------
// Packed weights: strips of 16 matrix rows, lossless, 64-byte aligned. One copy serves every kernel below.

inline constexpr int64_t kStripRows = 16;  // matrix rows (= output columns) in a strip
inline constexpr int64_t kBlock = 32;      // columns that share a scale
inline constexpr int64_t kAlign = 64;      // alignment of packed data, quantised rows and scratch, in bytes
// What is rounded to bf16 before it is multiplied is 0 below this magnitude, so that no product or sum of products lies
// below f32's normal range, where matrix tiles differ from fmas.
inline constexpr float kSmallestBf16 = 0x1p-50f;

struct PackedMatrix {
    DType type;
    int64_t rows;  // logical rows; the last strip is padded with zero rows
    int64_t cols;
    int64_t strip_bytes;    // distance of two strips
    const std::byte* data;  // ceil(rows / 16) strips
    int64_t strips() const { return (rows + kStripRows - 1) / kStripRows; }
};

inline constexpr int64_t kMostTransposed = 512;  // matrix rows that matmul_transposed takes

bool packable(DType type,
              int64_t cols);  // is there a packed form (type known, cols a multiple of its block)?
bool is_float(DType type);    // f32, f16, bf16: matmul_i8 does not take these
int64_t row_bytes(DType type, int64_t cols);  // one row as stored in a file
int64_t strip_bytes(DType type, int64_t cols);
int64_t packed_bytes(DType type, int64_t rows, int64_t cols);
// Packs 16 file-format rows (null: a zero row) into one strip of `strip_bytes` bytes.
void pack_strip(DType type, const std::byte* const rows[kStripRows], int64_t cols, std::byte* dst);

// Blocks of the types that Kernels::encode_row makes; all zero for the others.
struct EncodedBlock {
    int64_t cols, bytes;
};
EncodedBlock encoded_block(DType type);

// ---------------------------------------------------------------------------------------------------------------
// Matrix product epilogue: v = acc; v += bias[col]; v *= scale; v += residual[row, col]  (the last two as one fma).

struct Epilogue {
    const float* bias = nullptr;      // [matrix rows] or null
    const float* residual = nullptr;  // [rows, ld_residual] or null; may be y itself
    int64_t ld_residual = 0;
    float scale = 1.0f;
};

// ---------------------------------------------------------------------------------------------------------------
// Paged attention. A page holds `page_len` positions of all key/value heads of one sequence; per head first the keys
// as [page_len / 16][key_dim][16 positions], then the values as [page_len][value_dim].
// q8_0: int8 in that order, f16 scales after each of the two, as [page_len / 16][key_dim / 32][16 positions] and
// [page_len][value_dim / 32]. An element is quant * scale; of 32 x, scale = max|x| / 127 rounded to f16 (at most its
// largest), quant = round(x * (127 / max|x|)), ties to even.
// bf16: elements are finite (what lies beyond the largest, and NaN, becomes the largest), those below 2^-50 are 0.

struct KvLayout {
    DType type;     // f32, f16, bf16 or q8_0
    int64_t heads;  // key/value heads
    int64_t key_dim;
    int64_t value_dim;
    int64_t page_len;     // positions in a page: 16, 32 or 64
    bool shared = false;  // values are the first value_dim elements of the keys; pages hold the keys alone
};

// Can keys and values of these widths be kept so? q8_0 takes multiples of 32.
bool kv_storable(DType type, int64_t key_dim, int64_t value_dim);
int64_t kv_page_bytes(const KvLayout& kv);  // without any padding

inline constexpr int64_t kUnbounded = -1;
inline constexpr int64_t kSplit = 256;  // positions of one partial softmax; the partials are merged in order
inline constexpr int64_t kAttendRows = 64;  // most query rows of one attend() call

struct Attention {
    KvLayout kv;
    int64_t heads;         // query heads, a multiple of kv.heads; head h reads kv head h / (heads / kv.heads)
    float scale;           // of q . k
    float softcap = 0.0f;  // > 0: s = softcap * tanh(s / softcap)
    int64_t left = kUnbounded;      // key j is visible from query i if i - j <= left ...
    int64_t right = 0;              // ... and j - i <= right (0: causal; kUnbounded: both ways)
    const float* sinks = nullptr;   // [heads]: a logit with no value, or null
    const float* slopes = nullptr;  // [heads]: s += slope * (j - i) (ALiBi), or null
};

// Consecutive query rows of one sequence, for one kv head. q [rows, ldq] and out [rows, ldo] point at row 0, query head 0.
struct AttendRows {
    const float* q;
    int64_t ldq;
    float* out;
    int64_t ldo;
    int64_t rows;            // 1 .. kAttendRows
    int64_t position;        // of the first row
    int64_t kv_len;          // positions written in the pages; no key at or past it is read
    const std::byte* arena;  // page p of the sequence is at arena + pages[p] * kv_page_bytes
    const int32_t* pages;
    const std::byte* next = nullptr;  // keys that are read after these rows, if that is known
};

int64_t attend_scratch_bytes(const Attention& a);  // of one thread
int64_t attend_part_floats(const Attention& a);    // of one (query row, kv head, split)
struct SplitRange {
    int64_t first, last;
};  // splits [first, last)
SplitRange attend_splits(const Attention& a, const AttendRows& r);  // that any of the rows can see

// ---------------------------------------------------------------------------------------------------------------

enum class Activation : uint8_t {
    none,
    silu,
    gelu,
    gelu_tanh,
    relu,
    relu2,
    swiglu_clamped,
    sigmoid,
    tanh,
    quick_gelu
};

struct ActivationParams {
    Activation kind = Activation::silu;
    float limit =
        7.0f;  // swiglu_clamped only: gate <= limit, |up| <= limit, (up + 1) * gate * sigmoid(alpha * gate)
    float alpha = 1.702f;
};

// Of compute/recurrent.hpp.
struct Convolution;
struct ConvRows;
struct HeadScan;
struct ChannelScan;
struct DeltaRule;

enum class RopeStyle : uint8_t { halves, pairs };  // rotates (x[i], x[i + half]) or (x[2i], x[2i + 1])

// The largest of a row, or its first NaN where there is one; of equals the first.
struct Best {
    float value;
    int64_t col;
};

// Weights are e^(value) in [0, 1]. Sums of them are integers: each counts as round(weight * 2^kMassBits), ties to even, so
// that a sum depends on no order. kMassCols of them fit in 63 bits.
inline constexpr int kMassBits = 40;
inline constexpr int64_t kMassBlock = 256;
inline constexpr int64_t kMassCols = int64_t{1} << 22;
inline constexpr int64_t kMaximaBlock = 64;

inline constexpr int64_t kMostPaired = 16;  // rows
constexpr bool pairable(int64_t rows) { return 2 <= rows && rows <= kMostPaired; }
constexpr int64_t pair_width(int64_t rows) { return (rows + 3) / 4 * 4; }

struct Kernels {
    const char* name;

    // Activations in int8: per (row, block of 32) a f32 scale max|x| / 127, the quants, their sum. `rows` is the row count
    // of the whole buffer (the layout depends on it); any thread may write any [row0, row1) and [col0, col1), both columns
    // and `cols` multiples of 32. x begins at column col0 of row 0.
    int64_t (*quant_bytes)(int64_t rows, int64_t cols);
    void (*quantise)(const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t rows, int64_t col0,
                     int64_t col1, int64_t cols, std::byte* dst);

    // y[row, c] = epilogue(sum_k x[row, k] * w[c, k]) for all rows and the columns c of strips [strip0, strip1).
    // matmul_i8 takes quantised rows, matmul_f32 takes f32 rows and any packed type (weights dequantised exactly).
    // scratch: matmul_scratch_bytes(cols), one per thread, 64-byte aligned.
    int64_t (*matmul_scratch_bytes)(int64_t cols);
    void (*matmul_i8)(const PackedMatrix& w, int64_t strip0, int64_t strip1, const std::byte* xq,
                      int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch);
    void (*matmul_f32)(const PackedMatrix& w, int64_t strip0, int64_t strip1, const float* x, int64_t ldx,
                       int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch);
    // cols numbers rounded to bf16 (nearest, ties to even; 0 below kSmallestBf16); an odd count is followed by one 0.
    void (*round_bf16)(const float* x, int64_t cols, uint16_t* y);
    // The same product of bf16 rows (x [rows, ldx], ldx even, made by round_bf16) on any packed type: weights are
    // dequantised exactly to f32, then rounded as rows are (bf16 weights are taken as they are). scratch: as above.
    // pairs: what pair_bf16 made of the rows, or null; the bits are the same.
    void (*matmul_bf16)(const PackedMatrix& w, int64_t strip0, int64_t strip1, const uint16_t* x, int64_t ldx,
                        const uint16_t* pairs, int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue,
                        std::byte* scratch);
    // Few rows that meet many strips, as matmul_bf16 of some types reads them sooner than rows: [cols / 2][pair_width][2].
    // cols % 32 == 0, and the rows are pairable.
    bool (*takes_pairs)(DType type);
    void (*pair_bf16)(const uint16_t* x, int64_t ldx, int64_t rows, int64_t cols, uint16_t* pairs);
    // y[row, k] = sum_n x[row, n] * w[n, k] over all matrix rows n, weights dequantised exactly. w.rows is a multiple of
    // kStripRows, at most kMostTransposed. Rows 16 apart make a chain of fmas; the 16 chains are added in halves.
    void (*matmul_transposed)(const PackedMatrix& w, const float* x, int64_t ldx, int64_t rows, float* y,
                              int64_t ldy, std::byte* scratch);
    // Row `row` of the matrix, dequantised exactly, to dst[cols].
    void (*unpack_row)(const PackedMatrix& w, int64_t row, float* dst);

    // Encodes x[cols] as blocks of a file type (encoded_block; cols is a multiple of its columns). False, with dst
    // undefined, where a value is not finite or its block's scale is too large for f16.
    bool (*encode_row)(DType type, const float* x, int64_t cols, std::byte* dst);

    // One row each. gain and bias may be null; y may be x.
    // rmsnorm: y = x / sqrt(mean(x^2) + eps) * (gain + gain_offset)
    void (*rmsnorm)(const float* x, const float* gain, float gain_offset, float eps, int64_t cols, float* y);
    void (*layernorm)(const float* x, const float* gain, const float* bias, float eps, int64_t cols,
                      float* y);

    // Rotates the first 2 * half elements of one head in place. cosine, sine: [half].
    void (*rope)(float* head, const float* cosine, const float* sine, int64_t half, RopeStyle style);

    // y = act(gate) * up, or act(gate) where up is null. y may be gate or up.
    void (*activate)(const float* gate, const float* up, int64_t n, const ActivationParams& params, float* y);

    void (*add_scaled)(const float* a, const float* b, float scale, int64_t n,
                       float* y);                                      // y = a + scale * b
    void (*scale)(const float* x, float factor, int64_t n, float* y);  // y = factor * x
    void (*softcap)(const float* x, float cap, int64_t n, float* y);   // y = cap * tanh(x / cap)

    Best (*best)(const float* x, int64_t n);  // n in [1, kMassCols]
    // y[i] = e^((x[i] - largest) * inverse), no x[i] being NaN or greater than the finite `largest`; masses[b]: the sum of
    // y in block b of kMassBlock. y may be x.
    void (*weigh)(const float* x, float largest, float inverse, int64_t n, float* y, int64_t* masses);
    void (*maxima)(const float* x, int64_t n, float* y);  // y[b]: the largest in block b of kMaximaBlock
    // Columns with x >= least, ascending, to cols[n]; returns how many. No x is NaN.
    int64_t (*columns_from)(const float* x, float least, int64_t n, int32_t* cols);
    // How many columns lie before `col` when they are ordered by value, largest first, equals by column.
    int64_t (*rank)(const float* x, int64_t col, int64_t n);

    // Writes one position of kv heads [head0, head1). k [kv.heads, key_dim], v [kv.heads, value_dim]: the whole row; v is
    // not read where values are shared.
    void (*kv_write)(const KvLayout& kv, std::byte* page, int64_t position_in_page, int64_t head0,
                     int64_t head1, const float* k, const float* v);

    // All query heads of `kv_head` over every visible key. The result does not depend on how rows are grouped.
    void (*attend)(const Attention& a, const AttendRows& r, int64_t kv_head, std::byte* scratch);
    // The same in two steps, bit for bit, so that several threads can share one long row: part `split` of
    // attend_splits(), then the merge. parts: [splits.last - splits.first][rows * heads / kv.heads][attend_part_floats].
    void (*attend_part)(const Attention& a, const AttendRows& r, int64_t kv_head, int64_t split, float* parts,
                        std::byte* scratch);
    void (*attend_merge)(const Attention& a, const AttendRows& r, int64_t kv_head, const float* parts,
                         std::byte* scratch);

    // Channels [channel0, channel1) of a convolution; channel0 is a multiple of 16.
    void (*convolve)(const Convolution& c, int64_t channel0, int64_t channel1, const ConvRows& r);
    // dt = clip(log(1 + e^(x + bias)), low, high) and decay = e^(dt * rate); rate and decay may be null. dt may be x.
    void (*time_steps)(const float* x, const float* bias, const float* rate, float low, float high, int64_t n,
                       float* dt, float* decay);
    void (*head_scan)(const HeadScan& s);
    void (*channel_scan)(const ChannelScan& s);
    void (*delta_rule)(const DeltaRule& r);

    // For compute/probe.hpp.
    int64_t (*probe_dot)(int64_t rounds, int32_t* sink);
    int64_t (*probe_bf16)(int64_t rounds, float* sink);
    int64_t (*probe_fma)(int64_t rounds, float* sink);
    void (*probe_read)(const std::byte* data, int64_t bytes, int32_t* sink);
};

// The table of the best ISA this CPU runs; TREADLE_ISA=amx|avx512|avxvnni|avx2|i8mm|neon|plain in the environment asks for
// another.
// Throws std::runtime_error if that one is unknown, not built or not supported by the CPU.
const Kernels& kernels();
const Kernels* kernels_for(std::string_view isa);     // null if not built or not supported
std::span<const Kernels* const> supported_kernels();  // best first; plain is always the last

// cosine[i] = factor * cos(position * inv_freq[i]) and sine likewise; the angle is rounded to f32 as the reference
// implementations do, cos and sin are taken in f64.
void rope_table(const float* inv_freq, int64_t half, float position, float factor, float* cosine,
                float* sine);

}  // namespace treadle::compute
