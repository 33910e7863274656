"""``treadle cache``: what the weight cache holds, and emptying it."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from treadle.cli.figures import human_bytes

if TYPE_CHECKING:
    from treadle.inference.weight_cache import CachedWeights

DESCRIPTION = """\
Packed weights are kept under $TREADLE_HOME/weights (default: ~/.cache/treadle/weights), so that the next start of a
model maps them instead of packing again. They take at most $TREADLE_CACHE_LIMIT (such as 20GB; 0 switches the cache
off; default: 20 GiB, or half of what the disk has free if that is less); what was not used for longest goes first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("ls", "clear"), help="ls: what there is, last used first; clear: delete all")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    from treadle.inference.home import weight_cache

    cache = weight_cache()
    entries = cache.clear() if options.action == "clear" else cache.entries()
    total = sum(entry.nbytes for entry in entries)
    if options.json:
        facts = {"directory": str(cache.directory), "total_bytes": total, "limit_bytes": cache.limit_bytes()}
        print(json.dumps({**facts, "deleted" if options.action == "clear" else "entries": [row(e) for e in entries]}))
    elif options.action == "clear":
        print(f"deleted {len(entries)} files, {human_bytes(total)}, in {cache.directory}")
    else:
        for entry in entries:
            print(line(entry))
        print(f"{human_bytes(total)} of at most {human_bytes(cache.limit_bytes())} in {cache.directory}")
    return 0


def row(entry: "CachedWeights") -> dict[str, Any]:
    return {
        "model": entry.model or None,
        "path": entry.path or None,
        "bytes": entry.nbytes,
        "last_use": round(entry.last_use, 3),
        "file": str(entry.file),
        "problem": entry.problem or None,
    }


def line(entry: "CachedWeights") -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_use))
    what = f"{entry.file.name} {entry.problem}" if entry.problem else f"{entry.model}  {entry.path}"
    return f"{human_bytes(entry.nbytes):>9}  used {used}  {what}"
