"""Ctrl-C while a step blocks outside the interpreter's sight."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref

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


def test_no_cancel_comes_late():
    """Behind `check` the helper is done with the signal, however slow it is: the next step is not cancelled."""
    cancels = []

    def slow_cancel():
        time.sleep(0.2)
        cancels.append(time.monotonic())

    guard = InterruptGuard(slow_cancel)
    for _ in range(3):
        with guard, pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            guard.check()
        raised = time.monotonic()
        time.sleep(0.3)
        assert cancels and max(cancels) < raised
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


def helpers() -> int:
    return sum(thread.name == "treadle-interrupt" for thread in threading.enumerate())


def until(condition) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("explicit", [True, False])
def test_the_helper_ends_with_its_guard_and_keeps_nothing_alive(explicit):
    class Model:
        def cancel(self):
            pass

    before = helpers()
    model = Model()
    kept = weakref.ref(model)
    guard = InterruptGuard(model.cancel)
    assert helpers() == before  # not until it is needed
    with guard:
        assert helpers() == before + 1
    if explicit:
        guard.close()
        guard.close()
        assert until(lambda: helpers() == before)
    del model, guard
    assert until(lambda: kept() is None)
    assert until(lambda: helpers() == before)
