// Block types of six and eight bits.
#include "compute/isa/block_kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const BlockKernels kKernelsQ6_K = kKernelsOf<FormatQ6_K>;
const BlockKernels kKernelsQ8_0 = kKernelsOf<FormatQ8_0>;

}  // namespace treadle::compute::TREADLE_ISA_NS
