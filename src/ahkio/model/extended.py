"""The stage from a model and a tokenizer with more tokens to the model that knows them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ahkio.core.artifact import sha256, write_json
from ahkio.core.config import how, plain
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs, Known, Stage
from ahkio.model.imported import TOKENIZER, gated
from ahkio.model.shape import read_config

ROWS = 128  # the vocabulary's rows are filled up to a multiple of this, for fast matrix products and shards of one size


@dataclass(frozen=True, kw_only=True)
class Extended(Stage):
    """The Hugging Face folder of `start` with the tokenizer of `tokenizer`, an ExtendedTokenizer of its own tokenizer.

    In the embedding, and in the output where that is another matrix, the row of a new id is the mean of the rows that
    its text had before, a row that only fills up is the mean of all old ones, and the old rows are untouched.
    """

    start: Stage
    tokenizer: Stage
    gate: Literal["check", "skip"] = how("check")  # skip: for models too large for this machine; the card says so

    def run(self, out: Path, inputs: Inputs) -> Facts:
        from ahkio.model.embeddings import extend_rows

        start, tokenizer = inputs[self.start].path, inputs[self.tokenizer].path
        first, pieces = _read_pieces(tokenizer, start)
        known = read_config(start).vocab
        if first > known:
            raise UserError(
                f"{start.name} has {known:,} rows, but its tokenizer gives ids up to {first - 1:,}; take the "
                "tokenizer that came with the model."
            )
        rows = rows_for(known, first + len(pieces))
        extend_rows(start, out, first, pieces, rows)
        _copy(start, tokenizer, out)
        write_json(out / "config.json", json.loads((start / "config.json").read_bytes()) | {"vocab_size": rows})
        facts, config = inputs[self.start].facts, read_config(out)
        said = f"Its tokenizer was extended by {len(pieces):,} tokens, whose weights begin as the mean of their parts."
        return facts | {
            "parameters": config.parameters,
            "config": plain(config),
            "origin": f"{facts.get('origin', '')} {said}".strip(),
            "added": len(pieces),
            "filled_up_rows": max(0, rows - max(known, first + len(pieces))),
            "gate": gated(out, self.gate),
        }

    def forecast(self, known: Known) -> Facts:
        """The shape to come, where that of `start` is known and its rows are all in use."""
        config, added = known(self.start).get("config"), known(self.tokenizer).get("added")
        if config is None or added is None:
            return {}
        return {"config": config | {"vocab": rows_for(config["vocab"], config["vocab"] + added)}}


def rows_for(known: int, ids: int) -> int:
    """How many rows a vocabulary of `ids` ids has, in a model that has had `known`."""
    return known if ids <= known else -(-ids // ROWS) * ROWS


def _read_pieces(tokenizer: Path, start: Path) -> tuple[int, list[list[int]]]:
    """The first new id, and for each new one the old ids that its text was; see ExtendedTokenizer."""
    path = tokenizer / "pieces.json"
    if not path.is_file():
        raise UserError(f"{tokenizer.name} adds no tokens to a model; give an ExtendedTokenizer as tokenizer.")
    said: dict[str, Any] = json.loads(path.read_bytes())
    own = start / "tokenizer.json"
    if not own.is_file() or sha256(own) != said["base_sha256"]:
        raise UserError(
            f"{tokenizer.name} extends another tokenizer than that of {start.name}; give it the model to start from as "
            "tokenizer."
        )
    return said["first"], said["pieces"]


def _copy(start: Path, tokenizer: Path, out: Path) -> None:
    """The tokenizer's files; and how the model is meant to be sampled."""
    for name in TOKENIZER:
        folder = start if name == "generation_config.json" else tokenizer
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
