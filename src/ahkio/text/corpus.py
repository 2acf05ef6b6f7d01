"""The Corpus stage: sources become domains of unique documents, each split in training and held-out."""

import contextlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs, Known, Stage
from ahkio.text.document import Document
from ahkio.text.formats import Bad, decompressed, json_rows, naming
from ahkio.text.overlap import Repeats, grams_of
from ahkio.text.sources import Source, Tally, unpinned
from ahkio.text.split import Fate, Fates, Marks, fates, hash64

CANDIDATES, HELD_OUT, TRAIN = "candidates.jsonl.zst", "heldout.jsonl.zst", "train-{:05}.jsonl.zst"


@dataclass(frozen=True)
class Domain:
    """Sources that are mixed and measured as one.

    `held_out`: the share of groups kept from training; 1.0 is measured only. `whole`: its documents are items, such as
    sentence pairs: one that repeats in training, in its text or its fields, is dropped and never cut.
    """

    name: str
    sources: tuple[Source, ...]
    held_out: float = 0.02
    whole: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"A domain can't be called {self.name!r}; use letters, digits, '_', '-' and '.'.")
        if not self.sources:
            raise UserError(f"Domain {self.name!r} has no sources; give at least one.")
        if not 0 <= self.held_out <= 1:
            raise UserError(f"Domain {self.name!r}: held_out is a share between 0 and 1, not {self.held_out}.")


@dataclass(frozen=True, kw_only=True)
class Corpus(Stage):
    """Documents without exact duplicates, split by group so that twins go together, with a clean held-out side.

    A group held out in one domain is held out in all. What a held-out document shares with training (runs of
    `overlap_words` words) is cut by line; one that keeps less than half its bytes, or under `heldout_min_bytes`, goes.
    """

    domains: tuple[Domain, ...]
    seed: int = 0
    overlap_words: int = 13
    heldout_min_bytes: int = 200
    shard_bytes: int = 1 << 28
    compression: int = how(3)

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        if not names or len(set(names)) < len(names):
            raise UserError(f"A corpus needs domains of different names; these are: {', '.join(names) or 'none'}.")
        if self.overlap_words < 2:
            raise UserError(f"overlap_words is a number of words from 2 on, not {self.overlap_words}.")

    def run(self, out: Path, inputs: Inputs) -> Facts:
        domains = [replace(d, sources=tuple(source.placed(inputs) for source in d.sources)) for d in self.domains]
        return replace(self, domains=tuple(domains))._write(out)

    def _write(self, out: Path) -> Facts:
        tallies = {domain: Tally() for domain in self.domains}
        fate_of = self._split(tallies)
        sides = {domain: self._write_sides(domain, fate_of[domain], out / domain.name) for domain in self.domains}
        repeats = self._find_repeats(out)
        for domain, side in sides.items():
            side["heldout"], side["cut"] = self._write_heldout(domain, repeats, out / domain.name, tallies[domain])
        return {"domains": {d.name: _facts(d, tallies[d], sides[d]) for d in self.domains}}

    def forecast(self, known: Known) -> Facts:
        loose = unpinned([source for domain in self.domains for source in domain.sources])
        return {"warnings": loose} if loose else {}

    def _split(self, tallies: dict[Domain, Tally]) -> dict[Domain, Fates]:
        decided = fates([_marks(domain, self.seed, tallies[domain]) for domain in self.domains])
        for domain, fate_D in zip(self.domains, decided, strict=True):
            for fate in (Fate.DUPLICATE, Fate.REPEATS_IN_TRAINING):
                if count := int((fate_D == fate).sum()):
                    tallies[domain].dropped[fate.name.lower()] += count
            _refuse_empty_sides(domain, int((fate_D == Fate.TRAIN).sum()), int((fate_D == Fate.HELD_OUT).sum()))
        return dict(zip(self.domains, decided, strict=True))

    def _write_sides(self, domain: Domain, fate_D: Fates, folder: Path) -> dict[str, Any]:
        """Write what trains, and what may be held out as far as the split can tell."""
        documents = _documents(domain, Tally())
        with (
            Writer(folder, TRAIN, self.compression, self.shard_bytes) as train,
            Writer(folder, CANDIDATES, self.compression) as candidates,
        ):
            for fate, document in zip(fate_D, documents, strict=True):
                if fate == Fate.TRAIN:
                    train.add(document)
                elif fate == Fate.HELD_OUT:
                    candidates.add(document)
        return {"train": train}

    def _find_repeats(self, out: Path) -> Repeats:
        held_out = (
            grams_of(_compared(domain, document), self.overlap_words, domain.whole)
            for domain in self.domains
            for document in read_shard(out / domain.name / CANDIDATES)
        )
        repeats = Repeats(held_out, self.overlap_words)
        for shard in [shard for domain in self.domains for shard in train_shards(out, domain.name)]:
            for document in read_shard(shard):
                repeats.see(document.text)
        return repeats

    def _write_heldout(self, domain: Domain, repeats: Repeats, folder: Path, tally: Tally) -> tuple["Writer", int]:
        """Write the held-out side without what repeats; also return how many lines were cut from what stays."""
        lines_cut = 0
        with Writer(folder, HELD_OUT, self.compression) as heldout:
            for document in read_shard(folder / CANDIDATES):
                text, cut = self._without_repeats(domain, document, repeats)
                if text:
                    heldout.add(Document(text, document.id, document.group, document.fields))
                    lines_cut += cut
                else:
                    tally.dropped[Fate.REPEATS_IN_TRAINING.name.lower()] += 1
        (folder / CANDIDATES).unlink()
        _refuse_empty_sides(domain, len(train_shards(folder.parent, domain.name)), heldout.documents)
        return heldout, lines_cut

    def _without_repeats(self, domain: Domain, document: Document, repeats: Repeats) -> tuple[str, int]:
        """The text that a held-out document keeps ("": it is dropped), and how many of its lines were cut."""
        grams = grams_of(_compared(domain, document), self.overlap_words, domain.whole)
        repeated_L = repeats.repeated_lines(grams)
        if not repeated_L.any():
            return document.text, 0
        if domain.whole:
            return "", 0
        kept = [line for line, repeated in zip(document.text.split("\n"), repeated_L, strict=True) if not repeated]
        text, before = "\n".join(kept), len(document.text.encode())
        enough = max(before / 2, self.heldout_min_bytes)
        return (text, int(repeated_L.sum())) if len(text.encode()) >= enough else ("", 0)


def _documents(domain: Domain, tally: Tally) -> Iterator[Document]:
    for source in domain.sources:
        found = False
        for document in source.read(tally):
            found = True
            yield document
        if not found:
            reasons = "".join(f", {count} with {reason.replace('_', ' ')}" for reason, count in tally.dropped.items())
            raise UserError(
                f"Domain {domain.name!r}: {source.address} gives no documents ({tally.read} rows read{reasons}); "
                "check the path, the columns and where."
            )


def _marks(domain: Domain, seed: int, tally: Tally) -> Marks:
    texts, groups = array("Q"), array("Q")
    for document in _documents(domain, tally):
        texts.append(hash64(document.text))
        groups.append(hash64(document.group, seed))
    return Marks(np.frombuffer(texts, np.uint64), np.frombuffer(groups, np.uint64), domain.held_out)


def _compared(domain: Domain, document: Document) -> str:
    """The text that is compared with training: of an item its fields too, for a pair leaks by either side."""
    return "\n".join((document.text, *document.fields.values())) if domain.whole else document.text


def _refuse_empty_sides(domain: Domain, train: int, heldout: int) -> None:
    if domain.held_out > 0 and not heldout:
        raise UserError(
            f"Domain {domain.name!r} is left without held-out documents at held_out={domain.held_out}; "
            "raise it, or add text that does not repeat in training."
        )
    if domain.held_out < 1 and not train:
        raise UserError(
            f"Domain {domain.name!r} is left without training documents at held_out={domain.held_out}; "
            "lower it, here or in a domain that shares its groups, or add text."
        )


def _facts(domain: Domain, tally: Tally, side: dict[str, Any]) -> Facts:
    return {
        "read": tally.read,
        "dropped": dict(sorted(tally.dropped.items())),
        "train": side["train"].counts(),
        "heldout": side["heldout"].counts(),
        "heldout_lines_cut": side["cut"],
        "licenses": dict(sorted((side["train"].licenses + side["heldout"].licenses).items())),
        "origins": [origin for source in domain.sources for origin in source.origins()],
    }


# ---------------------------------------------------------------------------------------------------------------------
# The files of a corpus


@dataclass
class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes documents to `folder` / `pattern`: zstd frames of JSON lines {"id", "text", "group", and its fields}.

    A pattern with a number in it goes on in the next file where one would hold more than `limit` bytes of text.
    Counts documents, UTF-8 bytes of text and words (runs of what is not white space).
    """

    folder: Path
    pattern: str
    compression: int
    limit: float = float("inf")
    documents: int = 0
    bytes: int = 0
    words: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    _shards: int = 0
    _room: float = 0
    _stream: Any = None

    def __enter__(self) -> "Writer":
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.pattern.format(0) == self.pattern:
            self._next_file()  # a side without shards is one file, be it empty
        return self

    def add(self, document: Document) -> None:
        size = len(document.text.encode())
        if self._stream is None or (size > self._room and self._room < self.limit):
            self._next_file()
        line = {"id": document.id, "text": document.text, "group": document.group, **document.fields}
        self._stream.write(orjson.dumps(line) + b"\n")
        self._room -= size
        self.documents += 1
        self.bytes += size
        self.words += len(document.text.split())
        self.licenses[document.fields.get("license", "") or "not stated"] += 1

    def counts(self) -> Facts:
        return {"documents": self.documents, "bytes": self.bytes, "words": self.words}

    def _next_file(self) -> None:
        self._close()
        file = open(self.folder / self.pattern.format(self._shards), "wb")  # noqa: SIM115  closed with its stream
        self._stream = zstandard.ZstdCompressor(self.compression, write_checksum=True).stream_writer(file)
        self._shards += 1
        self._room = self.limit

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __exit__(self, *_: object) -> None:
        self._close()


def train_shards(corpus: Path, domain: str) -> list[Path]:
    """The training files of a domain in order; none where it is measured only."""
    return sorted((corpus / domain).glob("train-*.jsonl.zst"))


def heldout_shard(corpus: Path, domain: str) -> Path:
    """The file of a domain's held-out documents."""
    return corpus / domain / HELD_OUT


def read_shard(path: Path) -> Iterator[Document]:
    """The documents of a file that `Writer` wrote. UserError if it is damaged."""
    with naming(str(path)), open(path, "rb") as raw:
        for number, row in json_rows(decompressed(raw, path.name)):
            if isinstance(row, Bad):
                raise UserError(f"{path}, line {number} is damaged; delete this corpus and build it again.")
            fields = {key: value for key, value in row.items() if key not in ("id", "text", "group")}
            yield Document(row["text"], row["id"], row["group"], fields)
