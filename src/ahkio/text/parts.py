"""The one pass over the sources of a corpus: each part, some consecutive files, is read into the draft.

PREFIX.jsonl.zst  its documents as the corpus would hold them, in zstd frames of about FRAME_BYTES of lines
PREFIX.npz        the receipt, written last: the part is finished. Of each document 64-bit hashes of its text and group,
                  UTF-8 bytes, words and the number of its licence; where frames begin; which rows were broken; `about`
"""

import contextlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from ahkio.core.errors import UserError
from ahkio.core.workers import in_order
from ahkio.text.document import Document
from ahkio.text.formats import Bad, Entry, changed
from ahkio.text.sources import Source, Tally
from ahkio.text.split import hash64
from ahkio.text.store import UNSTATED, line_of

PART_BYTES = 1 << 26  # of files that are read as one part, where one alone is not larger
FRAME_BYTES = 1 << 22  # of lines; what has to be read again for one document
LEVEL = 1  # of compression, for what is removed again

Array = npt.NDArray[Any]
TYPES = {"texts": "Q", "groups": "Q", "bytes": "I", "words": "I", "licenses": "I", "frames": "q", "broken": "q"}


@dataclass(frozen=True)
class Part:
    """Consecutive files of a source, as they were when the build began; `seed` is of the groups' hashes."""

    prefix: Path
    source: Source
    files: tuple[str, ...]
    entries: tuple[Entry, ...]
    seed: int

    def is_done(self) -> bool:
        if not file_of(self.prefix, ".npz").exists():
            return False
        made = about(self.prefix)
        return made["files"] == list(self.files) and made["entries"] == [list(entry) for entry in self.entries]


def cut(sources: Sequence[Source], folder: Path, seed: int) -> list[list[Part]]:
    """The parts of each source, numbered through."""
    parts: list[list[Part]] = []
    number = 0
    for source in sources:
        parts.append([])
        for files, entries in _bundles([(file, source.entry(file)) for file in source.files()]):
            parts[-1].append(Part(folder / f"part-{number:06}", source, files, entries, seed))
            number += 1
    return parts


def _bundles(files: list[tuple[str, Entry]]) -> Iterator[tuple[tuple[str, ...], tuple[Entry, ...]]]:
    bundle: list[tuple[str, Entry]] = []
    for file, entry in files:
        if bundle and sum(other.bytes for _, other in bundle) + entry.bytes > PART_BYTES:
            yield tuple(name for name, _ in bundle), tuple(other for _, other in bundle)
            bundle = []
        bundle.append((file, entry))
    yield tuple(name for name, _ in bundle), tuple(other for _, other in bundle)


def read_parts(parts: Sequence[Part], workers: int) -> Iterator[None]:
    """Make each part in turn. A source that a recipe defines is unknown to other processes, and is read in this one."""
    for known, jobs in groupby(parts, lambda part: type(part.source).__module__.startswith("ahkio.")):
        yield from in_order(read_part, list(jobs), workers if known else 1)


def read_part(part: Part) -> None:
    """UserError on a damaged file, or one that changed; how many rows were broken is only counted."""
    with published(file_of(part.prefix, ".jsonl.zst")) as file:
        receipt = Receipt(file)
        for position, (name, entry) in enumerate(zip(part.files, part.entries, strict=True)):
            for number, made in part.source.read_file(name):
                if isinstance(made, Document):
                    receipt.add(made, part.seed)
                else:
                    receipt.drop(made, position, number)
            if part.source.entry(name) != entry:
                raise UserError(changed(name))
        receipt.close()
    receipt.write(part)


@dataclass
class Receipt:
    """Takes a part's documents one by one and writes them to `file`; counts rows, and what was dropped by reason."""

    file: BinaryIO
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = {name: array(kind) for name, kind in TYPES.items()}
        self._stream = zstandard.ZstdCompressor(LEVEL).stream_writer(self.file, closefd=False)
        self._room = 0

    def add(self, document: Document, seed: int) -> None:
        self.rows += 1
        line = line_of(document)
        self._make_room(len(line))
        self._stream.write(line)
        license = document.fields.get("license", "") or UNSTATED
        facts = {
            "texts": hash64(document.text),
            "groups": hash64(document.group, seed),
            "bytes": len(document.text.encode()),
            "words": len(document.text.split()),
            "licenses": self.licenses.setdefault(license, len(self.licenses)),
        }
        for name, value in facts.items():
            self.columns[name].append(value)

    def drop(self, bad: Bad, position: int, number: int) -> None:
        self.rows += 1
        self.dropped[bad.reason] += 1
        if bad.broken:
            reason = self.reasons.setdefault(bad.reason, len(self.reasons))
            self.columns["broken"].extend((self.rows, position, number, reason))

    def _make_room(self, size: int) -> None:
        if self._room <= 0:
            self._stream.flush(zstandard.FLUSH_FRAME)
            self.columns["frames"].extend((len(self.columns["texts"]), self.file.tell()))
            self._room = FRAME_BYTES
        self._room -= size

    def close(self) -> None:
        self._stream.close()

    def write(self, part: Part) -> None:
        told = {
            "files": part.files,
            "entries": [list(entry) for entry in part.entries],
            "rows": self.rows,
            "dropped": self.dropped,
            "reasons": list(self.reasons),
            "licenses": list(self.licenses),
        }
        arrays: dict[str, Any] = {name: np.frombuffer(values, values.typecode) for name, values in self.columns.items()}
        arrays["about"] = np.frombuffer(orjson.dumps(told), np.uint8)
        with published(file_of(part.prefix, ".npz")) as file:
            np.savez(file, **arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Reading parts


def file_of(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


@contextlib.contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file to write that stands at `path` when all is in it and on the disk, and not before."""
    with open(file_of(path, ".tmp"), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def about(prefix: Path) -> dict[str, Any]:
    """{"files", "entries", "rows": count, "dropped": {reason: count}, "reasons", "licenses": names by number}."""
    told: dict[str, Any] = orjson.loads(column(prefix, "about").tobytes())
    return told


def column(prefix: Path, name: str) -> Array:
    with np.load(file_of(prefix, ".npz"), allow_pickle=False) as receipt:
        values: Array = receipt[name]
    return values


def waited_for(parts: Iterable[Part], pending: Sequence[Part], done: Iterator[None]) -> Iterator[Part]:
    """Each of `parts` when it is there; `done` tells in turn of those that are `pending`."""
    awaited = {part.prefix for part in pending}
    for part in parts:
        if part.prefix in awaited:
            next(done)
        yield part


def count(source: Source, parts: Iterable[Part], tally: Tally) -> int:
    """How many documents are in the parts of a source; what was met goes into `tally`. UserError as Source.read's."""
    rows = broken = documents = 0
    for part in parts:
        told = about(part.prefix)
        for row, file, number, reason in column(part.prefix, "broken").reshape(-1, 4).tolist():
            broken += 1
            if broken > source.broken_allowed(rows + row):
                named = part.files[file], number, told["reasons"][reason]
                raise UserError(source.too_broken(*named, broken, rows + row))
        rows += told["rows"]
        documents += told["rows"] - sum(told["dropped"].values())
        tally.read += told["rows"]
        tally.dropped.update(told["dropped"])
    return documents


def lines(prefix: Path, wanted_D: npt.NDArray[np.bool_]) -> Iterator[bytes]:
    """The lines of the documents that are wanted; only frames that have one are read."""
    path = file_of(prefix, ".jsonl.zst")
    starts = [*column(prefix, "frames").reshape(-1, 2).tolist(), (len(wanted_D), path.stat().st_size)]
    with open(path, "rb") as file:
        for (first, begin), (last, end) in pairwise(starts):
            if wanted_D[first:last].any():
                file.seek(begin)
                frame = zstandard.ZstdDecompressor().decompressobj().decompress(file.read(end - begin))
                yield from compress(frame.splitlines(keepends=True), wanted_D[first:last])
