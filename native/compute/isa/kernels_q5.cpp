// Block types of five bits.
#include "compute/isa/block_kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const BlockKernels kKernelsQ5_0 = kKernelsOf<FormatQ5_0>;
const BlockKernels kKernelsQ5_1 = kKernelsOf<FormatQ5_1>;
const BlockKernels kKernelsQ5_K = kKernelsOf<FormatQ5_K>;

}  // namespace treadle::compute::TREADLE_ISA_NS
