"""Documents to ids between marks, a batch at a time; and many such jobs on all cores, in order."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from ahkio.core.errors import UserError
from ahkio.core.machine import cores, keep_freed_memory
from ahkio.tokens.shards import Ints
from ahkio.tokens.tokenizer import Encoder, load_fastokens

BATCH_CHARACTERS = 1 << 20  # of text given to the encoder at once
JOBS_AHEAD = 4  # of each worker, finished or waiting, while an earlier one is not done

Job = TypeVar("Job")
Result = TypeVar("Result")


@lru_cache(maxsize=1)
def encoder_of(folder: Path, bos: str, eos: str, fast: bool) -> Encoder:
    """The encoder of a folder, kept for all jobs of a process; fastokens is loaded beside it where it may be `fast`.

    Of the two only fastokens lets other threads go on while it loads, so it begins.
    """
    with ThreadPoolExecutor(1) as beside:
        begun = threading.Event()
        if fast:
            beside.submit(_load_fast, folder / "tokenizer.json", begun)
            begun.wait()
        return Encoder.load(folder, bos, eos)


def _load_fast(path: Path, begun: threading.Event) -> None:
    """What fails here fails, and is told, in Encoder.proven."""
    with contextlib.suppress(ImportError):
        import fastokens  # noqa: F401  takes a moment
    begun.set()
    load_fastokens(path)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """`texts` in lists of about BATCH_CHARACTERS."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def head(texts: Iterable[str], characters: int) -> list[str]:
    """The first so many characters of `texts`."""
    found, left = [], characters
    for text in texts:
        if left <= 0:
            break
        found.append(text[:left])
        left -= len(text)
    return found


def framed(ids: Ints, bounds: Ints, bos: int | None, eos: int) -> tuple[Ints, Ints]:
    """Documents laid end to end, each with `bos` (unless it is None) before it and `eos` after it; and their lengths.

    `ids` and `bounds` are what Encoder.encode_flat gives.
    """
    before, after = (np.array([] if mark is None else [mark], ids.dtype) for mark in (bos, eos))
    places = bounds.tolist()
    parts = [part for begin, end in pairwise(places) for part in (before, ids[begin:end], after)]
    return np.concatenate([ids[:0], *parts]), np.diff(bounds) + len(before) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Many jobs


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
            "A tokenising process was killed, perhaps for want of memory; try again, with fewer workers if it happens "
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
