#!/usr/bin/env bash
# Makes or completes .venv. Usage: tools/venv.sh run|dev|parity
# While it works, .venv.partial exists; an aborted run leaves it behind, and the next run starts from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
want=$1
venv=.venv

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "treadle needs Python 3.11 or later with the venv module; none found as python3.11 .. python3." >&2
    echo "Install it (Debian: apt-get install python3 python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2
    return 1
}

if [ -e .venv.partial ] || { [ -e $venv ] && [ ! -e $venv/.run ]; }; then
    echo "removing a half-made $venv" >&2
    rm -rf $venv .venv.partial
fi
trap 'status=$?; if [ $status -ne 0 ]; then rm -rf $venv .venv.partial; echo "setup failed; $venv removed" >&2; fi' EXIT
trap 'exit 130' INT TERM

touch .venv.partial
if [ ! -e $venv ]; then
    python=$(find_python)
    echo "making $venv with $("$python" --version)" >&2
    "$python" -m venv $venv
fi
echo "installing requirements/$want.txt" >&2
$venv/bin/python -m pip install -qq --disable-pip-version-check -r "requirements/$want.txt"
touch $venv/.run "$venv/.$want"
rm -f .venv.partial
