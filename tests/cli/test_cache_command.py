"""``treadle cache``, and the weight cache as ``treadle run`` uses it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.command import failure, treadle, treadle_json


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "1GB")
    return tmp_path


def run(model, *arguments):
    return treadle("run", model, "the", "--max-tokens", 4, "--temperature", 0, "--quiet", *arguments)


def test_a_first_start_keeps_and_cache_lists_and_clears(home, tiny_gguf):
    model = tiny_gguf("llama", "Q8_0")
    assert treadle_json("cache", "ls")["entries"] == []
    first = run(model)
    found = treadle_json("cache", "ls")
    (entry,) = found["entries"]
    assert entry["model"] == model.stem and entry["path"] == str(model.resolve()) and entry["problem"] is None
    assert found["directory"] == str(home / "weights") and found["limit_bytes"] == 10**9
    assert found["total_bytes"] == entry["bytes"] == Path(entry["file"]).stat().st_size
    os.utime(entry["file"], (0, 0))
    second = run(model)
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr) == (first.stdout, "")
    assert treadle_json("cache", "ls")["entries"][0]["last_use"] > entry["last_use"]
    listed = treadle("cache", "ls").stdout
    assert model.stem in listed and "of at most 1.0 GB" in listed
    assert treadle_json("cache", "clear")["deleted"][0]["file"] == entry["file"]
    assert treadle("cache", "clear").stdout.startswith("deleted 0 files, 0 B")
    assert not list((home / "weights").iterdir())


def test_no_weight_cache(home, tiny_gguf):
    assert run(tiny_gguf("llama", "Q8_0"), "--no-weight-cache").returncode == 0
    assert not (home / "weights").exists()


def test_a_damaged_file_is_one_line_on_stderr_and_the_same_answer(home, tiny_gguf):
    model = tiny_gguf("llama", "Q8_0")
    first = run(model)
    (kept,) = (home / "weights").glob("*.weights")
    os.truncate(kept, 20000)
    assert "20000 bytes instead of" in treadle("cache", "ls").stdout
    second = run(model)
    assert second.stdout == first.stdout and second.returncode == 0
    assert (
        second.stderr.count("\n") == 1 and str(kept) in second.stderr and "packing the weights again" in second.stderr
    )
    assert run(model).stderr == ""


def test_a_bad_limit_is_refused(home, tiny_gguf, monkeypatch):
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "a lot")
    assert "TREADLE_CACHE_LIMIT" in failure("cache", "ls")
    assert "TREADLE_CACHE_LIMIT" in failure("run", tiny_gguf("llama", "Q8_0"), "the")
