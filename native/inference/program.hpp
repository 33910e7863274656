// A bound plan: the list of ops that all threads of the pool walk together, once a step.
#pragma once

#include <atomic>
#include <mutex>

#include "inference/adapters.hpp"

namespace treadle::inference {

// One op of a counted step: from the barrier before it to the one behind it. Idle ops have no time.
struct OpRun {
    uint8_t opcode;
    int64_t nanoseconds;
    int64_t planned_bytes;
};

// Observability of one step; filled only when the caller passes one.
struct Counters {
    std::array<int64_t, 256> dispatches{};
    int64_t launches = 0;
    int64_t planned_bytes = 0;
    std::vector<OpRun> ops;  // of the program, in order
};

class Program {
  public:
    // Throws BindError. Without a workspace the program only measures.
    Program(std::shared_ptr<ThreadPool> pool, const Kernels& kernels, Numerics numerics,
            contract::StepLimits limits, const std::vector<Instruction>& instructions);

    int64_t workspace_bytes() const { return workspace_bytes_; }
    void set_workspace(std::byte* workspace, int64_t bytes);

    // Runs one step. Returns false if it was cancelled: registers and the states of its slots are then
    // undefined. Throws StepError before anything runs.
    bool run(const contract::ExecutionContext& context, Counters* counters);
    // From any thread: the step that is running ends after its current op.
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  private:
    struct BoundOp {
        uint8_t opcode;
        std::unique_ptr<Op> op;
    };

    // The height of a step's row blocks: less where there would be too few for the threads to end together.
    int64_t block_rows(int64_t rows) const;
    Step prepare(const contract::ExecutionContext& context);
    void walk(int thread, const Step& step, OpRun* runs);
    void count(const Step& step, Counters& counters) const;

    std::shared_ptr<ThreadPool> pool_;
    const Kernels& kernels_;
    contract::StepLimits limits_;
    RopeTables ropes_;
    std::vector<BoundOp> ops_;
    int64_t shared_bytes_ = 0, thread_bytes_ = 0, workspace_bytes_ = 0;
    std::byte* workspace_ = nullptr;
    std::byte* shared_ = nullptr;

    std::vector<int32_t> slot_row_, row_slot_, row_position_;
    std::vector<RowBlock> blocks_;
    Handouts handouts_;
    std::atomic<bool> cancelled_{false};
    // Written by thread 0 before a barrier, read by all after it; two, so that the next op's write is not
    // seen early.
    std::array<bool, 2> stop_{};
    std::mutex running_;
};

}  // namespace treadle::inference
