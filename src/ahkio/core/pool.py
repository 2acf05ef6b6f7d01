"""Many jobs on all cores of this machine, their results in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ahkio.core.errors import UserError
from ahkio.core.machine import cores, keep_freed_memory

JOBS_AHEAD = 4  # of each worker, finished or waiting, while an earlier one is not done

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, load: Callable[[], object]
) -> Iterator[Result]:
    """What `work` gives for each job, in the order of `jobs`, by so many processes; one worker is this process.

    `load` gets ready what all jobs need. It is done once, here, and processes are forked from that; but where a library
    may have threads that a fork would lose, or there are cores to load on anyway, each starts afresh and loads.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(work, jobs)
        return
    threads = max(1, cores() // workers)
    forks = threads == 1 and not {"torch", "fastokens"} & set(sys.modules)
    if forks:
        load()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
            yield from _windowed(pool, work, jobs, JOBS_AHEAD * workers)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, perhaps for want of memory; try again, with fewer workers if it happens "
            "again."
        ) from error


def _windowed(
    pool: ProcessPoolExecutor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int
) -> Iterator[Result]:
    """Results in order, with at most `ahead` jobs under way or waiting to be taken."""
    under_way: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            under_way.append(pool.submit(work, job))
            if len(under_way) == ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _start_worker(threads: int) -> None:
    """Set a worker's threads and memory, and let it go silently with Ctrl-C and with its parent, however that ends."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
