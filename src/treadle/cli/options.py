"""The options that several commands share, and what they become: an LLM and its SamplingParams."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.inference.llm import LLM
    from treadle.inference.options import EngineOptions
    from treadle.inference.request import SamplingParams


# as in models/quantisation.py, whose import would make the help slow; a test compares them
QUANTISED = ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
NUMERICS = ("fast", "bf16", "exact")
"""As in inference/backends/base.py, for the same reason."""
KV_DTYPES = ("f32", "f16", "bf16", "q8_0")
"""As in inference/options.py, for the same reason."""


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


BACKEND_FIELDS = ("backend", "fallback", "allow_per_slot")


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Which backend runs a model; by the names of BACKEND_FIELDS in EngineOptions."""
    parser.add_argument("--backend", default="cpu", help="cpu or reference (default: %(default)s)")
    parser.add_argument(
        "--fallback", metavar="BACKEND", help="runs the whole plan where the backend cannot; without it that is refused"
    )
    parser.add_argument("--allow-per-slot", action="store_true", help="take a backend that runs an op slot by slot")


def add_engine_options(parser: argparse.ArgumentParser, *, sizes: bool = True) -> None:
    """The model and how it is run; the same everywhere, so that `plan --memory` quotes what `run` allocates.

    `sizes` False: without the options that a command decides itself.
    """
    parser.add_argument("model", help="a name `treadle models` lists, a .gguf file, a model folder or a hub id")
    parser.add_argument("--pull", action="store_true", help="fetch the model first if it is not in the cache")
    add_backend_options(parser)
    add_numeric_options(parser)
    if sizes:
        parser.add_argument("--max-model-len", type=positive, metavar="N", help="tokens of the longest sequence")
        parser.add_argument("--max-num-seqs", type=positive, metavar="N", help="sequences in one step")
        parser.add_argument(
            "--state-tokens", type=positive, metavar="N", help="tokens that all sequences hold together"
        )
    else:
        parser.set_defaults(max_model_len=None, max_num_seqs=None, state_tokens=None)
    parser.add_argument(
        "--family-file", metavar="FILE", help="a Python file that describes the model's family (see treadle onboard)"
    )
    parser.add_argument(
        "--disable-fusion",
        action="append",
        metavar="NAME",
        help="leave out a fusion of the backend: attention_block, mlp_block, ...; may be repeated",
    )
    parser.add_argument(
        "--no-weight-cache",
        dest="weight_cache",
        action="store_false",
        help="pack the weights anew and keep nothing on disk (see treadle cache)",
    )


NUMERIC_FIELDS = ("threads", "numerics", "kv_dtype", "quantize")


def add_numeric_options(parser: argparse.ArgumentParser) -> None:
    """What is calculated in which types, and by how many threads; by the names of NUMERIC_FIELDS in EngineOptions."""
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a physical core)")
    parser.add_argument(
        "--numerics",
        choices=NUMERICS,
        default="fast",
        help="fast: int8 activations on quantised weights; bf16: bf16 ones on weights rounded to bf16; "
        "exact: f32 ones on dequantised values (default: %(default)s)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        help="of keys and values; q8_0 takes half of f16 (default: f16, with --numerics bf16 bf16, with exact f32)",
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTISED,
        metavar="TYPE",
        help=f"encode a float checkpoint's matrices: {', '.join(QUANTISED)}",
    )


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

    return SamplingParams(**given(options, SAMPLING_FIELDS))


ENGINE_FIELDS = (
    *BACKEND_FIELDS,
    *NUMERIC_FIELDS,
    "max_model_len",
    "max_num_seqs",
    "state_tokens",
    "family_file",
    "disable_fusion",
    "weight_cache",
)


def engine_options(options: argparse.Namespace) -> "EngineOptions":
    """EngineOptions of what was given; the rest keeps its default. Fetches the model first if --pull was given."""
    if options.pull:
        from treadle.cli.pull_command import pull_if_missing

        pull_if_missing(options.model)
    from treadle.inference.options import EngineOptions

    return EngineOptions(**given(options, ENGINE_FIELDS))


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def load_model(options: argparse.Namespace) -> "LLM":
    """The engine on the model asked for."""
    chosen = engine_options(options)
    from treadle.inference.llm import LLM

    return LLM(options.model, **{name: getattr(chosen, name) for name in ENGINE_FIELDS})
