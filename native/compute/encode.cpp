// Sizes of the block types that rows can be encoded to.
#include "compute/kernels.hpp"

namespace treadle::compute {

EncodedBlock encoded_block(DType type) {
    switch (type) {
        case DType::q4_0:
        case DType::iq4_nl:
            return {32, 18};
        case DType::q4_1:
            return {32, 20};
        case DType::q5_0:
            return {32, 22};
        case DType::q5_1:
            return {32, 24};
        case DType::q8_0:
            return {32, 34};
        case DType::q2_k:
            return {256, 84};
        case DType::q3_k:
            return {256, 110};
        case DType::q4_k:
            return {256, 144};
        case DType::q5_k:
            return {256, 176};
        case DType::q6_k:
            return {256, 210};
        default:
            return {0, 0};
    }
}

}  // namespace treadle::compute
