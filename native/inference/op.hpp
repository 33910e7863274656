// What the ops of the CPU backend are made of: bound operands, the step, the worker that runs a thread's
// share.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "compute/kernels.hpp"
#include "contract/params.hpp"
#include "contract/types.hpp"
#include "inference/handout.hpp"
#include "inference/thread_pool.hpp"

namespace treadle::inference {

using compute::Kernels;
using compute::PackedMatrix;

// A program that does not fit the contract; the bindings turn it into
// treadle.errors.InvalidInstructionBinding.
struct BindError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A step whose arrays are inconsistent with the program; the bindings turn it into
// treadle.errors.InvalidBatchSize.
struct StepError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A register bound to its buffer: [rows, cols] of f32 or i32, rows contiguous.
struct Register {
    std::byte* data = nullptr;
    int64_t cols = 1;
    float* f32() const { return reinterpret_cast<float*>(data); }
    const int32_t* i32() const { return reinterpret_cast<const int32_t*>(data); }
};

// A weight bound to the backend's copy: a vector of f32, a packed matrix, or several of one shape, one after another.
struct Weight {
    bool present = false;
    bool is_matrix = false;
    PackedMatrix matrix{};  // the first
    int64_t matrices = 1;
    const float* vector = nullptr;
    int64_t size = 0;  // elements of a vector
};

// All pages of one state: page p at data + p * page_bytes.
struct State {
    std::byte* data = nullptr;
    int64_t page_bytes = 0;
    int64_t page_tokens = 0;
};

struct ParamBlock {
    uint8_t abi_version = 0;
    uint8_t opcode = 0;
    alignas(8) std::array<std::byte, contract::kMaxPayload> payload{};
    template <typename T>
    const T& as() const {
        if (opcode != T::kOpcode || abi_version != T::kVersion)
            throw BindError("parameter block of another op or version");
        return *reinterpret_cast<const T*>(payload.data());
    }
};

// One instruction with every operand resolved. Optional weights are present == false.
struct Instruction {
    uint8_t opcode = 0;
    std::vector<Register> inputs;
    std::vector<Register> outputs;
    std::vector<Weight> weights;
    std::vector<ParamBlock> params;  // one; a fusion has one per instruction it replaces, in their order
    State state;
};

// How matrices are multiplied. fast: int8 rows on quantised weights, bf16 rows on bf16 ones, else f32. bf16: bf16 rows on
// weights rounded to bf16. exact: f32 rows on dequantised weights.
enum class Numerics : uint8_t { fast, bf16, exact };

// What is fixed when a program is bound.
struct BindContext {
    const Kernels& kernels;
    contract::StepLimits limits;
    int threads;
    Numerics numerics;
};

// Consecutive rows of one slot, at most compute::kAttendRows of them.
struct RowBlock {
    int32_t slot;  // index into the batch
    int32_t first_row;
    int32_t rows;
    int32_t position;  // of the first row
};

// One step, as every thread sees it.
struct Step {
    int64_t rows = 0;
    int64_t batch = 0;
    int64_t sampled = 0;
    int64_t pages = 0;                      // columns of page_table
    const int32_t* query_lens = nullptr;    // [batch]
    const int32_t* positions = nullptr;     // [batch]
    const int32_t* page_table = nullptr;    // [batch, pages]
    const int32_t* state_slots = nullptr;   // [batch]
    const int32_t* sampled_rows = nullptr;  // [sampled]
    const contract::Sampling* sampling = nullptr;
    const int32_t* slot_row = nullptr;      // [batch] first row of each slot
    const int32_t* row_slot = nullptr;      // [rows] index into the batch
    const int32_t* row_position = nullptr;  // [rows]
    std::span<const RowBlock> blocks;       // all rows, cut into blocks; those that see the most first
    int64_t longest_sequence = 0;           // most positions of one slot after the step
};

// Throws StepError where a slot lacks a page of the state for one of its positions.
inline void check_pages(const Step& step, const State& state, const contract::StepLimits& limits) {
    for (int64_t i = 0; i < step.batch; ++i) {
        const int64_t length = step.positions[i] + step.query_lens[i];
        const int64_t used = (length + state.page_tokens - 1) / state.page_tokens;
        bool ok = used <= step.pages;
        for (int64_t p = 0; ok && p < used; ++p) {
            const int32_t page = step.page_table[i * step.pages + p];
            ok = page >= 0 && page < limits.state_pages;
        }
        if (!ok)
            throw StepError("page table: slot " + std::to_string(i) + " lacks a page for its " +
                            std::to_string(length) + " positions");
    }
}

// One thread of the team inside one step.
struct Worker {
    const Kernels& kernels;
    Barrier& barrier;
    int thread;
    int threads;
    std::byte* shared;   // workspace that all threads see
    std::byte* scratch;  // this thread's own
    Handouts& handouts;
    int64_t handout = 0;  // number of the next one in this step

    void sync() { barrier.arrive_and_wait(); }
    // Hands out `count` items to the team: body(range) with pieces of `piece` items. All threads must come by; a
    // thread that leaves knows only its own items done.
    template <typename Body>
    void each(int64_t count, int64_t piece, Body&& body) {
        handouts.each(handout++, thread, count, 1, piece, body);
    }
    // The same where a share and a piece (a multiple of grain) should hold whole grains.
    template <typename Body>
    void each(int64_t count, int64_t grain, int64_t piece, Body&& body) {
        handouts.each(handout++, thread, count, grain, piece, body);
    }
    // A piece size that makes about `pieces` of each thread's share.
    int64_t piece(int64_t count, int64_t pieces, int64_t grain = 1) const {
        return std::max(int64_t{1}, count / (threads * pieces * grain)) * grain;
    }
};

// Bytes of workspace that an op needs: shared by the team, and for each thread.
struct Needs {
    int64_t shared = 0;
    int64_t thread = 0;
};

// A bound op. All threads call run() together; it begins with its inputs complete and ends with its outputs
// written once every thread has left it (the program puts a barrier between ops).
class Op {
  public:
    virtual ~Op() = default;
    virtual Needs needs() const { return {}; }
    virtual void check(const Step&) const {}                // throws StepError before anything runs
    virtual bool idle(const Step&) const { return false; }  // nothing to do in this step
    virtual void run(const Step& step, Worker& worker) const = 0;
    virtual int64_t planned_bytes(const Step&) const { return 0; }  // weight and state bytes read
};

// Carves 64-byte aligned pieces out of a workspace; with a null base it only measures.
class Carver {
  public:
    explicit Carver(std::byte* base) : base_(base) {}
    template <typename T>
    T* take(int64_t count) {
        T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + compute::kAlign - 1) / compute::kAlign *
                 compute::kAlign;
        return piece;
    }
    int64_t used() const { return used_; }

  private:
    std::byte* base_;
    int64_t used_ = 0;
};

// Checks used while binding.
inline void expect(bool ok, const std::string& what) {
    if (!ok) throw BindError(what);
}

inline const PackedMatrix& matrix(const Weight& w, int64_t rows, int64_t cols, const char* name) {
    expect(w.present && w.is_matrix && w.matrices == 1 && w.matrix.rows == rows && w.matrix.cols == cols,
           std::string(name) + ": expected a matrix [" + std::to_string(rows) + ", " + std::to_string(cols) +
               "]");
    return w.matrix;
}

// The first of `count` matrices.
inline const PackedMatrix& matrices(const Weight& w, int64_t count, int64_t rows, int64_t cols,
                                    const char* name) {
    expect(w.present && w.is_matrix && w.matrices == count && w.matrix.rows == rows && w.matrix.cols == cols,
           std::string(name) + ": expected " + std::to_string(count) + " matrices [" + std::to_string(rows) +
               ", " + std::to_string(cols) + "]");
    return w.matrix;
}

inline const float* vector(const Weight& w, int64_t size, const char* name) {
    if (!w.present) return nullptr;
    expect(!w.is_matrix && w.size == size,
           std::string(name) + ": expected a vector of " + std::to_string(size));
    return w.vector;
}

}  // namespace treadle::inference
