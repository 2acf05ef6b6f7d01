"""The two sides of a corpus out of its parts: what may be held out, and what trains, which is searched for it.

PREFIX.TAG.fates.npy    of each document of a part its Fate
PREFIX.TAG.heldout      lines of what may be held out
PREFIX.TAG.keys.npy     hashes of their runs of words, sorted, each once
seen-TAG-DOMAIN-N.npy   which of all parts' keys stand in shard N, as bits: the shard is finished
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from ahkio.core.stage import Facts
from ahkio.text.document import Document
from ahkio.text.overlap import Grams, Lines, Repeats, distinct, grams_of
from ahkio.text.parts import Array, about, column, file_of, lines, published
from ahkio.text.split import Fate
from ahkio.text.store import document_of


def save(path: Path, values: Array) -> None:
    with published(path) as file:
        np.save(file, values, allow_pickle=False)


# ---------------------------------------------------------------------------------------------------------------------
# What may be held out


@dataclass(frozen=True)
class Candidates:
    """A part's documents that may be held out; `words` make a run. `whole`: they are items, see Domain."""

    prefix: Path
    tag: str
    words: int
    whole: bool

    @property
    def path(self) -> Path:
        return file_of(self.prefix, f".{self.tag}.heldout")

    @property
    def keys(self) -> Path:
        return file_of(self.prefix, f".{self.tag}.keys.npy")

    @property
    def fates(self) -> Path:
        return file_of(self.prefix, f".{self.tag}.fates.npy")

    def read(self) -> Iterator[tuple[Document, Grams]]:
        with open(self.path, "rb") as file:
            for line in file:
                document = document_of(orjson.loads(line))
                yield document, grams_of(compared(document, self.whole), self.words, self.whole)


def hold_out(candidates: Candidates) -> None:
    with open(candidates.path, "wb") as file:
        file.writelines(lines(candidates.prefix, np.load(candidates.fates) == Fate.HELD_OUT))
    save(candidates.keys, distinct(grams.keys for _, grams in candidates.read()))


def compared(document: Document, whole: bool) -> str:
    """The text that is compared with training: of an item its fields too, for a pair leaks by either side."""
    return "\n".join((document.text, *document.fields.values())) if whole else document.text


def without(document: Document, repeated_L: Lines, whole: bool, least: int) -> Document | None:
    """A document without the lines that repeat; None where too little stays: under half, or under `least` bytes."""
    if not repeated_L.any():
        return document
    if whole:
        return None
    kept = [line for line, repeated in zip(document.text.split("\n"), repeated_L, strict=True) if not repeated]
    text, before = "\n".join(kept), len(document.text.encode())
    return replace(document, text=text) if text and len(text.encode()) >= max(before / 2, least) else None


# ---------------------------------------------------------------------------------------------------------------------
# What trains


@dataclass(frozen=True)
class Piece:
    """Documents `first` to `last` of a part, those of them that train."""

    prefix: Path
    fates: Path
    first: int
    last: int

    def lines(self) -> Iterator[bytes]:
        train_D = np.load(self.fates) == Fate.TRAIN
        train_D[: self.first] = train_D[self.last :] = False
        return lines(self.prefix, train_D)


@dataclass(frozen=True)
class Shard:
    """A training file to make at `path`, to be searched for runs of so many `words` whose hashes are in `keys`."""

    path: Path
    receipt: Path
    pieces: tuple[Piece, ...]
    keys: Path
    words: int
    compression: int

    def is_done(self) -> bool:
        return self.receipt.exists() and self.path.exists()

    def seen(self, count: int) -> npt.NDArray[np.bool_]:
        return np.unpackbits(np.load(self.receipt), count=count).astype(bool)


def write_shard(shard: Shard) -> None:
    repeats = Repeats.of(np.load(shard.keys), shard.words)
    compressor = zstandard.ZstdCompressor(shard.compression, write_checksum=True)
    with published(shard.path) as file, compressor.stream_writer(file, closefd=False) as stream:
        for line in (line for piece in shard.pieces for line in piece.lines()):
            stream.write(line)
            if len(repeats.keys):
                repeats.see(orjson.loads(line)["text"])
    save(shard.receipt, np.packbits(repeats.seen))


def spans(bytes_T: Array, limit: int) -> list[tuple[int, int]]:
    """The first document of each shard and its last + 1: as many as fit in `limit` bytes of text, and one at least."""
    ends_T, found, first = np.cumsum(bytes_T, dtype=np.int64), [], 0
    while first < len(ends_T):
        before = int(ends_T[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends_T, before + limit, side="right")))
        found.append((first, last))
        first = last
    return found


def pieces(prefixes: list[tuple[Path, Path]], train_D: npt.NDArray[np.bool_], limit: int) -> list[tuple[Piece, ...]]:
    """The pieces of each shard of a domain, whose parts and their fates are `prefixes`."""
    sizes = [column(prefix, "bytes") for prefix, _ in prefixes]
    bounds = np.cumsum([0, *map(len, sizes)])
    number_T = np.flatnonzero(train_D)
    shards = []
    for first, last in spans(np.concatenate(sizes)[number_T], limit):
        begin, end = int(number_T[first]), int(number_T[last - 1]) + 1
        parts = range(*np.searchsorted(bounds, (begin, end - 1), side="right") - (1, 0))
        shards.append(tuple(_piece(*prefixes[part], begin, end, bounds[part : part + 2]) for part in parts))
    return shards


def _piece(prefix: Path, fates: Path, begin: int, end: int, bounds: Array) -> Piece:
    """What of a domain's documents `begin` to `end` lies in the part that has those between `bounds`."""
    return Piece(prefix, fates, max(0, begin - int(bounds[0])), min(end, int(bounds[1])) - int(bounds[0]))


Totals = tuple[Facts, Counter[str]]  # {"documents", "bytes", "words"}, and documents by licence


def totals(prefixes: Sequence[Path], wanted_D: npt.NDArray[np.bool_]) -> Totals:
    """What the documents that are wanted of these parts come to."""
    counts, licenses = Counter(documents=0, bytes=0, words=0), Counter[str]()
    ends = np.cumsum([len(column(prefix, "bytes")) for prefix in prefixes])
    for prefix, wanted in zip(prefixes, np.split(wanted_D, ends[:-1]), strict=True):
        sizes = {name: int(column(prefix, name)[wanted].sum(dtype=np.int64)) for name in ("bytes", "words")}
        counts.update(documents=int(wanted.sum()), **sizes)
        numbers = np.bincount(column(prefix, "licenses")[wanted]).tolist()
        licenses.update({name: count for name, count in zip(about(prefix)["licenses"], numbers, strict=False) if count})
    return dict(counts), licenses
