"""What is under way, as one line of stderr that the next one replaces; nothing where that is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Replaces the line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """`say`, the last line of which is taken away at the end."""
    try:
        yield say
    finally:
        say("")
