"""Near duplicates: which documents of a corpus are edited copies of an earlier one, found by MinHash on datatrove.

Read once, then only signatures are compared. For 500 million documents, `benchmarks/scale.py` works out the memory,
disk and hours of each step from what it measures at a million.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ahkio.core.errors import UserError
from ahkio.text.split import hash64

TASKS = 512  # at most so many read shards, as a bucket's task opens a file of each; systems often allow 1,024

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """What counts as a near duplicate; the defaults are FineWeb's.

    Documents are compared as sets of runs of `words` words. Two that share a part s of theirs (of both sets together)
    are found with probability 1 - (1 - s^hashes_per_bucket)^buckets: of the defaults 0.9996 at s=0.9, 0.92 at 0.8, 0.56
    at 0.7 and 0.05 at 0.5. One word changed spoils up to `words` runs: with 5% of its words changed in one place a copy
    is near 0.9, but with as many all over near 0.6. Documents shorter than `words` are never near duplicates.
    `precision`: bits of a hash; 32 need half the disk space.
    """

    words: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8
    precision: Literal[32, 64] = 64
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("words", "buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise UserError(f"MinHash: {name} is a number from 1 on, not {getattr(self, name)}.")
        if self.precision not in (32, 64):
            raise UserError(f"MinHash: precision is 32 or 64 bits, not {self.precision}.")


def near_duplicates(settings: MinHash, shards: Sequence[Path], work: Path, workers: int) -> list[Mask]:
    """For each shard that `corpus.Writer` wrote, which of its documents to drop: of each cluster the first one stays.

    A cluster is what near duplicates join, directly or through others, over all shards. The masks don't depend on the
    number of `workers`. A call that was cut short goes on with the tasks that `work` doesn't mark as completed; the
    folder may be deleted afterwards. UserError on a damaged shard.
    """
    try:
        from ahkio.text.minhash import steps
        from ahkio.text.trove import Local
    except ImportError as error:
        raise UserError(f"Near duplicates need datatrove ({error}); run: pip install 'ahkio[curate]'.") from error
    if not shards:
        return []
    parts, folder = _divided(shards), work / _name(settings, shards)
    for step in steps(parts, folder, **asdict(settings)):
        Local(step.pipeline, step.tasks, workers, folder / "logs" / step.name).run()
    return list(_masks(folder, len(parts)))


def _divided(shards: Sequence[Path]) -> list[list[Path]]:
    """Up to TASKS runs of consecutive shards."""
    bounds = np.linspace(0, len(shards), min(len(shards), TASKS) + 1).astype(int).tolist()
    return [list(shards[begin:end]) for begin, end in pairwise(bounds)]


def _name(settings: MinHash, shards: Sequence[Path]) -> str:
    """Of the folder for this work: no other's completion markers may lie there."""
    return f"minhash-{hash64(repr((settings, [(str(shard), shard.stat().st_size) for shard in shards]))):016x}"


def _masks(folder: Path, tasks: int) -> Iterator[Mask]:
    """datatrove keeps any one of a cluster; it numbers them by their first documents, so those have a new number."""
    highest = -1
    for task in range(tasks):
        documents = json.loads((folder / "counts" / f"{task:05}.json").read_bytes())
        found = folder / "clusters" / f"{task:06}.clusters"
        members = np.fromfile(found, "<u4").reshape(-1, 2) if found.exists() else np.empty((0, 2), "<u4")
        numbers = np.append(highest, members[:, 1].astype(np.int64))
        highest_yet = np.maximum.accumulate(numbers)
        mask = np.zeros(sum(documents), bool)
        mask[members[numbers[1:] <= highest_yet[:-1], 0]] = True
        highest = int(highest_yet[-1])
        yield from np.split(mask, np.cumsum(documents)[:-1])
