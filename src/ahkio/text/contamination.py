"""Contamination: which documents hold words of an evaluation set in the same order, and how much of each set they hold.

Only hashes of the evaluation sets are held in memory, about 50 bytes for each of their runs of words, in one copy for
all processes; documents stream past them, at 6 MB/s a core.
"""

import functools
import tempfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ahkio.core.errors import UserError
from ahkio.core.workers import in_order
from ahkio.text.corpus import read_shard
from ahkio.text.formats import Bad
from ahkio.text.overlap import Ints, Keys, codes_of, runs_of, words_of
from ahkio.text.sources import RESERVED, Table
from ahkio.text.split import hash64

SHORTEST_WORDS = 8  # of a text that is looked for whole; the least of GPT-3's decontamination
SLOTS = 16  # for each key, of a table that tells most runs of a document from all keys
FILES = ("keys", "checks", "sets", "slots")

Slots = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EvaluationSet:
    """The items of an evaluation task: the rows of `source`, and the `fields` of a row whose text is looked for.

    "choices.text" is the field text of choices, a struct or a list of them. Each text of a field, or of a list in it,
    is looked for by itself; where all are too short for that, laid end to end.
    """

    task: str
    source: Table
    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.task or not self.fields:
            raise UserError(f"The evaluation set {self.task or self.source.address!r} needs a task's name and fields.")

    def items(self) -> Iterator[list[str]]:
        """The texts of each item. UserError at a broken row, for a field that no row has, and where there are none."""
        columns = sorted({field.partition(".")[0] for field in self.fields}, key=lambda name: name not in RESERVED)
        source = replace(self.source, text=columns[0], keep=tuple(columns[1:]), id="", license_field="")
        lacking = set(self.fields)
        for file, (number, row) in ((name, row) for name in source.files() for row in source.rows_of(name)):
            if isinstance(row, Bad):
                raise UserError(f"{file}, line {number}: {row.reason.replace('_', ' ')}; mend the set of {self.task}.")
            texts = {field: list(_texts(row, field.split("."))) for field in self.fields}
            lacking -= {field for field in lacking if texts[field]}
            yield [text for field in self.fields for text in texts[field]]
        if lacking:
            raise UserError(
                f"{self.task}: no row of {source.address} has text in {sorted(lacking)[0]!r}; correct fields."
            )


@dataclass(frozen=True)
class TaskReport:
    """How many items a task has; of those, which are too short to be looked for, and which training holds some of; and
    how many documents are marked with the task."""

    items: int
    too_short: int
    found: int
    documents: int


@dataclass(frozen=True)
class Contamination:
    """`marks`: by shard and document the first task, in the order of the sets, that it overlaps with, or ""."""

    marks: list[list[str]]
    tasks: dict[str, TaskReport]


def contaminated(sets: Sequence[EvaluationSet], words: int, shards: Sequence[Path], workers: int) -> list[list[str]]:
    """By shard and document the task that it overlaps with, or ""; see `search`."""
    return search(sets, words, shards, workers).marks


def search(sets: Sequence[EvaluationSet], words: int, shards: Sequence[Path], workers: int) -> Contamination:
    """Look in shards that `corpus.Writer` wrote for runs of `words` words of the sets' items, lower-cased, without
    punctuation; for shorter texts of at least 8 words whole. UserError on a set or a shard that can't be read.
    """
    if words < 2 or len({one.task for one in sets}) < len(sets):
        raise UserError(f"Contamination needs words from 2 on, not {words}, and one evaluation set for each task.")
    runs = _runs(sets, words)
    if not len(runs.keys):
        found = [(np.full(sum(1 for _ in read_shard(shard)), -1), runs.keys) for shard in shards]
    else:
        with tempfile.TemporaryDirectory(prefix="ahkio-contamination-") as folder:
            runs.write(Path(folder))
            look = partial(_look_in, Path(folder), runs.sizes)
            found = list(in_order(look, shards, workers, load=partial(_index, Path(folder))))
    names = np.array([*(one.task for one in sets), ""])
    marks = [names[marks_D].tolist() for marks_D, _ in found]
    documents = Counter(name for shard in marks for name in shard)
    reports = runs.reports(np.concatenate([runs.keys[:0], *(keys for _, keys in found)]))
    tasks = {one.task: TaskReport(*report, documents[one.task]) for one, report in zip(sets, reports, strict=True)}
    return Contamination(marks, tasks)


# ---------------------------------------------------------------------------------------------------------------------
# The side of the evaluation sets


@dataclass(frozen=True)
class _Runs:
    """The runs of words of all items: hash, another hash to check it by, and item of each; and the set of each item."""

    keys: Keys
    checks: Keys
    items: Ints
    sizes: frozenset[int]  # in words
    set_of: Ints
    short: Ints  # how many items of each set have none

    def write(self, folder: Path) -> None:
        """What `_index` reads: of equal keys the first."""
        keys, first = np.unique(self.keys, return_index=True)
        slots = np.zeros(1 << (SLOTS * len(keys)).bit_length(), bool)
        slots[_slots_of(keys, slots)] = True
        columns = (keys, self.checks[first], self.set_of[self.items[first]], slots)
        for name, column in zip(FILES, columns, strict=True):
            np.save(folder / name, column)

    def reports(self, found: Keys) -> list[tuple[int, int, int]]:
        """For each set its items, those too short, and those with a run that was found."""
        met = np.unique(self.items[np.isin(self.keys, found)])
        counts = (np.bincount(of, minlength=len(self.short)) for of in (self.set_of, self.set_of[met]))
        items, met_items = (count.tolist() for count in counts)
        return list(zip(items, self.short.tolist(), met_items, strict=True))


def _runs(sets: Sequence[EvaluationSet], words: int) -> _Runs:
    keys, checks, items, set_of = array("Q"), array("Q"), array("q"), array("q")
    sizes, short = set(), np.zeros(len(sets), np.int64)
    for number, one in enumerate(sets):
        for texts in one.items():
            looked_for = _looked_for(texts, words)
            short[number] += not looked_for
            for found in looked_for:
                sizes.add(size := min(len(found), words))
                new, starts, _ = runs_of(codes_of(found), (size,))
                keys.extend(new.tolist())
                checks.extend(_check(found, start, size) for start in starts.tolist())
                items.extend([len(set_of)] * len(new))
            set_of.append(number)
    return _Runs(
        np.array(keys, np.uint64),
        np.array(checks, np.uint64),
        np.array(items, np.int64),
        frozenset(sizes),
        np.array(set_of, np.int64),
        short,
    )


def _looked_for(texts: Sequence[str], words: int) -> list[list[str]]:
    """The words of each text that has enough of them; where none has, those of all together if they are enough."""
    enough = min(SHORTEST_WORDS, words)
    each = [words_of(text) for text in texts]
    together = [word for text in each for word in text]
    return [text for text in each if len(text) >= enough] or ([together] if len(together) >= enough else [])


def _texts(value: Any, path: Sequence[str]) -> Iterator[str]:
    """The texts at `path` in a value of a row; lists on the way stand for all that is in them."""
    if isinstance(value, list):
        for each in value:
            yield from _texts(each, path)
    elif path and isinstance(value, Mapping):
        yield from _texts(value.get(path[0]), path[1:])
    elif not path and isinstance(value, str):
        yield value


def _check(words: Sequence[str], start: int, size: int) -> int:
    """A hash of a run that has nothing in common with its key."""
    return hash64(" ".join(words[start : start + size]))


def _slots_of(keys: Keys, slots: Slots) -> Keys:
    """The highest bits of keys, as many as there are slots."""
    return keys >> np.uint64(65 - len(slots).bit_length())


# ---------------------------------------------------------------------------------------------------------------------
# The side of the documents


@dataclass(frozen=True)
class _Index:
    keys: Keys
    checks: Keys
    sets: Ints
    slots: Slots

    def hits(self, text: str, sizes: Collection[int]) -> list[int]:
        """Which keys' runs stand in a text."""
        words = words_of(text)
        keys_G, starts_G, lengths_G = runs_of(codes_of(words), sizes)
        likely = np.flatnonzero(self.slots[_slots_of(keys_G, self.slots)])
        index = np.minimum(np.searchsorted(self.keys, keys_G[likely]), len(self.keys) - 1)
        same = self.keys[index] == keys_G[likely]
        runs = zip(index[same].tolist(), starts_G[likely[same]].tolist(), lengths_G[likely[same]].tolist(), strict=True)
        return [key for key, start, length in runs if self.checks[key] == _check(words, start, length)]


@functools.lru_cache(maxsize=1)
def _index(folder: Path) -> _Index:
    return _Index(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in FILES))


def _look_in(folder: Path, sizes: Collection[int], shard: Path) -> tuple[Ints, Keys]:
    """For each document of a shard the first set that it overlaps with, or -1; and the keys of all runs found."""
    index, marks, found = _index(folder), array("q"), set()
    for document in read_shard(shard):
        hits = index.hits(document.text, sizes)
        marks.append(int(index.sets[hits].min()) if hits else -1)
        found.update(hits)
    return np.array(marks, np.int64), index.keys[sorted(found)]
