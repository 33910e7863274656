// Bindings of treadle._native: argument checks only.
#include <nanobind/nanobind.h>

#include "build_info.hpp"

NB_MODULE(_native, m) {
    m.attr("__version__") = treadle::version();
    m.attr("compiled_isas") = treadle::compiled_isas();
}
