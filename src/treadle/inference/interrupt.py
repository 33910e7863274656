"""Ctrl-C while a native step runs: the step ends soon, and KeyboardInterrupt comes at a place where all is in order."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class InterruptGuard:
    """Context of one or more steps.

    Python runs signal handlers only between bytecodes, so not during a native call; the C handler however writes to
    the wakeup descriptor at once. A helper thread waits at its other end and cancels.

    Inside, SIGINT is only noted; `check` behind each step raises KeyboardInterrupt. Does nothing outside the main
    thread or where the program has a SIGINT handler of its own. Entering costs some 25 us.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread: threading.Thread | None = None
        self._active = False
        self._old_fd = -1
        self._pressed = False

    def __enter__(self) -> InterruptGuard:
        self._active = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._active:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="treadle-interrupt", daemon=True)
                self._thread.start()
            signal.signal(signal.SIGINT, self._note)
            self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._active:
            signal.set_wakeup_fd(self._old_fd)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._active = False

    def check(self) -> None:
        """Raises KeyboardInterrupt where SIGINT came since the last call."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def close(self) -> None:
        """Ends the helper thread."""
        self._write.close()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._read.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True

    def _watch(self) -> None:
        while signals := self._read.recv(64):
            if signal.SIGINT in signals:
                self._cancel()
