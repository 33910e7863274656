// Block types of four bits through a table.
#include "compute/isa/block_kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const BlockKernels kKernelsIQ4_NL = kKernelsOf<FormatIQ4_NL>;
const BlockKernels kKernelsIQ4_XS = kKernelsOf<FormatIQ4_XS>;
const BlockKernels kKernelsMXFP4 = kKernelsOf<FormatMXFP4>;

}  // namespace treadle::compute::TREADLE_ISA_NS
