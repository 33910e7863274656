"""treadle quantize as a user meets it: what it prints, and that it leaves a whole file or none."""

import resource

import pytest
from tests import wide
from tests.cli.command import failure, treadle, treadle_json

from treadle.inference.tools import quantize_file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wide.save(tmp_path_factory.mktemp("wide") / "wide")


def test_summary_and_progress(model, tmp_path):
    target = tmp_path / "q.gguf"
    result = treadle("quantize", model, target, "--type", "q4_0")
    assert result.returncode == 0
    size = target.stat().st_size
    assert result.stdout.startswith(f"{target}: {size / 1e3:.1f} kB from 2.6 MB; ")
    assert result.stdout.endswith("tensors: 5 f32, 14 q4_0, 2 q6_k\n")
    assert result.stderr.startswith(f"{target}: ")
    found = treadle_json("quantize", model, target, "--type", "q8_0", "--force", "--threads", 1)
    assert found["tensor_types"] == {"f32": 5, "q8_0": 16}
    assert found["file_bytes"] == target.stat().st_size > size
    answer = ("--temperature", 0, "--max-tokens", 8, "--raw", "-q")
    by_file, on_load = (
        treadle("run", target, "the", *answer),
        treadle("run", model, "the", "--quantize", "q8_0", *answer),
    )
    assert by_file.returncode == 0
    assert by_file.stdout == on_load.stdout


def test_an_existing_file_is_not_touched(model, tmp_path):
    target = tmp_path / "q.gguf"
    target.write_text("mine")
    assert "--force" in failure("quantize", model, target, "--type", "q8_0")
    assert target.read_text() == "mine"


def test_a_full_disk_leaves_nothing(model, tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    line = failure("quantize", model, tmp_path / "q.gguf", "--type", "q8_0", preexec_fn=small_files)
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(model, tmp_path):
    def interrupt(done, total):
        if done > total // 2:
            assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(model, tmp_path / "q.gguf", "q8_0", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
