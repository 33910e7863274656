#include "build_info.hpp"

namespace treadle {

const char* version() { return TREADLE_VERSION; }

}  // namespace treadle
