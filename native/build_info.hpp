// What this build is: the version and the ISAs that were compiled in.
#pragma once

namespace treadle {

// Package version, e.g. "0.1.0".
const char* version();

// Names of the ISAs compiled in, from plainest to widest, separated by commas.
const char* compiled_isas();

}  // namespace treadle
