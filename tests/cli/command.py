"""Runs the installed ``treadle`` as a user would."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TREADLE = Path(sys.executable).with_name("treadle")


def treadle(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (TREADLE, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def treadle_json(*arguments: object, **options: Any) -> dict[str, Any]:
    """What a command that must succeed prints with --json."""
    result = treadle(*arguments, "--json", **options)
    assert result.returncode == 0, result.stderr + result.stdout
    return json.loads(result.stdout)


def failure(*arguments: object, **options: Any) -> str:
    """The one line of a command that must fail with exit code 1."""
    result = treadle(*arguments, **options)
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("treadle: ")
    return result.stderr
