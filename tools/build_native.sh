#!/usr/bin/env bash
# Builds treadle._native (incrementally, in build/) and installs treadle editable into .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
if command -v flock >/dev/null; then # two builds in one folder would trip over one another
    exec 9>build/.lock
    flock 9
fi
if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    echo "treadle's core is C++20: install a C++ compiler (Debian: apt-get install g++)" >&2
    exit 1
fi
log=build/native.log
echo "building the native core" >&2
if ! CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2} PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m pip \
    --disable-pip-version-check install --no-build-isolation --no-deps -e . >"$log" 2>&1; then
    grep -E "error|FAILED|Error" -A 6 "$log" | head -60 >&2 || true
    echo "the native build failed; the whole log is in $log" >&2
    exit 1
fi
# Where Python is told to write no bytecode, every start would compile all of treadle again (some 50 ms).
.venv/bin/python -m compileall -q src/treadle
