"""``treadle models``: what is in the cache, and what can be pulled."""

import argparse
import json

from treadle.cli.figures import human_bytes
from treadle.formats import hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    cached = {model.name: model for model in hub.list_models()}
    rows = [
        {
            "name": name,
            "description": known.description,
            "licence": known.licence,
            "bytes": known.nbytes,
            "cached": name in cached,
            "path": str(cached[name].path) if name in cached else None,
        }
        for name, known in sorted(hub.KNOWN_MODELS.items())
    ]
    if options.json:
        print(json.dumps({"models": rows, "directory": str(hub.models_directory())}))
        return 0
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        where = row["path"] or f"not fetched: treadle pull {row['name']}"
        size = human_bytes(hub.KNOWN_MODELS[str(row["name"])].nbytes)
        print(f"{row['name']:{width}}  {size:>9}  {row['licence']}  {row['description']}\n{'':{width}}  {where}")
    print("\nA path to a .gguf file, a folder with config.json and safetensors, or a hub id works too.")
    return 0
