"""``treadle embed``: texts to vectors, one a line on stdout."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from treadle.cli.figures import ran_on
from treadle.cli.options import add_engine_options, load_model
from treadle.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("text", nargs="*", help="the texts; without any, each line of stdin is one")
    add_encoding_options(parser)


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truncate", action="store_true", help="cut texts of more tokens than the model takes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    texts = read_texts(options.text, "text")
    with load_model(options) as llm:
        began = time.monotonic()
        vectors = llm.embed(texts, truncate=options.truncate)
        seconds = time.monotonic() - began
        if options.json:
            report = {"model": llm.info.model, "width": vectors.shape[1], "embeddings": vectors.tolist()}
            print(
                json.dumps(
                    {**report, "seconds": round(seconds, 4), "plan": {"hash": llm.info.plan_hash}, **ran_on(llm.info)}
                )
            )
            return 0
        for vector in vectors:
            print(" ".join(f"{value:.6f}" for value in vector.tolist()))
    return 0


def read_texts(given: Sequence[str], what: str) -> list[str]:
    """The texts of the command line, or the lines of stdin. Raises InvalidRequest for none, or other than UTF-8."""
    if not given and sys.stdin.isatty():
        raise InvalidRequest(f"no {what}: give some as arguments, or one a line on stdin")
    try:
        texts = list(given) or sys.stdin.read().splitlines()
        for text in texts:
            text.encode()  # bytes of the command line that are not UTF-8 arrive as lone surrogates
    except UnicodeError:
        raise InvalidRequest(f"a {what} is not UTF-8") from None
    if not texts:
        raise InvalidRequest(f"no {what}: stdin is empty")
    return texts
