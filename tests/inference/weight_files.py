"""What tests do to the files of the weight cache."""

import time
from pathlib import Path


def settle() -> None:
    """Lets the clock tick that a new file's ctime lies in pass."""
    time.sleep(0.03)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
