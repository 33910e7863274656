// The table of parameter layouts, made from the same field lists as the structs.
#include "contract/params.hpp"

#include <type_traits>

namespace treadle::contract {
namespace {

template <typename T>
constexpr char type_code() {
    static_assert(std::is_same_v<T, u32> || std::is_same_v<T, f32>);
    return std::is_same_v<T, u32> ? 'I' : 'f';
}

// clang-format off
#define TREADLE_OFFSET(type, field) \
    ParamField{#field, type_code<type>(), static_cast<uint32_t>(offsetof(Struct, field))},
#define TREADLE_FIELDS(opcode, name, fields) \
    struct name##Table { \
        using Struct = name; \
        static constexpr ParamField kFields[] = {fields(TREADLE_OFFSET)}; \
        static_assert(sizeof(Struct) % 8 == 0 && sizeof(Struct) <= kMaxPayload); \
    };
TREADLE_PARAMS_V1(TREADLE_FIELDS)

#define TREADLE_ROW(opcode, name, fields) \
    ParamLayout{opcode, 1, static_cast<uint32_t>(sizeof(name)), name##Table::kFields},
constexpr ParamLayout kLayouts[] = {TREADLE_PARAMS_V1(TREADLE_ROW)};
// clang-format on

}  // namespace

std::span<const ParamLayout> param_layouts() { return kLayouts; }

}  // namespace treadle::contract
