"""Holds the words of the kernels: native/compute and src/treadle/compute know rows, columns, heads and strides.

Words of text models (token, prompt, vocab) and the name of every family that models/registry.py lists are refused in
their code, comments and file names. Docstrings of Python may name a model: they cite where a formula comes from.
Prints one line per breach and exits 1 if there is any.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from treadle.models.registry import GGUF_FAMILIES, HF_FAMILIES
from treadle.plan.ir import Opcode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("native/compute", "src/treadle/compute")
SUFFIXES = (".cpp", ".hpp", ".py")
TEXT_WORDS = re.compile("token|prompt|vocab")
"""Refused wherever they occur, as in `tokens` or `tokenizer`."""
NUMBER = "0123456789."
CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def family_names() -> set[str]:
    """Every name that the registry knows, and each without the number at its end; but not what an op is called."""
    known = {name.lower() for table in (HF_FAMILIES, GGUF_FAMILIES) for pair in table.items() for name in pair}
    known |= {name.rstrip(NUMBER) for name in known}
    ops = {word for opcode in Opcode for word in opcode.name.lower().split("_")}
    return {name for name in known if name.rstrip(NUMBER) not in ops}


def pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Finds names as whole words, with any separator or none where a name has one: gpt_oss, gpt-oss, GptOss."""
    words = ("[_. -]?".join(map(re.escape, re.split("[_.-]", name))) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])")


def docstring_lines(text: str) -> set[int]:
    """Lines of the strings that stand alone as a statement."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def breaches_in(path: Path, families: re.Pattern[str]) -> Iterator[str]:
    """What is wrong with one file, by line; line 0 is its name."""
    text = path.read_text(encoding="utf-8")
    prose = docstring_lines(text) if path.suffix == ".py" else set()
    for number, line in enumerate([path.stem, *text.splitlines()]):
        words = CAPITAL.sub("_", line).lower()
        match = TEXT_WORDS.search(words) or (None if number in prose else families.search(words))
        if match:
            yield f"{path}:{number}: kernels know rows and strides, not {match.group()!r}"


def main(root: Path = ROOT) -> int:
    families = pattern(family_names())
    sources = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    found = [breach for source in sources for breach in breaches_in(source, families)]
    print("\n".join(found) or f"vocabulary: {len(sources)} files of kernels, no breach")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
