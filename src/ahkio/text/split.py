"""Which documents train, which are held out and which are dropped, decided from hashes before any text is kept."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class Fate(IntEnum):
    """What becomes of a document. The names of the two that drop it are the reasons in the facts."""

    TRAIN = 0
    HELD_OUT = 1
    DUPLICATE = 2
    REPEATS_IN_TRAINING = 3


Fates = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Marks:
    """All that the split needs of a domain's documents, in the order of reading: 16 bytes for each."""

    texts: Hashes
    groups: Hashes
    held_out: float


def hash64(text: str, key: int = 0) -> int:
    """A number below 2^64, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=str(key).encode()).digest(), "little")


def fates(domains: Sequence[Marks]) -> list[Fates]:
    """The `Fate` of every document of every domain.

    A group is held out everywhere when its hash, as a share of 2^64, lies under the held-out share of any domain that
    has it. Of equal texts the first stays, on the training side if it stands on both.
    """
    held_groups = np.unique(np.concatenate([_held_groups(marks) for marks in domains]))
    held_D = np.isin(np.concatenate([marks.groups for marks in domains]), held_groups)
    fate_D = held_D.astype(np.uint8)  # TRAIN or HELD_OUT
    texts_D = np.concatenate([marks.texts for marks in domains])
    order = np.lexsort((held_D, texts_D))  # equal texts together, training first, else as read
    starts = np.append(True, texts_D[order][1:] != texts_D[order][:-1])[: len(order)]
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    again, first = order[~starts], first[~starts]
    crosses = held_D[again] & ~held_D[first]
    fate_D[again] = np.where(crosses, Fate.REPEATS_IN_TRAINING, Fate.DUPLICATE)
    return np.split(fate_D, np.cumsum([len(marks.texts) for marks in domains])[:-1])


def _held_groups(marks: Marks) -> Hashes:
    if marks.held_out >= 1:
        return np.unique(marks.groups)
    return np.unique(marks.groups[marks.groups < np.uint64(int(marks.held_out * 2**64))])
