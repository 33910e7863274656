"""Feeds damaged and hostile files to the readers: `python -m tests.formats.fuzz --cases 100000`.

Every case must end in a result or in a TreadleError, within a second of CPU time and within memory in proportion to
the file. A case is a pure function of (target, number), so a failure is reproduced by its number. The test suite runs
a slice (test_fuzz.py).
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save
from tests.formats.make_vocabulary import span_vocabulary
from tokenizers import decoders, models, pre_tokenizers

from treadle.errors import TreadleError
from treadle.formats.chat_template import ChatTemplate
from treadle.formats.gguf import GGUFFile, StringArray, Value
from treadle.formats.gguf_writer import GGUFWriter
from treadle.formats.json_file import read_json
from treadle.formats.safetensors import SafetensorsFile
from treadle.formats.tensors import TensorSource
from treadle.formats.tokenizer import Tokenizer

MAX_CPU_SECONDS = 1.0
HANG_SECONDS = 600  # a batch, on a busy machine
BATCH = 500
MEMORY_FACTOR = (
    48  # a JSON list of empty lists takes 21 times its text as Python objects; a mutated name is copied often
)
MEMORY_BASE = 2 << 20  # first uses of caches, error texts
TEXT = "Hello wörld 日本 👍 123 <s> </s>\n"

Exercise = Callable[[Path], None]
Seeds = Callable[[], list[bytes]]


# --- seeds: small valid files that use every feature of a format ------------------------------------------------


def saved(writer: GGUFWriter) -> bytes:
    file = io.BytesIO()
    writer._write(file, lambda written, total: None)
    return file.getvalue()


@cache
def gguf_seeds() -> list[bytes]:
    plain = GGUFWriter("llama", alignment=64)
    for name, kind in [("u1", "u1"), ("i2", "i2"), ("u4", "u4"), ("f4", "f4"), ("f8", "f8"), ("i8", "i8"), ("b", "?")]:
        plain.add(f"one.{name}", np.ones((), kind)[()])
        plain.add(f"many.{name}", np.ones(5, kind))
    plain.add("words", ["alpha", "", "日本"])
    plain.add("word", "text")
    for dtype in ("f32", "f16", "q8_0", "q4_1"):
        plain.add_tensor(f"blk.0.{dtype}", np.ones((2, 64)), dtype)
    inner = struct.pack("<IQ", 9, 2) + 2 * (struct.pack("<IQ", 9, 1) + struct.pack("<IQ2I", 4, 2, 7, 8))
    deep = b"GGUF" + struct.pack("<IQQ", 2, 0, 1) + struct.pack("<Q", 1) + b"n" + struct.pack("<I", 9) + inner
    return [saved(plain), deep]


@cache
def tokenizer_gguf_seeds() -> list[bytes]:
    tokens, merges = span_vocabulary(["Hello wörld", "123"])
    special = ["<s>", "</s>", "<user>"]
    byte_level = GGUFWriter("llama")
    fields = {"model": "gpt2", "pre": "llama-bpe", "tokens": [*tokens, *special], "merges": merges}
    for name, value in fields.items():
        byte_level.add(f"tokenizer.ggml.{name}", value)
    byte_level.add("tokenizer.ggml.token_type", [1] * len(tokens) + [3, 3, 4])
    scored = GGUFWriter("llama")
    pieces = [
        "<unk>",
        *special,
        *(f"<0x{n:02X}>" for n in range(256)),
        *"\u2581Helowrd123",
        "\u2581H",
        "el",
        "lo",
        "\u2581Hel",
    ]
    scored.add("tokenizer.ggml.model", "llama")
    scored.add("tokenizer.ggml.tokens", pieces)
    scored.add("tokenizer.ggml.scores", [-float(n) for n in range(len(pieces))])
    scored.add("tokenizer.ggml.token_type", [2, 3, 3, 4] + [6] * 256 + [1] * (len(pieces) - 260))
    scored.add("tokenizer.ggml.unknown_token_id", 0)
    for writer in (byte_level, scored):
        writer.add("tokenizer.ggml.bos_token_id", 1)
        writer.add("tokenizer.ggml.eos_token_id", 2)
        writer.add("tokenizer.ggml.add_bos_token", True)
        writer.add("tokenizer.chat_template", "{% for m in messages %}{{ m.role ~ m['content'] | trim }}{% endfor %}")
    return [saved(byte_level), saved(scored)]


@cache
def safetensors_seeds() -> list[bytes]:
    many = {f"layer.{n}": np.full((2, n), n, np.float32) for n in range(4)}
    return [save({"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.int8)}, {"format": "pt"}), save(many)]


@cache
def tokenizer_json_seeds() -> list[bytes]:
    tokens, merges = span_vocabulary(["Hello wörld"])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    byte_level = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(["<s>", "</s>"])
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("He", -2.0), ("l", -3.0)], 0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    pieces = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "He": 1, "##llo": 2}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    fallback = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]}
    fallback["decoders"] += [{"type": "ByteFallback"}, {"type": "Fuse"}]  # type: ignore[operator]
    spelt = json.loads(unigram.to_str()) | {"decoder": fallback}
    return [made.to_str().encode() for made in (byte_level, unigram, pieces)] + [json.dumps(spelt).encode()]


@cache
def json_seeds() -> list[bytes]:
    config = {"a": [1, 2.5, None, True, {"b": "é\n"}], "rope_scaling": {"factor": 8.0}, "eos_token_id": [1, 2]}
    return [json.dumps(config).encode(), json.dumps({"weight_map": {"a": "m.safetensors"}}).encode()]


# --- what is done with a file -----------------------------------------------------------------------------------


def materialise(value: Value) -> None:
    if isinstance(value, StringArray | np.ndarray):
        value.tolist()
    elif isinstance(value, tuple):
        for item in value:
            materialise(item)


def read_tensors(source: TensorSource) -> None:
    for name in source.names():
        assert source.raw(name).nbytes == source.info(name).nbytes
        source.raw(name).sum()
        source.drop(name)


def read_gguf(path: Path) -> None:
    with GGUFFile.open(path) as file:
        read_tensors(file)
        for value in file.metadata.values():
            materialise(value)


def use_tokenizer(tokenizer: Tokenizer) -> None:
    for parse_special in (True, False):
        ids = tokenizer.encode(TEXT, parse_special=parse_special)
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)
    tokenizer.decode([-1, 0, 1 << 40, *tokenizer.eos_ids])


def read_gguf_tokenizer(path: Path) -> None:
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
        use_tokenizer(tokenizer)
        template = ChatTemplate.from_gguf(file.metadata, tokenizer)
        if template is not None:
            template.render([{"role": "user", "content": TEXT}])


def read_safetensors(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        read_tensors(file)


def read_tokenizer_json(path: Path) -> None:
    use_tokenizer(Tokenizer.from_file(path))


def read_plain_json(path: Path) -> None:
    read_json(path)


TARGETS: dict[str, tuple[Seeds, Exercise, str]] = {
    "gguf": (gguf_seeds, read_gguf, "x.gguf"),
    "gguf-tokenizer": (tokenizer_gguf_seeds, read_gguf_tokenizer, "x.gguf"),
    "safetensors": (safetensors_seeds, read_safetensors, "x.safetensors"),
    "tokenizer-json": (tokenizer_json_seeds, read_tokenizer_json, "tokenizer.json"),
    "json": (json_seeds, read_plain_json, "config.json"),
}


# --- damage -----------------------------------------------------------------------------------------------------

POWERS = [1 << bits for bits in (16, 20, 31, 32, 62, 63, 64)]
NUMBERS = [0, 1, 2, 13, 127, 255, *POWERS[:-1], *(power - 1 for power in POWERS)]
WORDS = [b"[" * 3000, b'{"a":' * 500, b"9" * 5000, b"1e999", b"-1", b"null", b"NaN", b"true", b"[]", b"{}", b'""']
WORDS += [b'"\\ud800"', b"\xff\xfe", b"\0" * 40, b"((((", b"(a+)+$", b'"type":"', b"18446744073709551616"]
WORDS += [b"{%for a in range(99999)%}" * 3]


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def set_number(data: bytearray, at: int, rng: random.Random) -> None:
    width = rng.choice([4, 8])
    data[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")


def truncate(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


def cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.randrange(1, 64)]


def repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.randrange(1, 200)] * rng.randrange(1, 20)


def insert_word(data: bytearray, at: int, rng: random.Random) -> None:
    data[at : at + rng.choice([0, 0, 1, 4])] = rng.choice(WORDS)


def replace_digits(data: bytearray, at: int, rng: random.Random) -> None:
    """Another number where a number is written out, the next one from ``at``."""
    start = next((n for n in range(at, len(data)) if data[n : n + 1].isdigit()), at)
    data[start : start + 1] = str(rng.choice(NUMBERS)).encode()


MUTATIONS = [flip, flip, set_byte, set_number, set_number, truncate, cut, repeat, insert_word, replace_digits]


HOSTILE: list[Any] = [None, True, -1, 0, 1, 3, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 64, 1e308, -0.5, [], {}, [[]] * 99]
HOSTILE += [*("", "a", "\0", "<s>", "((", "(a+)+$", "(a|a)*b", "\\p{L", "\ud800"), "x" * 5000, "Isolated", "ByteLevel"]
HOSTILE += [[0, 1 << 62], [1 << 32, 1 << 32], {"type": "Sequence", "decoders": []}, {"Regex": "(?:(?:a*)*)*c"}]


def damage_tree(root: Any, rng: random.Random) -> Any:
    """One node of a JSON value replaced, removed, repeated or moved."""
    places = [(parent, key) for parent in containers(root) for key in keys(parent)]
    if not places:
        return copy.deepcopy(rng.choice(HOSTILE))
    parent, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * rng.randrange(1, 50)
    elif action == 2:
        other, other_key = rng.choice(places)
        parent[key] = copy.deepcopy(other[other_key])
    else:
        parent[key] = copy.deepcopy(rng.choice(HOSTILE))
    return root


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for key in keys(value):
            yield from containers(value[key])


def keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def damage_json(data: bytes, rng: random.Random) -> bytes:
    root = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        root = damage_tree(root, rng)
    return json.dumps(root).encode()


def damage_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON header of a safetensors file, its length put right again."""
    length = int.from_bytes(data[:8], "little")
    header = damage_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@cache
def metadata_of(data: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seed.gguf"
        path.write_bytes(data)
        metadata = GGUFFile.open(path).metadata
    return {key: list(value) if isinstance(value, StringArray) else value for key, value in metadata.items()}


def damage_metadata(data: bytes, rng: random.Random) -> bytes:
    """A GGUF file rebuilt with some of its metadata changed, so that the damage lies in meaning and not in layout."""
    fields = dict(metadata_of(data))
    del fields["general.architecture"]
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(list(fields))
        fields[key] = damage_field(fields[key], rng)
    writer = GGUFWriter("llama")
    for key, value in fields.items():
        writer.add(key, value)
    return saved(writer)


def damage_field(value: Any, rng: random.Random) -> Any:
    if isinstance(value, np.ndarray | list):
        items = list(value) if isinstance(value, list) else value.tolist()
        action = rng.randrange(5)
        if action == 0:
            rng.shuffle(items)
        elif action == 1:
            items = items[: rng.randrange(1, len(items) + 1)]
        elif action == 2:
            items = [rng.choice(items) for _ in items]
        elif action == 3:
            items = [rng.choice([-1.0, 0.0, 1e38, float("nan"), float("inf")]) for _ in items]
        elif isinstance(items[0], str):
            items = ["".join(rng.choice([" ", item, item[::-1], "\0", "\u2581"]) for _ in range(3)) for item in items]
        return items
    names = ["", "x", "gpt2", "llama", "qwen2", "default", "smollm"]
    templates = ["{{ x.y.z }}", "{% for a in b %}", "{{ 'a' * 10 ** 9 }}"]
    return rng.choice(
        [*names, *templates, True, False, -1, 0, 2, 1 << 31, (1 << 64) - 1, 0.5, ["a", "b"], np.arange(3)]
    )


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "gguf-tokenizer": damage_metadata,
    "safetensors": damage_header,
    "tokenizer-json": damage_json,
    "json": damage_json,
}


def case(target: str, number: int) -> bytes:
    """The bytes of one case."""
    rng = random.Random(f"{target} {number}")
    seed = rng.choice(TARGETS[target][0]())
    if target in STRUCTURED and rng.random() < 0.6:
        return STRUCTURED[target](seed, rng)
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        if data:
            # half of the damage goes where the counts are: the front
            at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 256))
            rng.choice(MUTATIONS)(data, at, rng)
    return bytes(data)


# --- running ----------------------------------------------------------------------------------------------------


class Failure(AssertionError):
    """A reader crashed, hung or swelled on a case."""


def run_case(target: str, number: int, directory: Path) -> str:
    """Run one case; returns "opened" or the name of the error."""
    _, exercise, name = TARGETS[target]
    path = directory / name
    data = case(target, number)
    path.write_bytes(data)
    tracemalloc.reset_peak()
    memory, start = tracemalloc.get_traced_memory()[0], time.process_time()
    outcome = "opened"
    try:
        exercise(path)
    except TreadleError as error:
        outcome = type(error).__name__
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Failure(f"{target} case {number}: {type(error).__name__}: {error}") from error
    seconds = time.process_time() - start
    swelled = tracemalloc.get_traced_memory()[1] - memory
    if seconds > MAX_CPU_SECONDS:
        raise Failure(f"{target} case {number}: took {seconds:.2f} s")
    if swelled > MEMORY_BASE + MEMORY_FACTOR * len(data):
        raise Failure(f"{target} case {number}: {len(data)} bytes took {swelled} bytes of memory")
    return outcome


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Rust panics are caught, but print to stderr first."""
    keep = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(keep, 2)
        os.close(keep)


def run(target: str, numbers: range) -> dict[str, int]:
    """Outcome -> how often. Raises Failure at the first case that misbehaves."""
    outcomes: Counter[str] = Counter()
    seeds, exercise, name = TARGETS[target]
    with tempfile.TemporaryDirectory() as directory, quiet_panics():
        for seed in seeds():  # imports and caches are not any case's memory
            (Path(directory) / name).write_bytes(seed)
            exercise(Path(directory) / name)
        tracemalloc.start()
        try:
            for number in numbers:
                outcomes[run_case(target, number, Path(directory))] += 1
        finally:
            tracemalloc.stop()
    return outcomes


def run_in_a_child(target: str, numbers: range) -> dict[str, int]:
    """As ``run``, where a crash or a hang takes only the child."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(run, target, numbers).result(timeout=HANG_SECONDS)
        except BrokenProcessPool:
            raise Failure(f"{target} cases {numbers.start}..{numbers.stop - 1}: the process died") from None
        except TimeoutError:
            print(f"{target} cases {numbers.start}..{numbers.stop - 1}: still running", flush=True)
            os._exit(1)  # the pool would wait for the child


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, shared out among the targets")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    each = -(-options.cases // len(targets))
    start = time.monotonic()
    for target in targets:
        outcomes: Counter[str] = Counter()
        for first in range(options.first, options.first + each, BATCH):
            outcomes.update(run_in_a_child(target, range(first, min(first + BATCH, options.first + each))))
        print(f"{target}: {each} cases, {dict(sorted(outcomes.items()))}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"{each * len(targets)} cases in {time.monotonic() - start:.0f} s, peak RSS {peak} MB, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
