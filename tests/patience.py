"""Limits for what must not hang and must come: no slow or paused machine is near to either."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def bounded(seconds: float = 60) -> Iterator[None]:
    """Break the block off after so many seconds of the processor, far more than it should take.

    It is a guard against work that grows with the square of a text: give it a text so large that
    such work would take minutes. Neither the load of the machine nor a pause counts.
    """
    late: list[str] = []

    def stop(*_: Any) -> None:
        late.append(f"not done after {seconds:g} s of the processor")
        pytest.fail(late[0], pytrace=False)

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 5)  # again, should the code catch everything
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert not late


def eventually(fact: Callable[[], Any], seconds: float = 120) -> bool:
    """Whether `fact` comes true in time; asked again and again, and once at the end."""
    end, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return bool(fact())


def in_a_fork(child: Callable[[], object], seconds: int = 60) -> None:
    """Run this in a forked process, which must come to something true well within the time."""
    process = os.fork()
    if process == 0:
        signal.alarm(seconds)
        os._exit(0 if child() else 1)
    assert os.waitpid(process, 0)[1] == 0
