"""Questions put together from held-out real text: small, ours, in any language that has pairs and documents.

They measure help with this corpus's own domains and are no benchmark of the field; results carry these files' names.
"""

import json
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs, Stage
from ahkio.text.corpus import heldout_shard, read_shard
from ahkio.text.document import Document

Row = dict[str, Any]
Item = TypeVar("Item")

OPTIONS = 4
NEAREST = 12  # distractors are drawn from this many candidates nearest in length
PAIR_CHARACTERS = range(20, 121)  # of each side: neither a menu label nor a paragraph
OPENING_WORDS, CONTINUATION_WORDS = 24, 8


@dataclass(frozen=True)
class Passage:
    """A place in a held-out document: what stands before it and how it goes on."""

    document: str
    opening: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Questions(Stage):
    """Question files, JSONL, from the held-out side of two domains of a corpus.

    translation_choice.jsonl   {"id", "source_language", "target_language", "source", "choices": [4], "answer": index}
    continuation_choice.jsonl  {"id", "opening", "choices": [4], "answer": index}
    translate.jsonl            {"id", <source>: text, <target>: text}, named by the fields `source` and `target`
    translate_shots.jsonl      the same; examples for prompts, none of which is among the scored pairs

    The tasks in evaluate/tasks/*.yaml read them, and so does lm-eval's own command line when run in the folder.
    """

    corpus: Stage  # an artifact in the layout of text.corpus
    pairs: str = "pairs"
    documents: str = "finnish"
    source: str = "en"
    target: str = "fi"
    source_language: str = "English"
    target_language: str = "Finnish"
    items: int = 40
    shots: int = 4
    seed: int = 0

    def run(self, out: Path, inputs: Inputs) -> Facts:
        """Write the four files. Raises UserError where the held-out side is too small for `items` and `shots`."""
        pairs = self._pairs(_held_out(inputs[self.corpus], self.pairs))
        passages = self._passages(_held_out(inputs[self.corpus], self.documents))
        self._require(len(pairs), self.items + max(self.shots, OPTIONS), self.pairs, "pairs of sentences")
        self._require(len(passages), max(self.items, OPTIONS), self.documents, "passages")
        shots, scored = pairs[: self.shots], pairs[self.shots : self.shots + self.items]
        files = {
            "translation_choice": self._translation_choices(scored, pairs[self.shots :]),
            "continuation_choice": self._continuation_choices(passages[: self.items], passages),
            "translate": scored,
            "translate_shots": shots,
        }
        for name, rows in files.items():
            write_jsonl(out / f"{name}.jsonl", rows)
        return {
            "items": {name: len(rows) for name, rows in files.items()},
            "candidates": {"pairs": len(pairs), "passages": len(passages)},
            "source_language": self.source_language,
            "target_language": self.target_language,
        }

    def _pairs(self, documents: Iterable[Document]) -> list[Row]:
        """Pairs of moderate length, no text twice, in an order that the seed decides."""
        rows = [self._pair(document) for document in documents]
        sides = (self.source, self.target)
        rows = [row for row in rows if all(len(row[side]) in PAIR_CHARACTERS for side in sides)]
        for side in sides:
            rows = _first_of_each(rows, itemgetter(side))
        return _shuffled(rows, f"pairs {self.seed}")

    def _pair(self, document: Document) -> Row:
        missing = [name for name in (self.source, self.target) if name not in document.fields]
        if missing:
            raise UserError(
                f"Document {document.id!r} of {self.pairs!r} has no column {missing[0]!r}; "
                "keep both languages' columns of the pairs, or name the ones that it has."
            )
        return {"id": document.id} | {name: document.fields[name].strip() for name in (self.source, self.target)}

    def _passages(self, documents: Iterable[Document]) -> list[Passage]:
        """Every document's first passage before any document's second; within that, the seed decides."""
        cut = [(place, passage) for document in documents for place, passage in enumerate(passages_of(document))]
        cut = _first_of_each(cut, lambda item: item[1].continuation)
        ordered = sorted(_shuffled(cut, f"passages {self.seed}"), key=lambda item: item[0])
        return [passage for _, passage in ordered]

    def _translation_choices(self, scored: list[Row], pool: list[Row]) -> list[Row]:
        languages = {"source_language": self.source_language, "target_language": self.target_language}
        return [
            {"id": row["id"], **languages, "source": row[self.source]}
            | self._choices(row["id"], row[self.target], [o[self.target] for o in pool if o is not row])
            for row in scored
        ]

    def _continuation_choices(self, scored: list[Passage], pool: list[Passage]) -> list[Row]:
        return [
            {"id": own.document, "opening": own.opening}
            | self._choices(own.opening, own.continuation, _elsewhere(own, pool, self.documents))
            for own in scored
        ]

    def _choices(self, key: str, truth: str, others: list[str]) -> Row:
        """The truth among distractors of similar length, at a place that only the seed and the question decide."""
        rng = random.Random(f"choices {self.seed} {key}")
        nearest = sorted(others, key=lambda other: (abs(len(other) - len(truth)), other))[:NEAREST]
        choices = rng.sample(nearest, OPTIONS - 1)
        answer = rng.randrange(OPTIONS)
        return {"choices": [*choices[:answer], truth, *choices[answer:]], "answer": answer}

    def _require(self, have: int, need: int, domain: str, what: str) -> None:
        if have < need:
            raise UserError(
                f"The held-out side of {domain!r} has {have} usable {what}, and {need} are needed for "
                f"items={self.items}, shots={self.shots}; ask for fewer, or hold out more of {domain!r}."
            )


def _held_out(corpus: Artifact, domain: str) -> Iterator[Document]:
    domains = corpus.facts["domains"]
    if domain not in domains:
        raise UserError(f"The corpus has no domain {domain!r} to make questions from; it has: {', '.join(domains)}.")
    return read_shard(heldout_shard(corpus.path, domain))


def passages_of(document: Document) -> list[Passage]:
    """The document cut into passages of whole words, one after another; words are parted by single spaces."""
    words, length = document.text.split(), OPENING_WORDS + CONTINUATION_WORDS
    starts = range(0, len(words) - length + 1, length)
    return [
        Passage(
            document.id,
            " ".join(words[start : start + OPENING_WORDS]),
            " ".join(words[start + OPENING_WORDS : start + length]),
        )
        for start in starts
    ]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _elsewhere(own: Passage, pool: list[Passage], domain: str) -> list[str]:
    others = [passage.continuation for passage in pool if passage.document != own.document]
    if len(others) < OPTIONS - 1:
        raise UserError(f"{domain!r} has too few held-out documents to draw wrong answers from; hold out more of it.")
    return others


def _first_of_each(items: Sequence[Item], key: Callable[[Item], Hashable]) -> list[Item]:
    return list({key(item): item for item in reversed(items)}.values())[::-1]


def _shuffled(items: list[Item], seed: str) -> list[Item]:
    return random.Random(seed).sample(items, len(items))
