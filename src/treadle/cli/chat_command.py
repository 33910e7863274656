"""``treadle chat``: a conversation in the terminal; lines from a pipe work too.

Ctrl-C stops the answer under way and leaves the conversation as it was; at the prompt it clears the line. Ctrl-D ends.
"""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from treadle.cli.options import add_engine_options, add_sampling_options, load_model, sampling_params
from treadle.errors import InvalidRequest, PromptTooLong

if TYPE_CHECKING:
    from treadle.inference.llm import LLM
    from treadle.inference.request import SamplingParams

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"
Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_sampling_options(parser, max_tokens=1024)


def execute(options: argparse.Namespace) -> int:
    params = sampling_params(options)
    opening = [{"role": "system", "content": options.system}] if options.system else []
    with load_model(options) as llm:
        if not llm.has_chat_template:
            raise InvalidRequest(f"{options.model} has no chat template; use `treadle run --raw`")
        if sys.stdin.isatty():
            print(f"{llm.info.model}: {HELP}", file=sys.stderr)
        converse(llm, params, opening)
    return 0


def converse(llm: "LLM", params: "SamplingParams", opening: list[Message]) -> None:
    conversation = list(opening)
    read = line_reader()
    while True:
        try:
            line = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        except UnicodeError:
            print("[that line is not UTF-8]", file=sys.stderr)
            continue
        if line == "/exit":
            return
        if line == "/reset":
            conversation = list(opening)
        elif line.startswith("/"):
            print(HELP, file=sys.stderr)
        elif line:
            conversation = answered(llm, params, [*conversation, {"role": "user", "content": line}]) or conversation


def line_reader() -> Callable[[], str]:
    """Reads one line of the user: with editing and history in a terminal, else plainly. Raises EOFError at the end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        from prompt_toolkit import PromptSession

        session: PromptSession[str] = PromptSession()
        return lambda: session.prompt("> ").strip()

    def read_plain() -> str:
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return line.decode().strip()

    return read_plain


def answered(llm: "LLM", params: "SamplingParams", conversation: list[Message]) -> list[Message] | None:
    """Prints the answer; returns the conversation with it, or None where it was stopped or did not fit."""
    text = ""
    try:
        for output in llm.stream(conversation, params):
            text = output.outputs[0].text
            sys.stdout.write(output.outputs[0].text_delta)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\n[stopped]", flush=True)
        return None
    except PromptTooLong as error:
        print(f"[{error}; /reset starts anew]", file=sys.stderr)
        return None
    print(flush=True)
    return [*conversation, {"role": "assistant", "content": text}]
