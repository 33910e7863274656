// The functions of one ISA, gathered by table.cpp. Signatures and meaning: compute/kernels.hpp.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

int64_t quant_bytes(int64_t rows, int64_t cols);
void quantise(const float* x, int64_t ldx, int64_t row0, int64_t row1, int64_t rows, int64_t col0,
              int64_t col1, int64_t cols, std::byte* dst);
int64_t matmul_scratch_bytes(int64_t cols);
void matmul_i8(const PackedMatrix& w, int64_t strip0, int64_t strip1, const std::byte* xq, int64_t rows,
               float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch);
void matmul_f32(const PackedMatrix& w, int64_t strip0, int64_t strip1, const float* x, int64_t ldx,
                int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue, std::byte* scratch);
void round_bf16(const float* x, int64_t cols, uint16_t* y);
void matmul_bf16(const PackedMatrix& w, int64_t strip0, int64_t strip1, const uint16_t* x, int64_t ldx,
                 const uint16_t* pairs, int64_t rows, float* y, int64_t ldy, const Epilogue& epilogue,
                 std::byte* scratch);
bool takes_pairs(DType type);
void pair_bf16(const uint16_t* x, int64_t ldx, int64_t rows, int64_t cols, uint16_t* pairs);
void matmul_transposed(const PackedMatrix& w, const float* x, int64_t ldx, int64_t rows, float* y,
                       int64_t ldy, std::byte* scratch);
void unpack_row(const PackedMatrix& w, int64_t row, float* dst);

bool encode_row(DType type, const float* x, int64_t cols, std::byte* dst);

void rmsnorm(const float* x, const float* gain, float gain_offset, float eps, int64_t cols, float* y);
void layernorm(const float* x, const float* gain, const float* bias, float eps, int64_t cols, float* y);
void rope(float* head, const float* cosine, const float* sine, int64_t half, RopeStyle style);
void activate(const float* gate, const float* up, int64_t n, const ActivationParams& params, float* y);
void add_scaled(const float* a, const float* b, float factor, int64_t n, float* y);
void scale(const float* x, float factor, int64_t n, float* y);
void softcap(const float* x, float cap, int64_t n, float* y);

Best best(const float* x, int64_t n);
void weigh(const float* x, float largest, float inverse, int64_t n, float* y, int64_t* masses);
void maxima(const float* x, int64_t n, float* y);
int64_t columns_from(const float* x, float least, int64_t n, int32_t* cols);
int64_t rank(const float* x, int64_t col, int64_t n);

void kv_write(const KvLayout& kv, std::byte* page, int64_t position_in_page, int64_t head0, int64_t head1,
              const float* k, const float* v);
void attend(const Attention& a, const AttendRows& r, int64_t kv_head, std::byte* scratch);
void attend_part(const Attention& a, const AttendRows& r, int64_t kv_head, int64_t split, float* parts,
                 std::byte* scratch);
void attend_merge(const Attention& a, const AttendRows& r, int64_t kv_head, const float* parts,
                  std::byte* scratch);

void convolve(const Convolution& c, int64_t channel0, int64_t channel1, const ConvRows& r);
void time_steps(const float* x, const float* bias, const float* rate, float low, float high, int64_t n,
                float* dt, float* decay);
void head_scan(const HeadScan& s);
void channel_scan(const ChannelScan& s);
void delta_rule(const DeltaRule& r);

int64_t probe_dot(int64_t rounds, int32_t* sink);
int64_t probe_bf16(int64_t rounds, float* sink);
int64_t probe_fma(int64_t rounds, float* sink);
void probe_read(const std::byte* data, int64_t bytes, int32_t* sink);

const Kernels& table();

}  // namespace treadle::compute::TREADLE_ISA_NS
