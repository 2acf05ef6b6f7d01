"""Documents to ids between marks, a batch at a time."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from ahkio.tokens.shards import Ints
from ahkio.tokens.tokenizer import Encoder, load_fastokens

BATCH_CHARACTERS = 1 << 20  # of text given to the encoder at once


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
