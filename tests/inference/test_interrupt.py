"""Ctrl-C while a step blocks outside the interpreter's sight."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from treadle.inference.interrupt import InterruptGuard


class NativeStep:
    """Waits as a native call does: only `cancel` makes it return."""

    def __init__(self):
        self.read, self.write = os.pipe()
        self.cancelled = False

    def run(self):
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        while not self.cancelled and time.monotonic() - began < 10:
            os.read(self.read, 1)  # goes on after a handler that raises nothing
        return time.monotonic() - began

    def cancel(self):
        self.cancelled = True
        os.write(self.write, b"x")


def test_sigint_cancels_the_step_and_is_raised_behind_it():
    step = NativeStep()
    guard = InterruptGuard(step.cancel)
    before = signal.getsignal(signal.SIGINT)
    with guard:
        assert step.run() < 5
        with pytest.raises(KeyboardInterrupt):
            guard.check()
        guard.check()  # only once
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1
    guard.close()


def test_a_programs_own_handler_stays(monkeypatch):
    seen = []
    old = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        guard = InterruptGuard(lambda: None)
        with guard:
            os.kill(os.getpid(), signal.SIGINT)
            guard.check()
        assert seen == [signal.SIGINT]
        guard.close()
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_are_left_alone():
    guard = InterruptGuard(lambda: None)
    failures = []

    def use():
        try:
            with guard:
                guard.check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []
    guard.close()
