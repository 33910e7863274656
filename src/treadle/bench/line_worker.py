"""A process that holds a system and is asked again and again: a line of JSON to it, a line of JSON from it."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class LineWorker:
    """The process. It speaks first. An answer with "error", none in time, and its end are raised as `failure` makes
    them."""

    def __init__(
        self,
        command: Sequence[object],
        failure: Callable[[str], Exception],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._failure = failure
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, question: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """Its answer; it has `patience` seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.answer(patience)

    def answer(self, patience: float) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        overdue = threading.Timer(patience, self._process.kill)
        overdue.start()
        line = self._process.stdout.readline()
        late = not overdue.is_alive()
        overdue.cancel()
        if not line:
            code = self._process.wait()
            raise self._failure(f"no answer in {patience:.0f} s" if late else f"its worker ended with {code}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failure(answer["error"])
        return answer

    def close(self) -> None:
        """Ends it, whatever state it is in."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
