// Block types of two and three bits.
#include "compute/isa/block_kernels.hpp"

namespace treadle::compute::TREADLE_ISA_NS {

const BlockKernels kKernelsQ2_K = kKernelsOf<FormatQ2_K>;
const BlockKernels kKernelsQ3_K = kKernelsOf<FormatQ3_K>;

}  // namespace treadle::compute::TREADLE_ISA_NS
