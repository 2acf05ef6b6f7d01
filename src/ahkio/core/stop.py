"""Stopping at a good moment: the first Ctrl-C or SIGTERM asks, the second takes."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the user (Ctrl-C) or the system (SIGTERM) has asked the program to stop.

    The block is meant to save and raise KeyboardInterrupt then. A second signal interrupts at once. Outside the main
    thread signals can't be had, and nothing ever asks.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
