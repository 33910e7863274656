"""``treadle quantize``: a model as a GGUF file of another type."""

import argparse
import json

from treadle.cli.figures import human_bytes
from treadle.cli.options import QUANTISED, positive
from treadle.cli.pull_command import progress_line

NOTES = """\
Vectors (norms, biases) become f32. Embedding table and head take q6_k where TYPE is smaller. Rows that are no whole
number of TYPE's blocks (256 columns for the K types) become q8_0, or stay as they are where even 32 does not divide
them; the summary counts the tensors of each type."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    parser.add_argument("model", help="a folder with config.json, safetensors and tokenizer.json, or a GGUF file")
    parser.add_argument("target", metavar="DST.gguf", help="the file to write")
    parser.add_argument("--type", required=True, choices=(*QUANTISED, "f16", "bf16", "f32"), help="of the matrices")
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a core)")
    parser.add_argument("--force", action="store_true", help="replace DST.gguf if it is there")
    parser.add_argument("--allow-requantize", action="store_true", help="take a model that is below q8_0 already")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    import msgspec

    from treadle.inference.tools import quantize_file

    with progress_line(str(options.target), quiet=options.json) as progress:
        report = quantize_file(
            options.model,
            options.target,
            options.type,
            threads=options.threads,
            force=options.force,
            allow_requantize=options.allow_requantize,
            progress=progress,
        )
    if options.json:
        print(json.dumps(msgspec.to_builtins(report)))
        return 0
    types = ", ".join(f"{count} {name}" for name, count in sorted(report.tensor_types.items()))
    print(f"{report.path}: {human_bytes(report.file_bytes)} from {human_bytes(report.source_bytes)}; tensors: {types}")
    return 0
