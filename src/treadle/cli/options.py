"""The options that several commands share, and what they become: an LLM and its SamplingParams."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.inference.llm import LLM
    from treadle.inference.request import SamplingParams


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name `treadle models` lists, a .gguf file, a model folder or a hub id")
    parser.add_argument("--pull", action="store_true", help="fetch the model first if it is not in the cache")
    parser.add_argument("--backend", default="cpu", help="cpu or reference (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="worker threads (default: one a core)")
    parser.add_argument(
        "--numerics",
        choices=("fast", "exact"),
        default="fast",
        help="fast: int8 activations on quantised weights; exact: f32 on dequantised values (default: %(default)s)",
    )
    parser.add_argument("--max-model-len", type=positive, metavar="N", help="longest sequence in tokens")


def add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    parser.add_argument("--max-tokens", type=positive, default=max_tokens, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens of total probability P")
    parser.add_argument("--min-p", type=float, metavar="P", help="drop tokens below P times the likeliest")
    parser.add_argument("--repetition-penalty", type=float, metavar="X")
    parser.add_argument("--presence-penalty", type=float, metavar="X")
    parser.add_argument("--frequency-penalty", type=float, metavar="X")
    parser.add_argument("--seed", type=int, help="the same seed gives the same tokens, whatever runs beside it")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")


SAMPLING_FIELDS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


def sampling_params(options: argparse.Namespace) -> "SamplingParams":
    """SamplingParams of what was given; the rest keeps its default."""
    from treadle.inference.request import SamplingParams

    given = {name: getattr(options, name) for name in SAMPLING_FIELDS}
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def load_model(options: argparse.Namespace, *, max_num_seqs: int = 1) -> "LLM":
    """The engine on the model asked for; fetches it first if --pull was given."""
    if options.pull:
        from treadle.cli.pull_command import pull_if_missing

        pull_if_missing(options.model)
    from treadle.inference.llm import LLM

    return LLM(
        options.model,
        backend=options.backend,
        threads=options.threads,
        numerics=options.numerics,
        max_model_len=options.max_model_len,
        max_num_seqs=max_num_seqs,
    )
