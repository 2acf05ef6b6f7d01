"""Stopping at a good moment: the first signal, or the end of the time, asks; a second signal takes.

Ctrl-C means to stop. SIGTERM, SIGUSR1 (by which Slurm warns) and a time limit mean to make room and to go on later.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from time import monotonic
from types import FrameType

REQUEUE = 75  # exit status of what was saved and is to be started again: EX_TEMPFAIL of sysexits.h
SOON = 2.0  # seconds; a launcher may send the same wish twice


class Paused(KeyboardInterrupt):
    """Stopped by SIGTERM, SIGUSR1 or a time limit, not by the user."""


@contextlib.contextmanager
def pausing() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise Paused at once, wherever nothing better is arranged for."""

    def pause(number: int, _: FrameType | None) -> None:
        raise Paused(f"Stopped by {signal.Signals(number).name}; the same command goes on.")

    with handling(pause, signal.SIGTERM, signal.SIGUSR1):
        yield


@contextlib.contextmanager
def asked_to_stop(seconds: float = 0.0) -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """Yield a function that says whether to stop, and by raising what: after a signal, or so many seconds from now (0:
    no limit).

    The block is meant to save and raise it then. A second signal interrupts at once. Outside the main thread signals
    can't be had, and only the time asks.
    """
    end = monotonic() + seconds if seconds else float("inf")
    wish: type[KeyboardInterrupt] | None = None
    since = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal wish, since
        if wish and monotonic() - since > SOON:
            raise wish
        wish, since = KeyboardInterrupt if number == signal.SIGINT else Paused, monotonic()

    with handling(note, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        yield lambda: wish or (Paused if monotonic() > end else None)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Let `handler` take these signals within the block; outside the main thread nothing changes."""
    before = {}
    with contextlib.suppress(ValueError):
        for number in numbers:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
