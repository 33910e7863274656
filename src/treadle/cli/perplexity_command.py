"""``treadle perplexity``: how well a model predicts a text, by llama.cpp's definition."""

import argparse
import json
import sys
from pathlib import Path

from treadle.cli.figures import ran_on
from treadle.cli.options import add_engine_options, engine_options, positive
from treadle.cli.status_line import say
from treadle.errors import InvalidRequest

NOTES = """\
The text is cut into windows of N tokens one behind the other; the second half of each is scored, as llama.cpp's
perplexity tool does, with the model's BOS in place of a window's first token where it expects one. With --stride
windows overlap, and the last S tokens of each are scored."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    add_engine_options(parser, sizes=False)
    parser.add_argument("file", help="the text, in UTF-8; - for stdin")
    parser.add_argument("--ctx", type=positive, default=512, metavar="N", help="tokens a window (default: %(default)s)")
    parser.add_argument("--stride", type=positive, metavar="S", help="tokens from one window to the next")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    text = read_text(options.file)
    chosen = engine_options(options)
    import msgspec

    from treadle.inference.llm import LLM
    from treadle.inference.perplexity import engine_sizes, perplexity

    def show(done: int, total: int, so_far: float) -> None:
        say(f"window {done} of {total}: {so_far:.4f}")

    fields = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    with LLM(options.model, **{**fields, **engine_sizes(options.ctx)}) as llm:
        try:
            report = perplexity(llm, text, options.ctx, options.stride, show)
        finally:
            say("")
        if options.json:
            about = {"numerics": llm.info.numerics, "model": llm.info.model, **ran_on(llm.info)}
            print(json.dumps({**msgspec.to_builtins(report), **about}))
        else:
            print(
                f"perplexity {report.perplexity:.4f} +/- {report.stderr:.4f} ({llm.info.numerics}; {report.scored} of "
                f"{report.tokens} tokens scored in {report.windows} windows of {report.context}, "
                f"{report.tokens / report.seconds:.0f} tokens/s)"
            )
    return 0


def read_text(name: str) -> str:
    """Raises InvalidRequest for a file that is not there or not UTF-8."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeError:
        raise InvalidRequest(f"{name}: the text is not UTF-8") from None
    except OSError as error:
        raise InvalidRequest(f"{name}: {error.strerror}") from None
