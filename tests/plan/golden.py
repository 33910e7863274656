"""Plan files of contract v1, to be read for as long as versions.toml says: `python -m tests.plan.golden DIRECTORY`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.plan.builder import decoder, model
from tests.plan.zoo import joined, zoo

from treadle.plan.codec import save
from treadle.plan.dump import text
from treadle.plan.ir import ModelPlans, Stage

PLANS: dict[str, Callable[[], ModelPlans]] = {
    "zoo": zoo,
    "joined": joined,
    "decoder": lambda: model(prefill=decoder(Stage.PREFILL, 4), decode=decoder(layers=4)),
}


def write(directory: Path) -> None:
    """Adds the files that are missing; a published one is never written again."""
    for name, build in PLANS.items():
        if not (directory / f"{name}.plan").exists():
            save(build(), directory / f"{name}.plan")
            (directory / f"{name}.txt").write_text(text(build()), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
