// The kernel table of every ISA, each as far as it is built.
#pragma once

#include "compute/kernels.hpp"

namespace treadle::compute {

namespace amx {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace avxvnni {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
namespace i8mm {
const Kernels& table();
}
namespace neon {
const Kernels& table();
}
namespace plain {
const Kernels& table();
}

}  // namespace treadle::compute
