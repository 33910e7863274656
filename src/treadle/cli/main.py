"""Entry point of ``treadle``: the table of commands, and what becomes of errors, Ctrl-C and a broken pipe.

Exit codes: 0 done, 1 a treadle error (one line on stderr), 2 wrong usage, 130 interrupted, 141 the reader went away.
Nothing heavy is imported here: the help must appear at once.
"""

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

# command -> what it does; the command's module is treadle.cli.<command>_command, with _ for spaces
COMMANDS = {
    "run": "answer one prompt",
    "chat": "talk with a model in the terminal",
    "embed": "turn texts into vectors",
    "rerank": "score documents by how well they answer a query",
    "pull": "fetch a model into the cache",
    "models": "list the models in the cache and those that can be pulled",
    "cache": "list or delete the packed weights that starts have kept",
    "plan": "show a model's compiled plan, or the memory it needs",
    "plan diff": "show what changed between two plans",
    "onboard": "compare an unknown model with the known families and draft its family file",
    "quantize": "write a model as a GGUF file of another type",
    "perplexity": "measure how well a model predicts a text",
    "parity": "compare every family's logits with transformers'",
    "gate": "prove the decisions the project is built on, and sign its phases",
    "trace": "measure one step op by op",
    "bench": "measure tokens a second and the share of the machine's limit",
    "bench matrix": "measure the models that speed is judged by, and keep a record",
    "bench compare": "judge whether one commit is slower than another",
}


class Command(Protocol):
    """What each command's module offers."""

    def add_arguments(self, parser: "ArgumentParser") -> None: ...

    def execute(self, options: "Namespace") -> int: ...


def overview() -> str:
    lines = ["usage: treadle COMMAND [options]", "", "An LLM inference runtime on compiled plans.", "", "commands:"]
    lines += [f"  {name:13} {summary}" for name, summary in COMMANDS.items()]
    lines += ["", "treadle COMMAND --help shows a command's options; treadle --version the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 is no reason to stop
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        abandon_stdout()
        return 141
    except OSError as error:  # a full disk, a file that may not be read: the machine's trouble, not a defect
        abandon_stdout()
        print(f"treadle: {error}", file=sys.stderr)
        return 1


def abandon_stdout() -> None:
    """The interpreter flushes stdout once more at exit: gives that somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if f"{name} {rest[0] if rest else ''}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ("-V", "--version"):
        from treadle import __version__

        print(f"treadle {__version__}")
        return 0
    if name not in COMMANDS:
        from treadle.cli.failure import report_usage

        return report_usage(f"unknown command {name!r}; known: {', '.join(COMMANDS)}", as_json="--json" in rest)
    return run_command(name, rest)


def run_command(name: str, arguments: list[str]) -> int:
    from treadle.cli.failure import Parser, report
    from treadle.errors import TreadleError

    command: Command = import_module(f"treadle.cli.{name.replace(' ', '_')}_command")
    parser = Parser(prog=f"treadle {name}", description=COMMANDS[name].capitalize() + ".")
    command.add_arguments(parser)
    options = parser.parse(arguments)
    try:
        return command.execute(options)
    except TreadleError as error:
        return report(error, as_json=getattr(options, "json", False))


def interrupted() -> int:
    """Leaves the terminal with the cursor at the start of a line."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    sys.stderr.write("interrupted\n")
    return 130


if __name__ == "__main__":
    sys.exit(main())
