"""tools/venv.sh: a broken, half-made or aborted environment never survives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "venv.sh"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    (tmp_path / "requirements" / "run.txt").write_text("# nothing\n")
    return tmp_path


def make(project, **environment):
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    command = ["bash", project / "tools" / "venv.sh", "run"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)


def test_a_half_made_environment_is_made_anew(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "rest").touch()
    result = make(project)
    assert result.returncode == 0, result.stderr
    assert "removing a half-made" in result.stderr
    assert not (project / ".venv" / "rest").exists()
    assert (project / ".venv" / ".run").exists()
    assert not (project / ".venv.partial").exists()
    (project / ".venv.partial").touch()  # as a killed run leaves it
    (project / ".venv" / "rest").touch()
    assert make(project).returncode == 0
    assert not (project / ".venv" / "rest").exists()


def test_a_failed_install_leaves_nothing(project):
    (project / "requirements" / "run.txt").write_text("./absent-1.0-py3-none-any.whl\n")
    result = make(project)
    assert result.returncode != 0
    assert "setup failed" in result.stderr
    assert not (project / ".venv").exists()
    assert not (project / ".venv.partial").exists()


def test_no_python_is_told(project, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    result = make(project, PATH=str(tools), PYTHON="")
    assert result.returncode == 1
    assert "needs Python 3.11" in result.stderr
    assert not (project / ".venv").exists()
