"""The files of a corpus: documents as JSON lines in zstd, written and read."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts
from ahkio.text.document import Document
from ahkio.text.formats import Bad, decompressed, json_rows, naming

HELD_OUT, TRAIN = "heldout.jsonl.zst", "train-{:05}.jsonl.zst"
UNSTATED = "not stated"  # of a document without a licence


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
        self._stream.write(line_of(document))
        self._room -= size
        self.documents += 1
        self.bytes += size
        self.words += len(document.text.split())
        self.licenses[document.fields.get("license", "") or UNSTATED] += 1

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
            yield document_of(row)


def line_of(document: Document) -> bytes:
    line = {"id": document.id, "text": document.text, "group": document.group, **document.fields}
    return orjson.dumps(line) + b"\n"


def document_of(line: Mapping[str, Any]) -> Document:
    fields = {key: value for key, value in line.items() if key not in ("id", "text", "group")}
    return Document(line["text"], line["id"], line["group"], fields)
