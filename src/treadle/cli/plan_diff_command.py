"""``treadle plan diff``: what changed between two plans: of two models, two plan files, or one model at two commits."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTES = """\
A and B are models or plan files (`treadle plan MODEL --out FILE.plan`). With --model they are commits of this
repository: each one's sources compile the model from a folder of their own; nothing is built or changed.
The exit code is 0 where the plans are the same, 1 where they differ, as diff's is; errors end with 2."""
MARKS = {"added": ("+", "32"), "removed": ("-", "31"), "changed": ("~", "33")}
"""kind -> (sign, colour of a terminal)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--model", metavar="MODEL", help="A and B are commits at which this model is compiled")
    parser.add_argument("--family-file", metavar="FILE", help="a Python file that describes the models' family")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    from treadle.cli.failure import report
    from treadle.errors import TreadleError

    try:
        found = compare(options)
    except TreadleError as error:
        report(error, as_json=options.json)
        return 2
    if options.json:
        print(json.dumps({"same": not found, "differences": found}))
    else:
        show(found)
    return 1 if found else 0


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    import msgspec

    from treadle.inference.options import EngineOptions
    from treadle.inference.tools import plan_data, plan_differences

    if options.model is None:
        chosen = EngineOptions(backend="reference", family_file=options.family_file, max_num_seqs=1)
        sides = [plan_data(source, chosen) for source in (options.a, options.b)]
    else:
        sides = [plan_at(commit, options) for commit in (options.a, options.b)]
    return [msgspec.to_builtins(difference) for difference in plan_differences(*sides)]


RUN_SOURCES = """\
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen_importlib")]
sys.path.insert(0, sys.argv.pop(1))
from treadle.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs a folder's sources, whatever is installed: an editable install's finder would come first."""


def plan_at(commit: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a commit's sources compile of the model. Raises InvalidRequest where they do not."""
    from treadle.errors import InvalidRequest
    from treadle.governance.git import commit_of, extract, root_of

    root = root_of(Path.cwd())
    arguments = ["plan", absolute(options.model), "--backend", "reference", "--max-num-seqs", "1", "--json"]
    if options.family_file:
        arguments += ["--family-file", absolute(options.family_file)]
    full = commit_of(root, commit)
    with tempfile.TemporaryDirectory(prefix="treadle-plan-") as parent:
        folder = Path(parent)
        extract(root, full, folder)
        command = [sys.executable, "-c", RUN_SOURCES, str(folder / "src"), *arguments]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if made.returncode:
        reason = (made.stderr.strip() or made.stdout.strip()).splitlines()[-1:]
        raise InvalidRequest(f"{commit}: its sources do not compile {options.model}: {' '.join(reason)}")
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def absolute(path: str) -> str:
    """A path that holds in another folder; a model's name stays one."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def show(found: list[dict[str, Any]]) -> None:
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not found:
        print("the plans are the same")
    heading = None
    for difference in found:
        if difference["stage"] != heading:
            heading = difference["stage"]
            print(heading or "model")
        sign, colour = MARKS[difference["kind"]]
        line = f"  {sign} {difference['where']}: {difference['what']}"
        print(f"\033[{colour}m{line}\033[0m" if colours else line)
