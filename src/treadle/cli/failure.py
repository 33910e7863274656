"""How a failed command speaks: one line on stderr with what to do next, or one JSON object on stdout."""

import argparse
import json
import sys
from typing import NoReturn

from treadle import errors

# first match wins: error class -> what to do next
NEXT_STEPS: tuple[tuple[type[errors.TreadleError], str], ...] = (
    (errors.NotInCache, "--pull fetches it first"),
    (errors.ModelNotFound, "`treadle models` lists what is known; a path to a .gguf file or a model folder works too"),
    (errors.DownloadFailed, "check the network and run `treadle pull` again"),
    (errors.PromptTooLong, "shorten the prompt, lower --max-tokens or raise --max-model-len"),
    (errors.OutOfMemoryQuote, "lower --max-model-len; `treadle plan MODEL --memory` shows what needs what"),
    (errors.UnsupportedBatchSize, "--max-num-seqs 1 or --allow-per-slot"),
    (errors.InvalidFile, "the file is damaged: fetch it again"),
    (errors.InvalidPlan, "delete the plan file; it is compiled anew from the model"),
    (errors.BackendUnavailable, "name another with --backend"),
)


def next_step(error: errors.TreadleError) -> str | None:
    return next((step for kind, step in NEXT_STEPS if isinstance(error, kind)), None)


def report(error: errors.TreadleError, *, as_json: bool) -> int:
    """Says what went wrong; returns the exit code 1."""
    message = " ".join(str(error).split())
    step = next_step(error)
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "message": message, "next": step}}))
    else:
        print(f"treadle: {message}" + (f" ({step})" if step else ""), file=sys.stderr)
    return 1


def report_usage(message: str, *, as_json: bool) -> int:
    """Says how the command line is wrong; returns the exit code 2."""
    if as_json:
        print(json.dumps({"error": {"type": "Usage", "message": message, "next": "treadle --help"}}))
    else:
        print(f"treadle: {message} (see treadle --help)", file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """argparse whose usage errors are one line, or JSON where --json was asked for."""

    asked: list[str]

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Options and operands in any order, which parse_args refuses where an operand is optional."""
        self.asked = arguments
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        sys.exit(report_usage(f"{self.prog.removeprefix('treadle ')}: {message}", as_json="--json" in self.asked))
