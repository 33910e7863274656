// bf16 products of few rows with weights of four bits.
#pragma once

#include "compute/isa/bf16_product.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

// False, with nothing done, where the product is not of that kind.
bool few_rows_bf16(const Bf16Product& p, int64_t strip0, int64_t strip1);

}  // namespace treadle::compute::TREADLE_ISA_NS
