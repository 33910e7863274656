"""``treadle pull``: a model into the cache, with progress."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from treadle.cli.figures import human_bytes
from treadle.errors import NotInCache
from treadle.formats import hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name `treadle models` lists, or a hub id (org/name or org/name/file.gguf)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    began = time.monotonic()
    with progress_line(options.model, quiet=options.json) as progress:
        found = hub.pull(options.model, progress)
    seconds = time.monotonic() - began
    if options.json:
        print(json.dumps({"model": found.name, "path": str(found.path), "seconds": round(seconds, 3)}))
    else:
        print(f"{found.name} is at {found.path}")
    return 0


def pull_if_missing(model: str) -> None:
    """Fetches a model that is known but not in the cache; whatever else is wrong shows when it is loaded."""
    try:
        hub.resolve(model)
    except NotInCache:
        with progress_line(model, quiet=False) as progress:
            hub.pull(model, progress)


@contextmanager
def progress_line(name: str, *, quiet: bool) -> Iterator[hub.Progress]:
    """One line on stderr: redrawn in a terminal, else written once, at the end."""
    live = sys.stderr.isatty()
    began = time.monotonic()
    last_drawn = 0.0
    finished = False

    def show(done: int, total: int) -> None:
        nonlocal last_drawn, finished
        now = time.monotonic()
        complete = done >= total
        if quiet or finished or (not complete and (not live or now - last_drawn < 0.1)):
            return
        last_drawn, finished = now, complete
        rate = done / max(now - began, 1e-9)
        text = f"{name}: {human_bytes(done)} of {human_bytes(total)}, {human_bytes(rate)}/s"
        sys.stderr.write(f"\r\x1b[K{text}" if live else f"{text}\n")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if live and last_drawn:
            sys.stderr.write("\n")
