#include "build_info.hpp"

namespace treadle {

const char* version() { return TREADLE_VERSION; }

const char* compiled_isas() {
    return "plain"
#ifdef TREADLE_HAVE_AVX2
           ",avx2"
#endif
#ifdef TREADLE_HAVE_AVX512
           ",avx512"
#endif
#ifdef TREADLE_HAVE_NEON
           ",neon"
#endif
        ;
}

}  // namespace treadle
