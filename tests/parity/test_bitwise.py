"""Bitwise sameness on the cpu backend: a sequence's logits depend on nothing but the sequence."""

import numpy as np
import pytest
from tests import tiny
from tests.parity.prose import MIXED

from treadle.inference.llm import LLM

LENGTHS = (150, 1, 64, 65, 63, 130, 7, 33)
NUMERICS = ["exact", "fast", "bf16"]
CHUNKS = (1, 7, 64)
THREADS = (1, 2, 3)


def sequences(ids):
    """Eight sequences of unlike lengths, cut from one text."""
    return [ids[11 * i : 11 * i + length] for i, length in enumerate(LENGTHS)]


def opened(path, numerics, threads, **options):
    return LLM(path, numerics=numerics, threads=threads, max_num_seqs=8, max_num_logits=512, **options)


BLOCKS_OF_32 = ["Q4_0", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"]
BLOCKS_OF_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]


def check(path, numerics, prompts, **options):
    """Alone and among all by every number of threads and chunk size; among 2..8 with the most threads."""
    expected = None
    for threads in THREADS:
        with opened(path, numerics, threads, **options) as llm:
            alone = [llm.logits(prompt) for prompt in prompts]
            expected = alone if expected is None else expected
            for i, (found, same) in enumerate(zip(alone, expected, strict=True)):
                assert np.array_equal(found, same), f"{threads} threads, sequence {i} alone"
            for count in range(2 if threads == THREADS[-1] else len(prompts), len(prompts) + 1):
                for i, found in enumerate(llm.logits(prompts[:count])):
                    assert np.array_equal(found, expected[i]), f"{threads} threads, sequence {i} among {count}"
            for chunk in CHUNKS:
                for i, found in enumerate(llm.logits(prompts, chunk=chunk)):
                    assert np.array_equal(found, expected[i]), f"{threads} threads, sequence {i} in chunks of {chunk}"


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize(("name", "dtype"), [("llama", "Q4_1"), ("llama-bias", "Q8_0"), ("llama", "F16")])
def test_tiny_gguf(name, dtype, numerics, tiny_gguf):
    check(tiny_gguf(name, dtype), numerics, sequences(tiny.tokenizer().encode(MIXED).ids))


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", t) for t in BLOCKS_OF_32] + [("llama-wide", t) for t in BLOCKS_OF_256]
)
def test_every_block_type(name, dtype, numerics, tiny_gguf):
    """One thread and three; alone, together, and in chunks."""
    prompts = [ids[:70] for ids in sequences(tiny.tokenizer().encode(MIXED).ids)[1:5]]
    expected = None
    for threads in (1, 3):
        with opened(tiny_gguf(name, dtype), numerics, threads) as llm:
            expected = expected or [llm.logits(prompt) for prompt in prompts]
            for chunk in (7, 64):
                for found, same in zip(llm.logits(prompts, chunk=chunk), expected, strict=True):
                    assert np.array_equal(found, same), f"{threads} threads, chunks of {chunk}"


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("name", ["llama-mha", "mistral-window"])
def test_tiny_safetensors(name, numerics, tiny_checkpoint):
    check(tiny_checkpoint(name), numerics, sequences(tiny.tokenizer().encode(MIXED).ids))


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "q8_0"])
def test_every_kv_dtype(kv_dtype, tiny_gguf):
    ids = tiny.tokenizer().encode(MIXED).ids
    check(tiny_gguf("llama-mha", "Q4_1"), "fast", sequences(ids), kv_dtype=kv_dtype)


@pytest.mark.parametrize("kv_dtype", ["f16", "bf16", "q8_0"])
def test_long_sequences_are_split_among_threads(kv_dtype, tiny_gguf):
    """Sequences of several splits, alone and beside a short one, row by row and in chunks."""
    ids = tiny.tokenizer().encode(MIXED).ids
    prompts = [(ids * 3)[:337], ids[:40], (ids * 3)[5:505]]
    found = []
    for threads in THREADS:
        with opened(tiny_gguf("llama-mha", "Q4_1"), "fast", threads, kv_dtype=kv_dtype) as llm:
            found += [[llm.logits(p, chunk=chunk)[-64:] for p in prompts] for chunk in (1, 8, None)]
            found.append([rows[-64:] for rows in llm.logits(prompts, chunk=1)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_smollm2(numerics, smollm2):
    with LLM(smollm2, threads=1) as llm:
        ids = llm.encode(MIXED)
    lengths = (66, 1, 9, 65, 20, 3, 33, 7)
    check(smollm2, numerics, [ids[20 * i : 20 * i + length] for i, length in enumerate(lengths)])


def test_sequences_differ(tiny_gguf):
    """The comparison sees a change: one other token, or one other position, changes the logits."""
    ids = tiny.tokenizer().encode(MIXED).ids[:40]
    with opened(tiny_gguf("llama", "Q4_1"), "fast", 1) as llm:
        base, changed = llm.logits(ids), llm.logits([*ids[:10], ids[10] + 1, *ids[11:]])
        assert np.array_equal(base[:10], changed[:10])
        assert not np.array_equal(base[10:], changed[10:])
        assert not np.array_equal(base[1:], llm.logits(ids[1:]))
