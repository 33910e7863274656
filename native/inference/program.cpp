#include "inference/program.hpp"

#include <chrono>
#include <numeric>

namespace treadle::inference {
namespace {

void check_arity(const Instruction& in, size_t index, const Adapter& adapter) {
    const std::string where =
        "instruction " + std::to_string(index) + " (opcode " + std::to_string(in.opcode) + ")";
    expect(adapter.bind != nullptr, where + ": no adapter");
    expect(in.inputs.size() <= adapter.max_inputs && in.inputs.size() >= adapter.min_inputs,
           where + ": inputs");
    expect(in.outputs.size() == adapter.outputs, where + ": outputs");
    // A fused norm brings one weight (rmsnorm) or two (layernorm).
    const size_t fewest = adapter.params > 1 ? adapter.weights - 1u : adapter.weights;
    expect(in.weights.size() <= adapter.weights && in.weights.size() >= fewest, where + ": weights");
    expect(in.params.size() == adapter.params, where + ": params");
}

}  // namespace

Program::Program(std::shared_ptr<ThreadPool> pool, const Kernels& kernels, Numerics numerics,
                 contract::StepLimits limits, const std::vector<Instruction>& instructions)
    : pool_(std::move(pool)), kernels_(kernels), limits_(limits), handouts_(pool_->threads()) {
    const BindContext context{kernels, limits, pool_->threads(), numerics};
    for (size_t i = 0; i < instructions.size(); ++i) {
        const Instruction& in = instructions[i];
        const Adapter& adapter = adapters()[in.opcode];
        check_arity(in, i, adapter);
        ops_.push_back({in.opcode, adapter.bind(in, context, ropes_)});
        const Needs needs = ops_.back().op->needs();
        shared_bytes_ = std::max(shared_bytes_, needs.shared);
        thread_bytes_ = std::max(thread_bytes_, needs.thread);
    }
    Carver measure(nullptr);
    ropes_.place(measure, limits.max_rows);
    workspace_bytes_ = measure.used() + shared_bytes_ + thread_bytes_ * pool_->threads();
    slot_row_.resize(static_cast<size_t>(limits.max_batch));
    row_slot_.resize(static_cast<size_t>(limits.max_rows));
    row_position_.resize(static_cast<size_t>(limits.max_rows));
    blocks_.reserve(static_cast<size_t>(limits.max_rows));
}

void Program::set_workspace(std::byte* workspace, int64_t bytes) {
    expect(bytes >= workspace_bytes_,
           "workspace of " + std::to_string(bytes) + " bytes, needed " + std::to_string(workspace_bytes_));
    expect(reinterpret_cast<uintptr_t>(workspace) % compute::kAlign == 0, "workspace is not aligned");
    workspace_ = workspace;
    Carver carver(workspace);
    ropes_.place(carver, limits_.max_rows);
    shared_ = workspace + carver.used();
}

int64_t Program::block_rows(int64_t rows) const {
    constexpr int64_t kFewest = 16;
    int64_t height = compute::kAttendRows;
    if (pool_->threads() == 1) return height;
    while (height > kFewest && 4 * rows < 3 * height * pool_->threads()) height /= 2;
    return height;
}

Step Program::prepare(const contract::ExecutionContext& c) {
    Step step;
    step.batch = static_cast<int64_t>(c.query_lens.size());
    step.sampled = static_cast<int64_t>(c.sampled_rows.size());
    step.pages = c.pages;
    if (step.batch == 0 || step.batch > limits_.max_batch)
        throw StepError("batch " + std::to_string(step.batch));
    if (step.sampled > limits_.max_sampled) throw StepError("sampled rows " + std::to_string(step.sampled));
    const auto batch = static_cast<size_t>(step.batch);
    if (c.positions.size() != batch || c.state_slots.size() != batch || c.pages < 0 ||
        c.page_table.size() != batch * static_cast<size_t>(c.pages)) {
        throw StepError("positions, state_slots or page_table do not match the batch");
    }
    blocks_.clear();
    const int64_t height = block_rows(std::accumulate(c.query_lens.begin(), c.query_lens.end(), int64_t{0}));
    for (int64_t i = 0; i < step.batch; ++i) {
        const int64_t query = c.query_lens[i], position = c.positions[i];
        if (query < 1 || position < 0 || position + query > limits_.max_seq_len ||
            step.rows + query > limits_.max_rows) {
            throw StepError("slot " + std::to_string(i) + ": " + std::to_string(query) +
                            " rows at position " + std::to_string(position) + " exceed the program's limits");
        }
        slot_row_[i] = static_cast<int32_t>(step.rows);
        for (int64_t r = 0; r < query; ++r) {
            row_slot_[step.rows + r] = static_cast<int32_t>(i);
            row_position_[step.rows + r] = static_cast<int32_t>(position + r);
        }
        for (int64_t r = 0; r < query; r += height) {
            blocks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(step.rows + r),
                               static_cast<int32_t>(std::min(height, query - r)),
                               static_cast<int32_t>(position + r)});
        }
        step.rows += query;
        step.longest_sequence = std::max(step.longest_sequence, position + query);
    }
    // Most work first, so that the threads end together.
    const auto work = [](const RowBlock& b) { return int64_t{b.rows} * (b.position + b.rows); };
    std::sort(blocks_.begin(), blocks_.end(),
              [&](const RowBlock& a, const RowBlock& b) { return work(a) > work(b); });
    for (const int32_t row : c.sampled_rows) {
        if (row < 0 || row >= step.rows)
            throw StepError("sampled row " + std::to_string(row) + " is not in the step");
    }
    step.query_lens = c.query_lens.data();
    step.positions = c.positions.data();
    step.page_table = c.page_table.data();
    step.state_slots = c.state_slots.data();
    step.sampled_rows = c.sampled_rows.data();
    step.sampling = c.sampling;
    step.slot_row = slot_row_.data();
    step.row_slot = row_slot_.data();
    step.row_position = row_position_.data();
    step.blocks = blocks_;
    return step;
}

bool Program::run(const contract::ExecutionContext& context, Counters* counters) {
    pool_->check_process();
    const std::lock_guard lock(running_);
    if (workspace_ == nullptr) throw StepError("the program has no workspace");
    const Step step = prepare(context);
    for (const BoundOp& bound : ops_) bound.op->check(step);
    cancelled_.store(false, std::memory_order_relaxed);
    stop_ = {};
    handouts_.clear();
    OpRun* runs = nullptr;
    if (counters) {
        counters->ops.assign(ops_.size(), OpRun{});
        runs = counters->ops.data();
    }
    pool_->run([&](int thread) { walk(thread, step, thread == 0 ? runs : nullptr); });
    if (counters) count(step, *counters);
    return !(stop_[0] || stop_[1]);
}

// `runs`: where the time of each op goes; null for threads that keep none.
void Program::walk(int thread, const Step& step, OpRun* runs) {
    Worker worker{kernels_,         pool_->barrier(), thread,
                  pool_->threads(), shared_,          shared_ + shared_bytes_ + thread * thread_bytes_,
                  handouts_};
    ropes_.fill(step, worker);
    worker.sync();
    int set = 0;
    using Clock = std::chrono::steady_clock;
    Clock::time_point last;
    if (runs) last = Clock::now();
    for (size_t i = 0; i < ops_.size(); ++i) {
        const BoundOp& bound = ops_[i];
        if (bound.op->idle(step)) continue;
        bound.op->run(step, worker);
        if (thread == 0) stop_[set] = cancelled_.load(std::memory_order_relaxed);
        worker.sync();
        if (runs) {
            const Clock::time_point now = Clock::now();
            runs[i].nanoseconds = std::chrono::nanoseconds(now - last).count();
            last = now;
        }
        if (stop_[set]) return;
        set ^= 1;
    }
}

void Program::count(const Step& step, Counters& counters) const {
    for (size_t i = 0; i < ops_.size(); ++i) {
        const BoundOp& bound = ops_[i];
        counters.ops[i].opcode = bound.opcode;
        if (bound.op->idle(step)) continue;
        ++counters.dispatches[bound.opcode];
        counters.ops[i].planned_bytes = bound.op->planned_bytes(step);
        counters.planned_bytes += counters.ops[i].planned_bytes;
    }
    ++counters.launches;
}

}  // namespace treadle::inference
