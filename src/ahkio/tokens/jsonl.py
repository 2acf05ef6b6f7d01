"""JSON lines to one shard, on all cores: what `ahkio tokenize` does."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ahkio.core.errors import UserError
from ahkio.core.pool import in_order
from ahkio.core.stage import Facts
from ahkio.text.formats import Bad, decompressed, json_rows, naming
from ahkio.tokens.encode import batches, encoder_of, framed, head
from ahkio.tokens.shards import Ints, ShardWriter, id_dtype

PIECE_BYTES = 1 << 24  # of a plain file, at most, that a process holds at a time
PIECES_PER_WORKER = 4  # at least, so that none waits long for the last
PROOF_CHARACTERS = 1 << 14  # of each piece, at least, on which fastokens has to equal tokenizers
PROOF_SHARE = 1 << 10  # one character in so many, where that is more


@dataclass(frozen=True)
class Tokeniser:
    """How a line becomes ids: the field of its object that holds the text, and the tokenizer's folder and marks."""

    folder: Path
    bos: str = ""  # texts of the marks' tokens; empty: what the folder says
    eos: str = ""
    key: str = "text"


@dataclass(frozen=True)
class Piece:
    """Whole lines of a file: `size` bytes from `begin` on, or all that is in it where it is compressed."""

    source: Path
    begin: int
    size: int
    ids: Path  # where its ids lie for a while
    tokeniser: Tokeniser


class Encoded(NamedTuple):
    piece: Piece
    lengths: Ints  # of its documents, in tokens
    vocab: int
    engine: str
    note: str


def tokenise(
    inputs: Sequence[Path], prefix: Path, tokeniser: Tokeniser, workers: int, advance: Callable[[int], object]
) -> Facts:
    """Write the documents of `inputs`, in order, as the shard PREFIX.bin/.idx: BOS (if there is one), text, EOS.

    The number of workers does not show in it. `advance` is told of the bytes of input that are done. UserError, with
    nothing written, where a file, a line or the tokenizer is not what it should be.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    load = partial(encoder_of, tokeniser.folder, tokeniser.bos, tokeniser.eos, fast=True)
    engines, notes = set(), set()
    with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as scratch:
        pieces = cut(inputs, workers, Path(scratch), tokeniser)
        done = in_order(encode_piece, pieces, workers, load)
        first = next(done)
        with ShardWriter(prefix, id_dtype(first.vocab)) as shard:
            for encoded in chain([first], done):
                shard.take(encoded.piece.ids, encoded.lengths)
                advance(encoded.piece.size)
                engines.add(encoded.engine)
                notes.add(encoded.note)
    return {
        "documents": shard.documents,
        "tokens": shard.tokens,
        "dtype": shard.dtype.name,
        "engine": " and ".join(sorted(engines)),
        "engine_notes": sorted(notes - {""}),
    }


def cut(inputs: Sequence[Path], workers: int, scratch: Path, tokeniser: Tokeniser) -> list[Piece]:
    """All inputs in pieces small enough to keep so many workers busy."""
    spans = []
    total = sum(_size(path) for path in inputs)
    aim = max(1, min(PIECE_BYTES, total // (PIECES_PER_WORKER * workers)))
    for path in inputs:
        with naming(str(path)):
            spans += [(path, begin, size) for begin, size in _spans(path, aim)]
    return [Piece(*span, scratch / str(number), tokeniser) for number, span in enumerate(spans)]


def encode_piece(piece: Piece) -> Encoded:
    """Write the ids of a piece; with fastokens where it equals tokenizers on the beginning of the piece."""
    how = piece.tokeniser
    encoder = encoder_of(how.folder, how.bos, how.eos, fast=True)
    found = batches(_texts(piece))
    first = next(found, [])
    encoder = encoder.proven(head(first, max(PROOF_CHARACTERS, piece.size // PROOF_SHARE)))
    lengths = [np.zeros(0, np.int32)]
    with open(piece.ids, "wb") as out:
        for texts in chain([first], found):
            stream, lengths_D = framed(*encoder.encode_flat(texts), encoder.bos, encoder.eos)
            out.write(stream.astype(id_dtype(encoder.vocab), copy=False).data)
            lengths.append(lengths_D)
    return Encoded(piece, np.concatenate(lengths), encoder.vocab, encoder.engine, encoder.note)


# ---------------------------------------------------------------------------------------------------------------------
# Files and lines


def _size(path: Path) -> int:
    with naming(str(path)):
        return path.stat().st_size


def _spans(path: Path, aim: int) -> Iterator[tuple[int, int]]:
    """First byte and size of pieces of about `aim` bytes, at ends of lines; a compressed file is one piece."""
    size = _size(path)
    if _is_compressed(path) or not size:
        yield 0, size
        return
    begin = 0
    with open(path, "rb") as file:
        while begin < size:
            file.seek(min(size, begin + aim))
            file.readline()
            yield begin, file.tell() - begin
            begin = file.tell()


def _is_compressed(path: Path) -> bool:
    return path.suffix in (".gz", ".zst")


def _texts(piece: Piece) -> Iterator[str]:
    with naming(str(piece.source)), open(piece.source, "rb") as raw:
        raw.seek(piece.begin)
        whole = decompressed(raw, piece.source.name) if _is_compressed(piece.source) else BytesIO(raw.read(piece.size))
        for number, row in json_rows(whole):
            text = None if isinstance(row, Bad) else row.get(piece.tokeniser.key)
            if not isinstance(text, str):
                raise UserError(f"{piece.source}, line {_lines_before(piece) + number}: {_fault(row, piece.tokeniser)}")
            yield text


def _fault(row: Mapping[str, Any] | Bad, tokeniser: Tokeniser) -> str:
    if isinstance(row, Bad):
        return f"{row.reason.replace('_', ' ')}; mend the file."
    if tokeniser.key in row:
        return f"{tokeniser.key!r} is not a string; mend the file, or state another field with --key."
    return f"no field {tokeniser.key!r}, but {', '.join(row) or 'nothing'}; state the field of the text with --key."


def _lines_before(piece: Piece) -> int:
    with open(piece.source, "rb") as file:
        return sum(
            file.read(min(PIECE_BYTES, piece.begin - at)).count(b"\n") for at in range(0, piece.begin, PIECE_BYTES)
        )
