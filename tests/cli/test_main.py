"""The frame of the command line: help at once, one line an error, JSON where asked, exit codes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from tests.cli.command import TREADLE, failure, treadle

from treadle.cli import options
from treadle.cli.main import COMMANDS
from treadle.inference.backends.base import Numerics
from treadle.inference.options import KV_DTYPES


def test_help_names_every_command_quickly():
    """Processor time, the best of five: other work on the machine must not fail the test."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = treadle("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert result.returncode == 0
    assert not result.stderr
    for name, summary in COMMANDS.items():
        assert f"{name:13} {summary}" in result.stdout
    assert min(seconds) < 0.150, f"treadle --help took {min(seconds) * 1000:.0f} ms at best"


def test_help_loads_nothing_heavy():
    code = "import sys, treadle.cli.main as m; m.main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "rich", "tokenizers", "jinja2", "msgspec", "argparse", "treadle._native", "prompt_toolkit"}
    assert "treadle.cli.main" in loaded
    assert not heavy & set(loaded)


def test_what_options_take_is_what_an_engine_takes():
    assert get_args(Numerics) == options.NUMERICS
    assert tuple(KV_DTYPES) == options.KV_DTYPES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = treadle(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: treadle {name}")


def test_no_command_shows_the_help_and_fails():
    result = treadle()
    assert result.returncode == 2
    assert "commands:" in result.stdout


def test_unknown_command_is_a_usage_error():
    result = treadle("walk")
    assert result.returncode == 2
    assert result.stderr == (f"treadle: unknown command 'walk'; known: {', '.join(COMMANDS)} (see treadle --help)\n")


def test_wrong_option_is_one_line():
    result = treadle("run", "model", "prompt", "--warmth", "3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "treadle: run: unrecognized arguments: --warmth 3 (see treadle --help)\n"


def test_wrong_option_in_json():
    result = treadle("run", "model", "prompt", "--max-tokens", "none", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "Usage"
    assert "--max-tokens" in error["message"]


def test_version():
    assert treadle("--version").stdout == "treadle 0.1.0\n"


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([TREADLE, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert result.returncode == 141
    assert result.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([TREADLE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "treadle: [Errno 28] No space left on device\n"


def test_a_missing_model_is_one_line_with_the_next_step(tmp_path):
    line = failure("run", tmp_path / "absent.gguf", "hello")
    assert "absent.gguf" in line
    assert "treadle models" in line


def test_a_missing_model_in_json(tmp_path):
    result = treadle("run", tmp_path / "absent.gguf", "hello", "--json")
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "ModelNotFound"
    assert "absent.gguf" in error["message"]
    assert error["next"]
