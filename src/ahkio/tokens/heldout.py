"""Held-out text as the model is asked about it: ids to score, and the bytes they stand for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ahkio.core.errors import UserError
from ahkio.tokens.shards import TokenStore
from ahkio.tokens.tokens import Tokens


@dataclass(frozen=True)
class HeldOut:
    """A held-out set to measure bits per byte on, under a name for tables."""

    name: str
    tokens: Tokens

    def __post_init__(self) -> None:
        if self.tokens.side != "heldout":
            raise UserError(
                f"Held-out set {self.name!r} reads the {self.tokens.side} side; give Tokens side='heldout'."
            )


class Texts(NamedTuple):
    """Documents of a held-out set: each one token of context and the text's own ids; and the text's UTF-8 bytes."""

    ids: list[list[int]]
    sizes: list[int]


def read_texts(folder: Path, facts: dict[str, Any], documents: int) -> Texts:
    """The first `documents` of the Tokens artifact in `folder`, whose manifest says `facts`; all where 0."""
    store = TokenStore(folder)
    numbers = range(min(documents or store.documents, store.documents))
    ids = [text_ids(store.document(number).tolist(), facts["bos"], facts["eos"]) for number in numbers]
    return Texts(ids, [store.document_bytes(number) for number in numbers])


def text_ids(document: list[int], bos: int | None, eos: int) -> list[int]:
    """A stored document as one token of context, BOS or EOS in its place, and the text's own tokens, without EOS."""
    body = document[:-1] if document[-1:] == [eos] else document
    return [eos, *body] if bos is None else body


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """Bits that a model needs for each UTF-8 byte of documents to which it gives these negative log-likelihoods."""
    return sum(nats) / math.log(2) / sum(sizes)
