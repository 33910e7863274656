// What this build is.
#pragma once

namespace treadle {

// Package version, e.g. "0.1.0".
const char* version();

}  // namespace treadle
