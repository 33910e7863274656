"""Holds the layers of native/: who may include whom. (Their words: check_vocabulary.py.)

contract includes the standard library only; compute includes itself only; inference includes contract and compute.
Prints one line per breach and exits 1 if there is any.
"""

import re
import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"

# folder -> folders of native/ that its files may include (a plain header beside them in native/ counts as ".")
ALLOWED: dict[str, set[str]] = {
    "contract": {"contract"},
    "compute": {"compute"},
    "inference": {"inference", "contract", "compute", "."},
    "tests": {"contract", "compute", "inference", "tests", "."},
    ".": {".", "contract", "compute", "inference"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def layer_of(path: Path) -> str:
    """The folder of native/ that a file belongs to; "." for a file right in native/."""
    parts = path.relative_to(NATIVE).parts
    return parts[0] if len(parts) > 1 else "."


def included_layer(source: Path, name: str) -> str | None:
    """The layer of a quoted include, looked for beside the file and from native/; None if it is nowhere."""
    for base in (source.parent, NATIVE):
        target = (base / name).resolve()
        if target.is_file() and target.is_relative_to(NATIVE):
            return layer_of(target)
    return None


def breaches_in(source: Path) -> list[str]:
    layer = layer_of(source)
    found = []
    if layer not in ALLOWED:
        return [f"{source}: native/{layer} is not a known layer"]
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"native/{source.relative_to(NATIVE)}:{number}"
        if match := INCLUDE.match(line):
            bracket, name = match.groups()
            if bracket == '"':
                target = included_layer(source, name)
                if target is None:
                    found.append(f"{where}: includes {name}, which is not in native/")
                elif target not in ALLOWED[layer]:
                    found.append(f"{where}: {layer} must not include {name} of {target}")
            elif layer in ("contract", "compute", "inference") and name.startswith(("nanobind", "Python")):
                found.append(f"{where}: {layer} must not know Python ({name})")
    return found


def main() -> int:
    sources = sorted(path for suffix in ("*.hpp", "*.cpp") for path in NATIVE.rglob(suffix))
    found = [breach for source in sources for breach in breaches_in(source)]
    print("\n".join(found) or f"native includes: {len(sources)} files, no breach")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
