// Block types of four bits.
#include "compute/isa/block_kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const BlockKernels kKernelsQ4_0 = kKernelsOf<FormatQ4_0>;
const BlockKernels kKernelsQ4_1 = kKernelsOf<FormatQ4_1>;
const BlockKernels kKernelsQ4_K = kKernelsOf<FormatQ4_K>;

}  // namespace treadle::compute::TREADLE_ISA_NS
