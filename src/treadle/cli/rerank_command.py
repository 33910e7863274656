"""``treadle rerank``: documents by how well they answer a query, best first."""

import argparse
import json
import time

from treadle.cli.embed_command import add_encoding_options, read_texts
from treadle.cli.figures import ran_on
from treadle.cli.options import add_engine_options, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("query")
    parser.add_argument("document", nargs="*", help="the documents; without any, each line of stdin is one")
    add_encoding_options(parser)


def execute(options: argparse.Namespace) -> int:
    [query] = read_texts([options.query], "query")
    documents = read_texts(options.document, "document")
    with load_model(options) as llm:
        began = time.monotonic()
        scores = llm.rerank(query, documents, truncate=options.truncate).tolist()
        seconds = time.monotonic() - began
        best_first = sorted(range(len(documents)), key=lambda i: (-scores[i], i))
        if options.json:
            results = [{"index": i, "score": scores[i], "document": documents[i]} for i in best_first]
            report = {"model": llm.info.model, "results": results, "seconds": round(seconds, 4)}
            report |= {"plan": {"hash": llm.info.plan_hash}, **ran_on(llm.info)}
            print(json.dumps(report, ensure_ascii=False))
            return 0
        for i in best_first:
            print(f"{scores[i]:.6f}\t{documents[i]}")
    return 0
