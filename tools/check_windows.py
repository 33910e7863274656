"""Says what is wrong with the windows of versions: overdue ends, long windows, missing golden files.

`--release 0.3.0` asks it of a release to come. Prints one line per finding and exits 1 if there is any.
"""

import argparse
import sys
from pathlib import Path

import treadle
from treadle.errors import TreadleError
from treadle.plan.versions import accepted, held, parse, problems, windows

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default=treadle.__version__, help=f"default: {treadle.__version__}")
    parser.add_argument("--versions", type=Path, metavar="FILE", help="default: the package's plan/versions.toml")
    options = parser.parse_args(arguments)
    try:
        listed = windows() if options.versions is None else parse(options.versions.read_text(encoding="utf-8"))
        found = list(problems(options.release, listed, accepted(), held(*GOLDEN.glob("contract_*"))))
    except (TreadleError, OSError) as error:
        found = [str(error)]
    print("\n".join(found) or f"windows: {len(listed)} versions at release {options.release}, none overdue")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
