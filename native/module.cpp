// Bindings of treadle._native: argument checks, and native exceptions turned into treadle.errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <optional>

#include "build_info.hpp"
#include "compute/probe.hpp"
#include "gil.hpp"
#include "inference/program.hpp"
#include "inference/weights.hpp"
#include "sampling_arrays.hpp"

namespace nb = nanobind;
using namespace treadle;
using namespace treadle::inference;

namespace {

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadOnlyBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadOnlyRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;
using ReadOnlyValues = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// (address, bytes) of a buffer that the Python side keeps alive. While only measuring, addresses are nominal.
using Buffer = std::tuple<uintptr_t, int64_t>;
// address, dtype, shape
using WeightTuple = std::tuple<uintptr_t, int, std::vector<int64_t>>;
// opcode, inputs, outputs as (address, columns), weights, (version, opcode, payload) blocks, (address, page
// bytes, tokens)
using RegisterTuple = std::tuple<uintptr_t, int64_t>;
using InstructionTuple =
    std::tuple<int, std::vector<RegisterTuple>, std::vector<RegisterTuple>,
               std::vector<std::optional<WeightTuple>>, std::vector<std::tuple<int, int, nb::bytes>>,
               std::optional<std::tuple<uintptr_t, int64_t, int64_t>>>;

std::span<const int32_t> span_of(const Ints& a) { return {a.data(), a.size()}; }

Weight weight_from(const std::optional<WeightTuple>& in) {
    Weight w;
    if (!in) return w;
    const auto& [address, dtype, shape] = *in;
    w.present = true;
    if (shape.size() == 1) {
        w.vector = reinterpret_cast<const float*>(address);
        w.size = shape[0];
        return w;
    }
    expect(shape.size() == 2 || shape.size() == 3,
           "a weight has " + std::to_string(shape.size()) + " axes; 1 to 3 are supported");
    const auto type = static_cast<compute::DType>(dtype);
    const int64_t rows = shape[shape.size() - 2], cols = shape.back();
    expect(compute::packable(type, cols), "weight of dtype " + std::to_string(dtype) + " has no packed form");
    w.is_matrix = true;
    w.matrix = {type, rows, cols, compute::strip_bytes(type, cols),
                reinterpret_cast<const std::byte*>(address)};
    if (shape.size() == 3) w.matrices = shape[0];
    return w;
}

Instruction instruction_from(const InstructionTuple& t) {
    const auto& [opcode, inputs, outputs, weights, params, state] = t;
    expect(opcode >= 0 && opcode < 256, "opcode " + std::to_string(opcode));
    Instruction in;
    in.opcode = static_cast<uint8_t>(opcode);
    for (const auto& [address, cols] : inputs)
        in.inputs.push_back({reinterpret_cast<std::byte*>(address), cols});
    for (const auto& [address, cols] : outputs)
        in.outputs.push_back({reinterpret_cast<std::byte*>(address), cols});
    for (const auto& w : weights) in.weights.push_back(weight_from(w));
    for (const auto& [version, op, payload] : params) {
        ParamBlock block;
        block.abi_version = static_cast<uint8_t>(version);
        block.opcode = static_cast<uint8_t>(op);
        expect(payload.size() <= block.payload.size(), "parameter block is too large");
        std::memcpy(block.payload.data(), payload.c_str(), payload.size());
        in.params.push_back(block);
    }
    if (state) {
        const auto& [address, page_bytes, page_tokens] = *state;
        in.state = {reinterpret_cast<std::byte*>(address), page_bytes, page_tokens};
    }
    return in;
}

const Kernels& kernels_named(const std::string& isa) {
    if (isa.empty()) return compute::kernels();
    const Kernels* found = compute::kernels_for(isa);
    if (found == nullptr)
        throw std::runtime_error("ISA " + isa + " is not available on this machine or in this build");
    return *found;
}

Numerics numerics_named(const std::string& name) {
    if (name == "fast") return Numerics::fast;
    if (name == "bf16") return Numerics::bf16;
    if (name == "exact") return Numerics::exact;
    throw std::invalid_argument("numerics " + name + " is unknown");
}

std::unique_ptr<Program> make_program(std::shared_ptr<ThreadPool> pool, const std::string& isa,
                                      const std::string& numerics,
                                      std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> limits,
                                      const std::vector<InstructionTuple>& instructions) {
    const auto [rows, batch, sampled, seq_len, pages] = limits;
    std::vector<Instruction> bound;
    bound.reserve(instructions.size());
    for (const InstructionTuple& t : instructions) bound.push_back(instruction_from(t));
    return std::make_unique<Program>(std::move(pool), kernels_named(isa), numerics_named(numerics),
                                     contract::StepLimits{rows, batch, sampled, seq_len, pages}, bound);
}

// Runs a step with the GIL released, so that another thread can cancel it.
nb::object run_program(Program& program, const Ints& query_lens, const Ints& positions,
                       const Table& page_table, const Ints& state_slots, const Ints& sampled_rows,
                       const std::optional<SamplingTuple>& sampling, bool count) {
    std::optional<SamplingView> choices;
    if (sampling) choices.emplace(*sampling);
    const contract::ExecutionContext context{
        span_of(query_lens),
        span_of(positions),
        {page_table.data(), page_table.size()},
        static_cast<int64_t>(page_table.shape(1)),
        span_of(state_slots),
        span_of(sampled_rows),
        choices ? &choices->sampling : nullptr,
    };
    std::optional<Counters> counters;
    if (count) counters.emplace();
    bool finished = false;
    {
        const GilRelease released;
        finished = program.run(context, counters ? &*counters : nullptr);
    }
    if (!finished) return nb::none();
    if (!counters) return nb::bool_(true);
    nb::dict dispatches;
    for (size_t i = 0; i < counters->dispatches.size(); ++i) {
        if (counters->dispatches[i]) dispatches[nb::int_(i)] = counters->dispatches[i];
    }
    nb::list ops;
    for (const auto& op : counters->ops)
        ops.append(nb::make_tuple(op.opcode, op.nanoseconds, op.planned_bytes));
    return nb::make_tuple(dispatches, counters->launches, counters->planned_bytes, ops);
}

// Packs rows [rows, row bytes] of a stored tensor into `out`.
void pack(ThreadPool& pool, const ReadOnlyRows& rows, int dtype, int64_t cols, const Bytes& out) {
    const auto type = static_cast<compute::DType>(dtype);
    const auto count = static_cast<int64_t>(rows.shape(0));
    if (!compute::packable(type, cols))
        throw BindError("dtype " + std::to_string(dtype) + " has no packed form");
    const int64_t stored = compute::row_bytes(type, cols);
    if (static_cast<int64_t>(rows.shape(1)) != stored || (stored > 1 && rows.stride(1) != 1)) {
        throw BindError("rows of " + std::to_string(rows.shape(1)) + " bytes, expected " +
                        std::to_string(stored));
    }
    if (static_cast<int64_t>(out.size()) < compute::packed_bytes(type, count, cols))
        throw BindError("packed buffer is too small");
    const GilRelease released;
    pack_matrix(pool, type, reinterpret_cast<const std::byte*>(rows.data()), count, rows.stride(0), cols,
                reinterpret_cast<std::byte*>(out.data()));
}

// Encodes values [rows, cols] into `out`, the rows shared out among the pool's threads. Returns the first row that has
// no encoding (values not finite, or too large for the type's scales), or -1.
int64_t encode(ThreadPool& pool, const std::string& isa, const ReadOnlyValues& values, int dtype,
               const Bytes& out) {
    const auto type = static_cast<compute::DType>(dtype);
    const auto rows = static_cast<int64_t>(values.shape(0)), cols = static_cast<int64_t>(values.shape(1));
    const compute::EncodedBlock block = compute::encoded_block(type);
    if (block.cols == 0 || cols % block.cols != 0)
        throw BindError("dtype " + std::to_string(dtype) + " has no encoder for rows of " +
                        std::to_string(cols) + " columns");
    const int64_t row_bytes = cols / block.cols * block.bytes;
    if (static_cast<int64_t>(out.size()) != rows * row_bytes)
        throw BindError("encoded buffer of " + std::to_string(out.size()) + " bytes, expected " +
                        std::to_string(rows * row_bytes));
    const Kernels& kernels = kernels_named(isa);
    const float* source = values.data();
    auto* target = reinterpret_cast<std::byte*>(out.data());
    std::atomic<int64_t> next{0}, failed{rows};
    const GilRelease released;
    pool.run([&](int) {
        for (int64_t row = next++; row < rows; row = next++) {
            if (kernels.encode_row(type, source + row * cols, cols, target + row * row_bytes)) continue;
            int64_t first = failed.load();
            while (row < first && !failed.compare_exchange_weak(first, row)) {
            }
        }
    });
    return failed == rows ? -1 : failed.load();
}

// What a step does with its sampled rows, for rows of values [rows, columns] that lie in memory already.
void choose(const std::string& isa, const Rows<const float>& values, const SamplingTuple& arrays) {
    const SamplingView view(arrays);
    const Kernels& kernels = kernels_named(isa);
    const auto rows = static_cast<int64_t>(values.shape(0)), cols = static_cast<int64_t>(values.shape(1));
    if (cols < 1 || cols > compute::kMassCols)
        throw StepError("sampling: " + std::to_string(cols) + " columns");
    check_sampling(view.sampling, rows, cols);
    const nb::gil_scoped_release released;
    const std::align_val_t align{compute::kAlign};
    auto* scratch = static_cast<std::byte*>(
        ::operator new(static_cast<size_t>(compute::choose_scratch_bytes(cols)), align));
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = values.data() + row * cols;
        choose_row(kernels, view.sampling, row, x, cols, kernels.best(x, cols), scratch);
    }
    ::operator delete(scratch, align);
}

nb::dict abi() {
    nb::dict out;
    for (const contract::ParamLayout& layout : contract::param_layouts()) {
        nb::list fields;
        for (const contract::ParamField& f : layout.fields) {
            fields.append(nb::make_tuple(f.name, std::string(1, f.type), f.offset));
        }
        const std::string key = std::to_string(layout.opcode) + "." + std::to_string(layout.version);
        out[key.c_str()] = fields;
    }
    return out;
}

void throw_typed(const char* name, const char* what) {
    const nb::object type = nb::module_::import_("treadle.errors").attr(name);
    PyErr_SetString(type.ptr(), what);
}

}  // namespace

NB_MODULE(_native, m) {
    // Programs may live in globals of the interpreter until it exits, which nanobind would report as leaks.
    nb::set_leak_warnings(false);
    m.attr("__version__") = version();

    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const StepError& error) {
            throw_typed("InvalidBatchSize", error.what());
        } catch (const BindError& error) {
            throw_typed("InvalidInstructionBinding", error.what());
        } catch (const ForkError& error) {
            throw_typed("BackendUnavailable", error.what());
        }
    });

    nb::module_::import_("atexit").attr("register")(nb::cpp_function([] { gil_gate().close(); }));

    m.def(
        "sampled_row",
        [] {
            nb::dict fields;
            for (const contract::SampledRowField& field : contract::kSampledRow)
                fields[field.name] = field.offset;
            return nb::make_tuple(fields, sizeof(contract::SampledRow));
        },
        "Layout of a sampled row's record: ({field: offset}, bytes).");
    m.def("choose", &choose, nb::arg("isa"), nb::arg("values"), nb::arg("sampling"),
          "Chooses from rows of values [rows, columns] as a step does from its own; see "
          "treadle.inference.sampling.");
    m.def("abi", &abi, "Parameter layouts: {'opcode.version': [(field, type code, offset), ...]}.");
    m.def(
        "claimed_opcodes",
        [] {
            std::vector<int> out;
            for (int i = 0; i < 256; ++i) {
                if (adapters()[i].bind) out.push_back(i);
            }
            return out;
        },
        "Opcodes that the adapter table holds.");
    m.def(
        "supported_isas",
        [] {
            std::vector<std::string> out;
            for (const Kernels* k : compute::supported_kernels()) out.emplace_back(k->name);
            return out;
        },
        "ISAs that this machine can run, best first.");
    m.def(
        "default_isa", [] { return std::string(compute::kernels().name); },
        "The ISA that programs use unless told otherwise. Raises RuntimeError for a bad TREADLE_ISA.");
    m.def(
        "packable",
        [](int dtype, int64_t cols) { return compute::packable(static_cast<compute::DType>(dtype), cols); },
        nb::arg("dtype"), nb::arg("cols"), "Whether rows of `cols` elements of a dtype have a packed form.");
    m.def(
        "packed_bytes",
        [](int dtype, int64_t rows, int64_t cols) {
            return compute::packed_bytes(static_cast<compute::DType>(dtype), rows, cols);
        },
        nb::arg("dtype"), nb::arg("rows"), nb::arg("cols"), "Bytes of a packed matrix.");
    m.def(
        "packing_signature", [](int dtype) { return packing_signature(static_cast<compute::DType>(dtype)); },
        nb::arg("dtype"),
        "Names the bytes that `pack` makes of a dtype: equal signatures, equal bytes. 0: it packs none.");
    m.def("pack", &pack, nb::arg("pool"), nb::arg("rows"), nb::arg("dtype"), nb::arg("cols"), nb::arg("out"),
          "Packs stored rows (uint8 [rows, row bytes]) into `out`, on all threads of an idle pool.");
    m.def(
        "checksum",
        [](ThreadPool& pool, const ReadOnlyBytes& data) {
            return checksum(pool, reinterpret_cast<const std::byte*>(data.data()), data.size());
        },
        nb::arg("pool"), nb::arg("data"), nb::call_guard<GilRelease>(),
        "64-bit checksum against accidents, at memory speed, on all threads of an idle pool.");
    m.def(
        "encoded_block",
        [](int dtype) {
            const compute::EncodedBlock block = compute::encoded_block(static_cast<compute::DType>(dtype));
            if (block.cols == 0) throw BindError("dtype " + std::to_string(dtype) + " has no encoder");
            return nb::make_tuple(block.cols, block.bytes);
        },
        nb::arg("dtype"), "Columns and bytes of a block of a type that `encode` makes.");
    m.def("encode", &encode, nb::arg("pool"), nb::arg("isa"), nb::arg("values"), nb::arg("dtype"),
          nb::arg("out"),
          "Encodes f32 [rows, cols] as blocks of a file type; the first row without an encoding, or -1.");
    m.def(
        "probe_read_gb_s",
        [](int threads, int64_t bytes) {
            return compute::probe_read_gb_s(compute::kernels(), threads, bytes);
        },
        nb::arg("threads"), nb::arg("nbytes"), nb::call_guard<GilRelease>(),
        "Bandwidth in GB/s at which this many threads together read the same bytes again and again.");
    m.def(
        "probe_int8_gop_s",
        [](int threads) { return compute::probe_int8_gop_s(compute::kernels(), threads); },
        nb::arg("threads"), nb::call_guard<GilRelease>(),
        "int8 dot-product rate in GOP/s, with this many threads.");
    m.def(
        "probe_bf16_gop_s",
        [](int threads) { return compute::probe_bf16_gop_s(compute::kernels(), threads); },
        nb::arg("threads"), nb::call_guard<GilRelease>(),
        "bf16 multiply-add rate in GOP/s, with this many threads.");
    m.def(
        "probe_f32_gop_s", [](int threads) { return compute::probe_f32_gop_s(compute::kernels(), threads); },
        nb::arg("threads"), nb::call_guard<GilRelease>(),
        "f32 multiply-add rate in GOP/s, with this many threads.");

    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(
            "__init__",
            [](ThreadPool* self, int threads) {
                if (threads < 1 || threads > 1024) throw nb::value_error("threads must lie in [1, 1024]");
                new (self) ThreadPool(threads);
            },
            nb::arg("threads"))
        .def_prop_ro("threads", &ThreadPool::threads);

    nb::class_<Program>(m, "Program")
        .def_prop_ro("workspace_bytes", &Program::workspace_bytes)
        .def(
            "set_workspace",
            [](Program& self, uintptr_t address, int64_t bytes) {
                self.set_workspace(reinterpret_cast<std::byte*>(address), bytes);
            },
            nb::arg("address"), nb::arg("nbytes"))
        .def("run", &run_program, nb::arg("query_lens"), nb::arg("positions"), nb::arg("page_table"),
             nb::arg("state_slots"), nb::arg("sampled_rows"), nb::arg("sampling").none() = nb::none(),
             nb::arg("count") = false,
             "Runs one step; None if it was cancelled, True, or (dispatches, launches, planned bytes, "
             "[(opcode, nanoseconds, planned bytes) of each op]) if counting.")
        .def("cancel", &Program::cancel);

    m.def("make_program", &make_program, nb::arg("pool"), nb::arg("isa"), nb::arg("numerics"),
          nb::arg("limits"), nb::arg("instructions"),
          "Binds instructions; see treadle.inference.backends.cpu.");
}
